"""A bundle is believed only when every byte agrees."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dragoman.server.bundle.reader import SCHEMA_VERSION, Bundle, one_line
from dragoman.server.errors import BundleError

FIXTURES = Path(__file__).parents[1] / "fixtures" / "bundles"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "spell" / "1", tmp_path / "spell" / "1"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_reads_name_version_and_limits(folder: Path) -> None:
    bundle = Bundle.read(folder)
    assert (bundle.name, bundle.version, bundle.manifest.task) == ("spell", "1", "translation")
    assert bundle.manifest.limits.max_source_tokens == 32


def test_a_flipped_byte_names_the_file(folder: Path) -> None:
    path = folder / "decode.onnx"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"decode\.onnx is corrupt: its SHA-256"):
        Bundle.read(folder)


def test_a_torn_file_names_the_file(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BundleError, match=r"tokenizer\.json is corrupt: \d+ bytes where"):
        Bundle.read(folder)


def test_a_missing_file_names_the_file(folder: Path) -> None:
    (folder / "encode.onnx").unlink()
    with pytest.raises(BundleError, match=r"cannot read .*encode\.onnx: No such file"):
        Bundle.read(folder)


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle in .*nowhere: cannot read bundle\.json") as caught:
        Bundle.read(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema version 99; this server reads versions 1 and 2"),
        ({"task": "singing"}, "task = 'singing': Input should be 'translation' or 'generation'"),
        ({"graphs": {}}, "a translation bundle needs a graph 'encode'"),
        ({"files": {}}, r"align\.onnx is used but has no entry under files"),
        (
            {"files": {"../../secret": {"sha256": "0" * 64, "num_bytes": 0}}},
            r"files\.\.\./\.\./secret = .*: it is not a plain file name",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_says_where(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.read(folder)


def test_newer_keys_are_passed_by(folder: Path) -> None:
    edit(folder, added_later={"x": 1})
    assert Bundle.read(folder).manifest.schema_version == SCHEMA_VERSION


def test_json_that_is_none_is_one_line(folder: Path) -> None:
    (folder / "bundle.json").write_text('{"schema_version": 1,')
    with pytest.raises(BundleError, match=r"bundle\.json is not a bundle manifest"):
        Bundle.read(folder)


def test_text_that_looks_like_a_special_token_is_text(folder: Path) -> None:
    bundle = Bundle.read(folder)
    end = bundle.manifest.special_tokens.end
    assert bundle.tokenizer.encode("1</s>2").ids.count(end) == 1, "only the one at the end"


def test_what_a_library_repeats_of_a_bundle_is_printable() -> None:
    error = ValueError(
        "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Token `o\x7f\x1b[2J` is\tunknown\nand more"
    )
    assert one_line(error) == "Token `o\\x7f\\x1b[2J` is\\tunknown"
    assert one_line(ValueError("größer als »1«")) == "größer als »1«"
