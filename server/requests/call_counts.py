"""The counts and the time of calls that ended, in the metrics."""

from typing import Any

from dragoman.server.operations.metrics import Exemplar, Metrics, RejectionReason
from dragoman.server.requests.failures import Code

__all__ = ["CallCounts"]


class CallCounts:
    """Counts the calls of a front by model, method and code. A series is looked up once."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._series: dict[tuple[str, str, Code], tuple[Any, Any, Any]] = {}
        self._versions: dict[tuple[str, str, Code], Any] = {}

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
        """Count a call that ended with `code` after `seconds`; `rejection` says why it was refused, if it was."""
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

    def count_version(self, model: str, version: str, code: Code) -> None:
        """Count a call that a version of a model took and that ended with `code`."""
        counter = self._versions.get((model, version, code))
        if counter is None:
            counter = self._metrics.version_requests.labels(model, version, code)
            self._versions[model, version, code] = counter
        counter.inc()
