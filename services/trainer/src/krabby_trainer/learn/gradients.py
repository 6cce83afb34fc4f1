"""Steps of an optimiser without waiting for the device.

A minibatch is about a thousand small kernels, so on CUDA its whole step is recorded as a graph:
loss, gradients, their mean over the processes, clipping, Adam. Nothing of it may be read by the
host: the learning rate is a tensor, and losses are added up on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from krabby_trainer.graphs import Replayed

__all__ = ["GradientStep", "Sums", "adam", "adam_state", "load_adam"]


def adam(
    parameters: Iterable[nn.Parameter], learning_rate: float, device: str | torch.device
) -> torch.optim.Adam:
    """Adam in one kernel; each group's learning rate is a tensor () on `device`."""
    kind: Any = _kind_on(device)
    return torch.optim.Adam(parameters, lr=torch.tensor(learning_rate, device=device), **kind)


def adam_state(optimizer: torch.optim.Adam) -> dict[str, Any]:
    """Its state in plain values, as an Adam of any kind takes it."""
    state = optimizer.state_dict()
    plain = {"fused": None, "capturable": False}
    groups = [{**group, "lr": float(group["lr"]), **plain} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def load_adam(optimizer: torch.optim.Adam, state: Mapping[str, Any]) -> None:
    """Take over the state of an Adam of any kind and precision; the rate keeps its tensor."""
    rates = [group["lr"] for group in optimizer.param_groups]
    kind = _kind_on(rates[0].device)
    groups = [{**group, **kind} for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        rate.fill_(group["lr"])
        group["lr"] = rate


def _kind_on(device: str | torch.device) -> dict[str, bool]:
    return {"fused": True, "capturable": torch.device(device).type == "cuda"}


class Sums:
    """Numbers that are added up on the device and read together.

    Args:
        names: Of the numbers.
        device: Where they are.
    """

    def __init__(self, names: Sequence[str], device: str | torch.device) -> None:
        self._values = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._of: Final = dict(zip(names, self._values, strict=True))

    def add(self, name: str, value: Tensor) -> None:
        self._of[name].add_(value.detach())

    def take(self) -> dict[str, float]:
        """What was added since the last call; waits for the device."""
        sums = dict(zip(self._of, self._values.tolist(), strict=True))
        self._values.zero_()
        return sums


class GradientStep:
    """One step of `optimizer` along the gradient of a loss; recorded on CUDA.

    Args:
        loss: Computes it from tensors that stay in their places, shape ().
        optimizer: From `adam`.
        clipped: Parameters whose gradients are clipped together, to norm `max_norm` each.
        max_norm: That norm.
        world_size: Number of processes; above 1, gradients are averaged over them.
        adapt: Is called between gradients and optimiser, without host reads.
        pool: Memory that this recording shares with others that never run at the same time.
        enabled: False calls everything plainly.
    """

    def __init__(
        self,
        loss: Callable[[], Tensor],
        optimizer: torch.optim.Adam,
        clipped: Sequence[Sequence[nn.Parameter]],
        *,
        max_norm: float,
        world_size: int = 1,
        adapt: Callable[[], None] | None = None,
        pool: Any = None,
        enabled: bool = True,
    ) -> None:
        self._loss, self._optimizer, self._adapt = loss, optimizer, adapt
        self._clipped, self._max_norm, self._world_size = clipped, max_norm, world_size
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._device = parameters[0].device
        # Each part begins at a multiple of 16 bytes, as kernels with vector loads want it.
        sizes = [(p.numel() + 3) // 4 * 4 for p in parameters]
        self._message = torch.zeros(sum(sizes) + 1, device=self._device)
        *parts, self.number = self._message.split([*sizes, 1])
        self._gradients = [
            (p, part[: p.numel()].view_as(p)) for p, part in zip(parameters, parts, strict=True)
        ]
        self._pool, self._enabled = pool, enabled
        self._recorded: dict[Hashable, tuple[Replayed, ...]] = {}

    number: Tensor
    """A number that the loss may set and that is averaged with the gradients, shape (1,)."""

    def descend(self, variant: Hashable = None) -> None:
        """Take the step; all that Python decides in the loss has to follow from `variant`."""
        if variant not in self._recorded:
            self._recorded[variant] = self._stages()
        first, *rest = self._recorded[variant]
        first()
        for stage in rest:  # gloo and NCCL alike stay outside of recordings
            torch.distributed.all_reduce(self._message)
            stage()

    def forget(self) -> None:
        """Record anew: the optimiser's state has moved."""
        self._recorded.clear()

    def _stages(self) -> tuple[Replayed, ...]:
        if self._world_size > 1:
            return self._replayed(self._differentiate), self._replayed(self._apply)
        return (self._replayed(self._whole),)

    def _replayed(self, function: Callable[[], None]) -> Replayed:
        return Replayed(function, self._device, enabled=self._enabled, pool=self._pool)

    def _whole(self) -> None:
        self._differentiate()
        self._apply()

    def _differentiate(self) -> None:
        """Gradients into the message; a parameter that the loss does not reach has none."""
        self._message.zero_()
        self._optimizer.zero_grad()
        self._loss().backward()
        found = [(p, place) for p, place in self._gradients if p.grad is not None]
        torch._foreach_copy_([place for _, place in found], [p.grad for p, _ in found])  # type: ignore[attr-defined]
        for p, place in found:
            p.grad = place
        if self._world_size > 1:
            self._message /= self._world_size

    def _apply(self) -> None:
        if self._adapt is not None:
            self._adapt()
        for parameters in self._clipped:
            nn.utils.clip_grad_norm_(parameters, self._max_norm)
        self._optimizer.step()
