"""The processes that torchrun started to train one network."""

from __future__ import annotations

import os
from typing import Any

import torch

from krabby_trainer.errors import ConfigError

__all__ = ["Processes"]


class Processes:
    """This process among those that train together: NCCL between GPUs, Gloo between CPUs.

    Raises:
        ConfigError: The device belongs to another process.
    """

    def __init__(self, device: str) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._device = device
        if not self.several:
            return
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu and device != f"cuda:{self._local_rank}":
            raise ConfigError(
                f"device={device}, but this is local process {self._local_rank}; under torchrun "
                "leave device at auto"
            )
        if on_gpu:
            torch.cuda.set_device(self._local_rank)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend="nccl" if on_gpu else "gloo")

    @property
    def several(self) -> bool:
        return self.count > 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def settings(self) -> dict[str, int] | None:
        """What rsl_rl's algorithms take; None for one process."""
        ranks = {"global_rank": self.rank, "local_rank": self._local_rank}
        return ranks | {"world_size": self.count} if self.several else None

    def agree(self, value: int) -> int:
        """The largest of all processes' values."""
        if not self.several:
            return value
        shared = torch.tensor(value, device=self._device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return int(shared)

    def gather(self, value: object) -> list[Any]:
        """Every process's value, in order of rank."""
        if not self.several:
            return [value]
        gathered: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def leave(self) -> None:
        """Close the connections: an interpreter that ends with them open may abort."""
        if self.several:
            torch.distributed.destroy_process_group()
