"""Clients that vanish without a word: their connections are given up when a ping stays unanswered."""

import asyncio
import time

from tests.integration.raw_http2 import RawClient
from tests.integration.serving import BUNDLES, eventually, serving

from dragoman.client.channel import ChannelSettings
from dragoman.v1 import decoding_pb2, translation_pb2

STREAM_TRANSLATE = "/dragoman.v1.TranslationService/StreamTranslate"


async def test_a_client_that_answers_no_ping_is_given_up_and_what_it_asked_for_ends() -> None:
    def vanish(port: int) -> float:
        with RawClient(port, window=0) as client:
            options = decoding_pb2.DecodingOptions(min_tokens=40)
            request = translation_pb2.TranslateRequest(model="spell", inputs=["12"], options=options)
            client.call(STREAM_TRANSLATE, request.SerializeToString())
            began_s = time.monotonic()
            client.read_to_end()  # bytes are read, and nothing is made of them
            return time.monotonic() - began_s

    settings = ("server.keepalive_time_s=1", "server.keepalive_timeout_s=1")
    async with serving(BUNDLES, *settings) as served:
        assert await asyncio.to_thread(vanish, served.server.port) < 10
        await eventually(lambda: served.codes() == {("spell", "StreamTranslate", "CANCELLED"): 1.0})


def test_the_clients_timeout_of_keepalive_is_that_of_its_pings_too() -> None:
    arguments = dict(ChannelSettings(keepalive_timeout_s=3).arguments("dns:///localhost:1"))
    assert arguments["grpc.http2.ping_timeout_ms"] == arguments["grpc.keepalive_timeout_ms"] == 3000
