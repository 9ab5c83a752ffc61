"""Checkpoints: weights as safetensors and what was measured as JSON, the best so many kept and averaged."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dragoman.common.files import atomic_write
from dragoman.common.settings import Settings
from dragoman.model.run import read_weights, write_weights
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["Checkpoint", "CheckpointKeeper", "CheckpointRecord", "average_weights", "load_best_weights"]


class CheckpointRecord(Settings):
    """A checkpoint as a training state names it."""

    step: int
    validation_loss: float


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights on the disk, with the step they were reached at."""

    path: Path  # .safetensors, with a .json beside it
    step: int
    validation_loss: float


class CheckpointKeeper:
    """Writes checkpoints and keeps the `max_kept` of lowest validation loss."""

    def __init__(self, folder: Path, max_kept: int, kept: Sequence[CheckpointRecord] = ()) -> None:
        """`kept` are those of earlier sittings, best first."""
        self._folder, self._max_kept = folder, max_kept
        self.kept = [Checkpoint(self._path(old.step), old.step, old.validation_loss) for old in kept]
        self._kept_before = {checkpoint.path.stem for checkpoint in self.kept}

    def add(self, step: int, weights: Mapping[str, Tensor], validation_loss: float) -> bool:
        """Write a checkpoint unless all that are kept are better; returns whether it is the best so far.

        Raises:
            OperationError: the folder cannot be written.
        """
        checkpoint = Checkpoint(self._path(step), step, validation_loss)
        # A stable sort: what equals an earlier one is no better.
        ranked = sorted([*self.kept, checkpoint], key=lambda kept: kept.validation_loss)
        self.kept = ranked[: self._max_kept]
        if checkpoint in self.kept:
            write_weights(checkpoint.path, weights)
            record = {"step": step, "validation_loss": validation_loss}
            atomic_write(checkpoint.path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
        return self.kept[0] is checkpoint

    def tidy(self, *, spare_previous: bool = False) -> None:
        """Remove what is no longer kept. Not part of `add`: a saved training state may still name it.

        With `spare_previous`, what was kept at the call before this one stays too.
        """
        wanted = {checkpoint.path.stem for checkpoint in self.kept}
        spared = self._kept_before if spare_previous else set()
        for path in self._folder.glob("step-*"):
            if path.stem not in wanted | spared:
                path.unlink(missing_ok=True)
        self._kept_before = wanted

    def record(self) -> tuple[CheckpointRecord, ...]:
        """What is kept, best first, to be given to the keeper of a later sitting."""
        return tuple(CheckpointRecord(step=c.step, validation_loss=c.validation_loss) for c in self.kept)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:07}.safetensors"


def average_weights(checkpoints: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """The mean of each weight over `checkpoints` (Vaswani et al. 2017, section 6.1), summed in fp64.

    Raises:
        RunError: a file is missing or damaged.
    """
    first, *others = [read_weights(checkpoint.path) for checkpoint in checkpoints]
    total = {name: tensor.double() for name, tensor in first.items()}
    for weights in others:
        for name, tensor in weights.items():
            total[name] += tensor
    return {name: (tensor / len(checkpoints)).to(first[name].dtype) for name, tensor in total.items()}


def load_best_weights(
    model: TranslationModel | LanguageModel, kept: Sequence[Checkpoint], validation_loss: Callable[[], float]
) -> float:
    """Load the mean of the checkpoints kept, or the best one, the first, if that validates better.

    Args:
        model: which takes the weights.
        kept: the checkpoints, best first.
        validation_loss: measures `model` as the checkpoints were measured.

    Returns:
        The validation loss of what was loaded, nats a token.

    Raises:
        RunError: a file is missing or damaged.
    """
    best, *others = kept
    if others:
        model.load_state_dict(average_weights(kept))
        loss = validation_loss()
        if loss <= best.validation_loss:
            return loss
    model.load_state_dict(read_weights(best.path))
    return best.validation_loss
