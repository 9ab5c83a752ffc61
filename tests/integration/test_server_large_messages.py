"""Small messages that unfold into millions of entries: refused before they cost memory, and no neighbour waits."""

import collections
import contextlib
import gzip
import threading

import grpc
import h2.events
import psutil
import pytest
from google.protobuf.message import Message
from tests.integration.child_server import ports, running
from tests.integration.raw_http2 import RawClient
from tests.integration.serving import PATIENCE_S

from dragoman.v1 import decoding_pb2, translation_pb2, translation_pb2_grpc

NUM_ENTRIES = 1_500_000
NUM_CONNECTIONS, CALLS_EACH = 2, 10
"""What the first window of a connection takes, and all together what may wait to be parsed."""
MAX_GROWTH_BYTES = 150 * 2**20
SERVICE = "/dragoman.v1.TranslationService"
NEIGHBOUR = translation_pb2.TranslateRequest(model="spell", inputs=["12"])


def statuses(port: int, path: str, compressed: bytes) -> collections.Counter[str]:
    """Send calls on one connection; returns how often they got each status and message."""
    ends: collections.Counter[str] = collections.Counter()
    with RawClient(port, window=65_535) as client:
        for _ in range(CALLS_EACH):
            client.call(path, compressed, encoding="gzip")
        while ends.total() < CALLS_EACH:
            for event in client.http2.receive_data(client.socket.recv(1 << 16)):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                    if "grpc-status" in headers:
                        ends[f"{headers['grpc-status']} {headers['grpc-message']}"] += 1
            client.send()
    return ends


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        (
            "ScoreTranslations",
            translation_pb2.ScoreTranslationsRequest(pairs=[translation_pb2.ScoredPair()] * NUM_ENTRIES),
        ),
        ("Translate", translation_pb2.TranslateRequest(inputs=[""] * NUM_ENTRIES)),
        (
            "StreamTranslate",
            translation_pb2.TranslateRequest(options=decoding_pb2.DecodingOptions(stop=[""] * NUM_ENTRIES)),
        ),
    ],
    ids=["pairs", "inputs", "stop strings"],
)
def test_millions_of_entries_are_refused_unparsed(method: str, request_: Message) -> None:
    compressed = gzip.compress(request_.SerializeToString())
    assert len(compressed) < 5000
    ends: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(*ports()))
        port = server.wait_for("serving")["port"]
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        neighbour = translation_pb2_grpc.TranslationServiceStub(channel)
        neighbour.Translate(NEIGHBOUR, timeout=PATIENCE_S)
        process = psutil.Process(server.process.pid)
        before = peak = process.memory_info().rss

        def flood() -> None:
            ends.update(statuses(port, f"{SERVICE}/{method}", compressed))

        floods = [threading.Thread(target=flood) for _ in range(NUM_CONNECTIONS)]
        for thread in floods:
            thread.start()
        while any(thread.is_alive() for thread in floods):
            answer = neighbour.Translate(NEIGHBOUR, timeout=PATIENCE_S)
            assert answer.translations[0].text == "one two"
            peak = max(peak, process.memory_info().rss)
        assert peak - before < MAX_GROWTH_BYTES
    [(end, num_calls)] = ends.items()
    assert num_calls == NUM_CONNECTIONS * CALLS_EACH
    assert end.startswith("3 : the message has more than 2512 entries")
