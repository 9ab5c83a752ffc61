"""What training runs on: device, number of threads, and whether bf16 pays.

Features decide, never timings, so that a seed gives the same run each time on one machine.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from dragoman.common.cpu import usable_cores
from dragoman.common.errors import UsageError

__all__ = [
    "check_memory",
    "choose_device",
    "choose_precision",
    "keep_freed_memory",
    "release_freed_memory",
    "set_threads",
]

# Without these instructions a CPU emulates bf16 products, slower than fp32. With AVX512-BF16 they ran at four
# times the rate of fp32 (torch 2.13, AMD Zen 5).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 2**31 - 1

_TRAINING_BYTES = 16  # a parameter: fp32 itself, its gradient and two moments

_BF16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})


def choose_device(wanted: Literal["auto", "cpu", "cuda"], local_rank: int | None = None) -> torch.device:
    """The device to train on; `local_rank` says which of several, one for each process on this machine.

    Raises:
        UsageError: CUDA is asked for and there is none, or fewer devices than processes.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError("training.device = 'cuda', but this PyTorch finds no CUDA device")
    if not available or wanted == "cpu":
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    if local_rank >= torch.cuda.device_count():
        raise UsageError(f"process {local_rank} finds only {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", local_rank)


def choose_precision(
    wanted: Literal["auto", "fp32", "bf16"], device: torch.device, cpu_info: Path = Path("/proc/cpuinfo")
) -> torch.dtype:
    """The type that matrix products are computed in; weights and sums stay fp32 (autocast)."""
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        gains = not _BF16_INSTRUCTIONS.isdisjoint(_cpu_flags(cpu_info))
    return torch.bfloat16 if gains else torch.float32


def check_memory(num_parameters: int) -> None:
    """See that a model can be trained in this machine's memory, before it is made.

    Raises:
        UsageError: its weights, their gradients and the optimizer's moments alone need more.
    """
    needed, found = _TRAINING_BYTES * num_parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > found:
        raise UsageError(
            f"a model of {num_parameters:,} parameters needs {needed / 2**30:,.1f} GiB to be trained, and this "
            f"machine has {found / 2**30:,.1f}: lower model.width, the numbers of layers or tokenizer.vocabulary_size"
        )


def set_threads(wanted: int | Literal["auto"], num_processes: int = 1) -> int:
    """Give PyTorch `wanted` threads, or this process's part of the cores that may be used; returns how many."""
    num_threads = max(1, usable_cores() // num_processes) if wanted == "auto" else wanted
    torch.set_num_threads(num_threads)
    return num_threads


def keep_freed_memory() -> None:
    """Have glibc keep what is freed from now on: each step allocates and frees the same large tensors.

    Handing them back to the kernel between, and having their pages zeroed again, took a quarter of a step.
    Elsewhere than on glibc nothing happens.
    """
    release_freed_memory()
    mallopt = _libc("mallopt")
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        if mallopt:
            mallopt(option, _KEPT_BYTES)


def release_freed_memory() -> None:
    """Hand what is free back to the kernel, once: batches of many shapes leave ever more holes between them."""
    if trim := _libc("malloc_trim"):
        trim(0)


def _libc(name: str) -> Callable[..., Any] | None:
    """A function of the C library, none where it has no such thing."""
    try:
        function: Callable[..., Any] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function


def _cpu_flags(cpu_info: Path) -> list[str]:
    try:
        lines = cpu_info.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    return next((line.split() for line in lines if line.startswith("flags")), [])
