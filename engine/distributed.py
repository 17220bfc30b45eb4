"""Several processes that train one network, started by torchrun (or `--gpus N`, which starts it)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from config import ConfigProblem

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

TIMEOUT = timedelta(minutes=30)
"""Rank 0 may write, and others validate larger images, for this long while the rest waits."""


@dataclass(frozen=True)
class World:
    """The processes of a run. Alone (no torchrun), every method answers at once."""

    rank: int = 0
    ranks: int = 1
    device: str = "cpu"
    """Of this process, cpu or cuda: torch's current GPU is the rank's own."""

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def highest(self, *values: int) -> tuple[int, ...]:
        """The highest of all ranks' values, one by one: all ranks decide alike."""
        if self.ranks == 1:
            return values
        table = torch.tensor(values, device=self.device)
        dist.all_reduce(table, dist.ReduceOp.MAX)
        return tuple(int(value) for value in table.tolist())

    def mean(self, value: float) -> float:
        """Mean of the ranks' values."""
        if self.ranks == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total.item()) / self.ranks

    def gather(self, value: T) -> list[T]:
        """The ranks' values, in the order of the ranks, on all of them. They travel pickled: small ones only."""
        if self.ranks == 1:
            return [value]
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, value)
        return found

    def stack(self, rows: Tensor) -> Tensor:
        """(N, ...) of each rank -> (ranks * N, ...), in the order of the ranks; differentiable in this rank's rows."""
        if self.ranks == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.ranks)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.ranks > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave; the process group can't be used afterwards."""
        if self.ranks > 1:
            dist.destroy_process_group()


ALONE = World()
"""A run of one process."""


def join(device: str) -> World:
    """The world that torchrun's environment variables describe; this process alone where there are none.

    Args:
        device: cpu or cuda.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return World(device=device)
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local)
        dist.init_process_group("nccl", timeout=TIMEOUT)
        return World(rank, ranks, "cuda")
    dist.init_process_group("gloo", timeout=TIMEOUT)
    return World(rank, ranks, "cpu")


def synchronise_norms(network: M, device: str) -> M:
    """Let batch normalisation see the batches of all ranks.

    Raises:
        ConfigProblem: there is such a layer, and torch synchronises them on GPUs only.
    """
    if device == "cuda":
        together: M = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return together
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise ConfigProblem(
            "Batch normalisation is synchronised on GPUs only, so ranks on CPUs would train other networks than one "
            "process: give --norm group (or instance), or --gpus 1."
        )
    return network
