"""The number of usable cores follows the cgroup and the affinity mask."""

import os
from pathlib import Path

import pytest

from dragoman.common.cpu import cpu_limit_cores, usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_without_cgroups_the_affinity_mask_decides(tmp_path: Path) -> None:
    assert cpu_limit_cores(tmp_path) == 8.0


def test_v2_quota(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"})
    assert cpu_limit_cores(root) == 1.5
    assert usable_cores(root) == 1


def test_v2_without_a_limit(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert cpu_limit_cores(root) == 8.0


def test_v2_the_tightest_ancestor_binds(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/container\n",
            "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/pod/container/cpu.max": "300000 100000\n",
        },
    )
    assert cpu_limit_cores(root) == 2.0


def test_v2_a_host_path_that_is_not_mounted_falls_to_the_mount(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {"proc/self/cgroup": "0::/kubepods/pod1/abc\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"},
    )
    assert cpu_limit_cores(root) == 3.0


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_v1_quota(tmp_path: Path, mount: str) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
            f"sys/fs/cgroup/{mount}/docker/abc/cpu.cfs_quota_us": "250000\n",
            f"sys/fs/cgroup/{mount}/docker/abc/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cpu_limit_cores(root) == 2.5
    assert usable_cores(root) == 2


def test_v1_without_a_limit(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cpu_limit_cores(root) == 8.0


def test_the_affinity_mask_binds_when_it_is_tighter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert cpu_limit_cores(root) == 1.0


def test_less_than_a_core_is_still_one_thread(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert cpu_limit_cores(root) == 0.5
    assert usable_cores(root) == 1
