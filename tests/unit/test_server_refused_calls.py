"""What a refused call came with is freed before its status is sent, which takes as long as the client likes."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from benchmarks.played_context import PlayedContext
from google.protobuf.message import DecodeError

from dragoman.server.errors import FieldViolation, InvalidRequest
from dragoman.server.fronts.grpc.authentication import Authenticator
from dragoman.server.fronts.grpc.chains import Interceptors
from dragoman.server.fronts.grpc.dragoman_v1.protocol import PROTOCOL
from dragoman.server.fronts.grpc.draining import CallGate
from dragoman.server.operations.metrics import Metrics
from dragoman.server.requests.recorder import CallRecorder
from dragoman.v1.translation_pb2 import TranslateRequest

PATH = "/dragoman.v1.TranslationService/Translate"
TOO_MANY = TranslateRequest(inputs=[""] * 20_000).SerializeToString()


@pytest.fixture(autouse=True)
def without_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Watched:
    """Tells `freed` when the last reference to it is gone."""

    freed: list[str]

    def __del__(self) -> None:
        self.freed.append(type(self).__name__)


class Message(Watched, bytes):
    pass


class Request(Watched):
    model = "m"


class Context(PlayedContext):
    """Notes what had been freed when the call was aborted."""

    def __init__(self, message: bytes, freed: list[str]) -> None:
        super().__init__(message)
        self.freed = freed
        self.freed_before_status: list[str] | None = None
        self.code: grpc.StatusCode | None = None

    async def abort_with_status(self, status: grpc.Status) -> None:
        self.freed_before_status, self.code = list(self.freed), status.code
        raise grpc.aio.AbortError


async def refused(content: bytes, parse: Callable[[bytes], Any], behaviour: Any) -> Context:
    freed: list[str] = []
    Watched.freed = freed
    recorder = CallRecorder(Metrics(1.0), {"m": 4}, max_calls=10)
    interceptors = Interceptors(
        recorder, CallGate(), Authenticator(), max_inputs=128, max_message_bytes=1000, max_streams=100
    )
    inner = grpc.unary_unary_rpc_method_handler(behaviour, parse, TranslateRequest.SerializeToString)
    handler: Any = interceptors.around(PATH, inner, PROTOCOL)
    context = Context(Message(content), freed)
    with pytest.raises(grpc.aio.AbortError):
        await handler.stream_unary(None, context)
    return context


async def never(_: Any, __: Any) -> None:
    raise AssertionError("called")


async def test_a_message_with_too_many_entries() -> None:
    context = await refused(TOO_MANY, TranslateRequest.FromString, never)
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    assert context.freed_before_status == ["Message"]


async def test_a_message_that_is_none() -> None:
    def parse(_: bytes) -> None:
        raise DecodeError("not one")

    context = await refused(b"\xff" * 40_000, parse, never)
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    assert context.freed_before_status == ["Message"]


@pytest.mark.parametrize(
    ("make_error", "code"),
    [
        (lambda: InvalidRequest([FieldViolation("inputs", "is empty")]), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: ValueError("a bug"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_a_request_that_was_parsed(make_error: Callable[[], Exception], code: grpc.StatusCode) -> None:
    async def behaviour(request: Request, _: object) -> None:
        assert request.model == "m"
        raise make_error()

    context = await refused(b"", lambda _: Request(), behaviour)
    assert context.code is code
    assert context.freed_before_status == ["Message", "Request"]
