"""What each process of the server takes."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from dragoman.server.operations import processes
from dragoman.server.operations.processes import MAX_MEMORY_AGE_S, ProcessesCollector

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

HOLD = """
import sys, time
held = b"x" * (64 << 20)
print(time.process_time(), flush=True)
sys.stdin.read()
"""
GROW = """
import sys
print("small", flush=True)
sys.stdin.readline()
held = b"x" * (64 << 20)
print("large", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holding() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def samples(collector: ProcessesCollector) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["process"]): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def test_cpu_memory_and_files_of_each_process(holding: "subprocess.Popen[str]") -> None:
    assert holding.stdout is not None
    cpu_s = float(holding.stdout.readline())
    collector = ProcessesCollector("dragoman")
    collector.watch(os.getpid(), "front-0")
    collector.watch(holding.pid, "lane-0")
    found = samples(collector)
    assert cpu_s - 0.02 <= found["dragoman_process_cpu_seconds_total", "lane-0"] <= cpu_s + 1.0
    assert 64 << 20 <= found["dragoman_process_pss_bytes", "lane-0"] < 128 << 20
    assert found["dragoman_process_open_fds", "front-0"] > 0
    starts = [found["dragoman_process_start_time_seconds", who] for who in ("front-0", "lane-0")]
    assert starts[0] <= starts[1]


def test_a_shared_page_counts_by_its_share() -> None:
    fork = "import os\nif not os.fork():\n    sys.stdin.read(); os._exit(0)\n"
    program = HOLD.replace("print", fork + "print")
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        collector = ProcessesCollector("dragoman")
        collector.watch(process.pid, "engine-host")
        assert samples(collector)["dragoman_process_pss_bytes", "engine-host"] < 48 << 20
        process.communicate("")


def test_a_process_that_has_ended_has_no_samples(holding: "subprocess.Popen[str]") -> None:
    collector = ProcessesCollector("dragoman")
    collector.watch(holding.pid, "lane-0")
    assert samples(collector)
    holding.kill()
    holding.communicate()
    assert not samples(collector), "before anyone says so"
    assert not samples(collector), "although its memory was measured once"
    collector.watch(os.getpid(), "lane-0")
    collector.forget(holding.pid)
    assert len(samples(collector)) == 4, "the process that took its place"
    collector.forget(os.getpid())
    assert not samples(collector)


def test_memory_is_measured_behind_a_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    measured_in: list[threading.Thread] = []
    read = processes._read

    def watched_read(path: str) -> bytes:
        if path.endswith("/smaps_rollup"):
            measured_in.append(threading.current_thread())
        return read(path)

    monkeypatch.setattr(processes, "_read", watched_read)
    now_s = 1000.0
    collector = ProcessesCollector("dragoman", lambda: now_s)
    collector.watch(os.getpid(), "front-0")

    def scrape() -> tuple[bool, ...]:
        """Which of the measurements of a scrape, and of what follows it, held up the scrape."""
        measured_in.clear()
        assert samples(collector)["dragoman_process_pss_bytes", "front-0"] > 0
        assert collector._measuring is not None
        collector._measuring.join()
        return tuple(thread is threading.current_thread() for thread in measured_in)

    assert scrape() == (True, False), "nothing was measured yet"
    now_s += MAX_MEMORY_AGE_S
    assert scrape() == (False,)
    now_s += MAX_MEMORY_AGE_S + 1
    assert scrape() == (True, False), "what was measured is too old"


def test_a_scrape_has_the_memory_of_after_the_one_before() -> None:
    """Of a process that shares little: other processes of the tests come and go, and with them shares of pages."""
    collector = ProcessesCollector("dragoman")

    def measured() -> float:
        found = samples(collector)["dragoman_process_pss_bytes", "lane-0"]
        assert collector._measuring is not None
        collector._measuring.join()
        return found

    with subprocess.Popen(
        [sys.executable, "-c", GROW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as growing:
        assert growing.stdin is not None
        assert growing.stdout is not None
        growing.stdout.readline()
        collector.watch(growing.pid, "lane-0")
        measured()
        growing.stdin.write("\n")
        growing.stdin.flush()
        growing.stdout.readline()
        before = measured()
        assert measured() - before > 48 << 20
        growing.communicate("")
