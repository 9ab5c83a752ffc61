"""Messages of the Open Inference Protocol to calls, without a server."""

import dataclasses
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.inference.grpc_service_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from dragoman.server.bundle.tasks import Task
from dragoman.server.errors import InvalidRequest
from dragoman.server.fronts.grpc.open_inference.outputs import DEFAULT_OUTPUTS
from dragoman.server.fronts.grpc.open_inference.parameters import OPTION_READERS, read_parameters
from dragoman.server.fronts.grpc.open_inference.requests import Inference, field_name, read_request
from dragoman.server.fronts.grpc.open_inference.tensors import Tensor, add_output
from dragoman.server.priority import Priority
from dragoman.server.requests.calls import Call, ScoringCall
from dragoman.server.requests.options import Options
from dragoman.v1.decoding_pb2 import DecodingOptions


def read(
    request: ModelInferRequest, task: Task = "translation", *, max_inputs: int = 8, is_streamed: bool = False
) -> Inference:
    return read_request(request, "2", task, max_inputs=max_inputs, remaining_s=None, is_streamed=is_streamed)


def request(*texts: str, **parameters: InferParameter) -> ModelInferRequest:
    message = ModelInferRequest(model_name="spell")
    add_texts(message, "text", *texts)
    for name, parameter in parameters.items():
        message.parameters[name].CopyFrom(parameter)
    return message


def add_texts(message: ModelInferRequest, name: str, *texts: str) -> Any:
    tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(texts), 1])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return tensor


