"""Which thread sends an answer of the metrics port."""

import threading
import urllib.request
from collections.abc import Iterable
from typing import Any

import pytest

from dragoman.server.operations import http_server


def test_a_page_is_sent_by_the_thread_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by: list[str] = []
    sent_by: list[str] = []
    send = http_server._Channel.send

    def watched_send(channel: Any, data: bytes, do_close: bool = True) -> int:
        sent_by.append(threading.current_thread().name)
        return int(send(channel, data, do_close=do_close))

    monkeypatch.setattr(http_server._Channel, "send", watched_send)
    page = b"x" * 5_000

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        made_by.append(threading.current_thread().name)
        start_response("200 OK", [("Content-Length", str(len(page)))])
        return [page]

    server = http_server.HttpServer("127.0.0.1", 0, app)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
            assert answer.read() == page
    finally:
        server.close()
    assert sent_by == made_by, "once, with its headers"
