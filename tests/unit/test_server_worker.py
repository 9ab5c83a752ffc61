"""A lane's loop, driven by a script: what it reports to each front, and what a failure leaves standing."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.candidates import Predictions
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine import alignments
from dragoman.server.engine.api import (
    Cancel,
    Command,
    Event,
    Failed,
    FailureReason,
    Finished,
    Leave,
    Report,
    Request,
    Started,
    Submit,
    Tokens,
)
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.lane_loop import LaneLoop, ModelFront
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.engine.worker import LaneBroken, LaneWorker, make_lane
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.rows import Rows

MODEL = "spell/1"
FIXTURES = Path(__file__).parents[1] / "fixtures"
BUNDLE = Bundle.read(FIXTURES / "bundles" / "spell" / "1")
ALIGNED = Bundle.read(FIXTURES / "aligned" / "spell" / "1")
GREEDY = DecodingParameters(max_tokens=81)
LONG = DecodingParameters(max_tokens=81, min_tokens=80)
PENALISED = DecodingParameters(
    max_tokens=20, beam_size=8, num_hypotheses=2, patience=4.0, coverage_penalty=0.3
)


@pytest.fixture(autouse=True)
def one_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts say what happens between two steps."""
    monkeypatch.setattr(Rows, "has_room_for_steps", lambda *_: False)


def request(id_: int, text: str = "12", parameters: DecodingParameters = GREEDY, **fields: Any) -> Request:
    return Request(id_, id_, BUNDLE.tokenizer.encode(text).ids, parameters, **fields)


Turn = Sequence[tuple[str, Command]] | Callable[[], Sequence[tuple[str, Command]]]


@dataclasses.dataclass
class Script:
    """A port that gives what is written for each turn, and ends when the lane has nothing more to do."""

    turns: list[Turn]
    reports: list[tuple[str, Report]] = dataclasses.field(default_factory=list)
    num_turns: int = 0

    def receive(self, *, wait: bool) -> Sequence[tuple[ModelFront[str], Command]] | None:
        self.num_turns += 1
        if self.turns:
            turn = self.turns.pop(0)
            return [((MODEL, front), command) for front, command in (turn() if callable(turn) else turn)]
        return None if wait else []

    def send(self, front: ModelFront[str], report: Report) -> None:
        self.reports.append((front[1], report))

    def events(self, front: str = "front") -> list[Event]:
        return [event for name, report in self.reports if name == front for event in report.events]

    def finished(self, front: str = "front") -> dict[int, str]:
        """Texts of the best answers, by id."""
        return {
            event.id: BUNDLE.tokenizer.decode(list(event.hypotheses[0].token_ids))
            for event in self.events(front)
            if isinstance(event, Finished)
        }

    def failed(self) -> dict[int, FailureReason]:
        return {event.id: event.reason for event in self.events() if isinstance(event, Failed)}


def run(
    *turns: Turn, bundle: Bundle = BUNDLE, worker: dict[str, Any] | None = None, **settings: Any
) -> Script:
    script = Script(list(turns))
    backend = Backend.load(bundle, provider="cpu", num_threads=1)
    lane, scheduler = make_lane(backend, EngineSettings(**{"slots_per_lane": 8, **settings}))
    LaneLoop(script, {MODEL: LaneWorker(lane, scheduler, script.send, **worker or {})}).run()
    return script


def submit(*requests: Request) -> list[tuple[str, Command]]:
    return [("front", Submit(list(requests)))]


def failing(times: list[bool]) -> Callable[..., Predictions]:
    """`Rows.decode`, which fails where the next of `times` says so."""
    decode = Rows.decode

    def fail_or_decode(
        rows: Rows, num_rows: int, num_best: int = 1, *, needs_all: bool = True
    ) -> Predictions:
        if times and times.pop(0):
            raise RuntimeError("secret internals")
        return decode(rows, num_rows, num_best, needs_all=needs_all)

    return fail_or_decode


def test_each_front_hears_of_its_own_and_of_each_run_once() -> None:
    script = run([("a", Submit([request(1, "12")])), ("b", Submit([request(1, "907", is_streamed=True)]))])
    assert script.finished("a") == {1: "one two"}
    assert script.finished("b") == {1: "nine zero seven"}
    assert not any(isinstance(event, Tokens) for event in script.events("a"))
    streamed = [event for event in script.events("b") if isinstance(event, Tokens)]
    assert len(streamed) > 10
    told = [token_id for event in streamed for token_id in event.token_ids]
    assert BUNDLE.tokenizer.decode(told) == "nine zero seven"
    started = [each for name in "ab" for each in script.events(name) if isinstance(each, Started)]
    assert [each.num_first_tokens for each in started] == [1, 1]
    assert all(each.started_s <= each.first_token_s for each in started)
    runs = [run.graph for _, report in script.reports for run in report.graph_runs]
    assert runs.count("encode") <= 2
    assert 10 < runs.count("decode") <= script.num_turns, "each run is in one report only"
    assert script.reports[-1][1].load.num_rows == 0


