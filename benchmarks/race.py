"""What a race to a validation loss needs: processes that are timed, and one estimator of the loss for all."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CONTEXT", "Result", "cut_windows", "mean_loss", "run_timed"]

CONTEXT: Final = 64  # characters
_CHUNK_WINDOWS: Final = 256


@dataclasses.dataclass(frozen=True)
class Result:
    """A training that has ended."""

    name: str
    num_parameters: int
    num_steps: int
    process_s: float  # from the start of the process to the end of the loop
    loop_s: float
    loss: float  # nats a character


def run_timed(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> list[tuple[float, str]]:
    """Run to the end: each line of output, with the seconds since the start at which it came."""
    start_s = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [(time.perf_counter() - start_s, line.rstrip()) for line in process.stdout]
    if process.returncode:
        tail = "\n".join(line for _, line in lines[-20:])
        sys.exit(f"{' '.join(command)} ended with exit code {process.returncode}:\n{tail}")
    return lines


def cut_windows(ids: Sequence[int], length: int = CONTEXT) -> Tensor:
    """Token ids -> (N, length + 1): a character, and the `length` after it that are to be predicted."""
    return torch.tensor(ids).unfold(0, length + 1, length)


@torch.inference_mode()
def mean_loss(logits_of: Callable[[Tensor], Tensor], windows: Tensor) -> float:
    """Cross-entropy in nats a character; `logits_of` maps windows to logits (n, CONTEXT, vocabulary)."""
    total = 0.0
    for chunk in torch.split(windows, _CHUNK_WINDOWS):
        labels = chunk[:, 1:].flatten()
        total += float(functional.cross_entropy(logits_of(chunk).flatten(0, 1), labels, reduction="sum"))
    return total / windows[:, 1:].numel()
