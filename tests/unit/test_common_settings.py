"""Settings that do not fit their type: the key as a file writes it, the value, and what would be right."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from dragoman.common.errors import SettingsError
from dragoman.common.settings import Settings, parse_overrides, read_toml


class Part(Settings):
    num_threads: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    rate: float = 1.0
    names: tuple[Annotated[str, Field(min_length=1)], ...] = ()


class Whole(Settings):
    part: Part = Part()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("part.num_threads=0", "part.num_threads = 0: Input should be greater than 0, or 'auto'"),
        ("part.num_threads=x", "part.num_threads = 'x': Input should be a valid integer, "),
        ("part.rate=nan", "part.rate = nan: Input should be a finite number"),
        ("part.rate=-inf", "part.rate = -inf: Input should be a finite number"),
        ("part.rate=2020-01-01", "part.rate = datetime.date(2020, 1, 1): "),
        ("part.names=['a', '']", "part.names.1 = '': String should have at least 1 character"),
        ("part=5", "part = 5: it is a section of settings, not a value"),
        ("part.nope=1", "unknown key 'part.nope'"),
        ("part.num_thread=1", "unknown key 'part.num_thread'; did you mean 'num_threads'?"),
        ("rate=1", "unknown key 'rate'; did you mean 'part.rate'?"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Whole.load(parse_overrides({}, [override]), source="test")
    said = str(caught.value).removeprefix("test: ")
    assert said.startswith(message)
    assert said == message or message.endswith((" ", ","))


def test_a_long_value_is_cut() -> None:
    with pytest.raises(SettingsError) as caught:
        Whole.load({"part": {"rate": "x" * 100_000}}, source="test")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 5000, "5\nother = 6", "0x", "\0"])
def test_an_override_that_is_no_toml_is_a_text(text: str) -> None:
    assert parse_overrides({}, [f"key={text}"]) == {"key": text}


def test_overrides_keep_what_only_toml_can_say(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("day = 2020-01-01")
    values = read_toml(tmp_path / "a.toml")
    assert parse_overrides(values, ["part . rate = 2"]) == {**values, "part": {"rate": 2}}


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf[part]\r\nrate = 2.0\r\n")
    assert read_toml(tmp_path / "a.toml") == {"part": {"rate": 2.0}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"a = " + b"1" * 5000, "Exceeds the limit"),
        (b"a = ", "at end of document"),
        ("a = 1".encode("utf-16"), "can't decode byte 0xff"),
    ],
)
def test_what_is_no_toml_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=rf"^.*a\.toml is not valid TOML: [^\n]*{reason}") as caught:
        read_toml(tmp_path / "a.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "nothing.toml", "a\0b.toml", "x" * 300])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"^cannot read "):
        read_toml(tmp_path / name)
