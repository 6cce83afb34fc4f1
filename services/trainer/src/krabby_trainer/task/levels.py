"""Levels of the curriculum that a resumed run takes over, by obstacle type."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["column_of", "taken_over"]

Tensor = torch.Tensor


def column_of(robots: int, columns: int, device: str | torch.device = "cpu") -> Tensor:
    """Column of the terrain that each robot walks in, (N,): as many in each, in order."""
    return torch.arange(robots, device=device) * columns // max(robots, 1) % columns


def taken_over(
    level: Tensor, theirs: Sequence[str], fresh: Tensor, ours: Sequence[str], levels: int
) -> Tensor:
    """Levels of N robots after M robots had `level` (M,), each obstacle type for itself.

    Of every type the levels keep their order along the columns and their shares: twice as many
    robots have each level twice, half as many have every other one. Types that the M robots did
    not have keep the levels of a new run.

    Args:
        level: Levels reached, (M,).
        theirs: Obstacle type of each column that the M robots walked in.
        fresh: Levels of a new run, (N,).
        ours: Obstacle type of each column now.
        levels: How many there are now; higher ones become the highest.
    """
    old_column = column_of(len(level), len(theirs), level.device)
    new_column = column_of(len(fresh), len(ours), fresh.device)
    taken = fresh.clone()
    for name in set(ours) & set(theirs):
        old = torch.isin(old_column, _columns(theirs, name, level.device)).nonzero()[:, 0]
        new = torch.isin(new_column, _columns(ours, name, fresh.device)).nonzero()[:, 0]
        if len(old):
            source = torch.arange(len(new), device=fresh.device) * len(old) // max(len(new), 1)
            taken[new] = level[old[source]].to(taken)
    return taken.clamp(max=levels - 1)


def _columns(types: Sequence[str], name: str, device: torch.device) -> Tensor:
    return torch.tensor([i for i, each in enumerate(types) if each == name], device=device)
