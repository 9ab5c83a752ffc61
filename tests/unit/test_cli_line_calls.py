"""Lines that cannot be answered: what comes before them is answered, and they are named or skipped."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from dragoman.cli.line_calls import LineCalls, lines_from
from dragoman.cli.lines import BadLine
from dragoman.client import FieldViolation, InvalidRequestError, UnavailableError
from dragoman.common.errors import UsageError

asked: list[list[str]] = []

Answers = list[str | BadLine | None]


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    asked.clear()


def refused(*violations: tuple[str, str]) -> InvalidRequestError:
    return InvalidRequestError(
        "refused",
        code=grpc.StatusCode.INVALID_ARGUMENT,
        target="here:1",
        violations=tuple(FieldViolation(field, description) for field, description in violations),
    )


async def shout(texts: list[str]) -> list[str]:
    """Answers with capitals; refuses long texts, as a server does: two at a time, with their places."""
    asked.append(texts)
    bad = [(f"inputs[{at}]", f"{len(text)} tokens") for at, text in enumerate(texts) if len(text) > 9]
    if bad:
        raise refused(*bad[:2])
    return [text.upper() for text in texts]


def calls(*, skips_bad: bool = False, parse: Callable[[str], str] = str) -> LineCalls[str, str]:
    return LineCalls(parse=parse, ask=shout, unit="line", timeout_s=5, skips_bad=skips_bad)


async def answers_to(content: bytes, calls: LineCalls[str, str], tmp_path: Path) -> Answers:
    """What comes before everything ends, with the error that ends it last."""
    (tmp_path / "lines").write_bytes(content)
    answers: Answers = []
    with (tmp_path / "lines").open("rb") as file, contextlib.suppress(UsageError):
        async with contextlib.aclosing(calls.run(lines_from(file.fileno(), max_lines=4))) as answered:
            try:
                async for each in answered:
                    assert each.block.start == len(answers)
                    answers += each.answers
            except UsageError as error:
                answers.append(BadLine(str(error)))
    return answers


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"\xff\xfe", r"not UTF-8: b'\xff\xfe'"),
        (b"0123456789", "10 tokens"),
        (b"x" * 2_000_000, "longer than 1048576 bytes"),
    ],
)
@pytest.mark.parametrize("num_before", [0, 1, 4, 6])
async def test_what_comes_before_a_bad_line_is_answered(
    bad: bytes, reason: str, num_before: int, tmp_path: Path
) -> None:
    content = b"a\n" * num_before + bad + b"\nb\n\xff\n" * 3
    answers = await answers_to(content, calls(), tmp_path)
    assert answers == [*["A"] * num_before, BadLine(f"line {num_before + 1}: {reason}")]


async def test_the_first_of_several_bad_lines_is_named(tmp_path: Path) -> None:
    long = "0123456789"
    answers = await answers_to(f"a\n{long}\n{long}x\n{long}\n".encode(), calls(), tmp_path)
    assert answers == ["A", BadLine("line 2: 10 tokens")]
    assert asked[-1] == ["a"]


async def test_skipped_lines_keep_their_place_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = b"a\n\n0123456789\n\xff\nb\n" + b"0123456789x\n" * 4 + b"c"
    answers = await answers_to(content, calls(skips_bad=True), tmp_path)
    long, odd = BadLine("10 tokens"), BadLine(r"not UTF-8: b'\xff'")
    assert answers == ["A", None, long, odd, "B", *[BadLine("11 tokens")] * 4, "C"]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "line 3 skipped: 10 tokens"
    assert told[-1] == "skipped 6 of 10 lines"
    assert len(told) == 7


async def test_a_line_of_which_nothing_is_seen_is_an_empty_one(tmp_path: Path) -> None:
    content = "a\n\u200b\n\ufeff\n\x01\n\u00a0\t\nb\n"
    assert await answers_to(content.encode(), calls(), tmp_path) == ["A", None, None, None, None, "B"]
    assert asked == [["a"], ["b"]]


async def test_many_skipped_lines_are_named_up_to_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = await answers_to(b"\xff\n" * 1000, calls(skips_bad=True), tmp_path)
    assert len(answers) == 1000
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 11
    assert told[-1] == "skipped 1,000 of 1,000 lines"


async def test_a_line_that_cannot_be_parsed_is_bad(tmp_path: Path) -> None:
    def parse(line: str) -> str:
        if line == "odd":
            raise ValueError("odd indeed")
        return line

    content = b"a\nodd\nb\n"
    assert await answers_to(content, calls(parse=parse), tmp_path) == ["A", BadLine("line 2: odd indeed")]
    skipped = await answers_to(content, calls(parse=parse, skips_bad=True), tmp_path)
    assert skipped == ["A", BadLine("odd indeed"), "B"]


@pytest.mark.parametrize(
    "error",
    [
        refused(("options.top_p", "1.5 is not at most 1")),
        refused(("inputs[0]", "is odd"), ("options.top_p", "1.5 is not at most 1")),
        refused(("inputs", "is more than there can be")),
        refused(),
        UnavailableError("gone", code=grpc.StatusCode.UNAVAILABLE, target="here:1"),
    ],
)
async def test_what_is_no_lines_fault_is_not_skipped(error: Exception) -> None:
    async def fail(texts: list[str]) -> list[str]:
        raise error

    failing: LineCalls[str, str] = LineCalls(parse=str, ask=fail, unit="line", timeout_s=5, skips_bad=True)
    with pytest.raises(type(error)) as caught:
        await anext(failing.run(lines_from(["a", "b"])))
    assert caught.value is error


async def test_a_source_and_its_target_that_are_both_refused_are_one_bad_pair() -> None:
    failures = [refused(("pairs[1].source", "is long"), ("pairs[1].target", "is long"))]

    async def ask(texts: list[str]) -> list[str]:
        if failures:
            raise failures.pop()
        return texts

    pairs: LineCalls[str, str] = LineCalls(parse=str, ask=ask, unit="pair", timeout_s=5, skips_bad=True)
    each = await anext(pairs.run(lines_from(["a", "b", "c"])))
    assert each.answers == ["a", BadLine("target: is long"), "c"]
