"""What the generation benchmark decodes: a decoder-only model with random weights, its bundles, prompts and work."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from benchmarks.serving.subject import let_layers_speak, number_tokenizer
from benchmarks.serving.systems import Workload

from dragoman.export.exporter import write_graphs
from dragoman.model.recipe import load_recipe
from dragoman.model.run import Run
from dragoman.model.tokenizer import BEGIN_ID, SPECIAL_TOKENS
from dragoman.model.transformer import Dimensions, LanguageModel, build_model
from dragoman.server.bundle.manifest import Precision
from dragoman.server.bundle.reader import Bundle

__all__ = [
    "GenerationSubject",
    "Shape",
    "Work",
    "first_token_workloads",
    "prompts",
    "random_generator",
    "stream_workloads",
    "write_bundle",
]

_NUM_CALIBRATION: Final = 64
_CALIBRATION_TOKENS: Final = 64


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only model; the defaults are those of GPT-2 with a smaller vocabulary."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    feed_forward: int = 3072
    vocabulary: int = 32_000
    context: int = 1024


@dataclasses.dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        first_token_prompts: lengths of the prompts that are read one at a time, in tokens.
        streams: how many prompts are answered at once.
        prompt_tokens: length of each stream's prompt.
        new_tokens: length of each stream's answer.
    """

    first_token_prompts: Sequence[int]
    streams: Sequence[int]
    prompt_tokens: int
    new_tokens: int


@dataclasses.dataclass(frozen=True)
class GenerationSubject:
    """A model with random weights, and what it reads while the ranges of int8 activations are measured."""

    run: Run
    model: LanguageModel
    calibration: list[list[int]]
    seed: int

    @property
    def dims(self) -> Dimensions:
        return self.model.dims


def random_generator(shape: Shape, seed: int) -> GenerationSubject:
    """A model of `shape` with random weights.

    Raises:
        RecipeError: there is no such shape.
    """
    recipe = load_recipe(
        "shakespeare",
        (
            f"seed={seed}",
            f"model.width={shape.width}",
            f"model.num_heads={shape.heads}",
            f"model.feed_forward_width={shape.feed_forward}",
            f"model.num_decoder_layers={shape.layers}",
            f"model.max_target_tokens={shape.context}",
        ),
    )
    torch.manual_seed(seed)
    model = build_model(recipe.dimensions(shape.vocabulary)).eval()
    assert isinstance(model, LanguageModel)
    let_layers_speak(model)
    tokens = min(_CALIBRATION_TOKENS, shape.context)
    calibration = prompts(model.dims, _NUM_CALIBRATION, tokens, seed)
    run = Run(Path(recipe.name), model, number_tokenizer(shape.vocabulary), recipe, step=0, metrics={})
    return GenerationSubject(run, model, calibration, seed)


def prompts(dims: Dimensions, num_prompts: int, num_tokens: int, seed: int) -> list[list[int]]:
    """Random prompts of `num_tokens` each, of which the begin token is the first."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(SPECIAL_TOKENS), dims.vocabulary_size, (num_prompts, num_tokens - 1))
    return [[BEGIN_ID, *ids] for ids in drawn.tolist()]


def write_bundle(subject: GenerationSubject, precision: Precision, folder: Path) -> Bundle:
    """Export with the exporter's own graphs to `folder`, which is made.

    The bundle is not verified against a corpus, which random weights have not: its answers are held against PyTorch's.
    """
    folder.mkdir(parents=True)
    return Bundle(folder, write_graphs(subject.run, folder, precision, subject.calibration, lambda *_: None))


def first_token_workloads(subject: GenerationSubject, work: Work) -> Iterator[Workload]:
    """One prompt at a time, up to its first token."""
    for num_tokens in work.first_token_prompts:
        inputs = prompts(subject.dims, 1, num_tokens, subject.seed)
        yield Workload(f"prompt of {num_tokens} tokens", inputs, max_tokens=1, min_tokens=1, num_rows=1)


def stream_workloads(subject: GenerationSubject, work: Work) -> Iterator[Workload]:
    """So many prompts that are there at once, each with an answer of one forced length."""
    for num_streams in work.streams:
        yield Workload(
            f"{num_streams} streams" if num_streams > 1 else "1 stream",
            prompts(subject.dims, num_streams, work.prompt_tokens, subject.seed),
            max_tokens=work.new_tokens,
            min_tokens=work.new_tokens,
        )
