"""The scaling benchmark's own parts: graphs that sleep, whose processes used what, and the rows of its tables."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.serving import sleeping_graphs
from benchmarks.serving.process_tree import Usage, usage_by_role, used_between
from benchmarks.serving.scaling_report import EngineReading, Reading, ServedReading, served_rows, speed_rows
from benchmarks.serving.sleeping_bundle import captions, write_sleeping_bundle
from benchmarks.serving.sleeping_graphs import ANSWER_TOKEN, answer_length, run_seconds

from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.offline import decode_offline
from dragoman.server.engine.trial import check_answers
from dragoman.server.execution import sessions
from dragoman.server.execution.backend import Backend


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sleeps that take no time, in their order, with the sleeping graphs in place."""
    seconds: list[float] = []
    monkeypatch.setattr(sleeping_graphs, "time", SimpleNamespace(sleep=seconds.append))
    monkeypatch.setattr(sessions, "load_sessions", None)  # put back at the end
    monkeypatch.setattr(sleeping_graphs, "be_punctual", lambda: None)  # of this whole process
    sleeping_graphs.install()
    return seconds


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_sleeping_bundle(tmp_path / "sleeping" / "1")
    return Bundle.read(tmp_path / "sleeping" / "1")


def test_the_bundle_passes_the_checks_of_a_server(bundle: Bundle, slept: list[float]) -> None:
    check_answers(Backend.load(bundle, provider="cpu", num_threads=1))
    assert run_seconds("encode", bundle.manifest.limits.max_source_tokens) in slept
    assert run_seconds("decode", 32) in slept


def test_an_answer_is_a_function_of_the_source_s_length(bundle: Bundle, slept: list[float]) -> None:
    inputs = bundle.golden_inputs()
    given = [(ids, DecodingParameters(max_tokens=32)) for ids in inputs]
    backend = Backend.load(bundle, provider="cpu", num_threads=1)
    for num_slots in (1, 3, 32):  # several steps in one call, and one step a call
        answers = decode_offline(backend, given, num_slots=num_slots)
        assert [answer.best.token_ids for answer in answers] == [
            (ANSWER_TOKEN,) * answer_length(len(ids)) for ids in inputs
        ]
    assert {10, 15} <= {answer_length(len(ids)) for ids in inputs} <= set(range(10, 16))
    assert run_seconds("decode_steps", 1) in slept


def test_a_search_gets_as_many_candidates_as_it_asks_for(bundle: Bundle, slept: list[float]) -> None:
    backend = Backend.load(bundle, provider="cpu", num_threads=1)
    search = DecodingParameters(max_tokens=32, beam_size=4, num_hypotheses=3)
    [answer] = decode_offline(backend, [(bundle.golden_inputs()[0], search)], num_slots=4)
    assert len({one.token_ids for one in answer.hypotheses}) == 3
    assert slept


def test_texts_are_as_long_as_captions() -> None:
    assert {len(text.split()) for text in captions(70)} == set(range(8, 15))
    assert captions(3) == captions(3)


class FakeProcess:
    def __init__(self, name: str, cpu_s: float, children: "Sequence[FakeProcess]" = ()) -> None:
        self._name, self._cpu_s, self._children = name, cpu_s, children

    def name(self) -> str:
        return self._name

    def children(self, *, recursive: bool) -> "Sequence[FakeProcess]":
        assert recursive
        return self._children

    def cpu_times(self) -> SimpleNamespace:
        return SimpleNamespace(user=self._cpu_s, system=0.5)

    def memory_full_info(self) -> SimpleNamespace:
        return SimpleNamespace(pss=100)


def test_the_processes_of_a_server_have_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    below = [("engine-host", 2), ("lane-0 sleeping", 4), ("lane-1 sleeping", 5), ("dragoman", 3)]
    server = FakeProcess("dragoman", 1, [FakeProcess(*each) for each in below])
    monkeypatch.setattr("psutil.Process", lambda pid: server if pid == 7 else None)
    assert usage_by_role(7) == {
        "front": Usage(2, 5.0, 200),
        "host": Usage(1, 2.5, 100),
        "lane": Usage(2, 10.0, 200),
    }


def test_what_is_used_between_two_looks() -> None:
    before = {"front": Usage(1, 2.0, 10)}
    after = {"front": Usage(1, 3.5, 10), "lane": Usage(1, 0.5, 10)}
    assert used_between(before, after) == {"front": 1.5, "lane": 0.5}


def test_rows_are_medians_over_the_turns() -> None:
    def reading(rate: float, **cpu_s: float) -> Reading:
        served = ServedReading(rate, 2 / rate, 5 / rate, {**cpu_s, "generator": 1e-4}, {"front": 3_000_000})
        return Reading(EngineReading(3 * rate, 1e-5, 2e-5), {32: served})

    turns = [reading(1_000, front=3e-4), reading(2_000, front=2e-4), reading(500, front=9e-4)]
    assert list(speed_rows({4: turns})) == [["4", "3,000", "1,000", "2.0, 5.0"]]
    assert list(served_rows({4: turns})) == [["4", "32", "300", "–", "–", "100", "3", "–", "–"]]
