"""Loss and throughput of a training, and the guard against a loss that is not finite."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from model.batching import Batch
from model.errors import TrainingError
from model.training.distributed import World

__all__ = ["Meter", "check_finite"]


class Meter:
    """Counts what all processes learn from; each tells its own."""

    def __init__(self, world: World, num_tokens: int = 0, num_cells: int = 0) -> None:
        """`num_tokens` and `num_cells` of all processes, from earlier sittings."""
        self._world = world
        self._before = num_tokens, num_cells
        self._num_tokens, self._num_cells = 0, 0
        self._unread: list[
            tuple[Tensor, Tensor]
        ] = []  # losses and gradient norms: reading one waits for a GPU
        self._tokens_read = num_tokens
        self._read_s = time.monotonic()

    def add(self, loss: Tensor, norm: Tensor, parts: Sequence[Batch]) -> None:
        """What one step was: this process's share of the loss, the gradient's norm, its batches."""
        self._unread.append((loss, norm))
        self._num_tokens += sum(part.num_tokens for part in parts)
        self._num_cells += sum(part.num_cells for part in parts)

    def counts(self) -> tuple[int, int]:
        """Tokens without and with padding, of all processes and sittings; all must ask together."""
        sums = self._world.sum(self._num_tokens, self._num_cells)
        num_tokens, num_cells = (before + int(here) for before, here in zip(self._before, sums, strict=True))
        return num_tokens, num_cells

    def restart_clock(self) -> None:
        """What went on since the last reading was not training."""
        self._read_s = time.monotonic()

    def check(self, step: int) -> list[float]:
        """The losses since the last reading; `step` is the last that was added.

        Raises:
            TrainingError: a loss, or the gradient that was applied after it, is not finite.
        """
        if not self._unread:
            return []
        losses = self._world.sum_tensor(torch.stack([loss for loss, _ in self._unread])).tolist()
        norms = torch.stack([norm for _, norm in self._unread]).tolist()
        for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=step - len(losses) + 1):
            check_finite(loss, number)
            check_finite(norm, number, "the gradient's norm")
        return losses

    def read(self, step: int) -> dict[str, float]:
        """Mean loss and tokens/s since the last reading; `step` is the last that was added.

        Raises:
            TrainingError: as `check`.
        """
        losses = self.check(step)
        num_tokens, _ = self.counts()
        now_s = time.monotonic()
        tokens_per_second = (num_tokens - self._tokens_read) / max(now_s - self._read_s, 1e-9)
        self._unread, self._tokens_read, self._read_s = [], num_tokens, now_s
        return {"loss": sum(losses) / len(losses), "tokens_per_second": tokens_per_second}


def check_finite(value: float, step: int, what: str = "the loss") -> None:
    """Raise TrainingError, with what a person can do, if `value` is no number."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} is {value} at step {step}: lower training.max_learning_rate or lengthen "
            "training.warmup_steps; --resume --accept-changes goes on from the last state that was saved"
        )
