"""The effort budget of the drives: filtered RMS effort, and the torque limit it leaves."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from krabby.safety.limits import GateCfg

__all__ = ["EffortBudget"]

_READING_CAP: Final = 10.0
"""Multiples of the peak torque above which a reading is cut, so that its square stays finite."""


class EffortBudget:
    """First-order filter of effort² over rated², per joint; arrays have shape (n,)."""

    def __init__(self, cfg: GateCfg) -> None:
        self._cfg = cfg
        self._mean_square = np.zeros(cfg.joint_count)
        self._inverse_rated = 1.0 / cfg.rated_torque
        self._cap = _READING_CAP * cfg.peak_torque
        self._peak_over_rated = cfg.peak_torque - cfg.rated_torque
        self._longest_ns = round(cfg.drive_timeout_s * 1e9)
        self._scratch = np.zeros(cfg.joint_count)

    @property
    def rms(self) -> NDArray[np.float64]:
        """Filtered RMS effort [N·m]."""
        return np.sqrt(self._mean_square) * self._cfg.rated_torque

    @property
    def ratio(self) -> float:
        """RMS effort over rated torque, of the joint with the largest."""
        return math.sqrt(self._mean_square.max())

    def add(self, effort: NDArray[np.float64], dt_ns: int | None) -> None:
        """Filter a measured effort [N·m], exact for an effort constant since the one before.

        A gap beyond `drive_timeout_s`, or of unknown length (None), heats for that long, because
        drives without commands fall limp, and cools no longer than that, because the cooling was
        not measured.
        """
        dt_ns = self._longest_ns if dt_ns is None else min(dt_ns, self._longest_ns)
        share = -math.expm1(-dt_ns * 1e-9 / self._cfg.rms_window_s)
        square = self._scratch
        np.abs(effort, out=square)
        np.minimum(square, self._cap, out=square)
        np.multiply(square, self._inverse_rated, out=square)
        np.multiply(square, square, out=square)
        np.subtract(square, self._mean_square, out=square)
        np.multiply(square, share, out=square)
        np.add(self._mean_square, square, out=self._mean_square)

    def limit(self) -> NDArray[np.float64]:
        """Peak torque, folding to rated as the mean square effort goes from `fold_start` to 1.

        At a mean square of 1 the limit is rated and the filter is at rest: the RMS approaches rated
        from below. `GateCfg` refuses a window so short that one `drive_timeout_s` overshoots.
        """
        room = (1.0 - self._mean_square) / (1.0 - self._cfg.fold_start)
        np.maximum(room, 0.0, out=room)
        np.minimum(room, 1.0, out=room)
        np.multiply(room, self._peak_over_rated, out=room)
        np.add(room, self._cfg.rated_torque, out=room)
        room.setflags(write=False)
        return room
