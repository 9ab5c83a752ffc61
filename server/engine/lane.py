"""One lane: a set of rows and the sequences in them. Carry out a plan, run one step, choose the tokens.

Synchronous and free of threads, so that the server's loop (`server/engine/worker.py`), export's verification and the
golden check (`server/engine/offline.py`) run the very same code.
"""

import functools
import time
import weakref
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.server.decoding.beam_step import advance_all
from dragoman.server.decoding.candidates import Predictions
from dragoman.server.decoding.hypothesis import FinishReason, Hypothesis, TokenScore
from dragoman.server.decoding.ranking import Attention
from dragoman.server.decoding.sampling import Choice, choose_all
from dragoman.server.decoding.scores import alternatives
from dragoman.server.engine import scheduler
from dragoman.server.engine.alignments import Alignments
from dragoman.server.engine.api import GraphRun
from dragoman.server.engine.choosers import Choosers
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.rows import Rows

__all__ = ["Lane"]

_MULTI_STEP_ROWS = 32
"""Rows, all greedy, that take several steps in one call where the bundle can. With more of them Python's part of a step
is little, and rows that end on the way cost more than it (ADR 15)."""


class Lane:
    """Rows of a backend and the sequences in them. For one thread at a time.

    Args:
        backend: the graphs.
        num_slots: rows.
        multi_step_rows: up to how many rows, all greedy, take several steps in one call where the bundle can.

    Attributes:
        num_steps_taken: in the last plan.
        observe: called with every run of a graph, if there is one.
        vocabulary_size: of the model.
        prefix_cache: of its prompts; None: its inputs are no prompts.
        alignments: of sequences that have ended and wait for theirs; run them between steps.
    """

    def __init__(
        self,
        backend: Backend,
        num_slots: int,
        *,
        multi_step_rows: int = _MULTI_STEP_ROWS,
    ) -> None:
        self.rows: Rows = backend.rows(num_slots)
        self.num_steps_taken = 1
        self._multi_step_rows = multi_step_rows
        self._sequences: list[LaneSequence] = []  # by row; one with beam search comes several times
        self.observe: Callable[[GraphRun], object] | None = None
        self.vocabulary_size = backend.bundle.manifest.dimensions.vocabulary_size
        self.prefix_cache = None if backend.bundle.manifest.facts.has_source else backend.prefix_cache
        self._choosers = Choosers(backend)
        # Not by a reference in a circle: what a lane takes is free as soon as nobody has the lane.
        self.alignments = Alignments(functools.partial(_align, weakref.ref(self)))
        special = backend.bundle.manifest.special_tokens
        self._end = special.end
        self._without_text = special.without_text

    def execute(self, plan: scheduler.Plan) -> list[LaneSequence]:
        """Carry out `plan` and run one step, or several where nobody has to be asked between them.

        Returns:
            The sequences that took a step, in row order. Those that have ended have their `result`, or wait in
            `alignments` for it.
        """
        if plan.moves:
            self._move(plan.moves)
        if plan.starts:
            self._start(plan)
        del self._sequences[plan.num_rows :]
        if not plan.num_rows:
            return []
        self.num_steps_taken = self._take_steps(plan.num_rows) or self._take_step(plan.num_rows)
        if plan.starts:
            now = time.monotonic()
            for sequence, _ in plan.starts:
                assert isinstance(sequence, LaneSequence)
                sequence.first_token_s = now
                if not sequence.has_ended:  # or `_end_sequence` has counted them
                    sequence.num_first_tokens = max(1, len(sequence.token_ids))
        return list(dict.fromkeys(self._sequences))

    def clear(self) -> None:
        """Forget which sequence is in which row, after a step that failed."""
        self._sequences.clear()

    def _take_step(self, num_rows: int) -> int:
        started = time.perf_counter()
        predictions = self.rows.decode(
            num_rows,
            max(sequence.num_best for sequence in self._sequences),
            needs_all=any(sequence.needs_all for sequence in self._sequences),
        )
        self._observe("decode", started, num_rows)
        if searching := self._choose(predictions):
            self._advance(searching, predictions)
        return 1

    def _take_steps(self, num_rows: int) -> int:
        """Several steps in one call, if all rows are greedy, few and far from full; returns how many."""
        if (
            num_rows > self._multi_step_rows
            or not self.rows.has_room_for_steps(num_rows)
            or not all(sequence.is_greedy for sequence in self._sequences)
        ):
            return 0
        started = time.perf_counter()
        steps = self.rows.decode_steps(num_rows)
        self._observe("decode_steps", started, num_rows)
        if steps is None:
            return 0
        token_ids, log_probabilities = steps
        for sequence, chosen, scores in zip(
            self._sequences, token_ids.T.tolist(), log_probabilities.T.tolist(), strict=True
        ):
            for token_id, score in zip(chosen, scores, strict=True):
                self._accept(sequence, token_id, score)
                if sequence.has_ended:
                    break  # what follows was computed for nobody
        return self.rows.steps_per_run

    def _move(self, moves: Sequence[scheduler.Move]) -> None:
        self.rows.copy([move.source for move in moves], [move.target for move in moves])
        for move in moves:
            sequence = self._sequences[move.target] = self._sequences[move.source]
            if sequence.search is not None:
                sequence.search.move(move.source, move.target)

    def _start(self, plan: scheduler.Plan) -> None:
        now = time.monotonic()
        new: list[tuple[list[int], LaneSequence]] = []
        for sequence, rows in plan.starts:
            assert isinstance(sequence, LaneSequence)
            self._prepare(sequence, rows)
            sequence.started_s = now
            for row in rows:
                if row == len(self._sequences):
                    self._sequences.append(sequence)
                else:
                    self._sequences[row] = sequence
            new.append((rows, sequence))
        ahead = [sequence for sequence in plan.ahead if isinstance(sequence, LaneSequence)]
        started = time.perf_counter()
        num_encoded = self.rows.start(
            [rows[0] for rows, _ in new],
            [sequence.model_input for _, sequence in new],
            [sequence.model_input for sequence in ahead],
        )
        for sequence in ahead:  # those of other lengths were left
            sequence.is_encoded = sequence.model_input.encoded is not None
        if copies := [(rows[0], row) for rows, _ in new for row in rows[1:]]:
            self.rows.copy(*zip(*copies, strict=True))
        if num_encoded:
            self._observe(self.rows.start_graph, started, num_encoded)

    def _prepare(self, sequence: LaneSequence, rows: list[int]) -> None:
        """Make what chooses the sequence's tokens, if that is not plainly the most probable one."""
        if sequence.is_plain:
            return
        parameters, input_ids = sequence.parameters, sequence.input_ids
        if parameters.stop:
            sequence.stop = self._choosers.stop_strings(parameters, input_ids)
        if parameters.beam_size > 1:
            search = self._choosers.search(parameters, input_ids, rows, sequence.stop)
            sequence.search, sequence.needs_all = search, search.needs_all
            sequence.num_best = max(sequence.num_best, search.num_best)
        else:
            sequence.chooser = self._choosers.chooser(parameters, input_ids)

    def _choose(self, predictions: Predictions) -> list[LaneSequence]:
        """Give every row without beam search its next token, and end those that have come to it.

        Returns:
            The sequences with beam search, which are left to do.
        """
        if all(sequence.search is not None for sequence in self._sequences):
            return list(dict.fromkeys(self._sequences))
        chosen: list[int] = predictions.token_ids[:, 0].tolist()
        scores: list[float] = predictions.best[:, 0].tolist()
        if not all(sequence.is_plain for sequence in self._sequences):
            self._choose_otherwise(predictions.log_probabilities, chosen, scores)
        self.rows.slots.feed(chosen)
        searching: dict[LaneSequence, None] = {}
        for row, sequence in enumerate(self._sequences):
            if sequence.search is not None:
                searching[sequence] = None
                continue
            if not sequence.is_plain and sequence.parameters.num_alternatives is not None:
                told = alternatives(predictions, row, sequence.parameters.num_alternatives)
                sequence.tokens.append(TokenScore(chosen[row], scores[row], told))
            self._accept(sequence, chosen[row], scores[row])
        return list(searching)

    def _choose_otherwise(
        self, log_probabilities: NDArray[np.float32], chosen: list[int], scores: list[float]
    ) -> None:
        """Change what is chosen where that is not the most probable token."""
        choices: list[Choice] = []
        for row, sequence in enumerate(self._sequences):
            if sequence.chooser is not None:
                choices.append(Choice(row, sequence.chooser, sequence.token_ids))
            elif (
                chosen[row] == self._end
                and sequence.search is None
                and len(sequence.token_ids) < sequence.parameters.min_tokens
            ):
                chosen[row] = _best_but((self._end, *self._without_text), log_probabilities[row])
                scores[row] = float(log_probabilities[row, chosen[row]])
        for choice, token_id in zip(choices, choose_all(choices, log_probabilities), strict=True):
            chosen[choice.row] = token_id
            scores[choice.row] = float(log_probabilities[choice.row, token_id])

    def _accept(self, sequence: LaneSequence, token_id: int, score: float) -> None:
        """One more token of a sequence without beam search, which may be its last."""
        sequence.log_probability += score
        if token_id == self._end:
            self._finish(sequence, FinishReason.END_OF_SEQUENCE)
            return
        sequence.token_ids.append(token_id)
        if sequence.stop is not None and sequence.stop.accept(token_id):
            self._finish(sequence, FinishReason.STOP_STRING)
        elif len(sequence.token_ids) >= sequence.parameters.max_tokens:
            self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: LaneSequence, reason: FinishReason) -> None:
        """The end of a sequence without beam search."""
        num_tokens = len(sequence.token_ids) + (reason is FinishReason.END_OF_SEQUENCE)
        hypothesis = Hypothesis(
            token_ids=tuple(sequence.token_ids),
            finish_reason=reason,
            log_probability=sequence.log_probability,
            num_output_tokens=num_tokens,
            score=sequence.log_probability / num_tokens**sequence.parameters.length_penalty,
            tokens=tuple(sequence.tokens),
        )
        self._end_sequence(sequence, (hypothesis,))

    def _advance(self, sequences: Sequence[LaneSequence], predictions: Predictions) -> None:
        """One step of all beam searches."""
        searches = [sequence.search for sequence in sequences if sequence.search is not None]
        forks, next_tokens = [], []
        for sequence, search, (copies, answers) in zip(
            sequences, searches, advance_all(searches, predictions), strict=True
        ):
            if answers is not None:
                self._end_sequence(sequence, answers)
                continue
            forks += copies
            next_tokens += search.next_tokens()
        if next_tokens:
            self.rows.slots.feed_to(*zip(*next_tokens, strict=True))
        if forks:
            self.rows.fork([fork.source for fork in forks], [fork.target for fork in forks])

    def _end_sequence(self, sequence: LaneSequence, hypotheses: tuple[Hypothesis, ...]) -> None:
        """The end of a sequence: its answers are known, or attention has to say which they are."""
        parameters = sequence.parameters
        told = hypotheses[: parameters.num_hypotheses]
        sequence.has_ended = True
        if sequence.first_token_s is None:
            sequence.num_first_tokens = sum(hypothesis.num_output_tokens for hypothesis in told)
        if parameters.coverage_penalty:
            self.alignments.add(sequence, hypotheses)
        elif parameters.align:  # the order stands: attention is looked at for those that are told alone
            self.alignments.add(sequence, told)
        else:
            sequence.complete(told)

    def align(self, source_ids: Sequence[int], outputs: Sequence[Sequence[int]]) -> list[Attention]:
        """The attention of outputs on a source, as `Rows.align` has it."""
        started = time.perf_counter()
        attentions = self.rows.align(source_ids, outputs)
        self._observe("align", started, len(outputs))
        return attentions

    def _observe(self, graph: str, started: float, num_rows: int) -> None:
        if self.observe is not None:
            self.observe(GraphRun(graph, time.perf_counter() - started, num_rows))


def _align(
    lane: "weakref.ref[Lane]", source_ids: Sequence[int], outputs: Sequence[Sequence[int]]
) -> list[Attention]:
    this = lane()
    assert this is not None, "it runs its alignments itself"
    return this.align(source_ids, outputs)


def _best_but(token_ids: Sequence[int], row: NDArray[np.float32]) -> int:
    """The most probable token of a row (V,) that is none of `token_ids`; the row stays as it is."""
    places = list(token_ids)
    log_probabilities = row[places]
    row[places] = -np.inf
    best = int(row.argmax())
    row[places] = log_probabilities
    return best
