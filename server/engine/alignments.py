"""Answers that wait for the graph `align`, a bounded piece of it between two steps.

A search with a coverage penalty may finish hundreds of hypotheses, and each is looked at. Done at once, that would hold
up the lane's other rows, and nobody could cancel it. Sequences take turns, a piece each, so that one with few
hypotheses does not wait for one with many.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dragoman.server.decoding.hypothesis import Hypothesis
from dragoman.server.decoding.ranking import Attention, ranked
from dragoman.server.engine.sequence import LaneSequence

__all__ = ["Alignments"]

MAX_TOKENS = 2048
"""Computed between two steps, sources included, unless a single hypothesis has more: as many as a lane reads then."""
_LEAST_TOKENS = 64
"""A run costs as much as so many tokens, however few it has."""

Align = Callable[[Sequence[int], Sequence[Sequence[int]]], list[Attention]]


@dataclass(slots=True)
class _Alignment:
    """A sequence that has ended; `pieces` are the places of hypotheses that still are to be aligned together."""

    sequence: LaneSequence
    hypotheses: Sequence[Hypothesis]
    pieces: deque[list[int]]
    attentions: dict[int, Attention] = field(default_factory=dict)


class Alignments:
    """Sequences of a lane that have ended, but for their alignment."""

    def __init__(self, align: Align) -> None:
        """`align` gives the attention of outputs on a source, as `Rows.align` does."""
        self._align = align
        self._waiting: deque[_Alignment] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sequence: LaneSequence, hypotheses: Sequence[Hypothesis]) -> None:
        """Align these hypotheses, of which the sequence's answers will be chosen."""
        alike: dict[int, list[int]] = {}
        for place, hypothesis in enumerate(hypotheses):
            alike.setdefault(len(hypothesis.token_ids), []).append(place)
        pieces: deque[list[int]] = deque()
        for length, places in alike.items():
            most = max(1, MAX_TOKENS // (length + 1 + len(sequence.input_ids)))
            pieces.extend(places[start : start + most] for start in range(0, len(places), most))
        self._waiting.append(_Alignment(sequence, hypotheses, pieces))

    def run(self) -> list[tuple[LaneSequence, BaseException | None]]:
        """Go on with those that wait, in turn, until about `MAX_TOKENS` are computed.

        Returns:
            Sequences that have their `result` now, and those whose alignment failed with the reason.
        """
        ended: list[tuple[LaneSequence, BaseException | None]] = []
        num_tokens = 0
        while self._waiting and num_tokens < MAX_TOKENS:
            alignment = self._waiting.popleft()
            try:
                num_tokens += self._run_piece(alignment)
                if alignment.pieces:
                    self._waiting.append(alignment)
                else:
                    self._complete(alignment)
                    ended.append((alignment.sequence, None))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001  also a panic of native code ends this sequence alone
                ended.append((alignment.sequence, error))
        return ended

    def drop(self, sequence: LaneSequence) -> None:
        """Give up a sequence that waits."""
        self._waiting = deque(each for each in self._waiting if each.sequence is not sequence)

    def drop_expired(self, now_s: float) -> list[LaneSequence]:
        """Give up those whose deadline has passed; returns them."""
        expired = [
            each.sequence
            for each in self._waiting
            if each.sequence.deadline_s is not None and now_s >= each.sequence.deadline_s
        ]
        for sequence in expired:
            self.drop(sequence)
        return expired

    def _run_piece(self, alignment: _Alignment) -> int:
        places = alignment.pieces.popleft()
        outputs = [alignment.hypotheses[place].token_ids for place in places]
        source = alignment.sequence.input_ids
        alignment.attentions |= zip(places, self._align(source, outputs), strict=True)
        return max(_LEAST_TOKENS, len(places) * (len(outputs[0]) + 1 + len(source)))

    def _complete(self, alignment: _Alignment) -> None:
        attentions = [alignment.attentions[place] for place in range(len(alignment.hypotheses))]
        sequence = alignment.sequence
        sequence.complete(ranked(alignment.hypotheses, attentions, sequence.parameters))
