"""Spans of calls, as a collector of OpenTelemetry's gets them."""

import asyncio
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from tests.integration.child_server import ENVIRONMENT
from tests.integration.otlp_collector import Collector, ReceivedSpan, collecting
from tests.integration.serving import BUNDLES, PATIENCE_S, error_of, serving
from tests.integration.test_server_open_inference import Stub, streamed
from tests.integration.test_server_open_inference import request as infer

from dragoman.client import AsyncClient, Client
from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import make_token, token_line
from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

TEXT = "90210"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with collecting() as collector:
        yield collector


def tracing(collector: Collector, **settings: object) -> list[str]:
    """The settings of a server that traces each call to `collector`."""
    keys = {
        "endpoint": f'"http://127.0.0.1:{collector.port}"',
        "sampling_ratio": 1,
        "step_interval": 1,
        **settings,
    }
    return ["tracing.enabled=true", *(f"tracing.{key}={value}" for key, value in keys.items())]


def request(*inputs: str, beam_size: int = 1) -> translation_pb2.TranslateRequest:
    options = decoding_pb2.DecodingOptions(beam_size=beam_size)
    return translation_pb2.TranslateRequest(model="spell", inputs=inputs, options=options)


def assert_inside(span: ReceivedSpan) -> None:
    for child in span.children:
        assert span.start_ns <= child.start_ns <= child.end_ns <= span.end_ns, (span.name, child.name)
        assert_inside(child)


async def test_the_spans_of_a_call_are_its_parts(collector: Collector) -> None:
    async with serving(BUNDLES, *tracing(collector)) as served:
        await served.translation.Translate(request(TEXT))
        [call] = await asyncio.to_thread(collector.calls, 1)
    assert call.name == "dragoman.v1.TranslationService/Translate"
    assert call.parent_id == ""
    assert call.status == 0
    said = {key: value for key, value in call.attributes.items() if key != "dragoman.request_id"}
    assert said == {
        "rpc.system": "grpc",
        "rpc.service": "dragoman.v1.TranslationService",
        "rpc.method": "Translate",
        "rpc.grpc.status_code": 0,
        "dragoman.model": "spell",
        "dragoman.version": "2",
        "dragoman.inputs": 1,
        "dragoman.sequences": 1,
    }
    assert call.resource["service.name"] == "dragoman"
    assert sorted(child.name for child in call.children) == [
        "decode",
        "detokenise",
        "encode",
        "queue",
        "tokenise",
    ]
    assert_inside(call)
    [queue], [encode], [decode] = call.named("queue"), call.named("encode"), call.named("decode")
    assert queue.end_ns <= encode.start_ns <= encode.end_ns <= decode.start_ns
    steps = decode.named("step")
    assert decode.attributes["dragoman.steps"] == len(steps)
    assert [step.attributes["dragoman.step"] for step in steps] == list(range(len(steps)))
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(steps))
    # Whatever the machine does meanwhile: nothing of the call's time on the lane is left out.
    assert (decode.start_ns, decode.end_ns) == (encode.end_ns, steps[-1].end_ns)
    parts = sum(span.seconds for span in call.children)
    assert sum(step.seconds for step in steps) <= decode.seconds < parts <= call.seconds
    assert TEXT not in str([(span.name, span.attributes) for span in call.all()])


async def test_each_nth_step_of_each_sequence_has_a_span(collector: Collector) -> None:
    async with serving(BUNDLES, *tracing(collector, step_interval=3)) as served:
        await served.translation.Translate(request("12", "90210", beam_size=2))
        call_object = served.generation.Generate(
            generation_pb2.GenerateRequest(
                model="count",
                prompt="one two",
                options=decoding_pb2.DecodingOptions(max_tokens=20, min_tokens=20),
            )
        )
        async for _ in call_object:
            pass
        beam, stream = await asyncio.to_thread(collector.calls, 2)
    for name in ("queue", "decode"):
        assert [span.attributes["dragoman.sequence"] for span in beam.named(name)] == [0, 1]
    for decode in (*beam.named("decode"), *stream.named("decode")):
        steps = [step.attributes["dragoman.step"] for step in decode.named("step")]
        assert steps == list(range(0, decode.attributes["dragoman.steps"], 3))
    assert len(stream.named("prefill")) == 1
    assert stream.name == "dragoman.v1.GenerationService/Generate"
    assert_inside(beam)
    assert_inside(stream)


async def test_a_call_of_many_inputs_has_a_bounded_number_of_spans(collector: Collector) -> None:
    async with serving(BUNDLES, *tracing(collector)) as served:
        await served.translation.Translate(request(*[TEXT] * 40))
        [call] = await asyncio.to_thread(collector.calls, 1)
    assert call.attributes["dragoman.sequences"] == 40
    assert [span.attributes["dragoman.sequence"] for span in call.named("queue")] == list(range(16))
    assert len(list(call.all())) <= 1 + 256
    assert len(call.named("decode")) == 16


