"""Sound inputs of the targets, which a fuzzer changes."""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from tests.integration.serving import BUNDLES

from dragoman.inference import grpc_service_pb2 as inference
from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import token_line
from dragoman.v1 import decoding_pb2, generation_pb2, model_pb2, translation_pb2

__all__ = ["DRAGOMAN", "INFERENCE", "KEYS", "METHODS", "TOKEN", "seeds_of"]

TOKEN = "dragoman_" + "T" * 43
KEYS = (
    "authorization",
    "x-request-id",
    "dragoman-sticky-key",
    "traceparent",
    "tracestate",
    "peer",
    "seconds left",
    "x-other",
)
"""What a line of the target `metadata` is, by its first byte."""


def _methods_of(*files: Any) -> Mapping[str, MethodDescriptor]:
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    methods = [method for service in services for method in service.methods]
    return {f"/{each.containing_service.full_name}/{each.name}": each for each in methods}


DRAGOMAN: Mapping[str, MethodDescriptor] = _methods_of(translation_pb2, generation_pb2, model_pb2)
INFERENCE: Mapping[str, MethodDescriptor] = _methods_of(inference)
METHODS: Mapping[str, MethodDescriptor] = {**DRAGOMAN, **INFERENCE}


def seeds_of(name: str) -> list[bytes]:
    """Sound inputs of a target."""
    seeds: Mapping[str, Callable[[], list[bytes]]] = {
        "entries": lambda: _selected(METHODS, {**_dragoman_requests(), **_inference_requests()}),
        "calls": lambda: _selected(DRAGOMAN, _dragoman_requests()),
        "inference": lambda: _selected(INFERENCE, _inference_requests()),
        "metadata": _metadata,
        "files": _files,
        "manifests": lambda: [_read(each, "bundle.json") for each in ("spell/2", "count/2", "spell/1")],
        "tokenizers": lambda: [_read(each, "tokenizer.json") for each in ("spell/2", "count/2")],
    }
    return seeds[name]()


def _read(bundle: str, name: str) -> bytes:
    return (BUNDLES / bundle / name).read_bytes()


def _selected(methods: Mapping[str, Any], requests: Mapping[str, Sequence[Any]]) -> list[bytes]:
    """Each request with the number of its method before it."""
    paths = list(methods)
    return [
        bytes([paths.index(path)]) + request.SerializeToString()
        for path, each in requests.items()
        for request in each
    ]


def _dragoman_requests() -> dict[str, list[Any]]:
    options = decoding_pb2.DecodingOptions(
        max_tokens=4, temperature=0.5, top_k=3, top_p=0.9, seed=7, stop=["two"], suppressed_token_ids=[5, 6]
    )
    searched = decoding_pb2.DecodingOptions(beam_size=3, num_hypotheses=2, num_alternatives=2, alignment=True)
    pair = translation_pb2.ScoredPair(source="12", target="one two")
    translate = [
        translation_pb2.TranslateRequest(model="spell", inputs=["12", "7"], options=options),
        translation_pb2.TranslateRequest(
            model="spell", inputs=["40"], options=searched, target_prefixes=["four"]
        ),
    ]
    score = translation_pb2.ScoreTranslationsRequest(model="spell", pairs=[pair, pair], num_alternatives=2)
    alias = model_pb2.ModelAlias(model="spell", alias="canary", version="2", traffic_percent=10)
    service = "/dragoman.v1.{}Service/{}".format
    return {
        service("Translation", "Translate"): translate,
        service("Translation", "StreamTranslate"): translate,
        service("Translation", "ScoreTranslations"): [score],
        service("Generation", "Generate"): [
            generation_pb2.GenerateRequest(model="count", prompt="one two", options=options)
        ],
        service("Generation", "ScoreTexts"): [
            generation_pb2.ScoreTextsRequest(model="count", texts=["one two", "three"])
        ],
        service("Model", "ListModels"): [model_pb2.ListModelsRequest()],
        service("Model", "GetModel"): [model_pb2.GetModelRequest(model="spell", version="2")],
        service("Model", "LoadModel"): [
            model_pb2.LoadModelRequest(model="spell", version="1"),
            model_pb2.LoadModelRequest(model="../bundles/spell", version="2/../1"),
        ],
        service("Model", "UnloadModel"): [model_pb2.UnloadModelRequest(model="spell", version="1")],
        service("Model", "SetAlias"): [model_pb2.SetAliasRequest(alias=alias)],
        service("Model", "DeleteAlias"): [model_pb2.DeleteAliasRequest(model="spell", alias="canary")],
    }


