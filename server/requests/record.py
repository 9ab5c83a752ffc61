"""What becomes of each call: one outcome, its place in the counts, its metrics, its line in the log.

A front begins a record when it takes a call up, and answers inside of it:

    record = recorder.begin("Translate", remaining_s=2.0)
    with record:
        record.admit()
        request = ...  # the call's message
        record.begin_answer("dates")
        ...  # the answer
    if record.failure is not None:
        ...  # the caller gets it instead
    recorder.in_flight.end()  # once the last byte has been sent

Knows no transport.
"""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeGuard

import structlog
from structlog.typing import FilteringBoundLogger

from dragoman.server.engine.rate import Rate, retry_delay_s
from dragoman.server.errors import (
    DeadlineExceeded,
    EngineError,
    Overloaded,
    PermissionDenied,
    RateLimited,
    RequestError,
    Unauthenticated,
)
from dragoman.server.operations.metrics import (
    UNKNOWN_MODEL,
    Exemplar,
    Metrics,
    RejectionReason,
)
from dragoman.server.operations.tracebacks import traceback_without_messages
from dragoman.server.priority import DEFAULT_WEIGHTS, Priority, Weights
from dragoman.server.requests.admission import Load, Size
from dragoman.server.requests.caller import NOBODY, Caller
from dragoman.server.requests.client_limits import ClientLimits
from dragoman.server.requests.failures import CODES, Code, Failure, rejection_reason
from dragoman.server.requests.in_flight import CallsInFlight
from dragoman.server.scopes import Scope

if TYPE_CHECKING:
    from dragoman.server.operations.spans import CallSpans, Tracing

__all__ = [
    "CallRecord",
    "CallRecorder",
    "Metadata",
    "current_client",
    "current_priority",
    "current_record",
    "current_trace",
    "is_request_id",
    "note_version",
]


Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

