"""The end of a version's calls in a front, before its memory is freed."""

import asyncio

from dragoman.server.models.registry import Registry
from dragoman.server.models.served_model import ServedModel

__all__ = ["end_calls"]

_removing: set[asyncio.Task[None]] = set()
"""The event loop itself keeps no task alive."""


async def end_calls(registry: Registry | None, model: ServedModel, limit_s: float) -> None:
    """Let a version take no calls; those that run have `limit_s` to end, then they fail with `EngineUnavailable`.

    Args:
        registry: of the front; None: it has none yet.
        model: the version.
        limit_s: the time that its calls have.
    """
    reason = f"{model.name}/{model.version} was unloaded"
    if registry is not None:
        removing = asyncio.create_task(registry.remove(model.name, model.version))
        _removing.add(removing)
        removing.add_done_callback(_removing.discard)
        await asyncio.wait([removing], timeout=limit_s)
    # A call whose client does not read its answer may hold its lease for minutes: nothing waits for that.
    model.engine.close(reason)