async def test_each_request_of_a_stream_is_a_call_of_its_own(collector: Collector) -> None:
    async with serving(BUNDLES, *tracing(collector)) as served:
        await streamed(Stub(served.channel), infer("spell", "12"), infer("count", "one two", max_tokens=3))
        first, second = await asyncio.to_thread(collector.calls, 2)
    assert {first.name, second.name} == {"inference.GRPCInferenceService/ModelStreamInfer"}
    assert {call.attributes["dragoman.model"] for call in (first, second)} == {"spell", "count"}
    assert first.trace_id != second.trace_id
    for call in (first, second):
        assert {"tokenise", "queue", "decode", "detokenise"} <= {child.name for child in call.children}
        assert_inside(call)


async def test_a_sampled_caller_is_the_parent_and_one_that_is_not_sampled_has_no_spans(
    collector: Collector,
) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with serving(BUNDLES, *tracing(collector, sampling_ratio=0)) as served:
        for flags in ("00", "01"):
            metadata = (("traceparent", f"00-{trace_id}-{span_id}-{flags}"), ("tracestate", "vendor=1"))
            await served.translation.Translate(request(TEXT), metadata=metadata)
        await served.translation.Translate(request(TEXT), metadata=(("traceparent", "nonsense"),))
        await served.translation.Translate(request(TEXT))
        [call] = await asyncio.to_thread(collector.calls, 1)
    assert (call.trace_id, call.parent_id) == (trace_id, span_id)
    assert {span.trace_id for span in collector.spans()} == {trace_id}
    assert sum(span.kind == 2 for span in collector.spans()) == 1, (
        "also after the server has sent its last spans"
    )


async def test_our_clients_send_the_span_that_they_are_called_in(collector: Collector) -> None:
    tracer = TracerProvider().get_tracer("test")

    def use_blocking(target: str) -> None:
        with Client(target) as client, trace.use_span(spans[0]):
            client.translate(TEXT, model="spell")
            list(client.generate("one two", model="count", max_tokens=3))

    spans = [tracer.start_span(name) for name in ("blocking", "asyncio")]
    async with serving(BUNDLES, *tracing(collector, sampling_ratio=0)) as served:
        target = f"127.0.0.1:{served.server.port}"
        await asyncio.to_thread(use_blocking, target)
        async with AsyncClient(target) as client:
            with trace.use_span(spans[1]):
                await client.translate(TEXT, model="spell")
                async for _ in client.generate("one two", model="count", max_tokens=3):
                    pass
            await client.translate(TEXT, model="spell")  # no span is current
        calls = await asyncio.to_thread(collector.calls, 4)
    contexts = [span.get_span_context() for span in spans for _ in range(2)]
    assert [call.trace_id for call in calls] == [f"{context.trace_id:032x}" for context in contexts]
    assert [call.parent_id for call in calls] == [f"{context.span_id:016x}" for context in contexts]


def test_a_program_without_opentelemetry_gets_none_by_our_client() -> None:
    program = """
import sys
from dragoman.client.blocking import trace_metadata
assert trace_metadata() == ()
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"


async def test_refused_calls_have_their_code(collector: Collector) -> None:
    async with serving(BUNDLES, *tracing(collector)) as served:
        await error_of(
            served.translation.Translate(translation_pb2.TranslateRequest(model="nobody", inputs=[TEXT]))
        )
        await error_of(served.translation.Translate(request("")))
        spans = await asyncio.to_thread(collector.calls, 2)
    by_code = {span.attributes["rpc.grpc.status_code"]: span for span in spans}
    not_found, invalid = by_code[5], by_code[3]
    assert not_found.attributes["dragoman.model"] == "unknown"
    assert (not_found.status, invalid.status) == (0, 0), "the caller's own fault"
    assert "nobody" not in str([span.attributes for span in spans])


async def test_a_collector_that_is_not_there_costs_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        endpoint = f'tracing.endpoint="http://127.0.0.1:{nobody.getsockname()[1]}"'
        async with serving(BUNDLES, "tracing.enabled=true", "tracing.sampling_ratio=1", endpoint) as served:
            for _ in range(20):
                await served.translation.Translate(request(TEXT), timeout=PATIENCE_S)
            began_s = time.monotonic()
            await served.server.close()
            assert time.monotonic() - began_s < PATIENCE_S, "the end of the server waits a second for spans"
            assert served.codes() == {("spell", "Translate", "OK"): 20}
            assert not served.metric("trace_spans_total", result="exported")


async def test_a_stranger_cannot_have_a_call_traced(collector: Collector, tmp_path: Path) -> None:
    tokens, token = tmp_path / "tokens.toml", make_token()
    tokens.write_text(token_line(token, "app", (Scope.INFER,), None))
    tokens.chmod(0o600)
    sampled = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    async with serving(BUNDLES, *tracing(collector), f"security.tokens_file={tokens}") as served:
        error = await error_of(served.translation.Translate(request(TEXT), metadata=[sampled]))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        known = ("authorization", f"Bearer {token}")
        await served.translation.Translate(request(TEXT), metadata=[sampled, known])
    [call] = collector.calls(1)
    assert call.attributes["rpc.grpc.status_code"] == 0
    assert token not in str([(span.name, span.attributes) for span in collector.spans()])
