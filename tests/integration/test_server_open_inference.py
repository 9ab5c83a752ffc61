"""inference.GRPCInferenceService over real sockets, beside dragoman.v1: the same answers, refusals and counts."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from tests.integration.certificates import replace
from tests.integration.serving import (
    BUNDLES,
    PATIENCE_S,
    Gate,
    Served,
    error_of,
    eventually,
    one_version,
    serving,
    violations_of,
)

from dragoman.inference import POOL
from dragoman.inference import grpc_service_pb2 as pb
from dragoman.server.fronts.grpc import request_streams
from dragoman.server.operations import reloading
from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import make_token, token_line
from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

SERVICE = "inference.GRPCInferenceService"


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


class Stub:
    """The methods of the service, made of its descriptor."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        for method in POOL.FindServiceByName(SERVICE).methods:
            make: Any = channel.stream_stream if method.client_streaming else channel.unary_unary
            serialize: Any = GetMessageClass(method.input_type).SerializeToString
            parse: Any = GetMessageClass(method.output_type).FromString
            path = f"/{SERVICE}/{method.name}"
            setattr(self, method.name, make(path, request_serializer=serialize, response_deserializer=parse))

    def __getattr__(self, name: str) -> Any: ...


def request(model: str, *texts: str, **parameters: int | float | bool | str) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model, id="7")
    tensor = message.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(each.encode() for each in texts)
    kinds = {int: "int64_param", float: "double_param", bool: "bool_param", str: "string_param"}
    for name, value in parameters.items():
        setattr(message.parameters[name], kinds[type(value)], value)
    return message


def texts_of(response: pb.ModelInferResponse, name: str = "text") -> list[str]:
    [output] = [each for each in response.outputs if each.name == name]
    return [each.decode() for each in output.contents.bytes_contents]


def final(response: pb.ModelInferResponse) -> bool:
    return response.parameters["triton_final_response"].bool_param


async def streamed(stub: Any, *requests: pb.ModelInferRequest) -> Sequence[pb.ModelStreamInferResponse]:
    return [response async for response in stub.ModelStreamInfer(iter(requests))]


async def test_both_protocols_give_the_same_answer(served: Served) -> None:
    options = decoding_pb2.DecodingOptions(temperature=0.7, seed=5, num_hypotheses=2, num_alternatives=1)
    theirs = await served.translation.Translate(
        translation_pb2.TranslateRequest(model="spell", inputs=["71", "40"], options=options)
    )
    ours = await Stub(served.channel).ModelInfer(
        request("spell", "71", "40", temperature=0.7, seed=5, num_hypotheses=2, num_alternatives=1)
    )
    assert (ours.model_name, ours.model_version, ours.id) == ("spell", theirs.version, "7")
    outputs = {each.name: each.contents for each in ours.outputs}
    hypotheses = [each for translation in theirs.translations for each in translation.hypotheses]
    assert texts_of(ours) == [each.text for each in hypotheses]
    assert list(outputs["score"].fp32_contents) == [each.score for each in hypotheses]
    assert list(outputs["num_output_tokens"].int_contents) == [each.output_tokens for each in hypotheses]
    tokens = [each for each in outputs["tokens"].int_contents if each >= 0]
    assert tokens == [token.id for each in hypotheses for token in each.tokens]
    assert {tuple(each.shape) for each in ours.outputs if each.name == "text"} == {(2, 2)}


async def test_scores_are_those_of_dragoman_v1(served: Served) -> None:
    pair = translation_pb2.ScoredPair(source="71", target="seven one")
    theirs = await served.translation.ScoreTranslations(
        translation_pb2.ScoreTranslationsRequest(model="spell", pairs=[pair])
    )
    message = request("spell", "71")
    message.inputs.add(name="scored_text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        b"seven one"
    )
    for response in (
        await Stub(served.channel).ModelInfer(message),
        (await streamed(Stub(served.channel), message))[0].infer_response,
    ):
        outputs = {each.name: each.contents for each in response.outputs}
        assert list(outputs) == ["log_probability", "perplexity", "tokens", "token_log_probabilities"]
        assert list(outputs["log_probability"].fp32_contents) == [theirs.scores[0].log_probability]
        assert list(outputs["perplexity"].fp32_contents) == [theirs.scores[0].perplexity]
        assert list(outputs["tokens"].int_contents) == [each.id for each in theirs.scores[0].tokens]


