"""The recorder of a front: it begins the record of every call.

A front begins a record when it takes a call up, and answers inside of it:

    record = recorder.begin("Translate", remaining_s=2.0)
    with record:
        record.admit()
        record.begin_message()  # it has come
        record.name_model("dates")
        record.begin_answer()
        ...  # the answer
    if record.failure is not None:
        ...  # the caller gets it instead
    recorder.in_flight.end()  # once the last byte has been sent
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dragoman.server.operations.metrics import Metrics
from dragoman.server.priority import DEFAULT_WEIGHTS, Weights
from dragoman.server.requests.admission import Load
from dragoman.server.requests.call_counts import CallCounts
from dragoman.server.requests.call_log import CallLog
from dragoman.server.requests.client_limits import ClientLimits
from dragoman.server.requests.in_flight import CallsInFlight
from dragoman.server.requests.record import CallRecord, FrontCalls, Metadata

if TYPE_CHECKING:
    from dragoman.server.operations.spans import Tracing

__all__ = ["CallRecorder"]


class CallRecorder:
    """Records the calls of a front.

    Attributes:
        in_flight: calls that have begun. The front ends each one when its last byte has been sent.
        loads: the calls that each model answers; its names may be labels of metrics.
        log: the lines of calls.
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
        self.in_flight = CallsInFlight(max_calls)
        self.loads = {name: Load(num_slots, weights) for name, num_slots in models.items()}
        self.log = CallLog(shows_content=logs_content)
        self._weights = weights
        self._calls = FrontCalls(
            self.in_flight,
            ClientLimits() if limits is None else limits,
            self.loads,
            CallCounts(metrics),
            metrics.last_requests.times_s,
            self.log,
            tracing,
        )

    def expect(self, model: str, num_slots: int) -> None:
        """Count the calls of a model, which decodes `num_slots` sequences at one time, under its name from now on.

        A name stays a label when the model is unloaded: its counts go on when it comes back.
        """
        self.loads.setdefault(model, Load(num_slots, self._weights)).num_slots = num_slots

    def begin(
        self,
        method: str,
        remaining_s: float | None,
        request_id: str | None = None,
        metadata: Metadata = (),
    ) -> CallRecord:
        """Begin the record of a call that has `remaining_s` until its deadline; None: it has no deadline.

        The call keeps `request_id` if that is a sane one, and else gets one.
        """
        self.in_flight.begin()
        return CallRecord(self._calls, method, remaining_s, request_id, metadata)
