"""Limits of a client on a running server, over one front and over two."""

import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from tests.integration.serving import BUNDLES, Gate, detail_of, error_of, eventually, one_version, serving

from dragoman.v1 import decoding_pb2, model_pb2, translation_pb2, translation_pb2_grpc

REQUEST = translation_pb2.TranslateRequest(model="spell", inputs=["12"])


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def test_a_client_with_too_many_calls_is_refused_and_then_taken(tmp_path: Path, gate: Gate) -> None:
    async with serving(one_version(tmp_path, "spell/1"), "admission.max_calls_a_client=2") as served:
        with gate.closed():
            running = [served.translation.Translate(REQUEST) for _ in range(2)]
            await eventually(lambda: served.num_accepted("spell") == 2)
            error, retry_info = await detail_of(
                served.translation.Translate(REQUEST), error_details_pb2.RetryInfo
            )
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == "this client has as many calls at one time as it may"
            assert retry_info.retry_delay.ToMilliseconds() > 0
        for call in running:
            await call
        assert (await served.translation.Translate(REQUEST)).translations[0].text == "one two"
        assert served.rejected("unknown", "arrival", "client_calls") == 1


async def test_a_client_that_used_its_tokens_is_refused_with_the_time_that_it_takes(tmp_path: Path) -> None:
    settings: Sequence[str] = (
        "admission.tokens_a_second_a_client=1.5",
        "admission.burst_tokens_a_client=5",
    )
    async with serving(one_version(tmp_path, "spell/1"), *settings) as served:
        await served.translation.Translate(REQUEST)  # more than five tokens, with those of the answer
        error, info = await detail_of(served.translation.Translate(REQUEST), error_details_pb2.ErrorInfo)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (info.reason, info.metadata["refusal"]) == ("RATE_LIMITED", "client_tokens")
        await served.models.ListModels(model_pb2.ListModelsRequest())
        assert served.rejected("unknown", "arrival", "client_tokens") == 1
        error = await error_of(served.translation.Translate(REQUEST))
        trailers = dict(error.trailing_metadata() or ())
        assert int(trailers["grpc-retry-pushback-ms"]) >= 1000


@pytest.mark.skipif(sys.platform != "linux", reason="several fronts need Linux")
async def test_two_fronts_count_the_calls_of_a_client_together() -> None:
    settings = ("engine.lanes_run_in=processes", "engine.lanes=1", "server.fronts=2")
    long = translation_pb2.TranslateRequest(
        model="spell", inputs=["12"] * 128, options=decoding_pb2.DecodingOptions(min_tokens=80)
    )
    async with (
        serving(BUNDLES, *settings, "admission.max_calls_a_client=3") as served,
        AsyncExitStack() as open_,
    ):
        address = f"127.0.0.1:{served.server.port}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await open_.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _ in range(12)  # each comes to one of the fronts by chance
        ]
        calls = [translation_pb2_grpc.TranslationServiceStub(channel).Translate(long) for channel in channels]
        codes = [await call.code() for call in calls]
        assert codes.count(grpc.StatusCode.OK) in {3, 4}, (
            "one more, if two fronts took one in the same microseconds"
        )
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 8
