"""Models that share a lane: they take turns, know nothing of each other, and come and go while others work."""

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.api import (
    Command,
    Failed,
    FailureReason,
    Finished,
    Leave,
    Report,
    Request,
    Submit,
)
from dragoman.server.engine.lane_loop import AddWorker, DropWorker, LaneLoop, ModelFront
from dragoman.server.engine.offline import decode_offline
from dragoman.server.engine.worker import LaneWorker, make_lane
from dragoman.server.execution.backend import Backend

BUNDLES = Path(__file__).parents[1] / "fixtures" / "bundles"

Received = Sequence[tuple[ModelFront[str], Command | AddWorker | DropWorker]]


@dataclass
class Script:
    """A port that gives what is written for each turn, and ends when the lane has nothing more to do."""

    turns: list[Received | Callable[[], Received]]
    reports: list[tuple[ModelFront[str], Report]] = field(default_factory=list)

    def receive(self, *, wait: bool) -> Received | None:
        if self.turns:
            turn = self.turns.pop(0)
            return turn() if callable(turn) else turn
        return None if wait else []

    def send(self, front: ModelFront[str], report: Report) -> None:
        self.reports.append((front, report))


@dataclass
class Counter:
    """A worker with so many steps to take for each sequence."""

    name: str
    log: list[str]
    num_left: int = 0
    fronts: list[ModelFront[str]] = field(default_factory=list)

    @property
    def has_work(self) -> bool:
        return self.num_left > 0

    def obey(self, front: ModelFront[str], command: Command) -> None:
        self.fronts.append(front)
        if isinstance(command, Submit):
            self.num_left += sum(len(request.input_ids) for request in command.requests)

    def take_turn(self) -> None:
        self.log.append(self.name)
        self.num_left = max(0, self.num_left - 1)


def work(model: str, num_steps: int, front: str = "front") -> tuple[ModelFront[str], Command]:
    return (model, front), Submit([Request(1, 1, [0] * num_steps, DecodingParameters(max_tokens=1))])


def run(*turns: Received | Callable[[], Received], models: str = "abc") -> tuple[str, dict[str, Counter]]:
    log: list[str] = []
    workers = {name: Counter(name, log) for name in models}
    LaneLoop(Script(list(turns)), workers).run()
    return "".join(log), workers


def test_models_that_have_work_take_turns() -> None:
    log, _ = run([work("a", 4), work("c", 2), work("b", 3)])
    assert log == "acbacbaba"


def test_a_busy_model_leaves_another_the_next_turn() -> None:
    """Whenever it comes, a step of each other model is all that it waits for."""
    log, _ = run([work("a", 50)], *[[]] * 9, [work("b", 1)], *[[]] * 5, [work("c", 2), work("b", 1)])
    assert log.startswith("a" * 10 + "b" + "a" * 5 + "cbac" + "a" * 9)


def test_a_model_that_has_no_work_is_not_asked() -> None:
    log, workers = run([work("a", 2)], [(("b", "front"), Leave())])
    assert log == "aba", "once, as a command may have something to report"
    assert workers["b"].fronts == [("b", "front")]
    assert not workers["c"].fronts


def test_models_come_and_go_while_others_work() -> None:
    log: list[str] = []
    late = Counter("late", log)
    script = Script(
        [
            [work("a", 5)],
            [(("late", ""), AddWorker(late)), work("late", 9)],
            [],
            [],
            [(("late", ""), DropWorker())],
            [work("late", 1, "asker")],
            [(("late", "asker"), Leave())],
        ]
    )
    LaneLoop(script, {"a": Counter("a", log)}).run()
    assert log == ["a", "late", "a", "late", "a", "a", "a"]
    [(front, report)] = script.reports
    assert front == ("late", "asker")
    [failed] = report.events
    assert isinstance(failed, Failed)
    assert (failed.id, failed.reason, failed.message) == (1, FailureReason.LOST, "late has been unloaded")


@pytest.mark.parametrize("num_slots", [4, 16])
def test_answers_are_those_of_a_lane_with_one_model(num_slots: int) -> None:
    """Bit for bit, with models of both tasks and precisions on one lane, and the same ids everywhere."""
    texts = {"translation": ["12", "90210", "7", "31415926"], "generation": ["one two", "seven", "", "nine"]}
    inputs: dict[str, list[tuple[list[int], DecodingParameters]]] = {}
    expected: dict[str, list[Decoded]] = {}
    backends = {}
    for name in ("spell/1", "spell/2", "count/1", "count/2"):
        backend = backends[name] = Backend.load(Bundle.read(BUNDLES / name), provider="cpu", num_threads=1)
        options = [{}, {"beam_size": 3}, {"temperature": 1.5, "seed": 3}, {"min_tokens": 9}]
        inputs[name] = [
            (backend.bundle.tokenizer.encode(text).ids, DecodingParameters(max_tokens=30, **each))  # type: ignore[arg-type]
            for text in texts[backend.bundle.manifest.task]
            for each in options
        ]
        expected[name] = decode_offline(backend, inputs[name], num_slots=8)
    submits: Received = [
        ((name, "front"), Submit([Request(place, place, ids, how) for place, (ids, how) in enumerate(each)]))
        for name, each in inputs.items()
    ]
    script = Script([submits])
    settings = EngineSettings(slots_per_lane=num_slots)
    workers = {name: LaneWorker(*make_lane(each, settings), script.send) for name, each in backends.items()}
    LaneLoop(script, workers).run()
    answers: dict[str, dict[int, Decoded]] = {name: {} for name in inputs}
    for (name, _), report in script.reports:
        answers[name] |= {
            event.id: Decoded(event.hypotheses) for event in report.events if isinstance(event, Finished)
        }
    for name, each in expected.items():
        assert [answers[name][place] for place in range(len(each))] == each


@pytest.mark.parametrize("name", ["spell/2", "count/2"])
def test_what_a_model_takes_is_free_once_its_worker_is_dropped(name: str) -> None:
    """Without the collector: a server keeps it from looking at what was there at the start."""
    backend = Backend.load(Bundle.read(BUNDLES / name), provider="cpu", num_threads=1).with_prefix_cache(
        1 << 20
    )
    ids = backend.bundle.tokenizer.encode("12").ids
    kept = DecodingParameters(max_tokens=20), DecodingParameters(max_tokens=9, beam_size=3)
    requests = [Request(number, number, ids, kept[number % 2], step_interval=2) for number in range(20)]
    lane, scheduler = make_lane(backend, EngineSettings(slots_per_lane=8))
    held = [weakref.ref(each) for each in (lane.rows.memory, backend, *backend.sessions.values())]
    script = Script([[((name, "front"), Submit(requests))], *[[]] * 5, [((name, ""), DropWorker())]])
    dropped: list[str] = []
    workers = {name: LaneWorker(lane, scheduler, script.send)}
    loop = LaneLoop(script, workers, on_dropped=dropped.append)
    workers.clear()
    gc.collect()
    gc.disable()
    try:
        del backend, lane
        assert all(each() is not None for each in held)
        loop.run()
        assert dropped == [name]
        assert [each() for each in held] == [None] * len(held)
    finally:
        gc.enable()