def test_steps_of_which_nobody_hears_send_no_report() -> None:
    script = run(submit(request(1, "90210", LONG)))
    assert len(script.reports) == 2, "its start and its end"


def test_a_failed_step_keeps_the_answers_that_were_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = Lane._accept

    def accept_or_fail(lane: Lane, sequence: LaneSequence, token_id: int, score: float) -> None:
        if sequence.id == 2 and len(sequence.token_ids) == 2:
            raise KeyError("surprise")
        accept(lane, sequence, token_id, score)

    monkeypatch.setattr(Lane, "_accept", accept_or_fail)
    three = DecodingParameters(max_tokens=3)
    script = run(submit(request(1, "777", three), request(2), request(3)), submit(request(4)))
    assert script.finished() == {1: "sev"}, "and 4 took part in the step"
    assert script.failed() == dict.fromkeys((2, 3, 4), FailureReason.ERROR)
    assert sum(report.num_failed_steps for _, report in script.reports) == 1
    messages = [event.message for event in script.events() if isinstance(event, Failed)]
    assert set(messages) == {"a step failed: KeyError"}


def test_an_answer_that_is_complete_in_a_first_step_that_fails_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept = Lane._accept

    def accept_or_fail(lane: Lane, sequence: LaneSequence, token_id: int, score: float) -> None:
        if sequence.id == 2:
            raise KeyError("surprise")
        accept(lane, sequence, token_id, score)

    monkeypatch.setattr(Lane, "_accept", accept_or_fail)
    one = DecodingParameters(max_tokens=1)
    script = run(submit(request(1, "777", one, is_streamed=True), request(2)))
    assert [type(event) for event in script.events() if event.id == 1] == [Started, Tokens, Finished]
    assert script.failed() == {2: FailureReason.ERROR}


def test_the_lane_goes_on_after_a_failed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rows, "decode", failing([True]))
    script = run(submit(request(1)), submit(request(2)))
    assert script.failed() == {1: FailureReason.ERROR}
    assert script.finished() == {2: "one two"}


def test_a_lane_whose_every_step_fails_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [submit(request(each)) for each in range(9)]
    with (
        monkeypatch.context() as patched,
        pytest.raises(LaneBroken, match="5 steps failed one after the other"),
    ):
        patched.setattr(Rows, "decode", failing([True] * 100))
        run(*turns, worker={"max_failed_steps": 5})
    # One that succeeds in between begins the count anew.
    monkeypatch.setattr(Rows, "decode", failing([True, True, False, True, True]))
    one_token = DecodingParameters(max_tokens=1)
    turns = [submit(request(each, parameters=one_token)) for each in range(5)]
    script = run(*turns, worker={"max_failed_steps": 3})
    assert list(script.finished()) == [2]


def test_what_is_cancelled_before_and_after_its_start_frees_its_rows() -> None:
    waiting = [request(each, "90210", LONG) for each in range(2, 5)]
    script = run(
        submit(request(1, "90210", LONG), *waiting),
        [("front", Cancel([1, 3, 99]))],
        submit(request(5)),
        slots_per_lane=1,
    )
    assert script.failed() == {1: FailureReason.CANCELLED, 3: FailureReason.CANCELLED}
    assert set(script.finished()) == {2, 4, 5}
    assert [event.id for event in script.events() if isinstance(event, Started)][:2] == [1, 2]


@pytest.mark.parametrize("is_small", [True, False])
def test_only_a_small_call_may_use_the_reserved_rows(*, is_small: bool) -> None:
    large = [msgspec.structs.replace(request(each, "90210", LONG), call_id=1) for each in range(6)]
    script = run(submit(*large), submit(request(9, is_small=is_small)), slots_per_lane=6)
    ends = [event.id for event in script.events() if isinstance(event, Finished)]
    assert (ends[0] == 9) == is_small


def test_a_deadline_ends_running_and_waiting() -> None:
    late = [request(each, "90210", LONG, deadline_s=0.0) for each in (1, 2)]
    assert run(submit(*late), slots_per_lane=1).failed() == dict.fromkeys((1, 2), FailureReason.DEADLINE)


def test_a_front_that_leaves_is_told_nothing_and_holds_no_rows() -> None:
    leaving = [("gone", Submit([request(each, "90210", LONG) for each in range(9)]))]
    script = run(leaving, [("gone", Leave())], submit(request(1)), slots_per_lane=1)
    assert not any(isinstance(event, (Finished, Failed)) for event in script.events("gone"))
    assert script.finished() == {1: "one two"}
    assert script.num_turns < 30, "nothing was computed for it"


