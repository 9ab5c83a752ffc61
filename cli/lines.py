"""Lines of a file as they arrive, for asyncio, in constant memory."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from dragoman.common.errors import UsageError

__all__ = ["BadLine", "Block", "blocks_of", "read_blocks", "read_text"]

MAX_LINE_BYTES = 1024 * 1024

_CHUNK_BYTES = 64 * 1024
_MAX_CHUNKS = 4
_SHOWN_BYTES = 40
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be answered, and why."""

    reason: str


@dataclass(frozen=True)
class Block:
    """Consecutive lines, without their line ends.

    Attributes:
        start: How many lines came before.
        lines: The lines; a `BadLine` stands for one that is no text.
        num_bytes: How long they are in the file, with their line ends.
    """

    start: int
    lines: tuple[str | BadLine, ...]
    num_bytes: int = 0


def blocks_of(lines: Sequence[str], *, max_lines: int) -> list[Block]:
    """Cut `lines` into blocks."""
    return [
        Block(start, tuple(lines[start : start + max_lines])) for start in range(0, len(lines), max_lines)
    ]


async def read_blocks(handle: int, *, max_lines: int) -> AsyncIterator[Block]:
    """Blocks of up to `max_lines` lines of the file with the descriptor `handle`.

    What is there is given at once, so that lines that trickle in are not held back to fill a block. A line
    that is not UTF-8 or longer than `MAX_LINE_BYTES` is a `BadLine`; the lines after it are read as ever. A
    byte order mark at the beginning of the file is left out.
    """
    num_lines = 0
    rest = b""
    is_dropping = False  # what is left of a line that was too long
    is_first = True
    async for chunk in _read_chunks(handle):
        *complete, rest = (rest + chunk).split(b"\n")
        if complete and is_dropping:
            del complete[0]
            is_dropping = False
        if is_first and (complete or len(rest) >= len(_BYTE_ORDER_MARK)):
            is_first = False
            if complete:
                complete[0] = complete[0].removeprefix(_BYTE_ORDER_MARK)
            else:
                rest = rest.removeprefix(_BYTE_ORDER_MARK)
        for start in range(0, len(complete), max_lines):
            lines = complete[start : start + max_lines]
            yield _block(num_lines + start, lines)
        num_lines += len(complete)
        if is_dropping:
            rest = b""
        elif len(rest) > MAX_LINE_BYTES:
            yield _block(num_lines, [rest])
            num_lines += 1
            is_dropping, rest = True, b""
    if rest:
        yield _block(num_lines, [rest.removeprefix(_BYTE_ORDER_MARK) if is_first else rest])


def read_text(handle: int, name: str) -> str:
    """All of the file with the descriptor `handle`, without a byte order mark.

    Raises:
        UsageError: it is not UTF-8; the message names the file by `name`, and the line.
    """
    with open(handle, "rb", closefd=False) as file:
        content = file.read().removeprefix(_BYTE_ORDER_MARK)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        shown = content[error.start : error.start + _SHOWN_BYTES]
        raise UsageError(f"{name}, line {line}: not UTF-8: {shown!r}") from error


def _block(start: int, lines: Sequence[bytes]) -> Block:
    return Block(start, tuple(map(_decoded, lines)), sum(len(line) + 1 for line in lines))


def _decoded(line: bytes) -> str | BadLine:
    if len(line) > MAX_LINE_BYTES:
        return BadLine(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        return BadLine(f"not UTF-8: {line[:_SHOWN_BYTES]!r}")


async def _read_chunks(handle: int) -> AsyncIterator[bytes]:
    """Yields the chunks that are read from `handle`, until its end.

    The reads are made on a daemon thread (event loops cannot wait for plain files), on the bare
    descriptor: a thread that is stuck in a read of `sys.stdin` would keep the interpreter from leaving.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    room = threading.Semaphore(_MAX_CHUNKS)
    left = threading.Event()
    # Of its own: the caller's may be closed, and its number be another file's, while the thread still reads.
    own_handle = os.dup(handle)

    def read_all() -> None:
        try:
            while room.acquire() and not left.is_set():
                try:
                    chunk: bytes | OSError = os.read(own_handle, _CHUNK_BYTES)
                except OSError as error:
                    chunk = error
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
                if not chunk or isinstance(chunk, OSError):
                    return
        except RuntimeError:  # the loop has closed: nobody reads on
            return
        finally:
            os.close(own_handle)

    threading.Thread(target=read_all, name="read-lines", daemon=True).start()
    try:
        while chunk := await chunks.get():
            if isinstance(chunk, OSError):
                raise chunk
            yield chunk
            room.release()
    finally:
        left.set()
        room.release()
