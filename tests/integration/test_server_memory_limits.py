"""A server in a cgroup, or with a limit of its own: what cannot fit is one line with the numbers, before it serves."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.child_server import ports, running
from tests.integration.serving import PATIENCE_S

MIB = 2**20
LIMIT_BYTES = 512 * MIB
NUMBERS = re.compile(
    r"bundles/(count|spell)/2: engine\.lanes = 2 of engine\.slots_per_lane = 65536.* takes [\d.,]+ [MG]iB of memory; "
    r"[\d.,]+ [MG]iB are available \((?P<limit>[^)]+)\).*: lower one of them"
)
LANES = ("--set", "engine.lanes=2", "--set", "engine.lanes_run_in=processes")
TOO_MANY = (*LANES, "--set", "engine.slots_per_lane=65536")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")


@contextlib.contextmanager
def group() -> Iterator[Path]:
    """A memory cgroup of this machine with a limit, v1 or v2."""
    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        folder = Path("/sys/fs/cgroup") / root / f"dragoman-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            try:
                (folder / limit).write_text(str(LIMIT_BYTES))
            except OSError:
                folder.rmdir()
                continue
            try:
                yield folder
            finally:
                end_s = time.monotonic() + PATIENCE_S
                while folder.exists() and time.monotonic() < end_s:
                    with contextlib.suppress(OSError):  # a process that was killed is not gone yet
                        folder.rmdir()
            return
    pytest.skip("no memory cgroup can be made here")


def joining(folder: Path) -> str:
    return f"import os, pathlib; pathlib.Path({str(folder / 'cgroup.procs')!r}).write_text(str(os.getpid()))"


def test_what_does_not_fit_into_a_cgroup_is_refused_with_the_numbers() -> None:
    with group() as folder:
        with running(*ports(), *TOO_MANY, program=joining(folder)) as server:
            assert server.wait_for_end() == 1
        [event] = [each for each in server.events if each["event"] == "cannot_serve"]
        found = NUMBERS.search(event["error"])
        assert found, event["error"]
        assert found["limit"].endswith("of the cgroup")


def test_processes_that_have_no_room_are_refused_before_they_start() -> None:
    with group() as folder:
        keys = (
            "engine.lanes=40",
            "server.fronts=9",
            "engine.lanes_run_in=processes",
            "engine.threads_per_lane=1",
        )
        many = [word for key in keys for word in ("--set", key)]
        with running(*ports(), *many, program=joining(folder)) as server:
            assert server.wait_for_end() == 1
        [event] = [each for each in server.events if each["event"] == "cannot_serve"]
        assert re.fullmatch(
            r"server\.fronts = 9 and engine\.lanes = 40 take 704\.0 MiB of memory for their processes alone; "
            r"[\d.]+ MiB are available \(memory\.\w+ of the cgroup\): lower one of them",
            event["error"],
        )


def test_what_fits_into_a_cgroup_is_served_within_it() -> None:
    with group() as folder, running(*ports(), *LANES, program=joining(folder)) as server:
        server.wait_for("serving")
        processes = (folder / "cgroup.procs").read_text().split()
        assert len(processes) >= 4  # server, host, two lanes


def test_a_limit_of_the_process_is_named_too() -> None:
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({2048 * MIB}, {2048 * MIB}))"
    with running(*ports(), *TOO_MANY, program=program) as server:
        assert server.wait_for_end() == 1
    [event] = [each for each in server.events if each["event"] == "cannot_serve"]
    found = NUMBERS.search(event["error"])
    assert found, event["error"]
    assert found["limit"] == "RLIMIT_AS"
