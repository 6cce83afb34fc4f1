"""Random draws on a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["uniform"]


def uniform(bounds: Sequence[float], size: tuple[int, ...], device: str) -> torch.Tensor:
    """Uniform in [low, high)."""
    low, high = bounds
    return torch.empty(size, device=device).uniform_(low, high)
