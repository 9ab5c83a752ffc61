"""Around every call of our services: its admission, status, metrics, line in the log and place in the count."""

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from structlog.typing import FilteringBoundLogger

from dragoman.server.errors import (
    AnswerTooLarge,
    DeadlineExceeded,
    EngineError,
    FieldViolation,
    InvalidRequest,
    Overloaded,
    RequestError,
)
from dragoman.server.fronts.grpc.draining import CallsInFlight
from dragoman.server.fronts.grpc.parsing import Parsing
from dragoman.server.fronts.grpc.status import (
    CallStatus,
    internal_status,
    rejection_reason,
    status_code,
    to_status,
)
from dragoman.server.operations.metrics import METHODS, UNKNOWN_MODEL, ArrivalReason, Metrics, RejectionReason
from dragoman.server.requests.admission import Load

__all__ = ["CallInterceptor"]

OUR_PACKAGE = "/dragoman."
NO_MODEL = ""

RETRY_DELAY_S = 1.0
"""What a caller is told to wait when too many calls are in the server."""

ROUNDING = 0.01
"""gRPC rounds the timeout that it sends up, by a hundredth at most: a client gives up before the server expects it."""
TRANSIT_S = 0.05
"""How much earlier on the server's clock a client may give up: its headers took so much longer than its reset."""
NO_MESSAGE_S = 1.0
"""How long a call that ended its sending without a message may take to turn out to be cancelled."""

_log = structlog.get_logger(__name__)

# A string: generic in the stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context = grpc.aio.ServicerContext[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives every call of our services exactly one outcome: to the caller, to the metrics, to the log.

    Attributes:
        num_taken_up: Calls of all services, those of unknown methods included, that gRPC has handed over.
    """

    def __init__(
        self,
        metrics: Metrics,
        models: Mapping[str, int],
        in_flight: CallsInFlight,
        *,
        max_calls: int,
        max_message_bytes: int,
        max_inputs: int,
    ) -> None:
        """Let `max_calls` calls run at one time, and answer each in messages of up to `max_message_bytes`.

        `models` says for each model how many sequences it decodes at one time. Its names may be labels; any other is
        counted as unknown.
        """
        self._loads = {name: Load(num_slots) for name, num_slots in models.items()}
        self._in_flight = in_flight
        self.num_taken_up = 0
        self._parsing = Parsing(max_inputs)
        self._max_calls = max_calls
        self._max_message_bytes = max_message_bytes
        self._metrics = metrics
        self._models = models
        self._handlers: dict[str, Handler] = {}
        self._log = _log.bind()  # settles on a logger once, not for every line

    def count_call(self) -> None:
        """Count a call that gRPC has handed over, also one of an unknown method, which is refused elsewhere."""
        self.num_taken_up += 1

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wrap the handler of a method of ours, once; leave health, reflection and unknown methods alone."""
        self.count_call()
        path = handler_call_details.method
        wrapped = self._handlers.get(path)
        if wrapped is None:
            wrapped = await continuation(handler_call_details)
            if wrapped is not None and path.startswith(OUR_PACKAGE):
                wrapped = self._handlers[path] = self._wrap(path, wrapped)
        return wrapped

    def _wrap(self, path: str, handler: Handler) -> Handler:
        method = path.rpartition("/")[2]
        needs_slot = any(method in methods for methods in METHODS.values())
        assert not handler.request_streaming, "no service of ours takes a stream"
        parse: Any = handler.request_deserializer
        serialize = handler.response_serializer
        streams = handler.response_streaming
        behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary

        async def respond(call: _CallRecord, context: Context) -> Any:
            await self._in_flight.wait_while_held()
            self._admit(call)
            # Reading and parsing are ours to do, so that a message that is none has an outcome too.
            request = await self._parsing.parse(path, parse, await _read(call, context))
            call.model = self._label(request)
            if needs_slot:
                self._begin(call)
            response = await behaviour(request, context)
            return None if streams else self._serialize(serialize, response)

        async def answer(_: Any, context: Context) -> Any:
            call = _CallRecord(method, self._log, context.time_remaining())
            self._in_flight.begin()
            # Runs when the status has been sent, which is later than when this function returns.
            context.add_done_callback(self._end)  # type: ignore[arg-type]  # the stubs want a class
            try:
                with call.outcome():
                    return await respond(call, context)
                # Out here the error is gone, and with it the message and the request that its traceback holds.
                assert call.failure is not None
                await _abort(context, call.failure)
            finally:
                self._record(call)

        # gRPC calls the handler of a method that takes a stream at once, that of any other when the message is there.
        # On the wire they are the same. So a call is judged before its message is waited for.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(answer, None, None)

    def _serialize(self, serialize: Any, response: Any) -> bytes:
        """The message that goes out. gRPC would find out too late for the call's outcome that it is too long.

        Raises:
            AnswerTooLarge: it is.
        """
        message: bytes = serialize(response)
        if len(message) > self._max_message_bytes:
            raise AnswerTooLarge(self._max_message_bytes)
        return message

    def _admit(self, call: "_CallRecord") -> None:
        """Refuse a call that is late already, or one too many.

        Raises:
            DeadlineExceeded: the deadline passed before the call was taken up.
            Overloaded: `max_calls` others are in the server.
        """
        if call.remaining_s <= 0:
            call.arrival_reason = "late"
            raise DeadlineExceeded("the deadline passed before the server could take the call up")
        if self._in_flight.count > self._max_calls:
            call.arrival_reason = "too_many_calls"
            raise Overloaded(f"{self._max_calls} calls are being answered already", RETRY_DELAY_S)

    def _begin(self, call: "_CallRecord") -> None:
        """Count a call as one of its model's, unless it would wait too long for a slot.

        Raises:
            Overloaded: it would.
        """
        load = self._loads.get(call.model)
        if load is None:
            return
        now_s = time.perf_counter()
        delay_s = load.delay(call.remaining_s, now_s)
        if delay_s is not None:
            call.arrival_reason = "no_time"
            raise Overloaded("more calls wait than can be answered before this call's deadline", delay_s)
        load.begin(now_s)
        call.load = load

    def _end(self, _: Context) -> None:
        self._in_flight.end()

    def _label(self, request: Any) -> str:
        if "model" not in request.DESCRIPTOR.fields_by_name:
            return NO_MODEL
        return request.model if request.model in self._models else UNKNOWN_MODEL

    def _record(self, call: "_CallRecord") -> None:
        seconds = time.perf_counter() - call.started
        if call.load is not None:
            call.load.end(call.started + seconds, answered=call.code is grpc.StatusCode.OK)
        self._metrics.requests.labels(call.model, call.method, call.code.name).inc()
        self._metrics.request_duration.labels(call.model, call.method).observe(seconds)
        reason = call.arrival_reason or call.rejection_reason
        if reason is not None:
            self._metrics.rejected.labels(call.model, reason).inc()


