"""The package's face, and the messages it makes."""

import subprocess
import sys
from typing import Any

import pytest

import dragoman.client
from dragoman.client import messages
from dragoman.client.errors import FieldViolation
from dragoman.common.errors import UsageError
from dragoman.v1 import decoding_pb2


def test_every_public_name_is_there() -> None:
    assert {name for name in dragoman.client.__all__ if not hasattr(dragoman.client, name)} == set()
    assert sorted(dragoman.client.__all__) == dragoman.client.__all__
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        _ = dragoman.client.Clinet  # type: ignore[attr-defined]


def test_the_library_imports_neither_training_nor_serving() -> None:
    unwanted = {"torch", "onnxruntime", "numpy", "rich", "typer"}
    unwanted |= {f"dragoman.{folder}" for folder in ("server", "model", "export", "cli")}
    program = (
        "import sys, dragoman; dragoman.Client, dragoman.AsyncClient;"
        f" print(*sorted({unwanted} & set(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert loaded.stdout.strip() == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": -1}, "max_tokens = -1"),
        ({"seed": 2**64}, f"seed = {2**64}"),
        ({"suppressed_token_ids": [-1]}, r"suppressed_token_ids = \[-1\]"),
        ({"stop": "\udcff"}, r"stop = '\\udcff'"),
    ],
)
def test_a_value_that_no_message_holds_is_refused(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        messages.translate_request("un", model="dates", version="", options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": "5"}, r"^max_tokens must be a whole number, not '5' \(str\)$"),
        ({"max_tokens": 1.5}, r"^max_tokens must be a whole number, not 1\.5 \(float\)$"),
        ({"top_p": "high"}, r"^top_p must be a number, not 'high' \(str\)$"),
        ({"stop": [3]}, r"^stop must be a text or a list of texts, not \[3\] \(list\)$"),
        ({"stop": b"x"}, r"^stop must be a text or a list of texts, not b'x' \(bytes\)$"),
        (
            {"suppressed_token_ids": 7},
            r"^suppressed_token_ids must be a list of whole numbers, not 7 \(int\)$",
        ),
        ({"suppressed_token_ids": "7"}, "^suppressed_token_ids must be a list of whole numbers, not '7'"),
        ({"alignment": "yes"}, "^alignment must be True or False, not 'yes'"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_in_a_sentence(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        messages.translate_request("un", model="dates", version="", options=options)


def test_an_unknown_option_is_an_error_like_any_unknown_keyword() -> None:
    unknown: Any = {"temprature": 1.0}
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        messages.generate_request("def", model="stdlib", version="", options=unknown)


def test_the_library_knows_every_option_of_the_contract() -> None:
    fields = decoding_pb2.DecodingOptions.DESCRIPTOR.fields
    assert set(dragoman.client.DecodingOptions.__annotations__) == {field.name for field in fields}


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"texts\[1\] is not valid Unicode: '\\udcff'"):
        messages.translate_request(["un", "\udcff"], model="dates", version="", options={})
    with pytest.raises(UsageError, match=r"target_prefixes\[0\] is not valid Unicode"):
        messages.translate_request("un", model="dates", version="", options={}, target_prefixes="\udcff")
    with pytest.raises(UsageError, match=r"targets\[0\] is not valid Unicode"):
        messages.score_translations_request("un", "\udcff", model="dates", version="", num_alternatives=0)


def test_a_number_of_alternatives_that_no_message_holds_is_refused() -> None:
    with pytest.raises(UsageError, match="num_alternatives = -1"):
        messages.score_texts_request("un", model="stdlib", version="", num_alternatives=-1)


def test_refused_texts_and_pairs_are_told_by_their_place() -> None:
    violations = [
        FieldViolation("inputs[0]", "is empty"),
        FieldViolation("pairs[2].source", "is long"),
        FieldViolation("texts[3]", "is odd"),
        FieldViolation("options.top_p", "is high"),
    ]
    assert messages.refused_inputs(violations) == {0: "is empty", 2: "source: is long", 3: "is odd"}
