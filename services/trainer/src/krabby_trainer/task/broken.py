"""Robots whose simulated state is not finite: found, and kept for a dump.

A solver that diverges for one robot must not end the training of all others. Everything is written
in place and depends on no value, so a step can be recorded; the host reads once an iteration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

__all__ = ["LIMIT", "BrokenRobots", "not_finite"]

Tensor = torch.Tensor

LIMIT: Final = 1e9
"""Values beyond this (SI units) count as not finite too: indices computed of them overflow."""


def not_finite(values: Mapping[str, Tensor]) -> Tensor:
    """Robots with a value that is not finite or beyond `LIMIT`, (N,) bool; values are (N, ...)."""
    # The largest magnitude is NaN if any value is, and NaN is not below the limit.
    largest = [value.abs().flatten(1).amax(dim=1) for value in values.values()]
    return ~(torch.stack(largest) <= LIMIT).all(dim=0)


class BrokenRobots:
    """Finds broken robots in every step, and keeps the state each of them broke in.

    Args:
        num_envs: N.
        kept: Names of the values that a dump has, in the step before and in the one that broke.
        device: Of everything.
    """

    def __init__(self, num_envs: int, kept: Sequence[str], device: str | torch.device) -> None:
        self._kept, self._device = tuple(kept), device
        self.mask = torch.zeros(num_envs, dtype=torch.bool, device=device)
        """Which robots are broken in this step, (N,)."""
        self.count = torch.zeros((), dtype=torch.long, device=device)
        """How often a robot broke since `take`."""
        self._known = torch.zeros_like(self.mask)
        self._when = torch.zeros(num_envs, dtype=torch.long, device=device)
        self._clock = torch.zeros((), dtype=torch.long, device=device)
        self._last: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._after: dict[str, Tensor] = {}

    def step(self, values: Mapping[str, Tensor]) -> None:
        """Take in the state of a step, (N, ...) by name; `mask` says afterwards who is broken.

        Every robot's first break since `take` is kept.
        """
        if not self._last:
            for kept in (self._last, self._before, self._after):
                kept.update({name: torch.zeros_like(values[name]) for name in self._kept})
        self.mask.copy_(not_finite(values))
        fresh = self.mask & ~self._known
        for name in self._kept:
            value = values[name]
            rows = fresh.view(-1, *(1,) * (value.dim() - 1))
            self._before[name].copy_(torch.where(rows, self._last[name], self._before[name]))
            self._after[name].copy_(torch.where(rows, value, self._after[name]))
            self._last[name].copy_(value)
        self._when.copy_(torch.where(fresh, self._clock, self._when))
        self._known |= self.mask
        self.count += self.mask.sum()
        self._clock += 1

    def take(self) -> dict[str, Tensor] | None:
        """What broke since the last call, on the host; None if nothing did. Reads the device.

        Returns:
            For n robots: `robot` (n,), `step` (n,) of control steps since the last call, and
            `before.<name>` and `broken.<name>` of each value kept.
        """
        any_broke = bool(self.count)
        found: dict[str, Tensor] | None = None
        if any_broke:
            robots = self._known.nonzero()[:, 0]
            found = {"robot": robots, "step": self._when[robots]}
            found |= {f"before.{name}": value[robots] for name, value in self._before.items()}
            found |= {f"broken.{name}": value[robots] for name, value in self._after.items()}
            found = {name: value.cpu() for name, value in found.items()}
        self.count.zero_()
        self._known.zero_()
        self._clock.zero_()
        return found
