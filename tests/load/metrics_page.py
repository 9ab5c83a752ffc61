"""What a server says of itself on /metrics."""

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families
from tests.integration.serving import http_get

__all__ = ["calls_by_code", "total"]


def _samples(port: int, host: str = "127.0.0.1") -> Iterator[tuple[str, dict[str, str], float]]:
    status, page = http_get(port, "/metrics", host)
    assert status == 200, f"/metrics answers {status}"
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def total(port: int, *names: str, host: str = "127.0.0.1") -> float:
    """The sum of these series over all their labels."""
    return sum(value for name, _, value in _samples(port, host) if name.removeprefix("dragoman_") in names)


def calls_by_code(port: int) -> dict[str, float]:
    """Number of calls that have ended, by the name of their status."""
    counts: dict[str, float] = {}
    for name, labels, value in _samples(port):
        if name == "dragoman_requests_total" and value:
            counts[labels["code"]] = counts.get(labels["code"], 0.0) + value
    return counts