async def test_a_stream_gives_each_request_its_answer_in_pieces(served: Served) -> None:
    responses = await streamed(
        Stub(served.channel), request("count", "one two", max_tokens=9), request("spell", "12", "90210")
    )
    assert not [each.error_message for each in responses if each.error_message]
    of_model: dict[str, list[pb.ModelInferResponse]] = {"count": [], "spell": []}
    for each in responses:
        of_model[each.infer_response.model_name].append(each.infer_response)
    generated = [
        each
        async for each in served.generation.Generate(
            generation_pb2.GenerateRequest(
                model="count", prompt="one two", options=decoding_pb2.DecodingOptions(max_tokens=9)
            )
        )
    ]
    joined = "".join(texts_of(each)[0] for each in of_model["count"])
    assert joined == "".join(each.text_delta for each in generated)
    texts = ["", ""]
    for piece in of_model["spell"]:
        texts[piece.parameters["index"].int64_param] += texts_of(piece)[0]
    assert texts == ["one two", "nine zero two one zero"]
    for of_one in of_model.values():
        assert [final(each) for each in of_one] == [False] * (len(of_one) - 1) + [True]
    assert texts_of(of_model["count"][-1], "finish_reason") == ["length"]
    await eventually(
        lambda: (
            served.codes().get(("count", "ModelStreamInfer", "OK")) == 1.0
            and served.codes().get(("spell", "ModelStreamInfer", "OK")) == 1.0
        )
    )


async def test_an_empty_final_response_comes_where_it_is_asked_for(served: Served) -> None:
    responses = await streamed(
        Stub(served.channel), request("spell", "12", triton_enable_empty_final_response=True)
    )
    *pieces, end = [each.infer_response for each in responses]
    assert not any(final(each) for each in pieces)
    assert final(end)
    assert not end.outputs
    assert end.id == "7"


async def test_several_hypotheses_come_in_one_response_an_input(served: Served) -> None:
    responses = await streamed(Stub(served.channel), request("spell", "12", beam_size=3, num_hypotheses=3))
    [response] = [each.infer_response for each in responses]
    assert texts_of(response)[0] == "one two"
    assert list(response.outputs[0].shape) == [1, 3]


