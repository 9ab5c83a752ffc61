"""Lines of a file as they arrive, for asyncio, in constant memory."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from common.errors import UsageError

__all__ = ["Block", "blocks_of", "read_blocks"]

MAX_LINE_BYTES = 1024 * 1024

_CHUNK_BYTES = 64 * 1024
_MAX_CHUNKS = 4


@dataclass(frozen=True)
class Block:
    """Consecutive lines, without their line ends; `start` is how many came before."""

    start: int
    lines: tuple[str, ...]


def blocks_of(lines: Sequence[str], *, max_lines: int, start: int = 0) -> list[Block]:
    """Cut `lines` into blocks."""
    return [
        Block(start + index, tuple(lines[index : index + max_lines]))
        for index in range(0, len(lines), max_lines)
    ]


async def read_blocks(handle: int, *, max_lines: int) -> AsyncIterator[Block]:
    """Blocks of up to `max_lines` lines of the file with the descriptor `handle`.

    What is there is given at once, so that lines that trickle in are not held back to fill a block.

    Raises:
        UsageError: a line is not UTF-8 or longer than `MAX_LINE_BYTES`.
    """
    num_lines = 0
    rest = b""
    async for chunk in _read_chunks(handle):
        *complete, rest = (rest + chunk).split(b"\n")
        lines = [_decode(line, num_lines + number) for number, line in enumerate(complete, start=1)]
        for block in blocks_of(lines, max_lines=max_lines, start=num_lines):
            yield block
        num_lines += len(lines)
        if len(rest) > MAX_LINE_BYTES:
            raise UsageError(f"line {num_lines + 1} is longer than {MAX_LINE_BYTES} bytes")
    if rest:
        yield Block(num_lines, (_decode(rest, num_lines + 1),))


def _decode(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"line {number} is not UTF-8: {line[:40]!r}") from error


async def _read_chunks(handle: int) -> AsyncIterator[bytes]:
    """What reads of `handle` give, until its end.

    The reads are made on a daemon thread (event loops cannot wait for plain files), on the bare
    descriptor: a thread that is stuck in a read of `sys.stdin` would keep the interpreter from leaving.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    room = threading.Semaphore(_MAX_CHUNKS)

    def read_all() -> None:
        while True:
            room.acquire()
            try:
                chunk: bytes | OSError = os.read(handle, _CHUNK_BYTES)
            except OSError as error:
                chunk = error
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:  # the loop has closed: nobody reads on
                return
            if not chunk or isinstance(chunk, OSError):
                return

    threading.Thread(target=read_all, name="read-lines", daemon=True).start()
    while chunk := await chunks.get():
        if isinstance(chunk, OSError):
            raise chunk
        yield chunk
        room.release()
