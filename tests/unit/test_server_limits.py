"""What the server may take, what its CPU limit has cost, what it is made of: as the system says it."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from tests.unit.test_common_cpu import write

from dragoman.common.cpu import throttled_seconds, throttling_files
from dragoman.common.memory import memory_limit_bytes
from dragoman.server.operations.limits import build_info

MIB = 2**20
MACHINE = {"proc/meminfo": "MemTotal:        8388608 kB\nMemAvailable:    4194304 kB\n"}


def test_the_memory_limit_is_unknown_the_machines_or_the_tightest_groups(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) is None
    assert memory_limit_bytes(write(tmp_path, MACHINE)) == 8192 * MIB
    v2 = {
        "proc/self/cgroup": "0::/pod/container\n",
        "sys/fs/cgroup/pod/memory.max": f"{512 * MIB}\n",
        "sys/fs/cgroup/pod/container/memory.max": "max\n",
    }
    assert memory_limit_bytes(write(tmp_path, v2)) == 512 * MIB


def test_the_memory_limit_of_v1_where_the_largest_number_is_no_limit(tmp_path: Path) -> None:
    v1 = {
        "proc/self/cgroup": "4:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert memory_limit_bytes(write(tmp_path, {**MACHINE, **v1})) == 8192 * MIB
    own = {"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{256 * MIB}\n"}
    assert memory_limit_bytes(write(tmp_path, own)) == 256 * MIB


@pytest.mark.parametrize(
    ("hierarchy", "path", "line"),
    [
        ("0::/pod/container\n", "sys/fs/cgroup/pod/cpu.stat", "throttled_usec 2500000\n"),
        ("1:cpu,cpuacct:/pod\n", "sys/fs/cgroup/cpu/pod/cpu.stat", "throttled_time 2500000000\n"),
    ],
)
def test_time_without_a_core_is_that_of_the_group_with_the_quota(
    tmp_path: Path, hierarchy: str, path: str, line: str
) -> None:
    files = {"proc/self/cgroup": hierarchy, path: f"nr_periods 9\n{line}nr_bursts 0\n"}
    root = write(tmp_path, {**files, "sys/fs/cgroup/pod/container/cpu.stat": "usage_usec 5\n"})
    found = throttling_files(root)
    assert found == [root / path], "a file that says nothing of it is not read again"
    assert throttled_seconds(found) == 2.5


def test_without_a_quota_no_time_was_lost(tmp_path: Path) -> None:
    assert throttling_files(tmp_path) == []
    assert throttled_seconds([]) == 0.0


def test_the_build_has_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", build_info()["version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", build_info()["onnxruntime"])

    def only_for_gpus(name: str) -> str:
        if name == "onnxruntime-gpu":
            return "1.99.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", only_for_gpus)
    assert build_info() == {"version": "unknown", "onnxruntime": "1.99.0"}