def faults(message: ModelInferRequest, task: Task = "translation", **options: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        read(message, task, **options)
    return {each.field: each.description for each in caught.value.violations}


def whole(value: int) -> InferParameter:
    return InferParameter(int64_param=value)


def text(value: str) -> InferParameter:
    return InferParameter(string_param=value)


def options_of(inference: Inference) -> Options:
    assert isinstance(inference.call, Call)
    return inference.call.options


def test_every_decoding_option_is_a_parameter_of_the_same_name() -> None:
    names = [field.name for field in DecodingOptions.DESCRIPTOR.fields]
    assert sorted(OPTION_READERS) == sorted(names)
    assert {each.name for each in dataclasses.fields(Options)} <= set(OPTION_READERS)


def test_parameters_become_options_with_the_numbers_of_float32() -> None:
    message = request(
        "71",
        max_tokens=whole(5),
        seed=InferParameter(uint64_param=2**64 - 1),
        temperature=InferParameter(double_param=0.7),
        top_p=text("0.9"),
        length_penalty=whole(1),
        stop=text('["END", "\\n"]'),
        suppressed_token_ids=text("[4, 17]"),
        alignment=InferParameter(bool_param=True),
    )
    as_float32 = DecodingOptions(temperature=0.7, top_p=0.9)
    assert options_of(read(message)) == Options(
        max_tokens=5,
        seed=2**64 - 1,
        temperature=as_float32.temperature,
        top_p=as_float32.top_p,
        length_penalty=1.0,
        stop=("END", "\n"),
        suppressed_token_ids=(4, 17),
        alignment=True,
    )


@pytest.mark.parametrize(
    ("name", "parameter", "what"),
    [
        ("max_tokens", text("5"), "string_param '5' is not a whole number"),
        ("max_tokens", InferParameter(double_param=5.0), "double_param 5.0 is not a whole number"),
        ("max_tokens", InferParameter(bool_param=True), "bool_param True is not a whole number"),
        ("max_tokens", whole(-1), "-1 is not between 0 and 4294967295"),
        ("max_tokens", InferParameter(), "no value is not a whole number"),
        ("seed", whole(-1), "-1 is not between 0 and 18446744073709551615"),
        ("temperature", text("warm"), "string_param 'warm' is not a number"),
        ("temperature", text("true"), "string_param 'true' is not a number"),
        ("temperature", text("1" + 400 * "0"), "has more than 64 characters"),
        ("temperature", text("[" + 100_000 * "[]," + "0]"), "has more than 64 characters"),
        ("temperature", InferParameter(bool_param=False), "bool_param False is not a number"),
        ("alignment", whole(1), "int64_param 1 is not true or false"),
        ("stop", text("END"), "'END' is not a JSON array of strings"),
        ("stop", text("[1]"), "string_param '[1]' is not a JSON array of strings"),
        ("stop", text("[" * 200_000), "'" + "[" * 64 + "'… is not a JSON array"),
        ("stop", text(json.dumps(["x" * 262_144])), "262148 characters are more than 262144"),
        ("stop", text('["\\ud800"]'), "holds half of a surrogate pair"),
        ("stop", whole(1), "int64_param 1 is not a string (string_param) with a JSON array"),
        ("suppressed_token_ids", text("[true]"), "is not a JSON array of token ids"),
        ("suppressed_token_ids", text("[-1]"), "is not a JSON array of token ids"),
        ("priority", whole(4), "4 is not 0 (the default), 1 (high), 2 (normal) or 3 (low)"),
        ("timeout", whole(0), "0 microseconds leave no time"),
        ("sequence_id", whole(1), "models of this server keep nothing between requests"),
        ("triton_enable_empty_final_response", InferParameter(bool_param=True), "in ModelStreamInfer only"),
        ("beams", whole(1), "is unknown; the parameters are max_tokens, "),
    ],
)
def test_parameters_that_are_wrong_are_named(name: str, parameter: InferParameter, what: str) -> None:
    found = faults(request("71", **{name: parameter}))
    assert list(found) == [f"parameters['{name}']"]
    assert what in found[f"parameters['{name}']"]


@given(st.dictionaries(st.text(max_size=9) | st.sampled_from(sorted(OPTION_READERS)), st.binary(max_size=40)))
def test_any_bytes_as_parameters_give_options_or_violations(parameters: dict[str, bytes]) -> None:
    given_parameters = {}
    for name, content in parameters.items():
        parameter = InferParameter(string_param=content.decode("latin-1"))
        given_parameters[name] = parameter
    read_parameters(given_parameters, is_streamed=True)


def test_a_number_that_no_float32_holds_is_infinite_as_it_is_in_dragoman_v1() -> None:
    parameters, _ = read_parameters({"temperature": InferParameter(double_param=1e300)}, is_streamed=False)
    assert parameters.options.temperature == math.inf


def test_the_priority_is_counted_as_triton_counts() -> None:
    for level, priority in (
        (0, Priority.NORMAL),
        (1, Priority.HIGH),
        (2, Priority.NORMAL),
        (3, Priority.LOW),
    ):
        parameter = InferParameter(uint64_param=level)
        assert read(request("71", priority=parameter)).call.priority is priority


def test_the_timeout_is_a_deadline() -> None:
    inference = read(request("71", timeout=whole(2_000_000)))
    assert inference.call.deadline_s is not None


def test_raw_texts_and_typed_texts_are_the_same_texts() -> None:
    typed = request("seven", "", "ä\n")
    raw = ModelInferRequest(model_name="spell")
    raw.inputs.add(name="text", datatype="BYTES", shape=[3])
    contents = [each.encode() for each in ("seven", "", "ä\n")]
    raw.raw_input_contents.append(b"".join(struct.pack("<I", len(each)) + each for each in contents))
    for message, is_raw, shape in ((typed, False, (3, 1)), (raw, True, (3,))):
        inference = read(message)
        assert isinstance(inference.call, Call)
        assert list(inference.call.inputs) == ["seven", "", "ä\n"]
        assert (inference.is_raw, inference.shape(3)) == (is_raw, shape)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"\x01\x00", "ends within the length of a text, at byte 0"),
        (b"\x05\x00\x00\x00abc", "its raw contents have 7 bytes and the text ends at byte 9"),
        (struct.pack("<I", 2**32 - 1), "the text ends at byte 4294967299"),
        (b"", "has 0 texts, and its shape [1] means 1"),
        (struct.pack("<I", 0) * 1_000_000, "has more raw contents than the 1 texts that its shape means"),
        (b"\x02\x00\x00\x00\xff\xfe", "is not UTF-8: invalid start byte at byte 0"),
    ],
)
def test_raw_contents_that_are_no_texts_are_refused(raw: bytes, what: str) -> None:
    message = ModelInferRequest(model_name="spell", raw_input_contents=[raw])
    message.inputs.add(name="text", datatype="BYTES", shape=[1])
    [found] = faults(message).values()
    assert what in found


