"""What is decoded: a trained run or random weights, the split's inputs, and the bundles of both precisions."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from benchmarks.serving.systems import Workload
from benchmarks.sizes import SIZES
from tokenizers import Tokenizer, models

from dragoman.export.exporter import write_graphs
from dragoman.model.corpora.public import read_multi30k
from dragoman.model.corpora.settings import Multi30kSettings
from dragoman.model.recipe import load_recipe
from dragoman.model.run import Run, load_run
from dragoman.model.tokenizer import END_ID, SPECIAL_TOKENS
from dragoman.model.transformer import Dimensions, LanguageModel, TranslationModel, build_model
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.execution.backend import Backend
from dragoman.server.models.loader import load_backend

__all__ = [
    "BEAM_SIZE",
    "FIXED_STEPS",
    "RANDOM_SIZES",
    "Subject",
    "add_subject_options",
    "export_backend",
    "fixed_workload",
    "fixed_workloads",
    "let_layers_speak",
    "number_tokenizer",
    "offline_workloads",
    "random_run",
    "random_source",
    "random_subject",
    "run_subject",
    "subjects",
]

RANDOM_SIZES: Final = ("tiny", "base")
BEAM_SIZE: Final = 5
FIXED_STEPS: Final = 32
_FIXED_SOURCE_TOKENS: Final = 16
_LAYER_GAIN: Final = 12.0
_NUM_CALIBRATION: Final = 200
_SETTINGS: Final = EngineSettings()


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and the sources of test_2016_flickr for it.

    Attributes:
        inputs: token ids of each source, end token included.
        answer_tokens: None for a trained model, which ends its answers itself; with random weights all answers get
            the split's mean length, as nothing else ends them.
    """

    name: str
    run: Run
    model: TranslationModel
    inputs: list[list[int]]
    answer_tokens: int | None
    texts: Sequence[str] = ()  # that the inputs were made of; random ones were not

    @property
    def dims(self) -> Dimensions:
        return self.model.dims


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """What `subjects` looks at."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with Multi30k")
    parser.add_argument("--run", type=Path, metavar="RUN", help="a run folder of the recipe multi30k")
    parser.add_argument(
        "--sizes", nargs="*", choices=RANDOM_SIZES, default=RANDOM_SIZES, help="random weights of these sizes"
    )
    parser.add_argument("--seed", type=int, default=1, help="of random weights and inputs")


def subjects(options: argparse.Namespace) -> Iterator[Subject]:
    """The run, if one is given, and random weights of each size.

    Raises:
        ValueError: as `run_subject`.
        OperationError: as `run_subject`.
    """
    if options.run:
        yield run_subject(options.run, options.data)
    for size in options.sizes:
        yield random_subject(size, options.data, options.seed)


def run_subject(path: Path, data: Path) -> Subject:
    """A run of Multi30k.

    Raises:
        ValueError: the run is not one of Multi30k.
        OperationError: the run or the corpus cannot be read.
    """
    run = load_run(path)
    settings = run.recipe.corpus
    if not isinstance(settings, Multi30kSettings) or not isinstance(run.model, TranslationModel):
        raise ValueError(f"{path} is a run of {run.recipe.name!r}, not one on Multi30k")  # noqa: TRY004
    corpus = read_multi30k(settings.model_copy(update={"folder": str(data)}))
    sources = [pair.source for pair in corpus.test]
    limit = run.model.dims.max_source_tokens
    fitting = [
        (text, encoding.ids)
        for text, encoding in zip(sources, run.tokenizer.encode_batch(sources), strict=True)
        if len(encoding.ids) <= limit
    ]
    inputs = [ids for _, ids in fitting]
    return Subject(run.recipe.name, run, run.model, inputs, None, [text for text, _ in fitting])


def random_subject(size: str, data: Path, seed: int) -> Subject:
    """Random weights and random sources, a token for each word of the split's own and one for the end.

    Raises:
        CorpusError: the corpus cannot be read.
    """
    run = random_run(size, seed)
    assert isinstance(run.model, TranslationModel)
    settings = Multi30kSettings(kind="multi30k", folder=str(data), source="en", target="de", tokenized=True)
    pairs = read_multi30k(settings).test
    rng = np.random.default_rng(seed)
    inputs = [random_source(rng, run.model.dims, len(pair.source.split()) + 1) for pair in pairs]
    mean = np.mean([len(pair.target.split()) + 1 for pair in pairs])
    return Subject(size, run, run.model, inputs, answer_tokens=round(mean))


def random_run(size: str, seed: int, changes: Sequence[str] = ()) -> Run:
    """A translation model of a size of `SIZES` with random weights; `changes` are settings of its recipe."""
    recipe = load_recipe("multi30k", [*SIZES[size], *changes])
    dims = recipe.dimensions(recipe.tokenizer.vocabulary_size)
    torch.manual_seed(seed)
    model = build_model(dims).eval()
    assert isinstance(model, TranslationModel)
    let_layers_speak(model)
    return Run(Path(size), model, number_tokenizer(dims.vocabulary_size), recipe, step=0, metrics={})


def random_source(rng: np.random.Generator, dims: Dimensions, num_tokens: int) -> list[int]:
    """Token ids of no meaning, `num_tokens` with the end token."""
    return [*rng.integers(len(SPECIAL_TOKENS), dims.vocabulary_size, num_tokens - 1).tolist(), END_ID]


def offline_workloads(subject: Subject, num_inputs: int, beam_sizes: Sequence[int]) -> Iterator[Workload]:
    """The split's inputs at their real lengths; a beam of 1 is greedy."""
    limit = subject.answer_tokens or subject.dims.max_target_tokens + 1
    for beam_size in beam_sizes:
        yield Workload(
            _named("offline", beam_size),
            subject.inputs[:num_inputs],
            max_tokens=limit,
            min_tokens=subject.answer_tokens or 0,
            beam_size=beam_size,
        )


