"""The engine's protocol: plain data in, plain data out. No object is shared across this line.

A front sends commands to a lane. A lane answers with one report a step for all sequences of the front. The same data
goes between threads and between processes. Times are seconds on `time.monotonic()`, which all processes of a machine
share.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeAlias

import msgspec

from dragoman.server.decoding.hypothesis import Hypothesis
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.priority import Priority

__all__ = [
    "Cancel",
    "Command",
    "EngineFacts",
    "Event",
    "Failed",
    "FailureReason",
    "Finished",
    "GraphRun",
    "LaneLoad",
    "Leave",
    "ModelCommand",
    "ModelReport",
    "PrefixUse",
    "Report",
    "Request",
    "Started",
    "Submit",
    "TimedRun",
    "Timeline",
    "Tokens",
]


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One sequence to decode.

    Attributes:
        id: unique among those of one front.
        call_id: the same for all sequences of a call: calls take turns, and so do clients and priorities.
        input_ids: what the bundle's tokenizer makes of the text, special tokens included.
        parameters: how to decode it.
        deadline_s: the sequence is dropped when this moment passes; None: never.
        is_streamed: whether its tokens are reported as they come.
        is_small: whether its call has few rows, so that it may use those that a lane reserves for such calls.
        client: whose call it is, the same in all fronts.
        priority: of its call.
        step_interval: a `Timeline` with each so many-th of its steps is reported at its end; 0: none is.
    """

    id: int
    call_id: int
    input_ids: Sequence[int]
    parameters: DecodingParameters
    deadline_s: float | None = None
    is_streamed: bool = False
    is_small: bool = False
    client: str = ""
    priority: Priority = Priority.NORMAL
    step_interval: int = 0


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Decode these."""

    requests: list[Request]


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Free the rows of those of these sequences that are not over, before the next step."""

    ids: list[int]


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The front has gone: free the rows of all its sequences. It is told nothing more."""


Command: TypeAlias = Submit | Cancel | Leave


class FailureReason(StrEnum):
    """Why a sequence has no answer."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"  # a step failed
    LOST = "lost"  # its lane died, or the engine was closed


class Started(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A sequence got its rows and took its first step.

    Attributes:
        started_s: when it got its rows.
        first_token_s: when its first token was chosen.
        num_first_tokens: tokens that came together then, the end of sequence included.
    """

    id: int
    started_s: float
    first_token_s: float
    num_first_tokens: int


class Tokens(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """New tokens of a streamed sequence, in their order."""

    id: int
    token_ids: list[int]


class TimedRun(msgspec.Struct, frozen=True, array_like=True):
    """One run of a graph that a sequence took part in.

    Attributes:
        graph: as `GraphRun` has it.
        started_s: when the run began.
        ended_s: when it was over.
        num_rows: it computed, of all sequences.
        step: of the sequence, counted from 0; an encoding comes before step 0 and has 0 too.
    """

    graph: str
    started_s: float
    ended_s: float
    num_rows: int
    step: int = 0


class Timeline(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """When a lane computed what for a sequence; told just before its end.

    Attributes:
        encoding: of its input; None: the sequence ended before, or all of its prompt was in the prefix cache.
        steps: each so many-th one, as its request asks, but not more than a bounded number.
        num_steps: it took.
        ended_s: when its last step was over; None: it took none.
    """

    id: int
    encoding: TimedRun | None
    steps: list[TimedRun]
    num_steps: int
    ended_s: float | None


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A sequence has come to its end: its answers, best first, as many as were asked for."""

    id: int
    hypotheses: tuple[Hypothesis, ...]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A sequence ends without an answer."""

    id: int
    reason: FailureReason
    message: str = ""


Event: TypeAlias = Started | Tokens | Timeline | Finished | Failed


class GraphRun(msgspec.Struct, frozen=True, array_like=True):
    """One run of a graph over the rows of a lane.

    Attributes:
        graph: "encode", "prefill", "decode", "decode_steps" or "align".
        seconds: it took.
        num_rows: it computed.
    """

    graph: str
    seconds: float
    num_rows: int


class LaneLoad(msgspec.Struct, frozen=True, array_like=True):
    """How full a model's rows on a lane are, with all fronts' sequences: rows in use, and rows that are waited for."""

    num_rows: int
    num_waiting_rows: int


class PrefixUse(msgspec.Struct, frozen=True, array_like=True):
    """Prompt tokens since the lane's last report, by where their keys and values came from; bytes held now."""

    num_reused_tokens: int
    num_computed_tokens: int
    num_bytes: int


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What happened on a lane since its last report to this front.

    Attributes:
        events: of this front's sequences, in their order.
        graph_runs: of steps whose runs no other report has: each run is in one report to one front.
        load: at the end of the step.
        prefix: None for models without a prefix cache; in one report only, as graph runs are.
        num_failed_steps: steps that raised an error since the last report to any front.
    """

    events: list[Event]
    graph_runs: list[GraphRun]
    load: LaneLoad
    prefix: PrefixUse | None = None
    num_failed_steps: int = 0


class ModelCommand(msgspec.Struct, frozen=True, array_like=True):
    """A command on its way to a lane, for the model with this key (`name/version`)."""

    model: str
    command: Command


class ModelReport(msgspec.Struct, frozen=True, array_like=True):
    """A report on its way from a lane, of the model with this key."""

    model: str
    report: Report


class EngineFacts(msgspec.Struct, frozen=True):
    """What a front is told of a model's lanes.

    Attributes:
        provider: ONNX Runtime's execution provider.
        kernels: those of our operators that the lanes run with.
        num_lanes: there are.
        threads_per_lane: that compute.
        slots_per_lane: rows that one sequence may have at most.
        reserved_rows: that a lane has beside its slots, for calls with few.
        max_step_cost: of the sequences that run together on a lane.
        vocabulary_size: of the model, which decides on what a sequence costs.
        max_prefix_blocks: that a prefix cache has room for; 0: nothing is kept.
        shares_prefix_cache: whether all lanes have one prefix cache.
        load_s: reading, checking and trying the bundle took.
        slowest_run_s: the slowest run of a graph took when they were tried at their limits.
    """

    provider: str
    kernels: str
    num_lanes: int
    threads_per_lane: int
    slots_per_lane: int
    reserved_rows: int
    max_step_cost: int
    vocabulary_size: int
    max_prefix_blocks: int = 0
    shares_prefix_cache: bool = True
    load_s: float = 0.0
    slowest_run_s: float = 0.0

    @property
    def num_threads(self) -> int:
        """Threads that compute, of all lanes."""
        return self.num_lanes * self.threads_per_lane

    @property
    def num_slots(self) -> int:
        """Rows of all lanes, the reserved ones included."""
        return self.num_lanes * (self.slots_per_lane + self.reserved_rows)
