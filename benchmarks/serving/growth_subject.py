"""What the growth benchmark decodes: models of rising size, and series of work in which one thing grows."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from benchmarks.serving.subject import Subject, random_run, random_source
from benchmarks.serving.systems import Workload

from dragoman.model.transformer import TranslationModel
from dragoman.server.config import EngineSettings

__all__ = ["MAX_TOKENS", "Point", "Series", "Work", "growth_series", "growth_subject"]

MAX_TOKENS: Final = 512
_FIXED_SOURCE_TOKENS: Final = 16
_FIXED_ANSWER_TOKENS: Final = 32
_FIXED_ROWS: Final = 8  # a core
_NUM_CALIBRATION: Final = 4  # each gets `MAX_TOKENS` of an answer: random weights end none early


@dataclasses.dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        lengths: of sources, and then of answers, in tokens.
        streams: how many inputs are there at once.
        sizes: of models, rising.
        size: of the model that reads and writes all lengths and streams.
    """

    lengths: Sequence[int]
    streams: Sequence[int]
    sizes: Sequence[str]
    size: str


@dataclasses.dataclass(frozen=True)
class Point:
    """One piece of work; `value` is how large what grows is there."""

    size: str
    value: int
    workload: Workload


@dataclasses.dataclass(frozen=True)
class Series:
    """Work in which one thing grows and all else stays."""

    name: str
    unit: str
    points: Sequence[Point]


def growth_subject(size: str, seed: int) -> Subject:
    """Random weights in a model that reads and writes up to `MAX_TOKENS`; its inputs are for calibration alone."""
    limits = [f"model.max_{side}_tokens={MAX_TOKENS}" for side in ("source", "target")]
    run = random_run(size, seed, limits)
    assert isinstance(run.model, TranslationModel)
    rng = np.random.default_rng(seed)
    inputs = [random_source(rng, run.model.dims, _FIXED_SOURCE_TOKENS) for _ in range(_NUM_CALIBRATION)]
    return Subject(size, run, run.model, inputs, answer_tokens=_FIXED_ANSWER_TOKENS)


def growth_series(subjects: Mapping[str, Subject], work: Work, seed: int, num_cores: int) -> Iterator[Series]:
    """Source length, answer length, streams, model size. All answers are forced to their length."""
    num_slots = EngineSettings().slots_per_lane * num_cores

    def point(
        size: str,
        value: int,
        name: str,
        *,
        source_tokens: int = _FIXED_SOURCE_TOKENS,
        answer_tokens: int = _FIXED_ANSWER_TOKENS,
        num_inputs: int = _FIXED_ROWS * num_cores,
    ) -> Point:
        rng = np.random.default_rng(seed)
        dims = subjects[size].dims
        inputs = [random_source(rng, dims, source_tokens) for _ in range(num_inputs)]
        # Those that do not fit in at once wait: each system batches as it likes.
        num_rows = -(-num_inputs // num_cores) if num_inputs <= num_slots else None
        return Point(size, value, Workload(name, inputs, answer_tokens, answer_tokens, num_rows=num_rows))

    size = work.size
    yield Series(
        "source length",
        "tokens of the source",
        [point(size, n, f"source of {n} tokens", source_tokens=n) for n in work.lengths],
    )
    yield Series(
        "answer length",
        "tokens of the answer",
        [point(size, n, f"answer of {n} tokens", answer_tokens=n) for n in work.lengths],
    )
    yield Series(
        "streams",
        "inputs at once",
        [point(size, n, f"{n} at once", num_inputs=n) for n in work.streams],
    )
    counts = {name: _num_weights(subjects[name].model) for name in work.sizes}
    yield Series(
        "model size",
        "weights",
        [point(name, count, f"{name}, {count / 1e6:.1f} M weights") for name, count in counts.items()],
    )


def _num_weights(model: TranslationModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