def fixed_workloads(
    subject: Subject, rows: Sequence[int], num_cores: int, beam_sizes: Sequence[int]
) -> Iterator[Workload]:
    """One input alone, then so many for each core: sources of about 16 tokens, answers of exactly 32."""
    for beam_size in beam_sizes:
        sizes = [("one input", 1, 1), *((f"{n} a core", n, n * num_cores) for n in rows)]
        for name, num_rows, num_inputs in sizes:
            yield fixed_workload(subject, _named(name, beam_size), num_inputs, num_rows, beam_size)


def fixed_workload(
    subject: Subject, name: str, num_inputs: int, num_rows: int, beam_size: int = 1
) -> Workload:
    """So many inputs of about 16 tokens, answered with exactly 32; `num_rows` as `Workload` has it."""
    nearest = sorted(subject.inputs, key=lambda ids: abs(len(ids) - _FIXED_SOURCE_TOKENS))
    return Workload(
        name,
        [nearest[index % len(nearest)] for index in range(num_inputs)],
        max_tokens=FIXED_STEPS,
        min_tokens=FIXED_STEPS,
        beam_size=beam_size,
        num_rows=num_rows,
    )


def export_backend(
    subject: Subject,
    precision: Literal["fp32", "fp16", "int8"],
    folder: Path,
    settings: EngineSettings = _SETTINGS,
) -> Backend:
    """Export with the exporter's own graphs and load them as an engine of `settings` does.

    The bundle is not verified against a corpus, which random weights have not: `agreement.py` holds its answers
    against PyTorch's.
    """
    folder.mkdir(parents=True)
    manifest = write_graphs(
        subject.run, folder, precision, subject.inputs[-_NUM_CALIBRATION:], lambda *_: None
    )
    return load_backend(Bundle(folder, manifest), settings)


@torch.no_grad()
def let_layers_speak(model: TranslationModel | LanguageModel) -> None:
    """As they are initialised, a token's own embedding outweighs all layers: every answer is one token, repeated."""
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.output.weight", "contract.weight")):
            parameter.mul_(_LAYER_GAIN)


def _named(name: str, beam_size: int) -> str:
    return f"{name}, greedy" if beam_size == 1 else f"{name}, beam {beam_size}"


def number_tokenizer(vocabulary_size: int) -> Tokenizer:
    """Numbers as words, for models whose weights are random and mean nothing."""
    words = [f"{number}" for number in range(len(SPECIAL_TOKENS), vocabulary_size)]
    vocabulary = {token: token_id for token_id, token in enumerate([*SPECIAL_TOKENS, *words])}
    return Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[1]))
