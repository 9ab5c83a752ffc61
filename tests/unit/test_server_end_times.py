"""The server's end is bounded: what it waits for, one after the other, is less than its watchdog gives it."""

import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable

import pytest

from dragoman.server import serving
from dragoman.server.fronts.grpc import draining
from dragoman.server.fronts.processes import supervisor
from dragoman.server.models import running
from dragoman.server.operations import http_server, logs


def test_the_watchdog_waits_longer_than_all_waits_together() -> None:
    waits = (
        draining.STOP_LIMIT_S,
        running.LOADING_LIMIT_S,
        running.LANES_LIMIT_S,
        http_server.CLOSE_LIMIT_S,
        logs.FLUSH_S,
    )
    assert sum(waits) < serving.END_S


def test_the_watchdog_waits_longer_than_for_a_front_that_hangs_and_what_comes_after_it() -> None:
    """Lanes and host are killed, not waited for: they are gone within milliseconds, unless the system holds them."""
    waits = (
        supervisor.DRAIN_MARGIN_S,
        draining.STOP_LIMIT_S,
        http_server.CLOSE_LIMIT_S,
        logs.FLUSH_S,
    )
    assert sum(waits) < serving.END_S
    assert supervisor.DRAIN_MARGIN_S > draining.STOP_LIMIT_S, "a further front ends as this one does"


def test_an_answer_that_is_being_computed_holds_up_no_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CLOSE_LIMIT_S", 0.1)
    begun, may_end = threading.Event(), threading.Event()

    def slow(environ: object, start_response: object) -> Iterable[bytes]:
        begun.set()
        may_end.wait(30)
        return []

    server = http_server.HttpServer("127.0.0.1", 0, slow)

    def ask() -> None:
        with pytest.raises((ConnectionError, http.client.HTTPException, urllib.error.URLError)):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30)

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(10)
    closing = threading.Thread(target=server.close)
    closing.start()
    closing.join(3)
    was_closed = not closing.is_alive()
    may_end.set()
    asking.join(10)
    assert was_closed, "waitress alone waits 5 s"
