"""The measurements of a load run."""

import collections
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Distribution", "LoadReport", "Outcome", "Recorder"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. Times are seconds on one monotonic clock.

    Attributes:
        intended_s: When it was meant to be sent. In a closed loop that is when it was sent.
        sent_s: When it was sent.
        first_token_s: When the first piece of the answer came; None where it came whole or not at all.
        finished_s: When it ended.
        code: The gRPC status code's name, "OK" when it was answered.
        num_input_tokens: Of an answered request.
        num_output_tokens: Of an answered request.
        message: Why it was not answered.
    """

    intended_s: float
    sent_s: float
    first_token_s: float | None
    finished_s: float
    code: str
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Durations in seconds."""

    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, durations_s: Sequence[float]) -> "Distribution | None":
        """The distribution of `durations_s` (percentiles by linear interpolation); None of none."""
        if not durations_s:
            return None
        if len(durations_s) == 1:
            return cls(*[durations_s[0]] * 5)
        cuts = statistics.quantiles(durations_s, n=100, method="inclusive")
        return cls(statistics.fmean(durations_s), cuts[49], cuts[94], cuts[98], max(durations_s))


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The measurements of a load run, over its window only: the warm-up is left out.

    Attributes:
        window_s: Length of the window, in seconds.
        num_requests: Requests that were meant to be sent within the window.
        errors: How many of them failed, by gRPC status code.
        error_messages: What the first of them was told, by gRPC status code.
        sent_per_s: Requests that left within the window, a second.
        requests_per_s: Requests answered within the window, whenever they were sent, a second.
        input_tokens_per_s: Tokens of their inputs.
        output_tokens_per_s: Tokens of their answers.
        latency: From the intended sending to the end, over answered requests sent within the window.
            An overloaded server makes requests leave late; measured from the intended time, that waiting
            counts, as it does for users (Tene's "coordinated omission").
        time_to_first_token: From the intended sending to the first piece; None where answers came whole.
        send_lag: How late requests left. Long lags mean that this machine could not keep up.
        generator_cpu_share: CPU seconds this process used for each second of the window; near 1, the load
            generator itself was the limit.
    """

    window_s: float
    num_requests: int
    errors: dict[str, int]
    error_messages: dict[str, str]
    sent_per_s: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    latency: Distribution | None
    time_to_first_token: Distribution | None
    send_lag: Distribution | None
    generator_cpu_share: float

    @property
    def num_errors(self) -> int:
        """Requests that were not answered."""
        return sum(self.errors.values())


class Recorder:
    """Collects outcomes; a few bytes a request, so that long runs stay small."""

    def __init__(self, begin_s: float, end_s: float) -> None:
        self._begin_s = begin_s
        self._end_s = end_s
        self._num_requests = 0
        self._num_sent = 0
        self._num_answered = 0
        self._num_input_tokens = 0
        self._num_output_tokens = 0
        self._errors: collections.Counter[str] = collections.Counter()
        self._messages: dict[str, str] = {}
        self._latencies_s = array("d")
        self._first_tokens_s = array("d")
        self._lags_s = array("d")

    @property
    def num_requests(self) -> int:
        """Requests recorded so far."""
        return self._num_requests

    def add(self, outcome: Outcome) -> None:
        """Count one request that has ended."""
        if outcome.code == "OK" and self._begin_s <= outcome.finished_s < self._end_s:
            self._num_answered += 1
            self._num_input_tokens += outcome.num_input_tokens
            self._num_output_tokens += outcome.num_output_tokens
        self._num_sent += self._begin_s <= outcome.sent_s < self._end_s
        if not self._begin_s <= outcome.intended_s < self._end_s:
            return
        self._num_requests += 1
        self._lags_s.append(outcome.sent_s - outcome.intended_s)
        if outcome.code != "OK":
            self._errors[outcome.code] += 1
            self._messages.setdefault(outcome.code, outcome.message)
            return
        self._latencies_s.append(outcome.finished_s - outcome.intended_s)
        if outcome.first_token_s is not None:
            self._first_tokens_s.append(outcome.first_token_s - outcome.intended_s)

    def report(self, *, generator_cpu_share: float) -> LoadReport:
        """Sum up."""
        window_s = self._end_s - self._begin_s
        return LoadReport(
            window_s=window_s,
            num_requests=self._num_requests,
            errors=dict(self._errors.most_common()),
            error_messages=self._messages,
            sent_per_s=self._num_sent / window_s,
            requests_per_s=self._num_answered / window_s,
            input_tokens_per_s=self._num_input_tokens / window_s,
            output_tokens_per_s=self._num_output_tokens / window_s,
            latency=Distribution.of(self._latencies_s),
            time_to_first_token=Distribution.of(self._first_tokens_s),
            send_lag=Distribution.of(self._lags_s),
            generator_cpu_share=generator_cpu_share,
        )
