"""Dragoman in process, two ways: through the engine that serves, and as bare lanes in threads."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from benchmarks.serving.systems import Reading, Setting, Workload

from dragoman.server.config import EngineSettings
from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.layout import lane_layout
from dragoman.server.engine.offline import decode_offline
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.execution.backend import Backend

__all__ = ["DragomanEngine", "DragomanLanes", "DragomanOnDevice", "EngineCallers", "num_tokens", "repeat"]

_SLOTS: Final = (16, 32, 64)
_DEVICE_LANES: Final = (1, 2)
_DEVICE_SLOTS: Final = (64, 128, 256)
_AS_GIVEN, _LONGEST_FIRST = "as given", "longest first"


def repeat(run: Callable[[], int], turn_s: float) -> Reading:
    """Call `run`, which gives a number of tokens, for at least `turn_s` seconds: the mean time, the last number."""
    num_runs, start_s = 0, time.perf_counter()
    while True:
        num_answered = run()
        num_runs += 1
        elapsed_s = time.perf_counter() - start_s
        if elapsed_s >= turn_s:
            return Reading(elapsed_s / num_runs, num_answered)


def num_tokens(answers: Iterable[Decoded]) -> int:
    """Tokens of the best answers, ends included."""
    return sum(decoded.best.num_output_tokens for decoded in answers)


def _settings(workload: Workload) -> list[Setting]:
    if workload.num_rows is not None:  # an input has a row for each hypothesis
        halves = -(-workload.num_rows // 2)  # CTranslate2 may take them in two batches as well
        # Or all on one lane, if the scheduler thinks so.
        sizes = dict.fromkeys(
            [workload.num_rows, halves, workload.num_rows * lane_layout(EngineSettings())[0]]
        )
        return [{"slots_per_lane": size * workload.beam_size, "order": _AS_GIVEN} for size in sizes]
    orders = (_AS_GIVEN, _LONGEST_FIRST)
    return [{"slots_per_lane": slots, "order": order} for slots in _SLOTS for order in orders]


def _ordered(workload: Workload, setting: Setting) -> list[Sequence[int]]:
    if setting["order"] == _LONGEST_FIRST:
        return sorted(workload.inputs, key=len, reverse=True)
    return list(workload.inputs)


def _parameters(workload: Workload) -> DecodingParameters:
    return DecodingParameters(
        max_tokens=workload.max_tokens, min_tokens=workload.min_tokens, beam_size=workload.beam_size
    )


class EngineCallers:
    """An engine, one at a time, and those who ask it: a ticket for each input, as a server has them."""

    def __init__(self) -> None:
        self._lanes: LaneThreads | None = None
        self._engine: EngineClient | None = None
        self._runner = asyncio.Runner()

    def open(self, backend: Backend, settings: EngineSettings) -> None:
        self._close_engine()
        self._lanes = LaneThreads.of(backend, settings)
        self._engine = self._lanes.connect()

    def ask(self, inputs: Sequence[Sequence[int]], parameters: DecodingParameters) -> list[Decoded]:
        """All inputs at once; answers in their order."""
        return self._runner.run(self._decode(inputs, parameters))

    def close(self) -> None:
        self._close_engine()
        self._runner.close()

    async def _decode(self, inputs: Sequence[Sequence[int]], parameters: DecodingParameters) -> list[Decoded]:
        assert self._engine is not None
        tickets = [self._engine.submit(ids, parameters) for ids in inputs]
        return [await ticket.result() for ticket in tickets]

    def _close_engine(self) -> None:
        if self._lanes is not None:
            self._lanes.close()
            self._lanes = self._engine = None


class DragomanEngine:
    """`EngineClient.submit` and a ticket for each input, as a server has them: lanes, scheduler, event loop."""

    name = "dragoman"
    _base = EngineSettings(max_waiting=1_000_000)

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.precision: str = backend.bundle.manifest.precision
        self._setting: Setting = {}
        self._callers = EngineCallers()

    def settings(self, workload: Workload) -> list[Setting]:
        return _settings(workload)

    def prepare(self, setting: Setting) -> None:
        self._setting = setting
        given = {name: value for name, value in setting.items() if name != "order"}
        self._callers.open(self._backend, self._base.model_copy(update=given))

    def run(self, workload: Workload, turn_s: float) -> Reading:
        inputs, parameters = _ordered(workload, self._setting), _parameters(workload)
        return repeat(lambda: num_tokens(self._callers.ask(inputs, parameters)), turn_s)

    def close(self) -> None:
        self._callers.close()


class DragomanOnDevice(DragomanEngine):
    """The same where graphs run on a GPU: more slots, few lanes."""

    _base = EngineSettings(provider="cuda", max_waiting=1_000_000)

    def settings(self, workload: Workload) -> list[Setting]:
        layouts: list[Setting] = []
        for lanes in _DEVICE_LANES:
            slots = _DEVICE_SLOTS if workload.num_rows is None else (-(-len(workload.inputs) // lanes),)
            layouts += [
                {"lanes": lanes, "slots_per_lane": each * workload.beam_size, "order": _LONGEST_FIRST}
                for each in slots
            ]
        return layouts if len(workload.inputs) > 1 else layouts[:1]


class DragomanLanes:
    """`decode_offline` in one thread a lane, the inputs dealt out among them: no queue, no event loop."""

    name = "dragoman, lanes alone"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.precision: str = backend.bundle.manifest.precision
        self._setting: Setting = {}
        self._num_lanes, _ = lane_layout(EngineSettings())

    def settings(self, workload: Workload) -> list[Setting]:
        # It allocates its arena anew in each run, which counts too much in a short one.
        return _settings(workload) if workload.num_rows is None else []

    def prepare(self, setting: Setting) -> None:
        self._setting = setting

    def run(self, workload: Workload, turn_s: float) -> Reading:
        inputs, parameters = _ordered(workload, self._setting), _parameters(workload)
        hands = [inputs[lane :: self._num_lanes] for lane in range(self._num_lanes)]
        return repeat(lambda: self._decode(hands, parameters), turn_s)

    def close(self) -> None:
        pass

    def _decode(self, hands: Sequence[Sequence[Sequence[int]]], parameters: DecodingParameters) -> int:
        answers: list[list[Decoded]] = [[] for _ in hands]

        def decode(lane: int) -> None:
            given = [(ids, parameters) for ids in hands[lane]]
            slots = int(self._setting["slots_per_lane"])
            answers[lane] = decode_offline(self._backend, given, num_slots=slots)

        threads = [threading.Thread(target=decode, args=(lane,)) for lane in range(len(hands))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(map(num_tokens, answers))
