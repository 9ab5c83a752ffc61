"""Beam search over rows of a running batch, a step at a time. Pure: rows are numbers, caches are somebody else's.

The conventions are fairseq's (Ott et al. 2019) and CTranslate2's:

- a hypothesis ends where the end of sequence is among the `beam_size` best continuations of all beams;
- its score is log-probability / length ** length_penalty, the end of sequence counted;
- the search ends with round(beam_size * patience) finished hypotheses (Kasai et al. 2022) or at the limit of
  tokens. With a length penalty of 0 or less it first waits until no running beam can beat the worst of them;
  above 0 a beam may always catch up by growing, and answers would get too long.

Hypotheses that were cut off at the limit come after the finished ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman.server.decoding.candidates import Predictions
from dragoman.server.decoding.constraints import Constraints
from dragoman.server.decoding.hypothesis import FinishReason, Hypothesis, TokenScore
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.scores import Alternatives, alternatives
from dragoman.server.decoding.stopping import StopCondition

__all__ = ["BeamSearch", "Candidate", "FloatRows", "Fork"]

FloatRows = NDArray[np.float32]


class Fork(NamedTuple):
    """Copy what row `source` has decoded to row `target`, which nobody needs any more."""

    source: int
    target: int


@dataclass(slots=True)
class _Beam:
    """A running hypothesis. `total` is what beams are ranked by: log-probabilities as the constraints leave them."""

    row: int
    token_ids: tuple[int, ...] = ()
    total: float = 0.0
    log_probability: float = 0.0
    tokens: tuple[TokenScore, ...] = ()
    stop: StopCondition | None = None
    constraints: Constraints | None = None  # the parent's, until it has a row


Candidate = tuple[float, int, int]
"""One more token for a beam: what the beam's total would be with it, which of the search's beams, the token."""


@dataclass(slots=True)
class BeamSearch:
    """The search for one input.

    Attributes:
        parameters: with a beam size above 1, or not.
        end: the end of sequence's id.
        rows: as many as there may be beams. The input is ready in all of them.
        constraints: on what may come next, beside `min_tokens`, which the search sees to itself; each beam has its own
            copy.
        stop: ends a hypothesis early; each beam has its own copy.
    """

    parameters: DecodingParameters
    end: int
    rows: list[int]
    constraints: Constraints | None = None
    stop: StopCondition | None = None
    beams: list[_Beam] = field(default_factory=list, init=False)
    _finished: list[Hypothesis] = field(default_factory=list, init=False)
    _is_plain: bool = field(init=False)  # of a beam its tokens and their log-probability are all there is

    def __post_init__(self) -> None:
        self._is_plain = (
            self.constraints is None and self.stop is None and self.parameters.num_alternatives is None
        )
        self.beams = [_Beam(self.rows[0], stop=self.stop, constraints=self.constraints)]

    def move(self, source: int, target: int) -> None:
        """Note that the content of row `source` is now in row `target`."""
        self.rows[self.rows.index(source)] = target
        for beam in self.beams:
            if beam.row == source:
                beam.row = target

    def next_tokens(self) -> list[tuple[int, int]]:
        """(row, token) for each beam: what it reads next."""
        return [(beam.row, beam.token_ids[-1]) for beam in self.beams]

    @property
    def num_best(self) -> int:
        """Continuations it looks at: a beam has one way to end, so `beam_size` that do not are among twice as many.

        One more where it may not end yet.
        """
        return 2 * self.parameters.beam_size + (self.parameters.min_tokens > 0)

    @property
    def needs_all(self) -> bool:
        """Whether it looks at all log-probabilities: to change them, to force a token, to tell alternatives."""
        parameters = self.parameters
        return (
            self.constraints is not None or bool(parameters.prefix) or parameters.num_alternatives is not None
        )

    @property
    def is_forced(self) -> bool:
        """Whether the next token is one of the prefix and not chosen."""
        return len(self.beams[0].token_ids) < len(self.parameters.prefix)

    def adjust(self, rows: FloatRows) -> None:
        """Change each beam's log-probabilities (beams, V) to what the constraints make of them."""
        for row, beam in zip(rows, self.beams, strict=True):
            if beam.constraints is not None:
                beam.constraints.adjust(row, beam.token_ids)

    def advance(
        self, predictions: Predictions, best: Sequence[Candidate] | None
    ) -> tuple[list[Fork], tuple[Hypothesis, ...] | None]:
        """Take one step.

        Args:
            predictions: of all rows of the lane; each beam reads its own.
            best: the `num_best` best continuations of all beams, best first. None where the next token is forced.

        Returns:
            Copies to make before the next step, and, when the search is over, the answers, best first.
        """
        log_probabilities = predictions.log_probabilities
        candidates = self._forced(log_probabilities) if best is None else best
        alternatives_by_row = self._alternatives(predictions)
        beam_size, parents = self.parameters.beam_size, self.beams
        parent_rows = []
        self.beams = []
        num_going_on = 0
        for rank, (total, parent_index, token_id) in enumerate(candidates):
            if token_id == self.end:
                if rank < beam_size:
                    grown = self._grown(
                        parents[parent_index], token_id, total, log_probabilities, alternatives_by_row
                    )
                    self._finish(grown, FinishReason.END_OF_SEQUENCE)
            elif num_going_on < beam_size:
                num_going_on += 1
                beam = self._grown(
                    parents[parent_index], token_id, total, log_probabilities, alternatives_by_row
                )
                if beam.stop is None or not self._stops(beam):
                    self.beams.append(beam)
                    parent_rows.append(parents[parent_index].row)
        if self._is_over():
            return [], self._answers()
        return self._place(parent_rows), None

    def _forced(self, log_probabilities: FloatRows) -> list[Candidate]:
        token_id = self.parameters.prefix[len(self.beams[0].token_ids)]
        return [
            (beam.total + float(log_probabilities[beam.row, token_id]), parent_index, token_id)
            for parent_index, beam in enumerate(self.beams)
        ]

    def _alternatives(self, predictions: Predictions) -> dict[int, Alternatives]:
        """Returns the alternatives to the next token of each beam's row, if they were asked for."""
        num_alternatives = self.parameters.num_alternatives
        if num_alternatives is None:
            return {}
        return {beam.row: alternatives(predictions, beam.row, num_alternatives) for beam in self.beams}

    def _grown(
        self,
        parent: _Beam,
        token_id: int,
        total: float,
        log_probabilities: FloatRows,
        alternatives_by_row: dict[int, Alternatives],
    ) -> _Beam:
        token_ids = (*parent.token_ids, token_id)
        if self._is_plain:
            return _Beam(parent.row, token_ids, total, total)
        row = log_probabilities[parent.row]
        tokens = parent.tokens
        if self.parameters.num_alternatives is not None:
            tokens = (*tokens, TokenScore(token_id, float(row[token_id]), alternatives_by_row[parent.row]))
        return _Beam(
            row=parent.row,
            token_ids=token_ids,
            total=total,
            log_probability=(
                total if self.constraints is None else parent.log_probability + float(row[token_id])
            ),
            tokens=tokens,
            stop=parent.stop.fork() if parent.stop is not None else None,
            constraints=parent.constraints,
        )

    def _stops(self, beam: _Beam) -> bool:
        """Finish a beam that completes a stop string."""
        assert beam.stop is not None
        if not beam.stop.accept(beam.token_ids[-1]):
            return False
        self._finish(beam, FinishReason.STOP_STRING)
        return True

    def _finish(self, beam: _Beam, reason: FinishReason) -> None:
        self._finished.append(self._hypothesis(beam, reason))
        self._finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self._finished[self.parameters.num_finished :]

    def _hypothesis(self, beam: _Beam, reason: FinishReason) -> Hypothesis:
        num_tokens = len(beam.token_ids)
        return Hypothesis(
            token_ids=beam.token_ids[:-1] if reason is FinishReason.END_OF_SEQUENCE else beam.token_ids,
            finish_reason=reason,
            log_probability=beam.log_probability,
            num_output_tokens=num_tokens,
            score=beam.total / num_tokens**self.parameters.length_penalty,
            tokens=beam.tokens,
        )

    def _place(self, parent_rows: Sequence[int]) -> list[Fork]:
        """Give each beam a row: the first child of a parent stays where the parent was, others take free rows.

        Rows that are read stay as they are and only rows of nobody are written, so the copies may be made in
        any order.
        """
        free = [row for row in self.rows if row not in parent_rows]
        forks, taken = [], set[int]()
        for beam, parent_row in zip(self.beams, parent_rows, strict=True):
            if parent_row in taken:
                beam.row = free.pop()
                forks.append(Fork(parent_row, beam.row))
                if beam.constraints is not None:
                    beam.constraints = beam.constraints.fork()
            taken.add(beam.row)
        return forks

    def _is_over(self) -> bool:
        if not self.beams or len(self.beams[0].token_ids) >= self.parameters.max_tokens:
            return True
        if len(self._finished) < self.parameters.num_finished:
            return False
        length_penalty = self.parameters.length_penalty
        attainable = self.beams[0].total / (len(self.beams[0].token_ids) + 1) ** length_penalty
        return length_penalty > 0 or self._finished[-1].score >= attainable

    def _answers(self) -> tuple[Hypothesis, ...]:
        """All that a caller may get, and with a coverage penalty all that may turn out to be the best."""
        cut_off = [self._hypothesis(beam, FinishReason.LENGTH) for beam in self.beams]
        cut_off.sort(key=lambda hypothesis: -hypothesis.score)
        return (*self._finished, *cut_off)
