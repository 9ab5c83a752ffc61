"""The engine's protocol: plain data in, plain data out. No object is shared across this line.

A front sends commands to a lane. A lane answers with one report a step for all sequences of the front. The same data
goes between threads and between processes. Times are seconds on `time.monotonic()`, which all processes of a machine
share.
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec

from dragoman.server.decoding.hypothesis import Hypothesis
from dragoman.server.decoding.parameters import DecodingParameters

__all__ = [
    "Cancel",
    "Command",
    "Event",
    "Failed",
    "FailureReason",
    "Finished",
    "GraphRun",
    "LaneLoad",
    "PrefixUse",
    "Report",
    "Request",
    "Started",
    "Submit",
    "Tokens",
]


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One sequence to decode.

    Attributes:
        id: unique among those of one front.
        call_id: the same for all sequences of a call: calls take turns.
        input_ids: what the bundle's tokenizer makes of the text, special tokens included.
        parameters: how to decode it.
        deadline_s: the sequence is dropped when this moment passes; None: never.
        is_streamed: whether its tokens are told as they come.
    """

    id: int
    call_id: int
    input_ids: tuple[int, ...]
    parameters: DecodingParameters
    deadline_s: float | None = None
    is_streamed: bool = False


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Decode these."""

    requests: list[Request]


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Free the rows of those of these sequences that are not over, before the next step."""

    ids: list[int]


Command: TypeAlias = Submit | Cancel


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


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A sequence has come to its end: its answers, best first, as many as were asked for."""

    id: int
    hypotheses: tuple[Hypothesis, ...]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A sequence ends without an answer."""

    id: int
    reason: FailureReason
    message: str = ""


Event: TypeAlias = Started | Tokens | Finished | Failed


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
    """How full a lane is, with the sequences of all fronts: rows in use, and rows that are waited for."""

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
        prefix: None for models without a prefix cache; told once, as graph runs are.
    """

    events: list[Event]
    graph_runs: list[GraphRun]
    load: LaneLoad
    prefix: PrefixUse | None = None
