"""One lane: a set of rows and the sequences in them. Carry out a plan, run one step, choose the tokens.

Synchronous and free of threads, so that the server's loop, export's verification and the golden check run the
very same code. `decode_offline` is that loop for a fixed list of inputs.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server import scheduler
from server.backend import Backend, Rows
from server.sampling import DecodingParameters, new_generator, sample

__all__ = [
    "EngineObserver",
    "FinishReason",
    "Finished",
    "Lane",
    "RunningSequence",
    "StopCondition",
    "decode_offline",
]


class FinishReason(Enum):
    """Why a sequence ended by itself."""

    END_OF_SEQUENCE = auto()
    STOP_STRING = auto()
    LENGTH = auto()


class StopCondition(Protocol):
    """Looks at tokens as they come, on the lane's thread."""

    def accept(self, token_id: int) -> bool:
        """Take one token; True ends the sequence there."""


class EngineObserver(Protocol):
    """Told of every graph that ran; must be quick and safe to call from any thread."""

    def observe_step(self, graph: str, seconds: float, rows: int) -> None:
        """`graph` is "encode", "prefill" or "decode"."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A whole answer.

    Attributes:
        token_ids: without the end of sequence.
        finish_reason: why it ended.
        log_probability: sum over the chosen tokens, the end of sequence included.
        num_output_tokens: tokens chosen, the end of sequence included.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    log_probability: float
    num_output_tokens: int


@dataclass(eq=False, slots=True, kw_only=True)
class RunningSequence(scheduler.Sequence):
    """A sequence with its input, parameters and what it has produced so far."""

    input_ids: Sequence[int]
    parameters: DecodingParameters
    stop: StopCondition | None = None
    token_ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    generator: np.random.Generator | None = None
    result: Finished | None = None
    started_s: float | None = None
    first_token_s: float | None = None

    @classmethod
    def create(
        cls,
        input_ids: Sequence[int],
        parameters: DecodingParameters,
        *,
        deadline_s: float | None = None,
        stop: StopCondition | None = None,
    ) -> "RunningSequence":
        """A sequence ready to be submitted; `deadline_s` is on the clock that plans are made with."""
        generator = new_generator(parameters) if parameters.temperature > 0 else None
        return cls(
            num_input_tokens=len(input_ids),
            deadline_s=deadline_s,
            input_ids=input_ids,
            parameters=parameters,
            stop=stop,
            generator=generator,
        )


class Lane:
    """Rows of a backend and who is in them. One thread at a time."""

    def __init__(self, backend: Backend, num_slots: int, observer: EngineObserver | None = None) -> None:
        self.rows: Rows = backend.rows(num_slots)
        self._sequences: list[RunningSequence] = []
        self._observer = observer
        self._end = backend.bundle.manifest.special_tokens.end

    def execute(self, plan: scheduler.Plan) -> list[RunningSequence]:
        """Carry out `plan` and run one step.

        Returns:
            The sequences that got a token, in row order; those that ended have their `result`.
        """
        for move in plan.moves:
            self.rows.move(move.source, move.target)
            self._sequences[move.target] = self._sequences[move.source]
        if plan.starts:
            self._start(plan.starts)
        del self._sequences[plan.num_rows :]
        if not plan.num_rows:
            return []
        started = time.perf_counter()
        log_probabilities = self.rows.decode(plan.num_rows)
        self._observe("decode", started, plan.num_rows)
        self._choose(log_probabilities)
        return list(self._sequences)

    def clear(self) -> None:
        """Forget who is in which row, after a step that failed."""
        self._sequences.clear()

    def _start(self, starts: list[tuple[scheduler.Sequence, int]]) -> None:
        now = time.monotonic()
        new: list[tuple[int, RunningSequence]] = []
        for sequence, row in starts:
            assert isinstance(sequence, RunningSequence)
            sequence.started_s = now
            if row == len(self._sequences):
                self._sequences.append(sequence)
            else:
                self._sequences[row] = sequence
            new.append((row, sequence))
        started = time.perf_counter()
        self.rows.start([row for row, _ in new], [sequence.input_ids for _, sequence in new])
        self._observe(self.rows.first_graph, started, len(new))

    def _choose(self, log_probabilities: NDArray[np.float32]) -> None:
        """Give every row its next token; greedy rows by one arg-max over all of them."""
        for row, sequence in enumerate(self._sequences):
            if len(sequence.token_ids) < sequence.parameters.min_tokens:
                log_probabilities[row, self._end] = -np.inf
        chosen = log_probabilities.argmax(axis=-1)
        for row, sequence in enumerate(self._sequences):
            if sequence.generator is not None:
                uniform = sequence.generator.random()
                chosen[row] = sample(log_probabilities[row], sequence.parameters, uniform)
        scores = log_probabilities[np.arange(chosen.size), chosen].tolist()
        self.rows.arena.token_ids[: chosen.size] = chosen
        now = time.monotonic()
        for sequence, token_id, score in zip(self._sequences, chosen.tolist(), scores, strict=True):
            if sequence.first_token_s is None:
                sequence.first_token_s = now
            self._append(sequence, token_id, score)

    def _append(self, sequence: RunningSequence, token_id: int, log_probability: float) -> None:
        sequence.log_probability += log_probability
        if token_id == self._end:
            reason = FinishReason.END_OF_SEQUENCE
        else:
            sequence.token_ids.append(token_id)
            if sequence.stop is not None and sequence.stop.accept(token_id):
                reason = FinishReason.STOP_STRING
            elif len(sequence.token_ids) >= sequence.parameters.max_tokens:
                reason = FinishReason.LENGTH
            else:
                return
        num_tokens = len(sequence.token_ids) + (reason is FinishReason.END_OF_SEQUENCE)
        sequence.result = Finished(tuple(sequence.token_ids), reason, sequence.log_probability, num_tokens)

    def _observe(self, graph: str, started: float, num_rows: int) -> None:
        if self._observer is not None:
            self._observer.observe_step(graph, time.perf_counter() - started, num_rows)


def decode_offline(
    backend: Backend, inputs: Iterable[tuple[Sequence[int], DecodingParameters]], *, num_slots: int
) -> list[Finished]:
    """Decode all inputs through one lane of `num_slots` rows, refilled as rows end; results in input order."""
    sequences = [RunningSequence.create(input_ids, parameters) for input_ids, parameters in inputs]
    plans = scheduler.Scheduler(1, num_slots, max_waiting=len(sequences), max_start_tokens=4096)
    lane = Lane(backend, num_slots)
    for sequence in sequences:
        plans.submit(sequence)
    while plans.has_work(0):
        for sequence in lane.execute(plans.plan(0, now_s=0.0)):
            if sequence.result is not None:
                plans.finish(sequence)
    return [_result(sequence) for sequence in sequences]


def _result(sequence: RunningSequence) -> Finished:
    assert sequence.result is not None, "every sequence runs to its end"
    return sequence.result
