"""The record of a call: the call is refused or answered, has one outcome, and is counted and logged by it.

The caller, the metrics and the log get the same outcome. Knows no transport.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Collection, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeGuard

from dragoman.server.engine.rate import retry_delay_s
from dragoman.server.errors import DeadlineExceeded, EngineError, Overloaded, RateLimited, RequestError
from dragoman.server.operations.metrics import UNKNOWN_MODEL, RejectionReason
from dragoman.server.priority import Priority
from dragoman.server.requests.admission import Load, Size
from dragoman.server.requests.call_counts import CallCounts
from dragoman.server.requests.call_log import CallLog
from dragoman.server.requests.caller import NOBODY, Caller
from dragoman.server.requests.client_limits import ClientLimits
from dragoman.server.requests.deadline import Deadline
from dragoman.server.requests.failures import CODES, Code, Failure, rejection_reason
from dragoman.server.requests.in_flight import CallsInFlight
from dragoman.server.scopes import Scope

if TYPE_CHECKING:
    from dragoman.server.operations.spans import CallSpans, Tracing

__all__ = ["CURRENT", "CallRecord", "FrontCalls", "Metadata"]


Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

CURRENT: "ContextVar[CallRecord | None]" = ContextVar("record", default=None)
"""The record of the call that a task answers. `current_call.py` reads it."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,63}")

_LIMITED = {
    "client_calls": "this client has as many calls at one time as it may",
    "client_tokens": "this client has used more tokens than it may in this time",
}


@dataclass(frozen=True, slots=True)
class FrontCalls:
    """The parts that the calls of one front share.

    Attributes:
        in_flight: calls that have begun, and how many may.
        limits: of each client.
        loads: the calls that each model answers. Its names may be labels; any other model is counted as unknown.
        counts: of calls that ended.
        last_requests: when the last call for an answer of each model came, since 1970.
        log: gets a line of each call.
        tracing: traces the calls that it samples; None: no call is traced.
    """

    in_flight: CallsInFlight
    limits: ClientLimits
    loads: dict[str, Load]
    counts: CallCounts
    last_requests: MutableMapping[str, float]
    log: CallLog
    tracing: "Tracing | None"


