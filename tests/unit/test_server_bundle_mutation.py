"""Whatever happens to bundle.json: the bundle loads, and can be told of, or is refused in one line."""

import copy
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.damaged_bundles import FIXTURES, GENERATION, TRANSLATION, load

from dragoman.server.bundle.reader import Bundle
from dragoman.server.errors import BundleError
from dragoman.server.fronts.grpc.dragoman_v1.model import model_message
from dragoman.server.models.served_model import ServedModel

ORIGINAL = "original.json"
NUMBERS = [
    -1,
    0,
    1,
    2,
    0.5,
    2**31,
    2**32,
    2**53 + 1,
    2**63,
    2**64,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
]
TEXTS = ["", ".", "..", "/", "a/b", "\0", "\ud800", "é", "decode.onnx", "key_0", "x" * 300, "a\nb"]
SCALARS = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.text())
VALUES = st.recursive(
    SCALARS,
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module", params=[TRANSLATION, GENERATION])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(FIXTURES / request.param, tmp_path_factory.mktemp("models") / "any" / "1"))
    shutil.copy(folder / "bundle.json", folder / ORIGINAL)
    return folder


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of the document with each of its keys."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    found = [(value, key) for key in keys]
    for _, key in list(found):
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def loads_or_says_why(folder: Path, content: bytes) -> None:
    (folder / "bundle.json").write_bytes(content)
    bundle, problem = None, ""
    try:
        bundle = load(folder).bundle
    except BundleError as error:
        problem = str(error)
    assert problem.isprintable()  # a line feed is not
    if bundle is not None:
        can_be_told_of(bundle)


def can_be_told_of(bundle: Bundle) -> None:
    told = SimpleNamespace(
        name=bundle.name,
        version=bundle.version,
        provider="cpu",
        manifest=bundle.manifest,
        max_input_tokens=bundle.manifest.limits.max_source_tokens,
    )
    message = model_message(cast("ServedModel", told))
    assert type(message).FromString(message.SerializeToString()) == message
    assert json_format.MessageToDict(message)["name"] == "any"


SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(data=st.data(), replacement=VALUES, how=st.sampled_from(["replace", "remove", "swap"]))
def test_any_change_of_a_value(folder: Path, data: st.DataObject, replacement: Any, how: str) -> None:
    original = json.loads((folder / ORIGINAL).read_bytes())
    manifest = copy.deepcopy(original)
    container, key = data.draw(st.sampled_from(places(manifest)))
    if how == "remove":
        del container[key]
    elif how == "swap":
        other, other_key = data.draw(st.sampled_from(places(original)))
        container[key] = copy.deepcopy(other[other_key])
    else:
        container[key] = replacement
    loads_or_says_why(folder, json.dumps(manifest).encode())


@SLOW
@given(seed=st.integers(0, 2**32), num_changes=st.integers(1, 4))
def test_any_change_of_bytes(folder: Path, seed: int, num_changes: int) -> None:
    content, rng = bytearray((folder / ORIGINAL).read_bytes()), random.Random(seed)
    for _ in range(num_changes):
        place = rng.randrange(len(content))
        match rng.randrange(3):
            case 0:
                content[place] = rng.randrange(256)
            case 1:
                del content[place : place + rng.randrange(1, 50)]
            case _:
                content[place:place] = rng.choice([b"9", b"-", b".", b"[", b"{", b'"', b"\\u0000", b"\xff"])
    loads_or_says_why(folder, bytes(content))
