"""A server's process: it runs a `Server` until a signal says stop, and ends with the right exit code whatever happens.

What ends the process early is here too: a thread or a callback of the event loop that dies, memory that is refused.
"""

import asyncio
import contextlib
import gc
import os
from collections.abc import Callable
from functools import partial

import structlog
from prometheus_client import disable_created_metrics

from dragoman.common.errors import DragomanError, UsageError
from dragoman.server.app import Server
from dragoman.server.config import EngineSettings, ServerSettings
from dragoman.server.engine.layout import run_in_processes
from dragoman.server.engine.processes.supervisor import Supervisor
from dragoman.server.operations.crashes import leaving_on_dead_threads, loop_error_handler
from dragoman.server.operations.log_writer import DroppedLinesCollector
from dragoman.server.operations.logs import ServerLog, queued_logs
from dragoman.server.operations.loop_watch import LoopWatch
from dragoman.server.operations.stop_signals import EXIT_BROKEN, StopSignals
from dragoman.server.processes.linux import FRONT_ARENAS, limit_arenas

__all__ = ["END_S", "serve"]

END_S = 8.0
"""How long the server may take to end once the drain's time is over. Longer than the sum of what it waits for
then: gRPC (`STOP_LIMIT_S`), loading, lanes, the log."""

DRAIN_KEYS = frozenset({"server.drain_delay_s", "server.drain_timeout_s"})

REPORT_INTERVAL_S = 5.0
"""How often the log says how many lines were held back."""

_log = structlog.get_logger(__name__)


def serve(
    settings: ServerSettings,
    signals: StopSignals,
    *,
    raise_errors: bool = False,
    host: Supervisor | None = None,
    read_settings: Callable[[], ServerSettings] | None = None,
) -> int:
    """Serve until a signal says stop; returns the process's exit code. A failure to start is one line.

    Args:
        settings: Where to listen, what to serve.
        signals: Say when to stop.
        raise_errors: Raise what keeps the server from starting, instead of logging it.
        host: The engine's host if it has been started (`start_host`): it loads models while this process imports.
        read_settings: Reads the settings again, at SIGHUP; None: they cannot change.

    Raises:
        UsageError: there is no model to serve, or a bundle cannot be believed.
        OperationError: a port is in use.
    """
    _limit_heaps(settings.engine)
    # Texts are tokenised in one thread: a pool of `tokenizers` would take the cores from the lanes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, of use to nobody here
    leave = partial(signals.leave, EXIT_BROKEN)
    with queued_logs(settings.logging) as log, leaving_on_dead_threads(leave):
        signals.before_leaving = partial(_say_last, log)
        runner = asyncio.Runner()
        try:
            is_over = runner.run(_run(settings, signals, log, host, read_settings or (lambda: settings)))
        except DragomanError as error:
            runner.close()
            if raise_errors:
                raise
            _log.error("cannot_serve", error=str(error))
            return 2 if isinstance(error, UsageError) else 1
        except BaseException as error:  # noqa: BLE001  an orderly end might wait for ever now
            if _is_shortage(error):
                _log.error(
                    "broken", error=f"this process can have no more memory or threads: {error or 'no memory'}"
                )
            else:
                _log.error("broken", exc_info=error)
            signals.leave(EXIT_BROKEN, "the event loop ended")
        if not is_over:  # native threads still run: what they use must stay
            signals.leave(0, "calls or models did not end in time")
        runner.close()
    return 0


def _limit_heaps(settings: EngineSettings) -> None:
    """Have one heap in this process where no lane is: lanes that are threads allocate beside the front."""
    with contextlib.suppress(UsageError):  # the start refuses these settings
        if run_in_processes(settings):
            limit_arenas(FRONT_ARENAS)


async def _run(
    settings: ServerSettings,
    signals: StopSignals,
    log: ServerLog,
    host: Supervisor | None,
    read_settings: Callable[[], ServerSettings],
) -> bool:
    """Serve until a signal comes, then drain; returns whether everything has ended.

    Raises:
        UsageError: there is no model to serve, or a bundle cannot be believed.
        OperationError: a port is in use.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(loop_error_handler(partial(signals.leave, EXIT_BROKEN)))
    signals.limit_s = _limit_s(settings)
    signals.call_on_stop(partial(_soon, loop, stop.set))
    try:
        server = Server(settings, partial(_on_crash, signals), host)
    except BaseException:
        if host is not None:
            host.close_at_once()
        raise
    server.reloader.register(
        "time to stop", lambda new: setattr(signals, "limit_s", _limit_s(new)), keys=DRAIN_KEYS
    )
    signals.call_on_reload(partial(_soon, loop, server.reloader.reload, read_settings))
    if log.writer is not None:
        server.metrics.read_at_scrape(DroppedLinesCollector(log.writer))
    reporting = asyncio.create_task(_report_losses(log))
    set_stuck = partial(setattr, server.lifecycle, "is_stuck")
    with LoopWatch(set_stuck, partial(signals.leave, EXIT_BROKEN)):
        try:
            await server.start(stop)
            # What was loaded stays: a full collection would look through all of it for 50 ms, lanes waiting.
            gc.freeze()
            await stop.wait()
            _log.info("stopping", signal=signals.first and signals.first.name)
            await server.drain()
        finally:
            reporting.cancel()
            is_over = await server.close()
    log.report_losses()
    _log.info("stopped")
    return is_over


def _soon(loop: asyncio.AbstractEventLoop, do: Callable[..., object], *arguments: object) -> None:
    """From another thread: call `do` in the loop. One that is closed has stopped; the log may still be written."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(do, *arguments)


def _limit_s(settings: ServerSettings) -> float:
    """How long the server may take to end."""
    return settings.server.drain_delay_s + settings.server.drain_timeout_s + END_S


def _is_shortage(error: BaseException) -> bool:
    """Whether the system refused memory or a thread. Where that happened in our code says nothing then."""
    no_thread = isinstance(error, RuntimeError) and str(error) == "can't start new thread"
    return no_thread or isinstance(error, MemoryError)


async def _report_losses(log: ServerLog) -> None:
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S)
        log.report_losses()


def _say_last(log: ServerLog, reason: str) -> None:
    _log.warning("exiting_at_once", reason=reason)
    log.flush()


def _on_crash(signals: StopSignals, error: BaseException) -> None:
    if isinstance(error, DragomanError):
        _log.error("broken", error=str(error))
        signals.leave(EXIT_BROKEN, "there is no engine any more")
    _log.error("broken", exc_info=error)
    signals.leave(EXIT_BROKEN, f"gRPC accepts no more calls: {type(error).__name__}")
