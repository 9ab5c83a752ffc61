"""The page of metrics of several fronts, in the judgement of Prometheus' own linter."""

import contextlib
import shutil
import subprocess
import sys

import pytest
from prometheus_client import generate_latest
from tests.unit.test_server_metrics import filled

from dragoman.server.operations.shared_values import ValueMemory, ValueWriter, counting_in


@pytest.mark.skipif(sys.platform != "linux", reason="several fronts need memfd_create")
def test_promtool_finds_no_fault_with_merged_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus): the page is not checked")
    metrics, memory = filled(), ValueMemory("front-1")
    metrics.page.add(memory)
    with contextlib.closing(ValueWriter(memory.fd)) as writer:
        with counting_in(writer):
            other = filled()
        other.publish(writer)
    found = [
        subprocess.run(
            [promtool, "check", "metrics"], input=generate_latest(page), check=False, capture_output=True
        )
        for page in (metrics.page, filled().registry)
    ]
    metrics.page.retire(memory)
    merged, alone = (
        {line for line in each.stderr.decode().splitlines() if "_created" not in line} for each in found
    )
    assert merged == alone, "merging adds no fault"
    assert "error while linting" not in found[0].stderr.decode()
