"""`dragoman serve` with graphs that sleep: `python -m benchmarks.serving.sleeping_server --models DIR ...`."""

import asyncio
import sys
from typing import Final

from dragoman.server import __main__ as server
from dragoman.server.models import running, spawning, starting
from dragoman.server.models.registry import Registry

__all__ = ["put_to_sleep"]

_HOST_MODULE: Final = "benchmarks.serving.sleeping_host"

_load_in_threads = running.ModelsInThreads.load


def put_to_sleep() -> None:
    """Have sleeping graphs in this process and in its engine's host, wherever its lanes run."""
    spawning.HOST_MODULE = starting.HOST_MODULE = _HOST_MODULE  # type: ignore[attr-defined]
    running.ModelsInThreads.load = _load  # type: ignore[assignment, method-assign]


async def _load(models: running.ModelsInThreads, stop: asyncio.Event) -> Registry | None:
    # It has numpy, and ONNX Runtime, which a server without lanes has not.
    from benchmarks.serving.sleeping_graphs import install  # noqa: PLC0415

    install()
    return await _load_in_threads(models, stop)


if __name__ == "__main__":
    put_to_sleep()
    sys.exit(server.main())
