"""The package's face, and the messages it makes."""

import subprocess
import sys
from typing import Any

import pytest

import client
from client import messages
from common.errors import UsageError


def test_every_public_name_is_there() -> None:
    assert {name for name in client.__all__ if not hasattr(client, name)} == set()
    assert sorted(client.__all__) == client.__all__
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        _ = client.Clinet


def test_the_library_imports_neither_training_nor_serving() -> None:
    program = (
        "import sys, client; client.Client, client.AsyncClient; heavy = {'torch', 'onnxruntime', 'numpy',"
        " 'rich', 'typer', 'server', 'model', 'export'}; print(*sorted(heavy & set(sys.modules)))"
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
        ({"top_p": "high"}, "top_p = 'high'"),
        ({"stop": [3]}, r"stop = \[3\]"),
    ],
)
def test_a_value_that_no_message_holds_is_refused(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        messages.translate_request("un", model="dates", version="", options=options)


def test_an_unknown_option_is_an_error_like_any_unknown_keyword() -> None:
    unknown: Any = {"temprature": 1.0}
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        messages.generate_request("def", model="stdlib", version="", options=unknown)


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"inputs\[1\] is not valid Unicode: '\\udcff'"):
        messages.translate_request(["un", "\udcff"], model="dates", version="", options={})
