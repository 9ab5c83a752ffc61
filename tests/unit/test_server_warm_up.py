"""A lane's first steps: through its worker, told to nobody, and nothing of them is left."""

from pathlib import Path
from typing import Any

import pytest

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.api import Request, Submit
from dragoman.server.engine.processes.port import NO_FRONT
from dragoman.server.engine.warm_up import warm_up, warm_up_input
from dragoman.server.engine.worker import LaneWorker, make_lane, prepared
from dragoman.server.execution.backend import Backend
from dragoman.server.models import host

BUNDLES = Path(__file__).parents[1] / "fixtures" / "bundles"
SETTINGS = EngineSettings(lanes=1, slots_per_lane=4)


def backend_of(name: str) -> Backend:
    backend = Backend.load(Bundle.read(BUNDLES / name / "2"), provider="cpu", num_threads=1)
    return prepared(backend, SETTINGS.prefix_cache_bytes)


@pytest.mark.parametrize("name", ["spell", "count"])
def test_a_lane_that_is_warm_tells_a_front_of_its_own_steps_alone(name: str) -> None:
    backend = backend_of(name)
    sent: list[tuple[Any, Any]] = []
    worker: LaneWorker[Any] = LaneWorker(*make_lane(backend, SETTINGS), lambda *each: sent.append(each))
    first_input = warm_up_input(backend.bundle)
    assert first_input
    warm_up(worker, ("m", NO_FRONT), first_input)
    assert {front for front, _ in sent} == {("m", NO_FRONT)}
    assert not worker.has_work
    assert backend.prefix_cache.num_bytes == 0
    del sent[:]
    parameters = DecodingParameters(max_tokens=4)
    worker.obey(("m", 1), Submit([Request(0, 0, first_input, parameters)]))
    while worker.has_work:
        worker.take_turn()
    assert {front for front, _ in sent} == {("m", 1)}
    num_runs = sum(run.graph.startswith("decode") for _, report in sent for run in report.graph_runs)
    assert num_runs in range(1, parameters.max_tokens + 1)
    tokens = [report.prefix.num_computed_tokens for _, report in sent if report.prefix is not None]
    assert sum(tokens) <= len(first_input)


def test_a_lane_in_a_process_has_taken_steps_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[LaneWorker[Any]] = []
    take_turn = LaneWorker.take_turn

    def noting(worker: LaneWorker[Any]) -> None:
        turns.append(worker)
        take_turn(worker)

    monkeypatch.setattr(LaneWorker, "take_turn", noting)

    class Port:
        def send(self, front: Any, report: Any) -> None:
            assert front == ("spell/2", NO_FRONT)

    model = host._host_model(backend_of("spell"), SETTINGS, 0.1)
    assert not turns
    worker: Any = model.start(Port())  # type: ignore[arg-type]
    assert set(turns) == {worker}
    assert not worker.has_work