class CallRecord:
    """One call from its begin to its outcome. As a context manager, it gives the call its outcome.

    Attributes:
        method: the name of the method that was called.
        metadata: pairs of a key and a value that the caller sent beside the message.
        caller: the client that the call comes from; `NOBODY` until `identify` has found it.
        model: the label of the model that was asked for; "" for a method that asks for none.
        request_id: the name of the call for the caller, the log and traces.
        code: how the call ended, once it has.
        version: the version of the model that took the call; "" before one did.
        failure: what the caller gets instead of an answer, or None.
        rejection: the reason that is counted if the call ends now; None: its end is no refusal. At first, that the call
            has no message.
        trace: the call's spans; None: it is not traced.
    """

    __slots__ = (
        "_before",
        "_calls",
        "_deadline",
        "_is_admitted",
        "_is_counted",
        "_load",
        "_priority",
        "_size",
        "_started_s",
        "caller",
        "code",
        "failure",
        "metadata",
        "method",
        "model",
        "rejection",
        "request_id",
        "trace",
        "version",
    )

    def __init__(
        self,
        calls: FrontCalls,
        method: str,
        remaining_s: float | None,
        request_id: str | None = None,
        metadata: Metadata = (),
    ) -> None:
        self.method = method
        self.request_id = request_id if _is_request_id(request_id) else secrets.token_hex(8)
        self.metadata = metadata
        self.caller: Caller = NOBODY
        self.model = UNKNOWN_MODEL
        self.code: Code = "OK"
        self.failure: Failure | None = None
        self.rejection: RejectionReason | None = "no_message"
        self.trace: CallSpans | None = None
        self.version = ""
        self._calls = calls
        self._load: Load | None = None
        self._size, self._priority = Size(), Priority.NORMAL
        self._is_admitted = False
        self._is_counted = False  # among the calls of its client
        self._started_s = time.monotonic()
        self._deadline = Deadline(self._started_s, remaining_s)

    def identify(self, find: Callable[[], Caller], scopes: Collection[Scope]) -> None:
        """Set the caller, which `find` returns. Refuse a call whose caller has none of `scopes`.

        Raises:
            Unauthenticated: `find` does not believe the call's credentials.
            PermissionDenied: the caller lacks the scopes.
        """
        self.rejection = "unauthenticated"
        self.caller = find()
        self.rejection = "not_permitted"
        self.caller.check(scopes)
        self.rejection = "no_message"

    def begin_trace(self, path: str) -> None:
        """Trace the call, for the method at `path`, if it is sampled."""
        if (tracing := self._calls.tracing) is not None:
            self.trace = tracing.begin(path, self.metadata, self.request_id, self._started_s)

    def admit(self, *, uses_tokens: bool = True) -> None:
        """Refuse a call that is late already, or one too many.

        Raises:
            DeadlineExceeded: the deadline passed before the call was taken up.
            Overloaded: as many others run as may.
            RateLimited: its client has too many calls, or owes tokens and the call `uses_tokens`.
        """
        now_s, limits = time.monotonic(), self._calls.limits
        if self._deadline.has_passed(now_s):
            self.rejection = "late"
            raise DeadlineExceeded("the deadline passed before the server could take the call up")
        self.rejection = "too_many_calls"
        self._calls.in_flight.check(now_s)
        self.rejection = "no_message"
        if not limits.are_on:
            self._is_admitted = True
            return
        refusal = limits.begin(self.caller.identity, now_s, uses_tokens=uses_tokens)
        if refusal is not None:
            self.rejection = refusal.reason
            raise RateLimited(_LIMITED[refusal.reason], retry_delay_s(refusal.delay_s))
        self._is_admitted = self._is_counted = True

    @property
    def pays_tokens(self) -> bool:
        """Whether the call's client has a limit on tokens."""
        return self._is_counted and self._calls.limits.tokens_a_second > 0

    def pay(self, num_tokens: int) -> None:
        """Take tokens that the call used from its client's bucket."""
        if self._is_counted:
            self._calls.limits.pay(self.caller.identity, num_tokens, time.monotonic())

    def begin_message(self) -> None:
        """Note that the call's message has come whole."""
        self.rejection = None

    def name_model(self, name: str | None) -> None:
        """Note the model that the call asks for; None: the method asks for none."""
        self.model = "" if name is None else name if name in self._calls.loads else UNKNOWN_MODEL

    def begin_answer(
        self,
        size: Size = Size(),  # noqa: B008
        priority: Priority = Priority.NORMAL,
        *,
        deadline_s: float | None = None,
    ) -> None:
        """Count the call as one of its model's, unless it would wait too long for slots.

        `deadline_s`, on `time.monotonic()`, is that of the message; the call's own one holds too.

        Raises:
            Overloaded: the call would wait too long.
        """
        load = self._calls.loads.get(self.model)
        if load is None:
            return
        now_s = time.monotonic()
        end_s = self._deadline.at_s if deadline_s is None else min(self._deadline.at_s, deadline_s)
        delay_s = load.delay(end_s - now_s, now_s, size, priority)
        if delay_s is not None:
            self.rejection = "no_time"
            raise Overloaded("more calls wait than can be answered before this call's deadline", delay_s)
        load.begin(now_s, size, priority)
        self._load, self._size, self._priority = load, size, priority
        self._calls.last_requests[self.model] = time.time()

    def __enter__(self) -> Self:
        self._before = CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Gives the call its outcome. Where that is a `failure`, the error ends here.

        With the error goes what its traceback holds, the message and the request, before the caller is answered.
        """
        CURRENT.reset(self._before)
        if error is None:
            self._calls.log.write_end(self._fields)
        elif isinstance(error, RequestError) and not isinstance(error, EngineError):
            self.code = CODES[type(error)]
            self.rejection = self.rejection or rejection_reason(error)
            self._calls.log.write_refusal(self._fields, error, self.rejection)
            self.failure = Failure.of(error, self.rejection)
        elif isinstance(error, asyncio.CancelledError):
            self.code = self._ended_early()
            self._calls.log.write_end(self._fields)
        elif not isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            # A bug of ours, or a panic of native code, ends this call and no other.
            self.code = "INTERNAL"
            self._calls.log.write_fault(self._fields, error)
            self.failure = Failure.internal(self.request_id)
        self._count()
        return self.failure is not None

    def _ended_early(self) -> Code:
        """Returns why a call was cancelled: its deadline passed, also on the client's clock, or the caller left."""
        has_expired = self._deadline.may_have_passed(time.monotonic())
        return "DEADLINE_EXCEEDED" if has_expired else "CANCELLED"

    def _count(self) -> None:
        now_s = time.monotonic()
        if self._load is not None:
            is_answered = self.code == "OK"
            self._load.end(now_s, answered=is_answered, size=self._size, priority=self._priority)
        if self._is_counted:
            self._calls.limits.end(self.caller.identity, now_s)
        self._calls.in_flight.pass_time(now_s, num_ended=self._is_admitted)
        exemplar = None
        if (trace := self.trace) is not None:
            exemplar = trace.exemplar
            trace.set(model=self.model)
            trace.end(self.code, now_s)
        seconds = now_s - self._started_s
        if self.version:
            self._calls.counts.count_version(self.model, self.version, self.code)
        self._calls.counts.count(
            self.model, self.method, self.code, seconds, self.rejection, exemplar=exemplar
        )

    def _fields(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._started_s
        traced = {} if self.trace is None else {"trace_id": self.trace.trace_id}
        return {
            "request_id": self.request_id,
            **traced,
            "method": self.method,
            "model": self.model,
            "code": self.code,
            "seconds": round(seconds, 6),
        }


def _is_request_id(text: str | None) -> TypeGuard[str]:
    """Returns whether a caller may name its call so: a log's lines need a short word, neither a line nor a text."""
    return text is not None and _REQUEST_ID.fullmatch(text) is not None
