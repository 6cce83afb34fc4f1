"""Communication between processes that train one network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["average_gradients"]


def average_gradients(
    parameters: Iterable[nn.Parameter], world_size: int, value: Tensor | None = None
) -> Tensor | None:
    """Replace all gradients by their mean over the processes, in one message.

    rsl_rl's own copies every gradient back by itself, and has further messages for the divergence
    and the learning rate; each of them waits for the slowest process.

    Args:
        parameters: Those without a gradient are left out, alike in all processes.
        world_size: How many processes there are.
        value: A number that goes with them, shape ().

    Returns:
        The mean of `value`, shape (); None without one.
    """
    gradients = [p.grad.view(-1) for p in parameters if p.grad is not None]
    parts = gradients if value is None else [*gradients, value.detach().reshape(1)]
    packed = torch.cat(parts)
    torch.distributed.all_reduce(packed)
    packed /= world_size
    mean = packed.split([len(part) for part in parts])
    torch._foreach_copy_(gradients, mean[: len(gradients)])  # type: ignore[attr-defined]
    return None if value is None else packed[-1]
