"""What a lane does that is still in a step when its engine has been given up."""

import asyncio
import threading
from pathlib import Path

import pytest
from tests.threaded_engine import ThreadedEngine

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.candidates import Predictions
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.api import Cancel
from dragoman.server.engine.lane_loop import AddWorker
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.errors import EngineUnavailable
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.rows import Rows

BUNDLE = Bundle.read(Path(__file__).parents[1] / "fixtures" / "bundles" / "spell" / "1")
ONE_TOKEN = DecodingParameters(max_tokens=1, min_tokens=1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_lane_that_outlasts_the_close_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, *, stream: bool, fails: bool
) -> None:
    entered, may_go_on = threading.Event(), threading.Event()
    decode = Rows.decode

    def held(rows: Rows, num_rows: int, num_best: int = 1, *, needs_all: bool = True) -> Predictions:
        entered.set()
        assert may_go_on.wait(20)
        if fails:
            raise RuntimeError("the graph failed")
        return decode(rows, num_rows, num_best, needs_all=needs_all)

    monkeypatch.setattr(Rows, "decode", held)
    dead: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", dead.append)
    engine = ThreadedEngine.of(BUNDLE)
    ticket = engine.submit(list(BUNDLE.tokenizer.encode("12").ids), ONE_TOKEN, is_streamed=stream)
    assert await asyncio.to_thread(entered.wait, 20)
    assert not engine.close(timeout_s=0.0), "the lane is in a step"
    with pytest.raises(EngineUnavailable):
        await ticket.result()
    may_go_on.set()
    assert await asyncio.to_thread(engine.close)
    assert dead == [], "a dead thread ends a server's process as broken"


class Holding:
    """A worker that holds its lane from a command on until `may_go_on` is set."""

    has_work = False

    def __init__(self) -> None:
        self.entered, self.may_go_on = threading.Event(), threading.Event()

    def obey(self, _front: object, _command: object) -> None:
        self.entered.set()
        assert self.may_go_on.wait(20)

    def take_turn(self) -> None:
        """Has nothing to do."""


async def test_a_lane_that_drops_a_model_late_goes_on_with_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", dead.append)
    lanes = LaneThreads(EngineSettings(lanes=1, slots_per_lane=2))
    holding = Holding()
    try:
        for model in ("late", "other"):
            lanes.add_model(model, Backend.load(BUNDLE, provider="cpu", num_threads=1))
        [port] = lanes._ports
        port.put(("holding", None), AddWorker(holding))
        port.put(("holding", None), Cancel([]))
        assert await asyncio.to_thread(holding.entered.wait, 20)
        lanes.remove_model("late", timeout_s=0.0)  # nobody waits any more when the lane comes to it
        holding.may_go_on.set()
        client = lanes.connect(model="other")
        answer = await client.submit(list(BUNDLE.tokenizer.encode("12").ids), ONE_TOKEN).result()
        assert answer.best.num_output_tokens == 1
    finally:
        holding.may_go_on.set()
        assert await asyncio.to_thread(lanes.close)
    assert dead == []
