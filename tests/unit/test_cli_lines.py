import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.cli.lines import Block, blocks_of, read_blocks
from common.errors import UsageError


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue  # the test closed it


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
    assert all(block.lines[0].startswith(f"{block.start} ") for block in blocks)


async def test_what_is_there_is_not_held_back(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    blocks = read_blocks(reader, max_lines=32)
    os.write(writer, b"first\nsec")
    assert await anext(blocks) == Block(0, ("first",))
    os.write(writer, b"ond\n")
    assert await anext(blocks) == Block(1, ("second",))
    os.close(writer)
    assert [block async for block in blocks] == []


async def test_a_line_that_is_no_text_is_named_after_those_before_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 3 is not UTF-8: b'\\xff\\xfe'"):
        await lines_of(b"a\nb\n\xff\xfe\n", tmp_path)


async def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    endless = os.open("/dev/zero", os.O_RDONLY)
    try:
        with pytest.raises(UsageError, match="line 1 is longer than 1048576 bytes"):
            await anext(read_blocks(endless, max_lines=32))
    finally:
        os.close(endless)


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


def test_blocks_know_where_they_start() -> None:
    assert blocks_of(["a", "b", "c"], max_lines=2) == [Block(0, ("a", "b")), Block(2, ("c",))]
