"""The newest valid measurement of the robot: its age, the faults it shows, the effort budget."""

from __future__ import annotations

import math

import numpy as np
from krabby_proto.states import Fault
from numpy.typing import NDArray

from krabby.safety.effort import EffortBudget
from krabby.safety.limits import GateCfg

__all__ = ["MeasuredRobot"]

_NO_FAULT = Fault(0)


class MeasuredRobot:
    """What the gate knows of the robot; `read` looks at a measurement, `accept` makes it count."""

    def __init__(self, cfg: GateCfg) -> None:
        self.joint_pos = np.clip(np.zeros(cfg.joint_count), cfg.target_lower, cfg.target_upper)
        """Newest valid angles [rad], shape (n,)."""
        self.at_ns: int | None = None
        """Capture time of the newest valid measurement; None while there is none to trust."""
        self.faults = _NO_FAULT
        """Faults that the newest measurement alone shows."""
        self.effort = EffortBudget(cfg)
        self._budget_trip = cfg.budget_trip
        self._min_up = math.cos(min(cfg.tilt_limit_rad, math.pi))
        self._lower = cfg.lower - cfg.range_margin_rad
        self._upper = cfg.upper + cfg.range_margin_rad
        self._up = 1.0
        # Scratch: the 100 Hz path writes here instead of allocating.
        self._sample = np.zeros((3, cfg.joint_count))  # joint_pos, joint_vel, joint_effort
        self._finite = np.zeros((3, cfg.joint_count), dtype=bool)

    def read(
        self,
        joint_pos: NDArray[np.floating],
        joint_vel: NDArray[np.floating],
        joint_effort: NDArray[np.floating],
        quat_wb: NDArray[np.floating],
    ) -> bool:
        """Whether these are numbers, and the quaternion a rotation; arguments as `observe`'s."""
        sample = self._sample
        sample[0] = joint_pos
        sample[1] = joint_vel
        sample[2] = joint_effort
        self._up = _up_component(*map(float, quat_wb))
        if np.isfinite(sample, out=self._finite).all() and math.isfinite(self._up):
            return True
        self.faults = Fault.STATE_NONFINITE
        return False

    def accept(self, captured_ns: int) -> None:
        """Make what was read the newest measurement; one that comes again is not younger for it."""
        dt_ns = None
        if self.at_ns is not None:
            captured_ns = max(captured_ns, self.at_ns)
            dt_ns = captured_ns - self.at_ns
        self.at_ns = captured_ns
        self.effort.add(self._sample[2], dt_ns)
        pos = self.joint_pos
        pos[:] = self._sample[0]
        found = _NO_FAULT
        if self._up < self._min_up:
            found |= Fault.TILT
        if (pos < self._lower).any() or (pos > self._upper).any():
            found |= Fault.JOINT_RANGE
        if self.effort.ratio > self._budget_trip:
            found |= Fault.EFFORT_BUDGET
        self.faults = found

    def age_ns(self, now_ns: int) -> int:
        """Age of the newest valid measurement of a live robot."""
        # Live means measured: `arm` requires it, and a clock fault, which forgets it, trips.
        assert self.at_ns is not None
        return now_ns - self.at_ns


def _up_component(x: float, y: float, z: float, w: float) -> float:
    """Cosine of the tilt: the world's up along the base's own; NaN unless xyzw is a rotation."""
    norm_sq = x * x + y * y + z * z + w * w
    # An IMU that has not started reports zeros; a bit error reports anything.
    if not 0.8 < norm_sq < 1.2:
        return math.nan
    return 1.0 - 2.0 * (x * x + y * y) / norm_sq
