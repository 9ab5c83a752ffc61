"""Inputs through one lane, in the calling thread: for verification, checks, measurements and files of inputs."""

from collections.abc import Iterable, Sequence

from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine import scheduler
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.execution.backend import Backend

__all__ = ["OfflineLane", "decode_offline", "decode_sequences"]


class OfflineLane:
    """A lane and its scheduler without a worker: the caller submits sequences and takes step after step."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._scheduler = scheduler.Scheduler(
            lane.rows.slots.num_slots,
            encode_together=scheduler.ENCODE_TOGETHER if lane.rows.encodes_ahead else 1,
        )

    @property
    def num_waiting_rows(self) -> int:
        """Rows that the sequences without a row need."""
        return self._scheduler.num_waiting_rows

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self._scheduler.has_work or bool(self._lane.alignments)

    def submit(self, *sequences: LaneSequence) -> None:
        """Queue sequences. They start in this order."""
        self._scheduler.submit(*sequences)

    def step(self) -> list[LaneSequence]:
        """Take a step; returns the sequences whose result came with it."""
        complete = []
        for sequence in self._lane.execute(self._scheduler.plan(now_s=0.0)):
            if sequence.has_ended:
                self._scheduler.finish(sequence)
                if sequence.result is not None:
                    complete.append(sequence)
        for sequence, error in self._lane.alignments.run():
            if error is not None:
                raise error
            complete.append(sequence)
        return complete


def decode_offline(
    backend: Backend, inputs: Iterable[tuple[Sequence[int], DecodingParameters]], *, num_slots: int
) -> list[Decoded]:
    """Decode all inputs through one lane of `num_slots` rows, refilled as rows end; results in input order."""
    call = scheduler.Call()
    sequences = [LaneSequence.create(input_ids, parameters, call=call) for input_ids, parameters in inputs]
    return decode_sequences(Lane(backend, num_slots), sequences)


def decode_sequences(lane: Lane, sequences: Sequence[LaneSequence]) -> list[Decoded]:
    """Decode all of them through a lane of their own; results in their order."""
    offline = OfflineLane(lane)
    offline.submit(*sequences)
    while offline.has_work:
        offline.step()
    return [_result(sequence) for sequence in sequences]


def _result(sequence: LaneSequence) -> Decoded:
    assert sequence.result is not None, "every sequence runs to its end"
    return sequence.result
