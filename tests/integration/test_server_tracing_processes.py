"""Tracing of a whole server: fronts and lanes are processes, and it ends while spans wait."""

import http.client
import re
import signal
import subprocess
import sys
import time
from contextlib import closing

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.integration.child_server import ROOT, ports, running
from tests.integration.otlp_collector import collecting
from tests.integration.serving import PATIENCE_S

from dragoman.server.operations.metrics import Metrics
from dragoman.server.operations.tracing import start_tracing
from dragoman.server.settings.tracing import TracingSettings
from dragoman.v1 import translation_pb2, translation_pb2_grpc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several fronts need Linux")

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
NUM_CHANNELS = 12
"""Connections: the kernel gives each to one of two fronts."""
METHOD = "dragoman.v1.TranslationService/Translate"
LATENCIES = ("request_duration", "queue_duration", "time_to_first_token", "time_per_output_token")


def openmetrics(port: int) -> str:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/metrics", headers={"Accept": OPENMETRICS})
        response = connection.getresponse()
        assert response.headers["Content-Type"].startswith(OPENMETRICS)
        return response.read().decode()


def translate(port: int) -> None:
    # A connection of its own.
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = translation_pb2.TranslateRequest(model="spell", inputs=["90210"])
        translation_pb2_grpc.TranslationServiceStub(channel).Translate(request, timeout=PATIENCE_S)


def test_all_fronts_trace_and_the_end_sends_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")  # what comes, comes with the end
    settings = [
        "server.fronts=2",
        "engine.lanes=2",
        "engine.threads_per_lane=1",
        "engine.lanes_run_in=processes",
    ]
    with collecting() as collector:
        settings += ["tracing.enabled=true", "tracing.sampling_ratio=1"]
        settings.append(f'tracing.endpoint="http://127.0.0.1:{collector.port}"')
        with running(*ports(), *(part for each in settings for part in ("--set", each))) as server:
            serving = server.wait_for("serving")
            for _ in range(NUM_CHANNELS):
                translate(serving["port"])
            page = openmetrics(serving["metrics_port"])
            assert not collector.spans()
            server.process.send_signal(signal.SIGTERM)
            assert server.wait_for_end() == 0
        calls = collector.calls(NUM_CHANNELS)
    assert len(calls) == NUM_CHANNELS
    of_processes = {call.resource["process.pid"] for call in calls}
    assert len(of_processes) == 2, "both fronts have a part of the calls"
    for call in calls:
        assert {"queue", "decode", "tokenise", "detokenise"} <= {child.name for child in call.children}
        assert all(call.start_ns <= each.start_ns <= each.end_ns <= call.end_ns for each in call.all())
    families = {family.name: family for family in text_string_to_metric_families(page)}  # type: ignore[no-untyped-call]
    first_front = {call.trace_id for call in calls if call.resource["process.pid"] == server.process.pid}
    for name in LATENCIES:
        samples = families[f"dragoman_{name}_seconds"].samples
        exemplars = [sample.exemplar for sample in samples if sample.exemplar is not None]
        assert exemplars, name
        assert {exemplar.labels["trace_id"] for exemplar in exemplars} <= first_front
    counts = [
        each.value
        for each in families["dragoman_queue_duration_seconds"].samples
        if each.name.endswith("_count")
    ]
    assert sum(counts) == NUM_CHANNELS, "the counts are of both"


def test_the_collector_of_the_documentation_prints_spans() -> None:
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tracing.md").read_text(), re.DOTALL)
    assert program.count("127.0.0.1:4317") == 1
    program = program.replace("127.0.0.1:4317", "127.0.0.1:0")
    program = program.replace("server.add_insecure_port", "port = server.add_insecure_port")
    program = program.replace("server.start()", "server.start()\nprint(port, flush=True)")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as printer:
        assert printer.stdout is not None
        endpoint = f"http://127.0.0.1:{int(printer.stdout.readline())}"
        settings = TracingSettings(enabled=True, endpoint=endpoint, sampling_ratio=1.0)
        tracing = start_tracing(settings, Metrics(1.0).trace_spans)
        assert tracing is not None
        call = tracing.begin(f"/{METHOD}", (), "id", time.monotonic())
        assert call is not None
        call.end("OK", time.monotonic())
        tracing.close()
        line = printer.stdout.readline()
        printer.terminate()
    assert re.fullmatch(rf"{call.trace_id} +\d+\.\d+ ms {METHOD}\n", line)
