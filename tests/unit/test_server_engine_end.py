"""What a lane does that is still in a step when its engine has been given up."""

import asyncio
import threading
from pathlib import Path

import pytest
from tests.threaded_engine import ThreadedEngine

from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.candidates import Predictions
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.errors import EngineUnavailable
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
