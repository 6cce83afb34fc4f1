"""The target of the joints: moved by commands within position and rate limits."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from krabby.safety.limits import GateCfg

__all__ = ["LimitedTarget"]

_REPORT_RAD: Final = 1e-6
"""A clamp is reported from here on: a limit that went through float32 is not a violation."""
_BITS: Final = 1 << np.arange(63)


class LimitedTarget:
    """A position target that never leaves the limits; arrays have shape (n,)."""

    def __init__(self, cfg: GateCfg) -> None:
        n = cfg.joint_count
        self._max_rate = cfg.max_rate
        self._max_step_s = cfg.max_target_step_s
        self._lower = cfg.target_lower
        self._upper = cfg.target_upper
        self._wanted, self._bounded, self._reach, self._scratch = np.zeros((4, n))
        self.pos = self.clipped(np.zeros(n))
        """The target in force [rad]."""
        self.moved_ns = 0
        """When it was moved last, or may first be."""

    def clipped(self, joint_pos: NDArray[np.float64]) -> NDArray[np.float64]:
        """A pose cut to the position limits, a new array."""
        return np.clip(joint_pos, self._lower, self._upper)

    def start(self, joint_pos: NDArray[np.float64]) -> None:
        """Start from a measured pose."""
        np.clip(joint_pos, self._lower, self._upper, out=self.pos)

    def move(self, joint_pos: NDArray[np.generic], now_ns: int) -> tuple[int, int]:
        """Move towards `joint_pos` as far as the limits allow.

        Returns:
            Masks of the joints cut to the position limits and to the rate limit, bit i for joint i.
        """
        wanted, bounded, reach = self._wanted, self._bounded, self._reach
        wanted[:] = joint_pos
        np.maximum(wanted, self._lower, out=bounded)
        np.minimum(bounded, self._upper, out=bounded)
        position_mask = self._mask(wanted, bounded)
        # What the rate allows is an interval around the last target. That one is within the limits,
        # so cutting `bounded` to the interval keeps it there, rounding included.
        dt_s = min((now_ns - self.moved_ns) * 1e-9, self._max_step_s)
        np.multiply(self._max_rate, dt_s, out=reach)
        np.subtract(self.pos, reach, out=wanted)
        np.maximum(bounded, wanted, out=wanted)
        np.add(self.pos, reach, out=reach)
        np.minimum(wanted, reach, out=self.pos)
        self.moved_ns = now_ns
        return position_mask, self._mask(bounded, self.pos)

    def _mask(self, wanted: NDArray[np.float64], got: NDArray[np.float64]) -> int:
        """Bit i is set where the two differ."""
        scratch = self._scratch
        np.subtract(wanted, got, out=scratch)
        np.abs(scratch, out=scratch)
        if scratch.max() <= _REPORT_RAD:
            return 0
        return int(_BITS[: scratch.size] @ (scratch > _REPORT_RAD))