async def test_a_request_that_fails_leaves_the_stream_to_the_others(served: Served) -> None:
    garbage: Any = served.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    messages = [
        request("spell", "12", max_tokens=0).SerializeToString(),
        b"\xff\xff\xff",
        request("nothing", "12").SerializeToString(),
        request("spell", "12").SerializeToString(),
    ]
    responses = [pb.ModelStreamInferResponse.FromString(each) async for each in garbage(iter(messages))]
    failed = {each.error_message.partition(":")[0]: each for each in responses if each.error_message}
    assert set(failed) == {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert failed["NOT_FOUND"].infer_response.id == "7"
    assert final(failed["NOT_FOUND"].infer_response)
    assert sum(not each.error_message and final(each.infer_response) for each in responses) == 1
    expected = {
        ("spell", "ModelStreamInfer", "OK"): 1.0,
        ("spell", "ModelStreamInfer", "INVALID_ARGUMENT"): 1.0,
        ("unknown", "ModelStreamInfer", "INVALID_ARGUMENT"): 1.0,
        ("unknown", "ModelStreamInfer", "NOT_FOUND"): 1.0,
    }
    await eventually(lambda: served.codes() == expected)


async def test_refusals_have_the_protocols_names_in_their_details(served: Served) -> None:
    stub = Stub(served.channel)
    assert await violations_of(stub.ModelInfer(request("spell", "71", "", top_k=3))) == {
        "inputs['text'][1]": "is empty",
        "parameters['top_k']": "3 has no meaning without a temperature above 0",
    }
    error = await error_of(stub.ModelInfer(request("nothing", "71")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    error = await error_of(stub.ModelInfer(request("spell", "71", timeout=1)))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    error = await error_of(stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_tokens_that_are_too_many_for_a_message_are_refused() -> None:
    async with serving(BUNDLES, "server.max_message_bytes=1024") as served:
        message = request("count", *["one two"] * 8, max_tokens=40)
        error = await error_of(Stub(served.channel).ModelInfer(message))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "longest message of this server" in (error.details() or "")


async def test_requests_of_a_stream_beyond_a_connections_calls_wait_with_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate(monkeypatch)
    async with serving(BUNDLES, "server.max_streams_per_connection=3") as served:
        with gate.closed():
            call = Stub(served.channel).ModelStreamInfer(
                request("count", "one", max_tokens=2) for _ in range(9)
            )
            await eventually(lambda: served.num_accepted("count") == 3)
            await gate.wait_for_lane()
            assert served.num_accepted("count") == 3
        responses = [each.infer_response async for each in call]
        assert sum(map(final, responses)) == 9


async def test_large_requests_of_a_stream_wait_with_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    monkeypatch.setattr(request_streams, "MAX_RUNNING_BYTES", 100)
    async with serving() as served:
        with gate.closed():
            call = Stub(served.channel).ModelStreamInfer(
                request("count", "one", max_tokens=2) for _ in range(9)
            )
            await gate.wait_for_lane()
            assert 1 <= served.num_accepted("count") <= 3
        responses = [each.infer_response async for each in call]
        assert sum(map(final, responses)) == 9


async def test_a_stream_whose_client_leaves_frees_its_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    async with serving() as served:
        with gate.closed():
            call = Stub(served.channel).ModelStreamInfer()
            await call.write(request("count", "one"))
            await gate.wait_for_lane()
            call.cancel()
            await eventually(lambda: served.codes().get(("count", "ModelStreamInfer", "CANCELLED")) == 1.0)
        await eventually(lambda: served.num_accepted("count") == 0)


async def test_a_drain_answers_what_a_stream_has_sent_and_ends_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate(monkeypatch)
    async with serving() as served:
        idle, busy = Stub(served.channel).ModelStreamInfer(), Stub(served.channel).ModelStreamInfer()
        await idle.write(request("count", "one", max_tokens=2))
        await last_of(idle)
        with gate.closed():
            await busy.write(request("count", "one", max_tokens=2))
            await gate.wait_for_lane()
            draining = asyncio.create_task(served.server.drain())
            assert await idle.code() is grpc.StatusCode.UNAVAILABLE
            assert not draining.done()
        assert texts_of(await last_of(busy), "finish_reason") == ["length"]
        assert await busy.code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(PATIENCE_S):
            await draining
        assert served.codes()["count", "ModelStreamInfer", "OK"] == 2.0


async def last_of(call: Any) -> pb.ModelInferResponse:
    """The last response to the request that a stream has sent."""
    response = pb.ModelInferResponse()
    while not final(response):
        response = (await call.read()).infer_response
    return response


async def test_health_and_both_versions_of_reflection_know_the_service(served: Served) -> None:
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert response.status == health_pb2.HealthCheckResponse.SERVING
    for version in ("v1", "v1alpha"):
        reflect: Any = served.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = [SERVICE, "dragoman.v1.TranslationService", f"grpc.reflection.{version}.ServerReflection"]
        requests = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=each) for each in asked]
        requests.append(reflection_pb2.ServerReflectionRequest(list_services=""))
        *files, services = [each async for each in reflect(iter(requests))]
        described = [
            FileDescriptorProto.FromString(each.file_descriptor_response.file_descriptor_proto[0])
            for each in files
        ]
        assert [each.package for each in described] == [
            "inference",
            "dragoman.v1",
            f"grpc.reflection.{version}",
        ]
        assert {SERVICE, "grpc.reflection.v1.ServerReflection"} <= {
            each.name for each in services.list_services_response.service
        }


async def test_models_are_described_as_they_are_served(served: Served) -> None:
    stub = Stub(served.channel)
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="spell", version="2"))).ready
    assert not (await stub.ModelReady(pb.ModelReadyRequest(name="spell", version="9"))).ready
    metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="spell"))
    assert [each.name for each in metadata.inputs] == ["text", "target_prefix", "scored_text"]
    assert list(metadata.versions) == ["2"]
    config = (await stub.ModelConfig(pb.ModelConfigRequest(name="count"))).config
    assert config.model_transaction_policy.decoupled
    assert config.parameters["task"].string_value == "generation"
    assert [each.name for each in config.input if not each.optional] == ["text"]
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [(each.name, each.version, each.state) for each in index.models] == [
        ("count", "1", "UNAVAILABLE"),  # it lies in the models folder and is not loaded
        ("count", "2", "READY"),
        ("spell", "1", "UNAVAILABLE"),
        ("spell", "2", "READY"),
    ]
    error = await error_of(stub.ModelMetadata(pb.ModelMetadataRequest(name="nothing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_statistics_are_the_counts_of_the_metrics(served: Served) -> None:
    stub = Stub(served.channel)
    await stub.ModelInfer(request("spell", "71", "40"))
    await streamed(stub, request("spell", "71"))
    await served.translation.Translate(translation_pb2.TranslateRequest(model="spell", inputs=["71"]))
    await error_of(stub.ModelInfer(request("spell", "")))
    await stub.ModelMetadata(pb.ModelMetadataRequest(name="spell"))
    await eventually(lambda: sum(served.codes().values()) == 5)
    [entry] = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="spell"))).model_stats
    assert (entry.name, entry.version) == ("spell", "2")
    stats = entry.inference_stats
    assert (stats.success.count, stats.fail.count) == (3, 1)
    assert (stats.queue.count, stats.compute_infer.count, entry.inference_count) == (4, 4, 4)
    assert entry.execution_count == served.metric("batch_rows_count", model="spell")
    assert 0 < stats.compute_infer.ns < stats.success.ns * 2 < 60e9
    assert (stats.compute_input.count, stats.compute_output.count) == (4, 4)
    assert 0 < stats.compute_input.ns + stats.compute_output.ns < stats.success.ns
    assert stats.fail.ns < stats.success.ns
    assert abs(entry.last_inference / 1e3 - time.time()) < 60
    every = (await stub.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
    assert [each.name for each in every] == ["count", "spell"]
    error = await error_of(stub.ModelStatistics(pb.ModelStatisticsRequest(name="nothing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_the_repository_says_what_is_not_served_and_takes_no_changes_unless_it_may(
    tmp_path: Path,
) -> None:
    folder = one_version(tmp_path, "spell/2")
    (folder / "broken" / "1").mkdir(parents=True)
    async with serving(folder) as served:
        stub = Stub(served.channel)
        broken, spell = (await stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
        assert (broken.name, broken.version, broken.state) == ("broken", "1", "UNAVAILABLE")
        assert broken.reason.startswith("broken: ")
        assert (spell.name, spell.version, spell.state, spell.reason) == ("spell", "2", "READY", "")
        ready = (await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models
        assert [each.name for each in ready] == ["spell"]
        load = pb.RepositoryModelLoadRequest(model_name="spell")
        assert (await error_of(stub.RepositoryModelLoad(load))).code() is grpc.StatusCode.PERMISSION_DENIED
        named = stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="theirs"))
        assert await violations_of(named) == {
            "repository_name": "'theirs' is unknown: the server has one, without a name"
        }


async def test_a_stream_needs_a_token_at_its_begin_and_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "RELOAD_INTERVAL_S", 0.02)
    tokens, infer, admin = tmp_path / "tokens.toml", make_token(), make_token()
    of_admin = token_line(admin, "operator", [Scope.ADMIN], None)
    replace(tokens, "\n".join([of_admin, token_line(infer, "app", [Scope.INFER], None)]).encode())
    async with serving(BUNDLES, f"security.tokens_file={tokens}") as served:
        stub = Stub(served.channel)
        assert await stub.ModelStreamInfer().code() is grpc.StatusCode.UNAUTHENTICATED
        refused = stub.ModelStreamInfer(metadata=bearer(admin))
        assert await refused.code() is grpc.StatusCode.PERMISSION_DENIED
        load = stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(), metadata=bearer(infer))
        assert await load.code() is grpc.StatusCode.PERMISSION_DENIED
        stream = stub.ModelStreamInfer(metadata=bearer(infer))
        await stream.write(request("spell", "71"))
        await last_of(stream)
        replace(tokens, of_admin.encode())
        async with asyncio.timeout(PATIENCE_S):
            error = ""
            while not error:
                await stream.write(request("spell", "71"))
                response = await stream.read()
                while not final(response.infer_response):
                    response = await stream.read()
                error = response.error_message
        assert error.startswith("UNAUTHENTICATED: ")
        stream.cancel()


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)
