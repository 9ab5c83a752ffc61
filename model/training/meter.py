"""Loss and throughput of a training, and the guard against a loss that is not finite."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from dragoman.model.batching import Batch
from dragoman.model.errors import TrainingError
from dragoman.model.training.distributed import World

__all__ = ["Meter", "check_finite"]


class Meter:
    """Counts what all processes learn from; each tells its own."""

    def __init__(self, world: World, num_tokens: int = 0, num_cells: int = 0) -> None:
        """`num_tokens` and `num_cells` of all processes, from earlier sittings."""
        self._world = world
        self._before = num_tokens, num_cells
        self._num_tokens, self._num_cells = 0, 0
        # Losses and gradient norms of steps not yet read: reading one waits for a GPU.
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._rate = 0.0
        self._tokens_read = num_tokens
        self._read_s = time.monotonic()

    def add(self, loss: Tensor, norm: Tensor, rate: float, parts: Sequence[Batch]) -> None:
        """What one step was: this process's share of the loss, gradient norm, learning rate, its batches."""
        self._unread.append((loss, norm))
        self._rate = rate
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

    def check(self, step: int) -> None:
        """See that all since the last reading is finite; `step` is the last that was added.

        Raises:
            TrainingError: a loss, or the gradient that was applied after it, is not finite.
        """
        self._values(step)

    def read(self, step: int) -> dict[str, float]:
        """Figures since the last reading, none if there was no step; `step` is the last that was added.

        `loss` is the mean, `tokens_per_second` of all processes; `learning_rate` and `gradient_norm` are those
        of the last step.

        Raises:
            TrainingError: as `check`.
        """
        values = self._values(step)
        num_tokens, _ = self.counts()
        now_s = time.monotonic()
        tokens_per_second = (num_tokens - self._tokens_read) / max(now_s - self._read_s, 1e-9)
        self._unread, self._tokens_read, self._read_s = [], num_tokens, now_s
        if not values:
            return {}
        return {
            "loss": sum(loss for loss, _ in values) / len(values),
            "tokens_per_second": tokens_per_second,
            "learning_rate": self._rate,
            "gradient_norm": values[-1][1],
        }

    def _values(self, step: int) -> list[tuple[float, float]]:
        """Loss, over all processes, and gradient norm of each step since the last reading."""
        if not self._unread:
            return []
        losses, norms = (torch.stack(column) for column in zip(*self._unread, strict=True))
        values = list(zip(self._world.sum_tensor(losses).tolist(), norms.tolist(), strict=True))
        for number, (loss, norm) in enumerate(values, start=step - len(values) + 1):
            check_finite(loss, number)
            check_finite(norm, number, "the gradient's norm")
        return values


def check_finite(value: float, step: int, what: str = "the loss") -> None:
    """Raise TrainingError, with what a person can do, if `value` is no number."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} is {value} at step {step}: lower training.max_learning_rate or lengthen "
            "training.warmup_steps; --resume --accept-changes goes on from the last state that was saved"
        )