class _CallRecord:
    """One call from its begin to its outcome.

    Attributes:
        arrival_reason: why the call ends, should it end before its message has been read.
        load: what counts the call as one of its model's, once it has been taken.
        rejection_reason: why the call was refused after its message had been read.
        failure: what the caller is told instead of an answer.
    """

    def __init__(self, method: str, log: FilteringBoundLogger, remaining_s: float | None) -> None:
        """Begin the record of a call that has `remaining_s` until its deadline; None: it has no deadline."""
        self.method = method
        self._log = log
        self.model = UNKNOWN_MODEL
        self.started = time.perf_counter()
        self.arrival_reason: ArrivalReason | None = "no_message"
        self.load: Load | None = None
        # gRPC cancels a call whose deadline passed just as it does when the caller left. So the deadline is kept.
        self._deadline_s = None if remaining_s is None else self.started + remaining_s
        self._tolerance_s = 0.0 if remaining_s is None else ROUNDING * remaining_s + TRANSIT_S
        self.code = grpc.StatusCode.OK
        self.rejection_reason: RejectionReason | None = None
        self.failure: CallStatus | None = None

    @property
    def remaining_s(self) -> float:
        """Time until the deadline; infinite where there is none."""
        return math.inf if self._deadline_s is None else self._deadline_s - time.perf_counter()

    def _ended_early(self) -> grpc.StatusCode:
        """Why gRPC ended the call: the deadline passed, also on the client's clock, or the caller left."""
        expired = self._deadline_s is not None and time.perf_counter() >= self._deadline_s - self._tolerance_s
        return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED

    @contextlib.contextmanager
    def outcome(self) -> Iterator[None]:
        """Gives the call its outcome. Where that is a `failure`, the error ends here."""
        try:
            yield
        except EngineError:
            self._fail()
        except RequestError as error:
            self.rejection_reason, self.code = rejection_reason(error), status_code(error)
            self._log.warning("request", **self._fields(), error=str(error))
            self.failure = to_status(error)
        except asyncio.CancelledError:
            self.code = self._ended_early()
            self._log_end()
            raise
        except grpc.aio.InternalError:  # the connection broke under a message
            self.code = self._ended_early()
            self._log_end()
            raise
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # noqa: BLE001 a bug of ours, or a panic of native code, ends this call and no other
            self._fail()
        else:
            self._log_end()

    def _fail(self) -> None:
        self.code = grpc.StatusCode.INTERNAL
        request_id = secrets.token_hex(8)
        self._log.exception("request", **self._fields(), request_id=request_id)
        self.failure = internal_status(request_id)

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


async def _read(call: _CallRecord, context: Context) -> bytes:
    """Return the call's message.

    Raises:
        InvalidRequest: the client ended its sending without a message.
    """
    message = await context.read()
    if message is grpc.aio.EOF:
        # gRPC reads the same from a call that was cancelled or whose message is too long, and cancels its task next.
        await asyncio.sleep(NO_MESSAGE_S)
        raise InvalidRequest([FieldViolation("", "the call came without a message")])
    call.arrival_reason = None
    return message  # type: ignore[no-any-return]
