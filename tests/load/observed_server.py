"""`python -m tests.load.observed_server`: the server, which says how many asyncio tasks it has.

It takes the options of `python -m dragoman.server`. A connection to the Unix socket that the environment variable
OBSERVED_SERVER names gets the number, and is closed.
"""

import asyncio
import os
import socket
import sys
from pathlib import Path

from dragoman.server.__main__ import main
from dragoman.server.app import Server

__all__ = ["num_tasks"]

SOCKET = "OBSERVED_SERVER"


def num_tasks(path: Path) -> int:
    """The number of tasks of the server that listens at `path`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        return int(connection.makefile().read())


async def _tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    own = asyncio.current_task()
    writer.write(str(len(asyncio.all_tasks() - {own})).encode())
    await writer.drain()
    writer.close()


def _observe() -> None:
    start = Server.start

    async def observed(server: Server, stop: asyncio.Event | None = None) -> None:
        await asyncio.start_unix_server(_tell, os.environ[SOCKET])
        await start(server, stop)

    Server.start = observed  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    _observe()
    sys.exit(main())
