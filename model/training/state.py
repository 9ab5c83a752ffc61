"""The whole state of a training that is under way, so that it can go on as if it had never stopped.

A state is one safetensors file: weights, the optimizers' moments, every random generator, and in the header, as
JSON, where the data and the loop stand. Its name ends in the hash of its content. It is written whole or not at
all, before the one before it is removed, so that there is always a good one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dragoman.common.errors import OperationError
from dragoman.common.files import atomic_write
from dragoman.common.settings import Settings
from dragoman.model.errors import RunError
from dragoman.model.training.checkpoints import CheckpointRecord
from dragoman.model.training.distributed import like, whole

__all__ = ["Progress", "State", "StateStore", "optimizer_tensors", "restore_optimizers"]

_MAX_KEPT = 2
_DIGEST_CHARACTERS = 16


class Progress(Settings):
    """Where a training stands.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the corpus that are done.
        num_batches: batches of the present pass that are done.
        evaluated_step: the step of the last evaluation.
        evaluations_since_best: how many evaluations brought no improvement.
        elapsed_s: time spent training, earlier sittings included.
        num_tokens: tokens learned from, without padding.
        num_cells: the same with padding.
        num_validation_batches: batches of the validation split that there was time for; None before the first look.
        kept: checkpoints, best first.
        corpus: a fingerprint of the encoded corpus.
    """

    schema_version: int = 1
    step: int = 0
    epoch: int = 0
    num_batches: int = 0
    evaluated_step: int = 0
    evaluations_since_best: int = 0
    elapsed_s: float = 0.0
    num_tokens: int = 0
    num_cells: int = 0
    num_validation_batches: int | None = None
    kept: tuple[CheckpointRecord, ...] = ()
    corpus: str = ""


@dataclasses.dataclass(frozen=True)
class State:
    """`progress` and all tensors: `model.*`, `optimizer.*`, `random.*`."""

    progress: Progress
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, progress: Progress, groups: Mapping[str, Mapping[str, Tensor]]) -> "State":
        """A state of tensors by the group they are in."""
        return cls(
            progress,
            {f"{group}.{name}": t for group, tensors in groups.items() for name, t in tensors.items()},
        )

    def on_corpus(self, fingerprint: str) -> "State":
        """The same, to go on with another corpus: a new pass begins, and what was validated before counts no more."""
        progress = self.progress.model_copy(
            update={
                "epoch": self.progress.epoch + 1,
                "num_batches": 0,
                "evaluated_step": 0,
                "evaluations_since_best": 0,
                "num_validation_batches": None,
                "kept": (),
                "corpus": fingerprint,
            }
        )
        return dataclasses.replace(self, progress=progress)

    def with_validation_anew(self) -> "State":
        """The same, to go on with other settings, by which validation may have more batches or more time."""
        progress = self.progress.model_copy(update={"num_validation_batches": None})
        return dataclasses.replace(self, progress=progress)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.`, without it."""
        start = f"{prefix}."
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


class StateStore:
    """The states of one run, in `folder`; the last two are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State) -> None:
        """Write a state, then remove what it makes superfluous.

        Raises:
            OperationError: the disk is full or cannot be written; the states there are stay.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        content = safetensors.torch.save(tensors, {"progress": state.progress.model_dump_json()})
        path = self._folder / f"step-{state.progress.step:09}-{_digest(content)}.safetensors"
        atomic_write(path, content)
        # By age, not by step: a run begun anew may stand at an earlier one.
        others = sorted(self._paths(), key=lambda other: (other != path, -other.stat().st_mtime_ns))
        for old in others[_MAX_KEPT:]:
            old.unlink(missing_ok=True)

    def load(self) -> tuple[State, list[Path]] | None:
        """The state that is furthest, and files passed over because they are damaged; none where there is none.

        Raises:
            RunError: there are states, but each of them is damaged.
        """
        damaged: list[Path] = []
        for path in sorted(self._paths(), reverse=True):
            state = _read(path)
            if state is not None:
                return state, damaged
            damaged.append(path)
        if damaged:
            raise RunError(f"every training state in {self._folder} is damaged: {damaged[0].name} and others")
        return None

    def _paths(self) -> list[Path]:
        return list(self._folder.glob("step-*.safetensors"))


def optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What the optimizers remember, as `<number>.<key>.<name of the weight>`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{number}.{key}.{names[id(parameter)]}": whole(torch.as_tensor(value))
        for number, optimizer in enumerate(optimizers)
        for parameter, memory in optimizer.state.items()
        for key, value in memory.items()
    }


def restore_optimizers(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizers back what `optimizer_tensors` took."""
    parameters = dict(model.named_parameters())
    for path, tensor in tensors.items():
        number, key, name = path.split(".", 2)
        parameter = parameters[name]
        # Moments lie beside their weights; a counter is wherever the optimizer keeps counters.
        optimizers[int(number)].state[parameter][key] = (
            like(tensor, parameter) if tensor.ndim else tensor.clone()
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGEST_CHARACTERS]


def _read(path: Path) -> State | None:
    """The state in `path`, or none when it is not what was written."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OperationError(f"cannot read {path}: {error.strerror}") from error
    if not path.stem.endswith(_digest(content)):
        return None
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    progress = Progress.load(json.loads(header["__metadata__"]["progress"]), source=str(path))
    return State(progress, safetensors.torch.load(content))
