"""Memory and threads that cannot be had: one line with the numbers and what to lower, before anything is reserved."""

import os
import re
import shutil
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
from tests.unit.damaged_bundles import FIXTURES, GENERATION, TRANSLATION

from dragoman.common.memory import AvailableMemory
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.engine.processes.messages import Begin
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.errors import ResourceUnavailable
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.cache_memory import row_bytes
from dragoman.server.execution.host_memory import HostMemory
from dragoman.server.execution.memory_budget import MemoryBudget, engine_bytes
from dragoman.server.models.host import _load as load_in_host
from dragoman.server.models.loader import lanes_bytes, load_checked_backend
from dragoman.server.models.process_memory import LANE_BYTES

MIB = 2**20


@pytest.fixture
def backend() -> Backend:
    return Backend.load(Bundle.read(FIXTURES / GENERATION), provider="cpu", num_threads=1)


def available(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(
        "dragoman.server.execution.memory_budget.available_memory",
        lambda: AvailableMemory(num_bytes, "MemAvailable"),
    )


@pytest.mark.parametrize("fixture", [TRANSLATION, GENERATION, "halves/spell/1"])
def test_a_row_takes_what_its_caches_take(fixture: str) -> None:
    backend = Backend.load(Bundle.read(FIXTURES / fixture), provider="cpu", num_threads=1)
    memory = backend.rows(3).memory
    assert isinstance(memory, HostMemory)
    manifest = backend.bundle.manifest
    assert sum(cache.nbytes for cache in memory.caches.values()) == 3 * row_bytes(
        manifest, backend.cache_dtype
    )


def test_the_prefix_cache_counts_where_there_is_one(backend: Backend) -> None:
    def needed(backend: Backend, prefix_cache_bytes: int) -> int:
        return engine_bytes(backend, num_lanes=2, rows_per_lane=4, prefix_cache_bytes=prefix_cache_bytes)

    assert needed(backend, MIB) - needed(backend, 0) == MIB
    translating = Backend.load(Bundle.read(FIXTURES / TRANSLATION), provider="cpu", num_threads=1)
    assert needed(translating, MIB) == needed(translating, 0)


def grant(budget: MemoryBudget, num_bytes: int, what: str) -> None:
    with budget.granted(num_bytes, what, "lower it"):
        pass


def test_what_was_granted_before_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 100 * MIB)
    budget = MemoryBudget()
    grant(budget, 60 * MIB, "a")
    with pytest.raises(ResourceUnavailable) as caught:
        grant(budget, 60 * MIB, "b")
    assert str(caught.value) == (
        "b takes 60.0 MiB of memory; 100.0 MiB are available (MemAvailable), 60.0 MiB of it granted: lower it"
    )
    grant(budget, 40 * MIB, "c")


def test_what_fails_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 100 * MIB)
    budget = MemoryBudget()
    with pytest.raises(ZeroDivisionError), budget.granted(60 * MIB, "a", "lower it"):
        raise ZeroDivisionError
    grant(budget, 100 * MIB, "b")


def test_too_many_rows_are_one_line_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 100 * MIB)
    bundle = Bundle.read(FIXTURES / GENERATION)
    with pytest.raises(ResourceUnavailable) as caught:
        load_checked_backend(bundle, EngineSettings(lanes=4, slots_per_lane=65_536))
    assert re.fullmatch(
        r".*/bundles/count/1: engine\.lanes = 4 of engine\.slots_per_lane = 65536 with "
        r"engine\.prefix_cache_bytes = 67108864 takes [\d,.]+ GiB of memory; 100\.0 MiB are available "
        r"\(MemAvailable\): lower one of them",
        str(caught.value),
    )


def test_rows_and_the_processes_of_lanes_have_to_fit_together(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = backend.bundle
    shutil.copytree(bundle.path, tmp_path / bundle.name / str(bundle.version))
    settings = EngineSettings(lanes=2, slots_per_lane=4, prefix_cache_bytes=0)
    begin = Begin(os.fsencode(tmp_path), settings.model_dump_json().encode())
    num_bytes = lanes_bytes(backend, settings) + 2 * LANE_BYTES
    available(monkeypatch, num_bytes)
    assert load_in_host(Mock(), begin)[0] == 2
    available(monkeypatch, num_bytes - 1)
    with pytest.raises(ResourceUnavailable, match=r"engine\.lanes = 2 .*, 16\.0 MiB of it granted: lower"):
        load_in_host(Mock(), begin)


def test_memory_that_the_system_refuses_is_one_line(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> HostMemory:
        raise MemoryError("Unable to allocate 9.99 TiB for an array")

    monkeypatch.setattr("dragoman.server.execution.backend.HostMemory", refuse)
    with pytest.raises(ResourceUnavailable, match=r"for 7 rows .*9\.99 TiB.*lower engine\.slots_per_lane"):
        backend.rows(7)


def test_threads_that_the_system_refuses_are_one_line(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    before = set(threading.enumerate())  # of other tests, whose engines nobody has closed yet

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "lane-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ResourceUnavailable, match=r"engine\.lanes = 3: can't start new thread"):
        LaneThreads.of(backend, EngineSettings(lanes=3, slots_per_lane=2))
    assert not [each for each in {*threading.enumerate()} - before if each.name.startswith("lane-")]
