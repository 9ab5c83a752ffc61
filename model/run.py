"""The run folder: what training leaves, and all that export and evaluation need.

    recipe.json         the recipe, resolved: defaults, overrides and --data included
    tokenizer.json      text to ids, as the `tokenizers` library writes it
    model.safetensors   the final weights
    run.json            dimensions, step, metrics, provenance, and the SHA-256 of the weights
    metrics.jsonl       what was measured while training, a line a time
    samples.jsonl       what the model made of a few held-out inputs, a line a validation
    tensorboard/        the same, to look at
    report.html         all of it for a person, in one file
    corpus.json         the corpus's files as they were when training began
    init.json           the run whose weights training started from, if any
    checkpoints/        step-*.safetensors, each with a step-*.json
    corpus/             the training data as token ids, until training ends
    state/              step-*.safetensors: all that a training under way needs to go on

`run.json` is written last, so a folder that has one is whole.
"""

import dataclasses
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch import Tensor

from dragoman.common.errors import SettingsError
from dragoman.common.files import atomic_write, sha256_of
from dragoman.common.settings import Settings
from dragoman.model.errors import RunError
from dragoman.model.recipe import Recipe
from dragoman.model.tokenizer import load_tokenizer
from dragoman.model.transformer import Dimensions, LanguageModel, TranslationModel, build_model

__all__ = ["Run", "RunRecord", "load_run", "read_settings", "read_weights", "save_run", "write_weights"]

RECIPE_FILE = "recipe.json"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
RECORD_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
REPORT_FILE = "report.html"
CORPUS_RECORD_FILE = "corpus.json"
START_RECORD_FILE = "init.json"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINT_FOLDER = "checkpoints"
CORPUS_FOLDER = "corpus"
STATE_FOLDER = "state"
RUN_FILES = (
    RECORD_FILE,
    WEIGHTS_FILE,
    TOKENIZER_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    TENSORBOARD_FOLDER,
    CHECKPOINT_FOLDER,
    CORPUS_FOLDER,
    STATE_FOLDER,
    REPORT_FILE,
    CORPUS_RECORD_FILE,
    START_RECORD_FILE,
)
"""All but the recipe, which tells that a folder is a run's."""

SettingsType = TypeVar("SettingsType", bound=Settings)


class RunRecord(Settings):
    """What run.json holds."""

    schema_version: int = 1
    dimensions: Dimensions
    step: int  # optimizer steps taken
    metrics: dict[str, float]
    commit: str | None  # of the source that trained it; none outside a git checkout
    torch_version: str
    weights_sha256: str


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run."""

    path: Path
    model: TranslationModel | LanguageModel  # in evaluation mode, fp32, on the CPU
    tokenizer: Tokenizer
    recipe: Recipe
    step: int
    metrics: dict[str, float]
    commit: str | None = None
    torch_version: str = torch.__version__


def save_run(run: Run) -> None:
    """Write the files that `load_run` reads, each whole or not at all, run.json last.

    Raises:
        OperationError: the folder cannot be written.
    """
    (run.path / RECORD_FILE).unlink(missing_ok=True)  # until all is replaced, the folder is no run
    atomic_write(run.path / RECIPE_FILE, run.recipe.model_dump_json(indent=2) + "\n")
    atomic_write(run.path / TOKENIZER_FILE, run.tokenizer.to_str(pretty=True))
    write_weights(run.path / WEIGHTS_FILE, run.model.state_dict())
    record = RunRecord(
        dimensions=run.model.dims,
        step=run.step,
        metrics=run.metrics,
        commit=_commit(),
        torch_version=torch.__version__,
        weights_sha256=sha256_of(run.path / WEIGHTS_FILE),
    )
    atomic_write(run.path / RECORD_FILE, record.model_dump_json(indent=2) + "\n")


def load_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: the folder or one of its files is missing, damaged, or does not fit the others.
    """
    for name in (RECORD_FILE, RECIPE_FILE, TOKENIZER_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise RunError(f"{path} is not a finished training run: {_what_is_missing(path, name)}")
    record = read_settings(path / RECORD_FILE, RunRecord)
    recipe = read_settings(path / RECIPE_FILE, Recipe)
    if sha256_of(path / WEIGHTS_FILE) != record.weights_sha256:
        raise RunError(f"{path / WEIGHTS_FILE} is not the file that {RECORD_FILE} records: SHA-256 differs")
    tokenizer = load_tokenizer(path / TOKENIZER_FILE)
    model = build_model(record.dimensions)
    try:
        model.load_state_dict(read_weights(path / WEIGHTS_FILE))
    except RuntimeError as error:
        raise RunError(f"{path / WEIGHTS_FILE} does not fit the dimensions in {RECORD_FILE}") from error
    return Run(
        path=path,
        model=model.eval(),
        tokenizer=tokenizer,
        recipe=recipe,
        step=record.step,
        metrics=record.metrics,
        commit=record.commit,
        torch_version=record.torch_version,
    )


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all.

    Raises:
        OperationError: the place cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    atomic_write(path, safetensors.torch.save(tensors))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _what_is_missing(path: Path, name: str) -> str:
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file"
    return f"it holds no {name}"


def read_settings(path: Path, kind: type[SettingsType]) -> SettingsType:
    """Read a JSON file of a run as the settings it holds.

    Raises:
        RunError: it is missing, damaged, or holds something else.
    """
    try:
        return kind.load(json.loads(path.read_text(encoding="utf-8")), source=str(path))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    except SettingsError as error:
        raise RunError(str(error)) from error


def _commit() -> str | None:
    """Commit of the checkout this module lies in, `-dirty` when files differ from it; none when installed."""
    root = Path(__file__).resolve().parents[1]
    try:
        top, commit = _git(root, "rev-parse", "--show-toplevel"), _git(root, "describe", *_DESCRIBE)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit if Path(top) == root else None  # elsewhere, the checkout is someone else's project


_DESCRIBE = ("--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(  # noqa: S603 - fixed arguments, no shell
        ["git", *arguments],  # noqa: S607 - whichever git the user has
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return answer.stdout.strip()