def test_a_front_that_knows_the_lane_as_full_is_told_when_it_is_not() -> None:
    """It has nothing there itself, and would not give it anything otherwise."""
    script = run(
        [("busy", Submit([request(1, "90210", LONG)])), ("idle", Submit([request(1, "1", GREEDY)]))],
        slots_per_lane=1,
    )
    # "idle" heard its only end while "busy" ran or the other way round: whichever was first knew the lane as full.
    last = dict(script.reports)
    assert {name: report.load.num_rows + report.load.num_waiting_rows for name, report in last.items()} == {
        "busy": 0,
        "idle": 0,
    }
    assert any(not report.events for _, report in script.reports)


def aligned_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each run of `align`; a step of the lane is a 0."""
    log: list[int] = []
    align, decode = Rows.align, Rows.decode

    def logged(rows: Rows, source: Sequence[int], outputs: Sequence[Sequence[int]]) -> Any:
        log.append(sum(len(output) + 1 + len(source) for output in outputs))
        return align(rows, source, outputs)

    def stepped(rows: Rows, num_rows: int, num_best: int = 1, *, needs_all: bool = True) -> Predictions:
        log.append(0)
        return decode(rows, num_rows, num_best, needs_all=needs_all)

    monkeypatch.setattr(Rows, "align", logged)
    monkeypatch.setattr(Rows, "decode", stepped)
    return log


def test_alignments_are_bounded_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(submit(request(1, "90210", PENALISED)), bundle=ALIGNED).events()[-1]
    monkeypatch.setattr(alignments, "MAX_TOKENS", 60)
    log = aligned_tokens(monkeypatch)
    both = submit(request(1, "90210", PENALISED), request(2, "1" * 20, LONG))
    script = run(both, bundle=ALIGNED, slots_per_lane=16)
    pieces = [each for each in log if each]
    assert sum(pieces) > 200, "there is something to bound"
    assert max(pieces) <= 60
    first = log.index(pieces[0])
    during = log[first : len(log) - log[::-1].index(pieces[-1]) - 1]
    assert during.count(0) >= len(pieces) - 1, "the neighbour's steps come in between"
    finished = [event for event in script.events() if isinstance(event, Finished) and event.id == 1]
    assert isinstance(expected, Finished)
    assert [each.token_ids for each in finished[0].hypotheses] == [
        each.token_ids for each in expected.hypotheses
    ]


@pytest.mark.parametrize("how", ["cancelled", "late", "left"])
def test_an_alignment_is_given_up_between_two_pieces(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignments, "MAX_TOKENS", 60)
    log = aligned_tokens(monkeypatch)

    def while_aligning() -> Sequence[tuple[str, Command]]:
        if not any(log):
            script_turns.append(while_aligning)
            return []
        if how == "late":
            monkeypatch.setattr("dragoman.server.engine.worker.time.monotonic", lambda: 2e9)
        commands: dict[str, Command] = {"cancelled": Cancel([1]), "left": Leave(), "late": Cancel([])}
        return [("front", commands[how])]

    script_turns: list[Turn] = [submit(request(1, "90210", PENALISED, deadline_s=1e9)), while_aligning]
    script = Script(script_turns)
    backend = Backend.load(ALIGNED, provider="cpu", num_threads=1)
    lane, scheduler = make_lane(backend, EngineSettings(slots_per_lane=8))
    LaneLoop(script, {MODEL: LaneWorker(lane, scheduler, script.send)}).run()
    assert sum(each > 0 for each in log) <= 2
    expected = {"cancelled": FailureReason.CANCELLED, "late": FailureReason.DEADLINE}
    assert script.failed() == ({1: expected[how]} if how in expected else {})
    assert not script.finished()


def test_an_alignment_that_fails_ends_its_own_sequence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    align = Rows.align

    def fail(rows: Rows, source: Sequence[int], outputs: Sequence[Sequence[int]]) -> Any:
        if len(source) > 5:
            raise MemoryError
        return align(rows, source, outputs)

    monkeypatch.setattr(Rows, "align", fail)
    aligned = DecodingParameters(max_tokens=81, num_alternatives=0, align=True)
    requests = request(1, "90210", aligned), request(2, "12", aligned), request(3, "12")
    script = run(submit(*requests), bundle=ALIGNED)
    assert script.failed() == {1: FailureReason.ERROR}
    assert script.finished() == {2: "one two", 3: "one two"}


def test_a_sequence_whose_chooser_cannot_be_made_fails_with_its_step() -> None:
    """Whatever a request holds, the lane lives on."""
    odd = msgspec.structs.replace(GREEDY, suppressed_token_ids=(10**9,))
    script = run(submit(request(1, parameters=odd)), submit(request(2)))
    assert script.failed() == {1: FailureReason.ERROR}
    assert script.finished() == {2: "one two"}