def test_inputs_that_are_wrong_are_named() -> None:
    assert faults(ModelInferRequest()) == {"inputs['text']": "is missing"}
    assert "[batch] or [batch, 1]" in faults(with_shape([1, 2]))["inputs['text']"]
    assert "[batch] or [batch, 1]" in faults(with_shape([-1]))["inputs['text']"]
    assert "9 are more than 8" in faults(with_shape([9]))["inputs['text']"]
    message = request("71")
    message.inputs[0].datatype = "INT32"
    assert faults(message) == {"inputs['text']": "has the datatype 'INT32': texts are BYTES"}
    message = request("71")
    message.inputs[0].parameters["shared_memory_region"].string_param = "x"
    assert "has the parameter 'shared_memory_region'" in faults(message)["inputs['text']"]
    message = request("71")
    add_texts(message, "INPUT0", "71")
    assert "the inputs text, target_prefix, scored_text" in faults(message)["inputs['INPUT0']"]
    message = request("71")
    add_texts(message, "text", "71")
    assert faults(message) == {"inputs['text']": "comes a second time"}
    message = request("71")
    message.raw_input_contents.append(b"\x02\x00\x00\x0071")
    assert faults(message) == {"inputs['text']": "has contents beside raw_input_contents"}
    message = request("71")
    message.inputs[0].contents.int_contents.append(1)
    assert "has int_contents" in faults(message)["inputs['text']"]
    assert "300 characters" in faults(ModelInferRequest(id="x" * 300))["id"]


def with_shape(shape: list[int]) -> ModelInferRequest:
    message = request("71")
    message.inputs[0].shape[:] = shape
    return message


def test_a_second_input_belongs_to_the_first() -> None:
    message = request("71", "40")
    add_texts(message, "target_prefix", "seven")
    assert faults(message) == {"inputs['target_prefix']": "1 texts do not belong to the 2 of text"}
    message = request("71")
    add_texts(message, "scored_text", "seven one")
    scoring = read(message).call
    assert isinstance(scoring, ScoringCall)
    assert (list(scoring.sources), list(scoring.texts)) == (["71"], ["seven one"])
    assert "scores a text by itself" in faults(message, "generation")["inputs['text']"]
    message.parameters["top_k"].int64_param = 1
    assert "nothing is chosen" in faults(message)["parameters['top_k']"]
    assert "has the inputs text, scored_text" in faults(prefixed(), "generation")["inputs['target_prefix']"]


def prefixed() -> ModelInferRequest:
    message = request("71")
    add_texts(message, "target_prefix", "seven")
    return message


def test_requested_outputs_are_those_of_the_response_and_bring_their_options() -> None:
    assert read(request("71")).wanted.names == DEFAULT_OUTPUTS
    message = request("71")
    for name in ("token_log_probabilities", "text", "alignment"):
        message.outputs.add(name=name)
    inference = read(message)
    assert inference.wanted.names == ("token_log_probabilities", "text", "alignment")
    assert options_of(inference) == Options(num_alternatives=0, alignment=True)


def test_outputs_that_are_wrong_are_named() -> None:
    message = request("71")
    for name in ("OUTPUT0", "alternative_tokens", "text", "text"):
        message.outputs.add(name=name)
    message.outputs.add(name="score").parameters["classification"].int64_param = 3
    found = faults(message)
    assert found["outputs['OUTPUT0']"].startswith("is unknown; there are text, ")
    assert found["outputs['alternative_tokens']"] == "needs the parameter num_alternatives"
    assert found["outputs['text']"] == "is named a second time"
    assert "has the parameter 'classification'" in found["outputs['score']"]


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("inputs[3]", "inputs['text'][3]"),
        ("prefixes", "inputs['target_prefix']"),
        ("options.stop[2]", "parameters['stop'][2]"),
        ("options.top_p", "parameters['top_p']"),
        ("options", "parameters"),
        ("model", "model_name"),
        ("", ""),
    ],
)
def test_fields_of_a_call_have_the_protocols_names(field: str, name: str) -> None:
    assert field_name(field) == name


@pytest.mark.parametrize("is_raw", [True, False])
def test_a_float64_that_no_float32_holds_is_sent_as_infinity(*, is_raw: bool) -> None:
    response = ModelInferResponse()
    add_output(response, Tensor("perplexity", "FP32", [2], [1e300, 1.5]), is_raw=is_raw)
    raw = response.raw_output_contents[0] if is_raw else b""
    values = struct.unpack("<2f", raw) if is_raw else response.outputs[0].contents.fp32_contents
    assert list(values) == [math.inf, 1.5]


def test_a_message_of_many_entries_is_refused_after_a_few_of_them() -> None:
    message = ModelInferRequest(model_name="spell")
    for index in range(2000):
        message.inputs.add(name=f"input{index}")
        message.outputs.add(name=f"output{index}")
        message.parameters[f"parameter{index}"].int64_param = index
    with pytest.raises(InvalidRequest, match=r"and \d\d more") as caught:
        read(message)
    assert len(caught.value.violations) <= 20
