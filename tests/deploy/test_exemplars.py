"""The real Prometheus keeps the traces that the latency histograms name."""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.deploy.conftest import Serving
from tests.deploy.test_prometheus import PATIENCE_S, POLL_S, TEXTS, run_prometheus

from dragoman.v1 import translation_pb2, translation_pb2_grpc

LATENCIES = ("request_duration", "queue_duration", "time_to_first_token", "time_per_output_token")


def test_prometheus_keeps_a_trace_of_each_latency(
    start_server: Callable[..., AbstractContextManager[Serving]], tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian package prometheus): no exemplar was scraped")
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    sampled = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    with (
        start_server("tracing.enabled=true", "tracing.sampling_ratio=0") as server,
        run_prometheus(server.metrics_port, tmp_path, "--enable-feature=exemplar-storage") as prometheus,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = translation_pb2_grpc.TranslationServiceStub(channel)
        for _ in range(3):
            request = translation_pb2.TranslateRequest(model="spell", inputs=TEXTS)
            stub.Translate(request, timeout=30, metadata=sampled)
        query = '{{__name__=~"dragoman_({})_seconds_bucket"}}'.format("|".join(LATENCIES))
        found: dict[str, set[str]] = {}
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < len(LATENCIES) and time.monotonic() < deadline:
            now = time.time()
            series: list[Any] = prometheus.get(
                "query_exemplars", query=query, start=str(now - 600), end=str(now + 600)
            )
            found = {
                each["seriesLabels"]["__name__"]: {one["labels"]["trace_id"] for one in each["exemplars"]}
                for each in series
            }
            time.sleep(POLL_S)
    assert found == {f"dragoman_{name}_seconds_bucket": {trace_id} for name in LATENCIES}
