"""A fixed list of inputs through one lane, in the calling thread: for verification, checks and measurements."""

from collections.abc import Iterable, Sequence

from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine import scheduler
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.execution.backend import Backend

__all__ = ["decode_offline", "decode_sequences"]


def decode_offline(
    backend: Backend, inputs: Iterable[tuple[Sequence[int], DecodingParameters]], *, num_slots: int
) -> list[Decoded]:
    """Decode all inputs through one lane of `num_slots` rows, refilled as rows end; results in input order."""
    call = scheduler.Call()
    sequences = [LaneSequence.create(input_ids, parameters, call=call) for input_ids, parameters in inputs]
    return decode_sequences(Lane(backend, num_slots), sequences)


def decode_sequences(lane: Lane, sequences: Sequence[LaneSequence]) -> list[Decoded]:
    """Decode all of them through a lane of their own; results in their order."""
    plans = scheduler.Scheduler(
        lane.rows.slots.num_slots,
        encode_together=scheduler.ENCODE_TOGETHER if lane.rows.encodes_ahead else 1,
    )
    plans.submit(*sequences)
    while plans.has_work or lane.alignments:
        for sequence in lane.execute(plans.plan(now_s=0.0)):
            if sequence.has_ended:
                plans.finish(sequence)
        for _, error in lane.alignments.run():
            if error is not None:
                raise error
    return [_result(sequence) for sequence in sequences]


def _result(sequence: LaneSequence) -> Decoded:
    assert sequence.result is not None, "every sequence runs to its end"
    return sequence.result
