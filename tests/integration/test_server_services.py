"""Answers of the three services, health and reflection, over real sockets."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.integration.serving import Gate, Served, error_of, eventually, one_version, serving

from dragoman.server.app import SERVICE_NAMES
from dragoman.v1 import decoding_pb2, generation_pb2, model_pb2, translation_pb2

Options = decoding_pb2.DecodingOptions


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(one_version(tmp_path, "spell/1", "count/1", "count/2")) as served:
        yield served


def translate(*inputs: str, options: Options | None = None) -> translation_pb2.TranslateRequest:
    return translation_pb2.TranslateRequest(model="spell", inputs=inputs, options=options)


async def test_translations_come_in_the_order_of_the_inputs(served: Served) -> None:
    response = await served.translation.Translate(translate("12", "90210", "5"))
    assert response.version == "1"
    assert [each.text for each in response.translations] == ["one two", "nine zero two one zero", "five"]
    first = response.translations[0]
    assert first.finish_reason == decoding_pb2.FINISH_REASON_END_OF_SEQUENCE
    assert (first.usage.input_tokens, first.usage.output_tokens) == (3, 8)
    assert -1.0 < first.log_probability < 0.0


async def test_the_series_of_every_method_that_decodes_are_there_before_the_first_call(
    served: Served,
) -> None:
    value = served.server.metrics.registry.get_sample_value
    for model, service in (
        ("spell", translation_pb2.DESCRIPTOR.services_by_name["TranslationService"]),
        ("count", generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]),
    ):
        for method in service.methods:
            labels = {"model": model, "method": method.name}
            assert value("dragoman_requests_total", {**labels, "code": "OK"}) == 0
            assert value("dragoman_request_duration_seconds_count", labels) == 0


async def test_streamed_translations_join_to_the_whole(served: Served) -> None:
    inputs = ["12", "90210", "5"]
    whole = await served.translation.Translate(translate(*inputs))
    texts, final = ["", "", ""], {}
    async for response in served.translation.StreamTranslate(translate(*inputs)):
        texts[response.index] += response.text_delta
        assert response.version == (whole.version if response.HasField("translation") else "")
        if response.HasField("translation"):
            final[response.index] = response.translation
    assert [final[index] for index in range(3)] == list(whole.translations)
    assert texts == [each.text for each in whole.translations]


async def test_inputs_of_one_stream_progress_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    async with serving(one_version(tmp_path, "spell/1")) as served:
        with gate.closed():
            call = served.translation.StreamTranslate(translate("90210", "12345"))
            await eventually(lambda: served.num_accepted("spell") == 2)
            gate.allow(4)
            seen: set[int] = set()
            async for response in call:
                assert not response.HasField("translation")
                seen.add(response.index)
                if len(seen) == 2:
                    break
        rest = [response async for response in call]
        assert {response.index for response in rest if response.HasField("translation")} == {0, 1}


async def generate(
    served: Served, prompt: str, **options: object
) -> tuple[str, generation_pb2.GenerationSummary]:
    request = generation_pb2.GenerateRequest(model="count", prompt=prompt, options=Options(**options))  # type: ignore[arg-type]
    text = ""
    async for response in served.generation.Generate(request):
        assert not response.HasField("summary") or response.summary.version == "2"
        text += response.text_delta
    assert response.HasField("summary"), "the last message carries the summary"
    return text, response.summary


async def test_a_generated_text_continues_its_prompt(served: Served) -> None:
    text, summary = await generate(served, "one two three", max_tokens=8)
    assert text.startswith(" four five")
    assert summary.finish_reason == decoding_pb2.FINISH_REASON_LENGTH
    assert summary.usage.output_tokens == 8


async def test_a_stop_string_ends_the_text_before_it(served: Served) -> None:
    text, summary = await generate(served, "one two three", stop=["six", "seven"])
    assert text == " four five "
    assert summary.finish_reason == decoding_pb2.FINISH_REASON_STOP_STRING
    response = await served.translation.Translate(translate("12", "21", options=Options(stop=[" t"])))
    assert [each.text for each in response.translations] == ["one", "two one"]
    assert [each.finish_reason for each in response.translations] == [
        decoding_pb2.FINISH_REASON_STOP_STRING,
        decoding_pb2.FINISH_REASON_END_OF_SEQUENCE,
    ]


async def test_a_long_prompt_leaves_less_room(served: Served) -> None:
    prompt = "one two three four five six seven eight nine ten"
    _, alone = await generate(served, prompt, max_tokens=1)
    text, summary = await generate(served, prompt, max_tokens=255, min_tokens=100)
    assert summary.usage.output_tokens <= 256 - alone.usage.input_tokens
    assert text


async def test_a_seed_repeats_an_answer_and_counts_up_over_inputs(served: Served) -> None:
    def options(seed: int) -> Options:
        return Options(temperature=8.0, max_tokens=20, seed=seed)

    both = await served.translation.Translate(translate("123", "123", options=options(5)))
    first = await served.translation.Translate(translate("123", options=options(5)))
    second = await served.translation.Translate(translate("123", options=options(6)))
    assert both.translations[0] == first.translations[0]
    assert both.translations[1] == second.translations[0]
    assert both.translations[0].text != both.translations[1].text


async def test_sampling_without_a_seed_varies(served: Served) -> None:
    options = Options(temperature=8.0, max_tokens=20)
    response = await served.translation.Translate(translate(*["123"] * 8, options=options))
    assert len({each.text for each in response.translations}) > 1


async def test_models_are_listed_with_their_highest_version(served: Served) -> None:
    response = await served.models.ListModels(model_pb2.ListModelsRequest())
    assert [(each.name, each.version, each.task) for each in response.models] == [
        ("count", "2", model_pb2.TASK_GENERATION),
        ("spell", "1", model_pb2.TASK_TRANSLATION),
    ]
    spell = await served.models.GetModel(model_pb2.GetModelRequest(model="spell", version="1"))
    assert spell == response.models[1]
    assert (spell.precision, spell.provider) == ("fp32", "cpu")
    assert (spell.max_input_tokens, spell.max_output_tokens) == (32, 81)
    assert spell.num_parameters > 10_000
    assert MessageToDict(spell.provenance)["recipe"]["name"] == "spell"


async def test_health_of_the_server_and_of_each_service(served: Served) -> None:
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    for name in ("", *SERVICE_NAMES):
        response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    error = await error_of(stub.Check(health_pb2.HealthCheckRequest(service="dragoman.v1.Nothing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_tells_generic_clients_the_contract(served: Served) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)  # type: ignore[arg-type]
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="dragoman.v1.TranslationService"),
    ]
    services, files = [response async for response in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in services.list_services_response.service}
    assert {*SERVICE_NAMES, "grpc.health.v1.Health"} <= names
    described = FileDescriptorProto.FromString(files.file_descriptor_response.file_descriptor_proto[0])
    assert described.name == "dragoman/v1/translation.proto"


async def test_every_call_is_counted_once_with_its_tokens_and_times(served: Served) -> None:
    await served.translation.Translate(translate("12", "5"))
    async for _ in served.translation.StreamTranslate(translate("12")):
        pass
    await served.models.ListModels(model_pb2.ListModelsRequest())
    expected = {
        ("spell", "Translate", "OK"): 1.0,
        ("spell", "StreamTranslate", "OK"): 1.0,
        ("", "ListModels", "OK"): 1.0,
    }
    await eventually(lambda: served.codes() == expected)
    assert served.metric("input_tokens_total", model="spell") == 3 + 2 + 3
    assert served.metric("output_tokens_total", model="spell") == 8 + 5 + 8
    for name in ("queue_duration", "time_to_first_token", "time_per_output_token"):
        assert served.metric(f"{name}_seconds_count", model="spell") == 3
        assert 0 < served.metric(f"{name}_seconds_sum", model="spell") < 10
    assert served.metric("request_duration_seconds_count", model="spell", method="Translate") == 1
    # Each run gives a row one token or four. The two inputs of the first call share runs, but for those the first is
    # ahead by.
    single, several = (
        served.metric("step_duration_seconds_count", model="spell", graph=graph)
        for graph in ("decode", "decode_steps")
    )
    assert several > 0
    assert 8 + 8 <= single + 4 * several <= 8 + 5 + 8 + 3 * 3
    assert served.metric("batch_rows_count", model="spell") == single + several
    assert single + several <= served.metric("batch_rows_sum", model="spell") <= 8 + 5 + 8
    assert served.metric("slots_used", model="spell") == served.metric("requests_waiting", model="spell") == 0


async def test_the_first_token_of_each_sample_has_no_time_before_it(served: Served) -> None:
    options = Options(max_tokens=1, temperature=1.0, num_hypotheses=3)
    await served.translation.Translate(translate("12", options=options))
    assert served.metric("output_tokens_total", model="spell") == 3
    assert served.metric("time_to_first_token_seconds_count", model="spell") > 0
    assert served.metric("time_per_output_token_seconds_count", model="spell") == 0


async def test_metrics_over_http_describe_what_is_served(served: Served) -> None:
    status, text = await served.http("/metrics")
    assert status == 200
    labels = 'model="spell",precision="fp32",provider="cpu",task="translation",version="1"'
    assert f"dragoman_model_info{{{labels}}} 1.0" in text
    assert 'dragoman_slots_total{model="spell"} 37.0' in text, "five of them reserved"
    assert served.metric("threads") == 1, "all models have the same lane"
    assert served.metric("cpu_limit_cores") > 0
    assert served.metric("model_load_duration_seconds", model="spell") > 0
    assert (await served.http("/readyz"))[0] == 200
