"""Heaps of a process that answers calls: each one keeps the most that was ever in use in it."""

import asyncio
import re
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from tests.integration.serving import BUNDLES, serving
from tests.load.tree import Tree

from dragoman.cli.server_process import running_server
from dragoman.server.fronts.grpc import front
from dragoman.server.requests import in_flight
from dragoman.v1 import translation_pb2, translation_pb2_grpc

HEAP_BYTES = 64 * 1024 * 1024  # that glibc reserves for a heap of a thread, at a multiple of that
ALLOCATING = """
import sys, threading
from pathlib import Path
from dragoman.server.processes.linux import limit_arenas

if int(sys.argv[1]):
    limit_arenas(int(sys.argv[1]))
barrier = threading.Barrier(5)

def allocate():
    kept = bytearray(50_000)
    barrier.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
print(Path("/proc/self/maps").read_text())
barrier.wait()
"""


def num_heaps(maps: str) -> int:
    """Heaps beside the main one."""
    begins = [
        (int(begin, 16), int(end, 16)) for begin, end in re.findall(r"^(\w+)-(\w+) ---p", maps, re.MULTILINE)
    ]
    ends = [end for _, end in begins]
    starts = {int(begin, 16) for begin in re.findall(r"^(\w+)-\w+ rw-p 00000000 00:00 0", maps, re.MULTILINE)}
    return sum(end % HEAP_BYTES == 0 and end - HEAP_BYTES in starts for end in ends)


@pytest.mark.parametrize(("limit", "expected"), [(0, range(1, 9)), (1, range(1))])
def test_threads_share_as_many_heaps_as_they_may(limit: int, expected: range) -> None:
    command = [sys.executable, "-c", ALLOCATING, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert num_heaps(done.stdout) in expected


def test_fronts_have_few() -> None:
    overrides = ["engine.lanes_run_in=processes", "engine.lanes=2", "server.fronts=2"]
    with running_server(BUNDLES, overrides=overrides) as server:
        for _ in range(4):  # connections, which the kernel divides among fronts
            with grpc.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                stub = translation_pb2_grpc.TranslationServiceStub(channel)
                stub.Translate(translation_pb2.TranslateRequest(model="spell", inputs=["12"]))
        processes = Tree(server.process.pid).by_kind()
        fronts = [*processes["server"], *processes["front"]]
        heaps = [num_heaps(Path(f"/proc/{each.pid}/maps").read_text()) for each in fronts]
    assert len(heaps) == 2
    assert max(heaps) <= 1  # the log's thread may have had one before


async def test_a_front_gives_memory_back_when_its_calls_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = threading.Event()
    monkeypatch.setattr(front, "trim_memory", freed.set)
    monkeypatch.setattr(in_flight, "REST_S", 0.02)
    async with serving(BUNDLES) as served:
        await asyncio.sleep(0.2)
        assert not freed.is_set(), "no call has run"
        await served.translation.Translate(translation_pb2.TranslateRequest(model="spell", inputs=["12"]))
        assert await asyncio.to_thread(freed.wait, 20.0)
