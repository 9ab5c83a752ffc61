import os
import tracemalloc
from pathlib import Path

import pytest
from tests.conftest import Pipe

from dragoman.cli.lines import BadLine, Block, blocks_of, read_blocks, read_text
from dragoman.common.errors import UsageError


async def lines_of(content: bytes, tmp_path: Path, max_lines: int = 3) -> list[Block]:
    path = tmp_path / "lines"
    path.write_bytes(content)
    with path.open("rb") as file:
        return [block async for block in read_blocks(file.fileno(), max_lines=max_lines)]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a\n", ["a"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\n\na\n\n", ["", "", "a", ""]),
        ("é\u2028ü\n中\n".encode(), ["é\u2028ü", "中"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        (b"\xef\xbb\xbfa", ["a"]),
        (b"\xef\xbb\xbf", []),
    ],
)
async def test_lines_are_cut_at_line_feeds_only(content: bytes, lines: list[str], tmp_path: Path) -> None:
    blocks = await lines_of(content, tmp_path)
    assert [line for block in blocks for line in block.lines] == lines


async def test_lines_across_reads_stay_whole_and_counted(tmp_path: Path) -> None:
    lines = [f"{number} " + "é" * (number % 97) for number in range(20_000)]
    blocks = await lines_of("\n".join(lines).encode(), tmp_path, max_lines=32)
    assert [line for block in blocks for line in block.lines] == lines
    assert max(len(block.lines) for block in blocks) == 32
    assert all(str(block.lines[0]).startswith(f"{block.start} ") for block in blocks)
    assert sum(block.num_bytes for block in blocks) == len("\n".join(lines).encode()) + 1


async def test_what_is_there_is_not_held_back(pipe: Pipe) -> None:
    blocks = read_blocks(pipe.reader.fileno(), max_lines=32)
    pipe.writer.write(b"first\nsec")
    assert await anext(blocks) == Block(0, ("first",), 6)
    pipe.writer.write(b"ond\n")
    assert await anext(blocks) == Block(1, ("second",), 7)
    pipe.writer.close()
    assert [block async for block in blocks] == []


async def test_a_line_that_is_no_text_stands_between_the_others(tmp_path: Path) -> None:
    [block] = await lines_of(b"a\n\xff\xfe\nb\n", tmp_path)
    assert block.lines == ("a", BadLine(r"not UTF-8: b'\xff\xfe'"), "b")


@pytest.mark.parametrize("num_bytes", [1_048_577, 1_200_000, 5_000_000])
async def test_a_line_that_is_too_long_is_one_line(num_bytes: int, tmp_path: Path) -> None:
    blocks = await lines_of(b"a\n" + b"x" * num_bytes + b"\nb\n\nc", tmp_path, max_lines=32)
    too_long = BadLine("longer than 1048576 bytes")
    assert [line for block in blocks for line in block.lines] == ["a", too_long, "b", "", "c"]
    assert [block.start for block in blocks] == sorted({block.start for block in blocks})


async def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    endless = os.open("/dev/zero", os.O_RDONLY)
    try:
        block = await anext(read_blocks(endless, max_lines=32))
        assert block.lines == (BadLine("longer than 1048576 bytes"),)
    finally:
        os.close(endless)


def test_a_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("\ufeffeins\nzwei\n".encode() + b"dr\xffei\n")
    with (tmp_path / "text").open("rb") as file:
        with pytest.raises(UsageError, match=r"^standard input, line 3: not UTF-8: b'\\xffei"):
            read_text(file.fileno(), "standard input")
        (tmp_path / "text").write_bytes("\ufeffeins\nzwei\r\n".encode())
        file.seek(0)
        assert read_text(file.fileno(), "standard input") == "eins\nzwei\r\n"


async def test_a_long_file_is_read_no_faster_than_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"a line of text\n" * 1_000_000)
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            num_lines = 0
            async for block in read_blocks(file.fileno(), max_lines=32):
                num_lines += len(block.lines)
                if num_lines > 20_000:
                    break
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) < 1_000_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


async def test_a_reader_that_is_left_reads_no_other_file(tmp_path: Path, pipe: Pipe) -> None:
    reader = pipe.reader.fileno()
    blocks = read_blocks(reader, max_lines=32)
    pipe.writer.write(b"first\n")
    await anext(blocks)
    await blocks.aclose()  # type: ignore[attr-defined]
    (tmp_path / "other").write_text("whole")
    with (tmp_path / "other").open("rb") as other:
        os.dup2(other.fileno(), reader)  # the pipe is closed, and its number is the other file's
        pipe.writer.close()
        assert [block.lines async for block in read_blocks(reader, max_lines=32)] == [("whole",)]


def test_blocks_know_where_they_start() -> None:
    assert blocks_of(["a", "b", "c"], max_lines=2) == [Block(0, ("a", "b")), Block(2, ("c",))]
