"""A fixed list of inputs through one lane, in the calling thread: for verification, checks and measurements."""

from collections.abc import Iterable, Sequence

from dragoman.server.config import READ_TOGETHER
from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine import scheduler
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.sequence import RunningSequence
from dragoman.server.execution.backend import Backend

__all__ = ["decode_offline", "decode_sequences"]


def decode_offline(
    backend: Backend, inputs: Iterable[tuple[Sequence[int], DecodingParameters]], *, num_slots: int
) -> list[Decoded]:
    """Decode all inputs through one lane of `num_slots` rows, refilled as rows end; results in input order."""
    call = scheduler.Call()
    sequences = [RunningSequence.create(input_ids, parameters, call=call) for input_ids, parameters in inputs]
    return decode_sequences(Lane(backend, num_slots), sequences)


def decode_sequences(lane: Lane, sequences: Sequence[RunningSequence]) -> list[Decoded]:
    """Decode all of them through a lane of their own; results in their order."""
    num_rows = sum(sequence.num_rows for sequence in sequences)
    plans = scheduler.Scheduler(
        1,
        lane.rows.arena.num_rows,
        max_waiting=num_rows,
        max_start_tokens=4096,
        read_together=READ_TOGETHER if lane.rows.reads_ahead else 1,
    )
    plans.submit(*sequences)
    while plans.has_work(0) or lane.alignments:
        plan = plans.plan(0, now_s=0.0)
        for sequence in lane.execute(plan):
            if sequence.has_ended:
                plans.finish(sequence)
        lane.hand_over(plan, plans)
        for _, error in lane.alignments.run():
            if error is not None:
                raise error
    return [_result(sequence) for sequence in sequences]


def _result(sequence: RunningSequence) -> Decoded:
    assert sequence.result is not None, "every sequence runs to its end"
    return sequence.result
