"""`dragoman top`: what servers do, live in a terminal."""

import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

import typer

from dragoman.cli.credentials import with_credentials
from dragoman.cli.options import examples
from dragoman.cli.output import json_line, report_console, write_text
from dragoman.client.credentials import Credentials
from dragoman.common.errors import OperationError

if TYPE_CHECKING:
    from dragoman.cli.top.figures import ModelFigures, ServerFigures
    from dragoman.cli.top.pages import PageSource

__all__ = ["EPILOG", "top"]

EPILOG = examples(
    "dragoman top  # the server on this machine; q ends it",
    "dragoman top pod-0:8002 pod-1:8002 --window 60",
    "dragoman top --json > figures.jsonl  # a line a second, until Ctrl-C",
    "dragoman top --once  # one table, for a ticket",
)
_DEFAULT_ADDRESS = "localhost:8002"


@with_credentials
def top(
    addresses: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HOST:PORT]...",
            help="HTTP ports of servers (server.metrics_port).",
            show_default=_DEFAULT_ADDRESS,
        ),
    ] = None,
    *,
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Time between readings.")
    ] = 1.0,
    window_s: Annotated[
        float,
        typer.Option(
            "--window", metavar="SECONDS", min=0.1, help="Rates and percentiles are over this time."
        ),
    ] = 10.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one table after one interval, and end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line an interval.")] = False,
    credentials: Credentials,
) -> None:
    """Show what servers do: calls and tokens a second, percentiles of latency, slots, queues, CPU and memory.

    The figures are those that Prometheus scrapes. Servers are listed one by one, and models over all of them. FIRST is
    the time to the first token (p95), QUEUE how long inputs waited for a slot (p95), BATCH the mean number of rows in a
    step, OLDEST how long the oldest input waits now. A narrow terminal shows the first columns alone.
    Where standard output is no terminal, one table is printed.
    """
    from dragoman.cli.top.pages import PageSource

    sources = [PageSource(each, credentials) for each in dict.fromkeys(addresses or [_DEFAULT_ADDRESS])]
    watch = _Watch(sources, window_s)
    if once or (as_json is False and not sys.stdout.isatty()):
        _show_once(watch, interval_s, as_json=as_json)
    elif as_json:
        _write_lines(watch, interval_s)
    else:
        _show_live(watch, interval_s)


class _Watch:
    """Readings of several servers."""

    def __init__(self, sources: "Sequence[PageSource]", window_s: float) -> None:
        from dragoman.cli.top.figures import History

        self._sources = sources
        self._histories: dict[str, History] = {each.address: History(window_s) for each in sources}
        self._errors: dict[str, str] = {}
        self._pool = ThreadPoolExecutor(len(sources), thread_name_prefix="metrics")

    def read(self) -> None:
        """Read all servers' pages."""
        list(self._pool.map(self._read, self._sources))

    def require(self, require: Callable[[list[bool]], bool]) -> None:
        """Raise OperationError, of the first server that gave no metrics, unless enough servers gave theirs.

        `require` is `all` or `any`.
        """
        if not require([each not in self._errors for each in self._histories]):
            raise OperationError(next(iter(self._errors.values())))

    def figures(self) -> "tuple[dict[str, ServerFigures | str], list[ModelFigures]]":
        """Of each server, and of each model."""
        from dragoman.cli.top.figures import models_of, server_of

        spans = {
            address: span
            for address, history in self._histories.items()
            if address not in self._errors and (span := history.span()) is not None
        }
        servers: dict[str, ServerFigures | str] = {
            address: self._errors[address]
            if address in self._errors
            else server_of(spans[address], time.time())
            for address in self._histories
        }
        return servers, models_of(list(spans.values()))

    def _read(self, source: "PageSource") -> None:
        try:
            page = source.fetch()
        except OperationError as error:
            self._errors[source.address] = str(error)
            return
        self._errors.pop(source.address, None)
        self._histories[source.address].add(time.monotonic(), page)


def _show_once(watch: _Watch, interval_s: float, *, as_json: bool) -> None:
    from dragoman.cli.top.view import as_json as to_json
    from dragoman.cli.top.view import screen

    watch.read()
    watch.require(all)
    time.sleep(interval_s)
    watch.read()
    watch.require(all)
    if as_json:
        write_text(json_line(to_json(*watch.figures())))
    else:
        console = report_console()
        console.print(screen(*watch.figures(), title=f"over {interval_s:g} s", width=console.width))


def _write_lines(watch: _Watch, interval_s: float) -> None:
    from dragoman.cli.top.view import as_json

    watch.read()
    watch.require(all)
    while True:
        time.sleep(interval_s)
        watch.read()
        write_text(json_line({"time": round(time.time(), 3), **as_json(*watch.figures())}))


def _show_live(watch: _Watch, interval_s: float) -> None:
    from rich.live import Live

    from dragoman.cli.top.view import screen

    title = f"every {interval_s:g} s; q or Ctrl-C ends"
    watch.read()
    watch.require(any)  # a wrong address is an error, not a screen
    console = report_console()
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as wait_for_key,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(screen(*watch.figures(), title=title, width=console.width), refresh=True)
            if wait_for_key(interval_s) == "q":
                return
            watch.read()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits for a key for so many seconds at most, and returns it or ""."""
    if not sys.stdin.isatty():

        def sleep(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield sleep
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)

    def wait(seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    try:
        tty.setcbreak(sys.stdin)
        yield wait
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
