"""How much memory can be taken follows the machine, the cgroup and the process's own limit, whichever is least."""

import resource
from pathlib import Path

import pytest

from dragoman.common.memory import AvailableMemory, available_memory, readable_bytes

MIB = 2**20


@pytest.fixture(autouse=True)
def no_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MACHINE = {"proc/meminfo": "MemTotal:        8388608 kB\nMemAvailable:    4194304 kB\n"}


def test_where_the_system_says_nothing_nothing_is_known(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


def test_the_machine(tmp_path: Path) -> None:
    assert available_memory(write(tmp_path, MACHINE)) == AvailableMemory(4096 * MIB, "MemAvailable")


def test_v2_leaves_out_what_the_kernel_can_drop(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{1024 * MIB}\n",
        "sys/fs/cgroup/memory.current": f"{600 * MIB}\n",
        "sys/fs/cgroup/memory.stat": f"anon {500 * MIB}\ninactive_file {70 * MIB}\nactive_file {30 * MIB}\n",
    }
    root = write(tmp_path, {**MACHINE, **files})
    assert available_memory(root) == AvailableMemory(524 * MIB, "memory.max of the cgroup")


def test_v2_without_a_limit_and_the_tightest_ancestor(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/container\n",
        "sys/fs/cgroup/pod/memory.max": f"{512 * MIB}\n",
        "sys/fs/cgroup/pod/memory.current": f"{12 * MIB}\n",
        "sys/fs/cgroup/pod/container/memory.max": "max\n",
        "sys/fs/cgroup/pod/container/memory.current": f"{10 * MIB}\n",
    }
    assert available_memory(write(tmp_path, {**MACHINE, **files})) == AvailableMemory(
        500 * MIB, "memory.max of the cgroup"
    )


def test_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{256 * MIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{56 * MIB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {20 * MIB}\n",
    }
    assert available_memory(write(tmp_path, {**MACHINE, **files})) == AvailableMemory(
        220 * MIB, "memory.limit_in_bytes of the cgroup"
    )


def test_v1_in_a_container_that_does_not_see_the_hosts_path_and_the_tightest_ancestor(tmp_path: Path) -> None:
    def limit(most: int, used: int) -> dict[str, str]:
        return {"memory.limit_in_bytes": f"{most * MIB}\n", "memory.usage_in_bytes": f"{used * MIB}\n"}

    mount = "sys/fs/cgroup/memory"
    files = {"proc/self/cgroup": "4:memory:/kubepods/pod1/abc\n0::/\n"}
    container = {f"{mount}/{name}": value for name, value in limit(300, 20).items()}
    left = available_memory(write(tmp_path, {**MACHINE, **files, **container}))
    assert left == AvailableMemory(280 * MIB, "memory.limit_in_bytes of the cgroup")
    pod = {f"{mount}/kubepods/pod1/{name}": value for name, value in limit(200, 50).items()}
    left = available_memory(write(tmp_path, pod))
    assert left == AvailableMemory(150 * MIB, "memory.limit_in_bytes of the cgroup")


def test_more_used_than_allowed_is_nothing_left(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "100\n",
        "sys/fs/cgroup/memory.current": "200\n",
    }
    left = available_memory(write(tmp_path, files))
    assert left is not None
    assert left.num_bytes == 0


def test_the_process_s_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000 * MIB, 1000 * MIB))
    pages = 400 * MIB // resource.getpagesize()
    root = write(tmp_path, {**MACHINE, "proc/self/statm": f"{pages} 1 1 1 0 1 0\n"})
    assert available_memory(root) == AvailableMemory(600 * MIB, "RLIMIT_AS")


def test_of_this_machine_something_is_known() -> None:
    left = available_memory()
    assert left is None or left.num_bytes > 0


def test_sizes_in_words() -> None:
    assert readable_bytes(3 * MIB // 2) == "1.5 MiB"
    assert readable_bytes(2**40) == "1,024.0 GiB"