def _infer(model: str, *, is_raw: bool, is_flat: bool = False, **inputs: Sequence[str]) -> Any:
    request = inference.ModelInferRequest(model_name=model, id="7")
    for name, texts in inputs.items():
        shape = [len(texts)] if is_flat else [len(texts), 1]
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=shape)
        contents = [text.encode() for text in texts]
        if is_raw:
            raw = b"".join(struct.pack("<I", len(each)) + each for each in contents)
            request.raw_input_contents.append(raw)
        else:
            tensor.contents.bytes_contents.extend(contents)
    return request


def _inference_requests() -> dict[str, list[Any]]:
    """Raw and typed contents, both shapes, parameters of each type, chosen outputs."""
    typed = _infer("spell", is_raw=False, text=["12", "7"])
    typed.parameters["max_tokens"].int64_param = 4
    typed.parameters["temperature"].double_param = 0.5
    typed.parameters["stop"].string_param = '["two"]'
    raw = _infer("spell", is_raw=True, is_flat=True, text=["12", "7"])
    raw.parameters["beam_size"].int64_param = 3
    raw.parameters["num_hypotheses"].int64_param = 2
    raw.outputs.add(name="text")
    raw.outputs.add(name="score")
    prefixed = _infer("spell", is_raw=True, text=["12"], target_prefix=["one"])
    prefixed.parameters["timeout"].int64_param = 5_000_000
    prefixed.parameters["priority"].uint64_param = 1
    scored = _infer("spell", is_raw=False, text=["12"], scored_text=["one two"])
    generated = _infer("count", is_raw=True, text=["one two"])
    generated.parameters["max_tokens"].int64_param = 4
    generated.parameters["triton_enable_empty_final_response"].bool_param = True
    wrong_type = _infer("count", is_raw=False, text=["one"])
    wrong_type.inputs[0].datatype = "FP32"
    wrong_type.inputs[0].contents.fp32_contents.append(1.5)
    load = inference.RepositoryModelLoadRequest(model_name="spell")
    load.parameters["version"].string_param = "1"
    path = "/inference.GRPCInferenceService/{}".format
    of_model = {"name": "spell", "version": "2"}
    return {
        path("ModelInfer"): [typed, raw, prefixed, scored, generated, wrong_type],
        path("ModelStreamInfer"): [typed, raw, scored, generated],
        path("ServerMetadata"): [inference.ServerMetadataRequest()],
        path("ModelReady"): [inference.ModelReadyRequest(**of_model)],
        path("ModelMetadata"): [inference.ModelMetadataRequest(**of_model)],
        path("ModelConfig"): [inference.ModelConfigRequest(**of_model)],
        path("ModelStatistics"): [inference.ModelStatisticsRequest(**of_model)],
        path("RepositoryIndex"): [inference.RepositoryIndexRequest(ready=True)],
        path("RepositoryModelLoad"): [load],
        path("RepositoryModelUnload"): [inference.RepositoryModelUnloadRequest(model_name="spell")],
    }


def _metadata() -> list[bytes]:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    values = {
        "authorization": b"Bearer " + TOKEN.encode(),
        "x-request-id": b"order-4071",
        "dragoman-sticky-key": b"caller-7",
        "traceparent": trace,
        "tracestate": b"vendor=00f067aa0ba902b7",
        "peer": b"ipv6:%5B2001:db8::7%5D:4071",
        "seconds left": b"5.5",
    }
    lines = {key: bytes([KEYS.index(key)]) + value for key, value in values.items()}
    local = bytes([KEYS.index("peer")]) + b"unix:/run/client.sock"
    chosen = [
        list(lines),
        ["authorization"],
        ["authorization", "traceparent", "x-request-id"],
        ["x-request-id", "peer"],
    ]
    return [b"\n".join(lines[key] for key in keys) for keys in chosen] + [
        lines["authorization"] + b"\n" + local
    ]


def _files() -> list[bytes]:
    tokens = "\n".join(
        [
            token_line(TOKEN, "app", [Scope.INFER, Scope.ADMIN], None),
            'ci = { hash = "sha256:' + "0" * 64 + '", scopes = ["infer"], expires = 2027-01-01T00:00:00Z }',
        ]
    )
    settings = """
[server]
port = 8500
max_inputs = 64
max_connection_age_s = 3.5
[models]
directory = "models"
versions = "all"
[engine]
lanes = "auto"
prefix_cache_bytes = 1_000_000
[admission]
tokens_a_second_a_client = 10
[security]
client_certificates = { "app.example.org" = ["infer"] }
tls_certificate = "cert.pem"
tls_key = "key.pem"
tls_client_ca = "ca.pem"
[logging]
level = "debug"
[tracing]
endpoint = "http://localhost:4317"
sampling_ratio = 0.5
"""
    headers = "# of the collector\napi-key=4071\nx-other = a b\n"
    return [bytes([number]) + text.encode() for number, text in enumerate((tokens, settings, headers))]
