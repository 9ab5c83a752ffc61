"""What is compared: a workload, and the face that everything able to decode one shows to the benchmark."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

__all__ = ["Answers", "Reading", "Setting", "System", "Workload"]

Setting = Mapping[str, int | str]
"""Thread counts, batch sizes and the like, by the names that the system itself gives them."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """Inputs that are all there at the start, and how to decode them.

    Attributes:
        inputs: token ids, special tokens included.
        max_tokens: most tokens of an answer, the end token included.
        min_tokens: the end token is not permitted before so many others; as many as `max_tokens` force the length.
        beam_size: 1 is greedy.
        num_rows: inputs that each core decodes together; None where a system may choose.
    """

    name: str
    inputs: Sequence[Sequence[int]]
    max_tokens: int
    min_tokens: int = 0
    beam_size: int = 1
    num_rows: int | None = None

    @property
    def forced(self) -> bool:
        """Whether every answer has the same length, whatever the model."""
        return self.min_tokens >= self.max_tokens

    def part(self, num_inputs: int) -> "Workload":
        """The same with so many of its inputs, evenly spread, if it has more and may be cut to pieces."""
        if self.num_rows is not None or len(self.inputs) <= num_inputs:
            return self
        chosen = [self.inputs[index * len(self.inputs) // num_inputs] for index in range(num_inputs)]
        return dataclasses.replace(self, inputs=chosen)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One decoding of a whole workload."""

    seconds: float
    num_tokens: int  # of the answers, ends included

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a system decoded: token ids with their end, and log-probabilities of whole answers."""

    token_ids: list[list[int]]
    log_probabilities: list[float]


class System(Protocol):
    """Something that decodes. It computes in `run` alone, so that systems can take turns."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`."""

    def settings(self, workload: Workload) -> list[Setting]:
        """What a sweep should try; none where the system cannot do this work at all."""

    def prepare(self, setting: Setting) -> None:
        """Get ready to run with `setting`; takes as long as it takes."""

    def run(self, workload: Workload, turn_s: float) -> Reading:
        """Decode the workload again and again for at least `turn_s` seconds: the mean of one time."""

    def close(self) -> None:
        """End threads and processes."""
