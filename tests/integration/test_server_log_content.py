"""Nothing of a request is in the log, whatever is wrong with the request.

`tests/unit/test_server_call_records.py` asks for it, and finds it there.
"""

import signal
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.integration.certificates import replace
from tests.integration.child_server import ports, running
from tests.integration.raw_http2 import RawClient

from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import make_token, token_line
from dragoman.v1 import (
    decoding_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    translation_pb2,
    translation_pb2_grpc,
)

MARKER = "MARKER4071"
Options = decoding_pb2.DecodingOptions
Translate = translation_pb2.TranslateRequest


def hostile_calls(channel: Any, token: str) -> set[str]:
    """Make calls that are wrong in every way; returns the codes that they end with."""
    translation: Any = translation_pb2_grpc.TranslationServiceStub(channel)
    generation: Any = generation_pb2_grpc.GenerationServiceStub(channel)
    models: Any = model_pb2_grpc.ModelServiceStub(channel)
    health: Any = health_pb2_grpc.HealthStub(channel)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol=MARKER)
    good = [("authorization", f"Bearer {token}")]
    bad = [
        ("authorization", f"Bearer {MARKER}"),
        ("x-request-id", f"{MARKER} {MARKER}"),
        (MARKER.lower(), MARKER),
    ]
    codes = set()
    for metadata in (good, bad):
        for call in (
            lambda m: translation.Translate(Translate(model=MARKER, inputs=[MARKER]), metadata=m),
            lambda m: translation.Translate(
                Translate(model="spell", version=MARKER, inputs=[MARKER]), metadata=m
            ),
            lambda m: translation.Translate(
                Translate(model="spell", inputs=["", MARKER * 500], target_prefixes=[MARKER]), metadata=m
            ),
            lambda m: translation.Translate(
                Translate(model="spell", inputs=[MARKER] * 2, options=Options(stop=[MARKER] * 99)), metadata=m
            ),
            lambda m: translation.Translate(
                Translate(model="spell", inputs=["1"], options=Options(suppressed_texts=[MARKER * 200])),
                metadata=m,
            ),
            lambda m: list(
                generation.Generate(generation_pb2.GenerateRequest(model="spell", prompt=MARKER), metadata=m)
            ),
            lambda m: models.GetModel(model_pb2.GetModelRequest(model=MARKER), metadata=m),
            lambda m: models.LoadModel(model_pb2.LoadModelRequest(model=MARKER), metadata=m),
            lambda m: health.Check(health_pb2.HealthCheckRequest(service=MARKER), metadata=m),
            lambda m: list(reflection.ServerReflectionInfo(iter([ask]), metadata=m)),
            lambda m: channel.unary_unary(f"/{MARKER}/{MARKER}")(MARKER.encode(), metadata=m),
            lambda m: channel.unary_unary("/dragoman.v1.TranslationService/Translate")(
                b"\xff" + MARKER.encode(), metadata=m
            ),
        ):
            try:
                call(metadata)
                codes.add("OK")
            except grpc.RpcError as error:
                codes.add(error.code().name)
    return codes


def test_a_marker_is_in_no_line(tmp_path: Path) -> None:
    token = make_token()
    tokens = tmp_path / "tokens.toml"
    replace(tokens, token_line(token, "app", [Scope.INFER], None).encode())
    arguments = ("--set", f"security.tokens_file={tokens}", "--log-level", "debug")
    with running(*ports(), *arguments) as server:
        port = server.wait_for("serving")["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            codes = hostile_calls(channel, token)
        with RawClient(port, window=65_535) as client:
            client.socket.sendall(MARKER.encode() * 100)
            client.read_to_end()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 0
    text = repr(server.events)
    assert {"INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "UNIMPLEMENTED", "PERMISSION_DENIED"} <= codes
    assert sum(event["event"] == "request" for event in server.events) > len(codes)
    assert MARKER.lower() not in text.lower()
    assert token not in text
