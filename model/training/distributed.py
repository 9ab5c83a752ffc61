"""The processes that train together: one on its own, or as many as `torchrun` started.

Each takes its part of every batch's rows; gradients are summed over all, so that the weights follow the same path
as in one process with the same batches.
"""

import contextlib
import dataclasses
import datetime as dt
import gc
import os
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dragoman.model.batching import Rows
from dragoman.model.training.hardware import choose_device

__all__ = ["World", "gathered", "joined_world", "like", "whole"]

_TIMEOUT = dt.timedelta(minutes=30)  # the main process prepares a corpus while the others wait

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    num_local: int = 1  # processes on this machine
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, rows: Rows) -> Rows:
        """This process's part of a batch's rows; may be empty."""
        return rows[self.rank :: self.size]

    def sum(self, *values: float) -> list[float]:
        """Each value, summed over all processes; also a point that all reach together."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_tensor(self, value: Tensor) -> Tensor:
        """A tensor summed over all processes."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def from_main(self, value: Any) -> Any:
        """What the main process hands in, in every process."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def gather(self, value: Tensor) -> list[Tensor]:
        """Every process's tensor (on the CPU), in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def join_in(self, module: AnyModule, layers: list[nn.Module], how: Literal["ddp", "fsdp"]) -> nn.Module:
        """`module` so wrapped that its backward pass averages gradients over all processes.

        `ddp` keeps whole weights in each process (Li et al. 2020), `fsdp` a share of them (Zhao et al. 2023);
        `layers` are what is then gathered and let go at a time.
        """
        if self.size == 1:
            return module
        if how == "ddp":
            ids = [self.device] if self.device.type == "cuda" else None
            return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415  most of a second, for those who ask for it

        for layer in layers:
            fully_shard(layer)
        fully_shard(module)  # in place
        return module


def gathered(tensor: Tensor) -> Tensor:
    """A tensor that may be in parts, whole; with one that is, all processes must call this together."""
    # Asked by its method: importing DTensor, and sympy with it, takes half a second of every start.
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def whole(tensor: Tensor) -> Tensor:
    """As `gathered`, on the CPU and without a gradient."""
    return gathered(tensor).detach().cpu()


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, laid out over the processes and on the device as `parameter` is."""
    if not hasattr(parameter, "full_tensor"):
        return tensor.clone().to(parameter.device)
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415  as above

    assert isinstance(parameter, DTensor)
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


@contextlib.contextmanager
def joined_world(wanted: Literal["auto", "cpu", "cuda"]) -> Iterator[World]:
    """This process's place, for as long as the block lasts.

    Raises:
        UsageError: CUDA is asked for and there is none, or fewer devices than processes.
    """
    if not distributed.is_torchelastic_launched():
        yield World(device=choose_device(wanted))
        return
    local_rank, num_local = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    device = choose_device(wanted, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield World(distributed.get_rank(), distributed.get_world_size(), num_local, device)
        distributed.barrier()  # nobody takes a connection down that another still uses
    finally:
        # Wrapped modules hold the group, in cycles: one that outlives it aborts the process when that ends.
        gc.collect()
        distributed.destroy_process_group()
