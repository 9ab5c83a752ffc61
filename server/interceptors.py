"""Around every call of our services: its status, its metrics, its line in the log, its place in the count."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Container
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from structlog.typing import FilteringBoundLogger

from server.draining import CallsInFlight
from server.errors import EngineError, FieldViolation, InvalidRequest, RequestError
from server.metrics import Metrics
from server.status import CallStatus, internal_status, rejection_reason, status_code, to_status

__all__ = ["CallInterceptor"]

OUR_PACKAGE = "/dragoman."
UNKNOWN_MODEL = "unknown"
NO_MODEL = ""

_log = structlog.get_logger(__name__)

# A string: generic in the stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context = grpc.aio.ServicerContext[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives every call of our services exactly one outcome: to the caller, to the metrics, to the log."""

    def __init__(self, metrics: Metrics, models: Container[str], in_flight: CallsInFlight) -> None:
        """`models` are the names that may be labels; any other is counted as unknown."""
        self._in_flight = in_flight
        self._metrics = metrics
        self._models = models
        self._handlers: dict[str, Handler] = {}
        self._log = _log.bind()  # settles on a logger once, not for every line

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wrap the handler of a method of ours, once; leave health, reflection and unknown methods alone."""
        path = handler_call_details.method
        wrapped = self._handlers.get(path)
        if wrapped is None:
            wrapped = await continuation(handler_call_details)
            if wrapped is not None and path.startswith(OUR_PACKAGE):
                wrapped = self._handlers[path] = self._wrap(path.rpartition("/")[2], wrapped)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        assert not handler.request_streaming, "no service of ours takes a stream"
        parse = handler.request_deserializer
        behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary

        async def answer(message: bytes, context: Context) -> Any:
            call = _CallRecord(method, self._log)
            self._in_flight.begin()
            # Runs when the status has been sent, which is later than when this function returns.
            context.add_done_callback(self._end)  # type: ignore[arg-type]  # the stubs want a class
            try:
                async with call.outcome(context):
                    await self._in_flight.wait_while_held()
                    # Parsing is ours to do, so that a message that is none has an outcome too.
                    request = _parse(parse, message)
                    call.model = self._label(request)
                    return await behaviour(request, context)
            finally:
                self._record(call)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(answer, None, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)

    def _end(self, _: Context) -> None:
        self._in_flight.end()

    def _label(self, request: Any) -> str:
        if "model" not in request.DESCRIPTOR.fields_by_name:
            return NO_MODEL
        return request.model if request.model in self._models else UNKNOWN_MODEL

    def _record(self, call: "_CallRecord") -> None:
        seconds = time.perf_counter() - call.started
        self._metrics.requests.labels(call.model, call.method, call.code.name).inc()
        self._metrics.request_duration.labels(call.model, call.method).observe(seconds)
        if call.error is not None and (reason := rejection_reason(call.error)):
            self._metrics.rejected.labels(call.model, reason).inc()


class _CallRecord:
    """One call from its begin to its outcome."""

    def __init__(self, method: str, log: FilteringBoundLogger) -> None:
        self.method = method
        self._log = log
        self.model = UNKNOWN_MODEL
        self.started = time.perf_counter()
        self.code = grpc.StatusCode.OK
        self.error: RequestError | None = None

    @asynccontextmanager
    async def outcome(self, context: Context) -> Any:
        try:
            yield
        except EngineError:
            await self._fail(context)
        except RequestError as error:
            self.error, self.code = error, status_code(error)
            self._log.warning("request", **self._fields(), error=str(error))
            await _abort(context, to_status(error))
        except asyncio.CancelledError:
            # gRPC cancels a call whose deadline passed just as it does when the caller left.
            remaining = context.time_remaining()
            expired = remaining is not None and remaining <= 0
            self.code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            self._log_end()
            raise
        except grpc.aio.InternalError:  # the connection broke under a message
            self.code = grpc.StatusCode.CANCELLED
            self._log_end()
            raise
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # noqa: BLE001 a bug of ours, or a panic of native code, ends this call and no other
            await self._fail(context)
        else:
            self._log_end()

    async def _fail(self, context: Context) -> None:
        self.code = grpc.StatusCode.INTERNAL
        request_id = secrets.token_hex(8)
        self._log.exception("request", **self._fields(), request_id=request_id)
        await _abort(context, internal_status(request_id))

    def _log_end(self) -> None:
        if self._log.is_enabled_for(logging.DEBUG):  # every call comes by here
            self._log.debug("request", **self._fields())

    def _fields(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self.started
        return {
            "method": self.method,
            "model": self.model,
            "code": self.code.name,
            "seconds": round(seconds, 6),
        }


async def _abort(context: Context, status: CallStatus) -> None:
    # gRPC may have ended the call first: its deadline passed, or its client has gone.
    with contextlib.suppress(grpc.aio.InternalError):
        await context.abort_with_status(status)


def _parse(parse: Any, message: bytes) -> Any:
    try:
        return parse(message)
    except DecodeError as error:
        raise InvalidRequest([FieldViolation("", "the message is not of this method's type")]) from error