ROUNDING = 0.01
"""gRPC rounds the timeout that it sends up, by a hundredth at most: a client gives up before the server expects it."""
TRANSIT_S = 0.05
"""How much earlier on the server's clock a client may give up: its headers took so much longer than its reset."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,63}")

_log = structlog.get_logger(__name__)

_current: "ContextVar[CallRecord | None]" = ContextVar("record", default=None)
"""Of the call that a task answers: generated code, between a front and the services, takes no record along."""


_LIMITED = {
    "client_calls": "this client has as many calls at one time as it may",
    "client_tokens": "this client has used more tokens than it may in this time",
}


def current_record() -> "CallRecord | None":
    """Returns the record of the call that the task answers; None in a process without callers."""
    return _current.get()


def note_version(version: str) -> None:
    """Say which version of its model answers the call that the task answers."""
    record = _current.get()
    if record is not None:
        record.version = version


def current_client() -> str:
    """Returns the identity of the caller whose call the task answers; "" in a process without callers."""
    record = _current.get()
    return "" if record is None else record.caller.identity


def current_priority(asked: Priority) -> Priority:
    """Returns the priority of the call that the task answers: `asked`, or the best that its caller may have."""
    record = _current.get()
    return asked if record is None else max(asked, record.caller.best_priority)


def current_trace() -> "CallSpans | None":
    """Returns the spans of the call that the task answers; None: the call is not traced."""
    record = _current.get()
    return None if record is None else record.trace


def is_request_id(text: str | None) -> TypeGuard[str]:
    """Whether a caller may name its call so: what stands in every log must be short, and neither a line nor a text."""
    return text is not None and _REQUEST_ID.fullmatch(text) is not None


class CallRecorder:
    """Records the calls of a front.

    Attributes:
        in_flight: calls that have begun. The front ends each one when its last byte has been sent.
        limits: of each client.
        last_requests: when the last call for an answer of each model came, since 1970.
    """

    def __init__(
        self,
        metrics: Metrics,
        models: Mapping[str, int],
        *,
        max_calls: int,
        logs_content: bool = False,
        tracing: "Tracing | None" = None,
        limits: ClientLimits | None = None,
        weights: Weights = DEFAULT_WEIGHTS,
    ) -> None:
        """Let `max_calls` calls run at one time. With `logs_content` the log may repeat what callers sent.

        `tracing` traces those of the calls that it samples. `limits` says what one client may do; None: there are no
        limits. Priorities share slots by `weights`.

        `models` says for each model how many sequences it decodes at one time. Its names may be labels; any other is
        counted as unknown.
        """
        self.in_flight = CallsInFlight()
        self.max_calls = max_calls
        self.logs_content = logs_content
        self.loads = {name: Load(num_slots, weights) for name, num_slots in models.items()}
        self.log: FilteringBoundLogger
        self.renew_log()
        self.limits = ClientLimits() if limits is None else limits
        self._weights = weights
        self._ends = Rate()  # of calls, while there are as many as may run
        self._was_full = False
        self.tracing = tracing
        self.last_requests = metrics.last_requests.times_s
        self._metrics = metrics
        self._series: dict[tuple[str, str, Code], tuple[Any, Any, Any]] = {}
        self._versions: dict[tuple[str, str, Code], Any] = {}

    def expect(self, model: str, num_slots: int) -> None:
        """Count the calls of a model, which decodes `num_slots` sequences at one time, under its name from now on.

        A name stays a label when the model is unloaded: its counts go on when it comes back.
        """
        self.loads.setdefault(model, Load(num_slots, self._weights)).num_slots = num_slots

    def renew_log(self) -> None:
        """Log as the logs are set up now: they settle on a logger once, not for every line."""
        self.log = _log.bind()

    def begin(
        self,
        method: str,
        remaining_s: float | None,
        request_id: str | None = None,
        metadata: Metadata = (),
    ) -> "CallRecord":
        """Begin the record of a call that has `remaining_s` until its deadline; None: it has no deadline.

        The call keeps `request_id` if that is a sane one, and else gets one.
        """
        self.in_flight.begin()
        return CallRecord(self, method, remaining_s, request_id, metadata)

    def pass_time(self, now_s: float, *, num_ended: int = 0) -> None:
        """Learn how fast calls end while there are as many as may run."""
        is_full = self.in_flight.count >= self.max_calls
        if is_full or self._was_full:
            self._ends.pass_time(now_s, is_busy=self._was_full)
            self._ends.add(num_ended)
            self._was_full = is_full

    def too_many(self, now_s: float) -> Overloaded:
        """Returns the refusal of a call that is one too many: it comes again when those that run have ended."""
        self.pass_time(now_s)
        delay_s = retry_delay_s(self._ends.seconds_for(self.max_calls))
        return Overloaded(f"{self.max_calls} calls are being answered already", delay_s)

    def count_version(self, model: str, version: str, code: Code) -> None:
        """Count a call that a version took and that has its outcome."""
        counter = self._versions.get((model, version, code))
        if counter is None:
            counter = self._metrics.version_requests.labels(model, version, code)
            self._versions[model, version, code] = counter
        counter.inc()

    def count(
        self,
        model: str,
        method: str,
        code: Code,
        seconds: float,
        rejection: RejectionReason | None,
        *,
        exemplar: Exemplar | None,
    ) -> None:
        """Count a call that has its outcome."""
        series = self._series.get((model, method, code))
        if series is None:
            series = self._series[model, method, code] = (
                self._metrics.requests.labels(model, method, code),
                self._metrics.request_seconds.labels(model, method, code),
                self._metrics.request_duration.labels(model, method),
            )
        num_requests, sum_of_seconds, duration = series
        num_requests.inc()
        sum_of_seconds.inc(seconds)
        duration.observe(seconds, exemplar)
        if rejection is not None:
            self._metrics.count_rejected(model, rejection)


class CallRecord:
    """One call from its begin to its outcome. As a context manager, it gives the call its outcome.

    Attributes:
        method: its name.
        metadata: what the caller sent beside the message: pairs of a key and a value.
        caller: whom it comes from; nobody until a front has found out.
        model: the label of the model that was asked for; "" for a method that asks for none.
        request_id: by which the caller, the log and traces name the call.
        code: how the call ended, once it has.
        version: the version of the model that took it; "" before one did.
        failure: what the caller gets instead of an answer, or None.
        rejection: why the call is refused, should it end now. It has no message at first.
        trace: its spans; None: it is not traced.
    """

    __slots__ = (
        "_before",
        "_deadline_s",
        "_has_begun",
        "_is_counted",
        "_load",
        "_priority",
        "_recorder",
        "_size",
        "_started_s",
        "_tolerance_s",
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
        recorder: CallRecorder,
        method: str,
        remaining_s: float | None,
        request_id: str | None = None,
        metadata: Metadata = (),
    ) -> None:
        self.method = method
        self.request_id = request_id if is_request_id(request_id) else secrets.token_hex(8)
        self.metadata = metadata
        self.caller: Caller = NOBODY
        self.model = UNKNOWN_MODEL
        self.code: Code = "OK"
        self.failure: Failure | None = None
        self.rejection: RejectionReason | None = "no_message"
        self.trace: CallSpans | None = None
        self.version = ""
        self._recorder = recorder
        self._load: Load | None = None
        self._size, self._priority = Size(), Priority.NORMAL
        self._has_begun = False  # to be one of those that may run
        self._is_counted = False  # as one of its client's
        self._started_s = time.monotonic()
        # gRPC cancels a call whose deadline passed just as it does when the caller left. So the deadline is kept.
        self._deadline_s = math.inf if remaining_s is None else self._started_s + remaining_s
        self._tolerance_s = 0.0 if remaining_s is None else ROUNDING * remaining_s + TRANSIT_S

    def identify(self, find: Callable[[], Caller], scopes: Collection[Scope]) -> None:
        """Have `find` say whom the call comes from. Refuse a call whose caller has none of `scopes`.

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
        if (tracing := self._recorder.tracing) is not None:
            self.trace = tracing.begin(path, self.metadata, self.request_id, self._started_s)

    def admit(self, *, uses_tokens: bool = True) -> None:
        """Refuse a call that is late already, or one too many.

        Raises:
            DeadlineExceeded: the deadline passed before the call was taken up.
            Overloaded: `max_calls` others are in the server.
            RateLimited: its client has too many calls, or owes tokens and the call `uses_tokens`.
        """
        now_s, recorder = time.monotonic(), self._recorder
        if now_s >= self._deadline_s:
            self.rejection = "late"
            raise DeadlineExceeded("the deadline passed before the server could take the call up")
        if recorder.in_flight.count > recorder.max_calls:
            self.rejection = "too_many_calls"
            raise recorder.too_many(now_s)
        if not recorder.limits.are_on:
            self._has_begun = True
            return
        refusal = recorder.limits.begin(self.caller.identity, now_s, uses_tokens=uses_tokens)
        if refusal is not None:
            self.rejection = refusal.reason
            raise RateLimited(_LIMITED[refusal.reason], retry_delay_s(refusal.delay_s))
        self._has_begun = self._is_counted = True

    @property
    def pays_tokens(self) -> bool:
        """Whether its client has a limit on tokens."""
        return self._is_counted and self._recorder.limits.tokens_a_second > 0

    def pay(self, num_tokens: int) -> None:
        """Take tokens that the call used from its client's bucket."""
        if self._is_counted:
            self._recorder.limits.pay(self.caller.identity, num_tokens, time.monotonic())

    def begin_message(self) -> None:
        """Say that the call's message has come whole."""
        self.rejection = None

    def name_model(self, name: str | None) -> None:
        """Say which model is asked for; None: the method asks for none."""
        self.model = "" if name is None else name if name in self._recorder.loads else UNKNOWN_MODEL

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
            Overloaded: it would.
        """
        load = self._recorder.loads.get(self.model)
        if load is None:
            return
        now_s = time.monotonic()
        end_s = self._deadline_s if deadline_s is None else min(self._deadline_s, deadline_s)
        delay_s = load.delay(end_s - now_s, now_s, size, priority)
        if delay_s is not None:
            self.rejection = "no_time"
            raise Overloaded("more calls wait than can be answered before this call's deadline", delay_s)
        load.begin(now_s, size, priority)
        self._load, self._size, self._priority = load, size, priority
        self._recorder.last_requests[self.model] = time.time()

    def __enter__(self) -> Self:
        self._before = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Gives the call its outcome. Where that is a `failure`, the error ends here.

        With the error goes what its traceback holds, the message and the request, before the caller is answered.
        """
        _current.reset(self._before)
        if error is None:
            self._log_end()
        elif isinstance(error, RequestError) and not isinstance(error, EngineError):
            self.code = CODES[type(error)]
            self.rejection = self.rejection or rejection_reason(error)
            self._log_refusal(error)
            self.failure = Failure.of(error, self.rejection)
        elif isinstance(error, asyncio.CancelledError):
            self.code = self._ended_early()
            self._log_end()
        elif not isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            # A bug of ours, or a panic of native code, ends this call and no other.
            self.code = "INTERNAL"
            self._log_fault(error)
            self.failure = Failure.internal(self.request_id)
        self._count()
        return self.failure is not None

    def _ended_early(self) -> Code:
        """Returns why a call was cancelled: its deadline passed, also on the client's clock, or the caller left."""
        has_expired = time.monotonic() >= self._deadline_s - self._tolerance_s
        return "DEADLINE_EXCEEDED" if has_expired else "CANCELLED"

    def _count(self) -> None:
        now_s = time.monotonic()
        if self._load is not None:
            is_answered = self.code == "OK"
            self._load.end(now_s, answered=is_answered, size=self._size, priority=self._priority)
        if self._is_counted:
            self._recorder.limits.end(self.caller.identity, now_s)
        self._recorder.pass_time(now_s, num_ended=self._has_begun)
        exemplar = None
        if (trace := self.trace) is not None:
            exemplar = trace.exemplar
            trace.set(model=self.model)
            trace.end(self.code, now_s)
        seconds = now_s - self._started_s
        if self.version:
            self._recorder.count_version(self.model, self.version, self.code)
        self._recorder.count(self.model, self.method, self.code, seconds, self.rejection, exemplar=exemplar)

    def _log_refusal(self, error: RequestError) -> None:
        if isinstance(error, (Unauthenticated, PermissionDenied, RateLimited)):
            # Counted. Whoever tries to get in, or more than is allowed, may not fill the log with it.
            self._recorder.log.debug("request", **self._fields(), reason=self.rejection)
            return
        # Most messages repeat values of the caller.
        said = {"error": str(error)} if self._recorder.logs_content else {}
        kind = type(error).__name__
        self._recorder.log.warning("request", **self._fields(), kind=kind, reason=self.rejection, **said)

    def _log_fault(self, error: BaseException) -> None:
        if self._recorder.logs_content or isinstance(error, EngineError):
            said: dict[str, Any] = {"exc_info": error}
        else:
            said = {"exception": traceback_without_messages(error)}
        self._recorder.log.error("request", **self._fields(), **said)

    def _log_end(self) -> None:
        if self._recorder.log.is_enabled_for(logging.DEBUG):  # every call comes by here
            self._recorder.log.debug("request", **self._fields())

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
