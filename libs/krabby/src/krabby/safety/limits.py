"""The limits of the safety gate: taken from the robot description, checked against each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from krabby.robot.description import RobotDescription
from krabby.robot.errors import GateConfigError

__all__ = ["GateCfg"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GateCfg:
    """The limits a `SafetyGate` keeps.

    Arrays have shape (n,), joint order of `robot.toml`; `from_description` takes them from there.
    """

    lower: NDArray[np.float64]
    """Lower end of the mechanical range [rad]."""
    upper: NDArray[np.float64]
    """Upper end of the mechanical range [rad]."""
    max_rate: NDArray[np.float64]
    """Fastest change of a target [rad/s]."""
    kp: NDArray[np.float64]
    """Stiffness once armed [N·m/rad]."""
    kd: NDArray[np.float64]
    """Damping once armed [N·m·s/rad]."""
    damp_kd: NDArray[np.float64]
    """Damping while limp [N·m·s/rad]."""
    rated_torque: NDArray[np.float64]
    """RMS effort a drive bears continuously [N·m]."""
    peak_torque: NDArray[np.float64]
    """Effort a drive bears for a short time [N·m]."""
    position_margin_rad: float = 0.02
    """Targets stay this far inside the mechanical range."""
    range_margin_rad: float = 0.15
    """How far outside it a joint may be measured: the stops give way a little."""
    rms_window_s: float = 30.0
    """Time constant of the effort filter."""
    fold_start: float = 0.8
    """Mean square effort over rated² at which the effort limit starts to fold towards rated."""
    budget_trip: float = 1.05
    """RMS effort over rated above which the drive is taken to ignore its limit."""
    tilt_limit_rad: float = 1.0
    """Largest angle between the base's up and the world's."""
    hold_after_s: float = 0.05
    """Age of the newest valid command at which the pose is held."""
    damp_after_s: float = 0.15
    """Age of the newest valid command at which the drives are damped."""
    state_stale_s: float = 0.03
    """Age of the newest measurement at which the pose is held, and arming starts again."""
    state_stop_s: float = 0.1
    """Age of the newest measurement at which the drives are damped."""
    drive_timeout_s: float = 0.1
    """Drives fall limp by themselves when no `DriveCommand` came for this long."""
    arming_s: float = 0.5
    """Time over which the gains rise from zero."""
    max_target_step_s: float = 0.02
    """Time credited to one target, or one rise of the gains, at most: late calls cannot jump."""

    def __post_init__(self) -> None:
        """Freezes the arrays and refuses limits that contradict each other."""
        for name in _JOINT_FIELDS:
            array = np.array(getattr(self, name), dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for problem in self._problems():
            raise GateConfigError(f"safety gate: {problem}")

    @classmethod
    def from_description(cls, desc: RobotDescription, **overrides: float) -> GateCfg:
        """The limits of a robot; `overrides` are thresholds such as `tilt_limit_rad`."""
        safety = desc.safety
        thresholds = {name: getattr(safety, name) for name in _ROBOT_FIELDS}
        return cls(
            lower=desc.joint_lower,
            upper=desc.joint_upper,
            max_rate=desc.velocity_limit,
            kp=desc.kp,
            kd=desc.kd,
            damp_kd=np.full_like(desc.kd, safety.damp_kd),
            rated_torque=desc.rated_torque,
            peak_torque=desc.peak_torque,
            **(thresholds | overrides),
        )

    @property
    def target_lower(self) -> NDArray[np.float64]:
        """Lowest target the gate lets through [rad], shape (n,)."""
        return self.lower + self.position_margin_rad

    @property
    def target_upper(self) -> NDArray[np.float64]:
        """Highest target the gate lets through [rad], shape (n,)."""
        return self.upper - self.position_margin_rad

    @property
    def joint_count(self) -> int:
        """Number of joints."""
        return self.lower.size

    def _problems(self) -> Iterator[str]:
        """What contradicts what; lazily, so that a rule may rely on those before it."""
        shapes = {name: getattr(self, name).shape for name in _JOINT_FIELDS}
        if len(set(shapes.values())) > 1 or self.lower.ndim != 1:
            yield f"per-joint limits have shapes {shapes}; give one value per joint in each"
        for name in _JOINT_FIELDS:
            if not np.isfinite(getattr(self, name)).all():
                yield f"{name} = {getattr(self, name)} is not finite; give numbers"
        for name in ("max_rate", "rated_torque"):
            if not (getattr(self, name) > 0.0).all():
                yield f"{name} = {getattr(self, name)} must be positive"
        for name in ("kp", "kd", "damp_kd"):
            if not (getattr(self, name) >= 0.0).all():
                yield f"{name} = {getattr(self, name)} must not be negative"
        for name in ("position_margin_rad", "range_margin_rad"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                yield f"{name} = {getattr(self, name)} must be finite and not negative"
        if not (self.target_lower < self.target_upper).all():
            yield (
                f"lower = {self.lower} and upper = {self.upper} leave no room for targets"
                f" {self.position_margin_rad} rad inside them"
            )
        if not (self.rated_torque <= self.peak_torque).all():
            yield f"rated_torque = {self.rated_torque} exceeds peak_torque = {self.peak_torque}"
        for name in _SCALAR_FIELDS:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0.0):
                yield f"{name} = {getattr(self, name)} must be positive and finite"
        if self.hold_after_s > self.damp_after_s:
            yield f"hold_after_s = {self.hold_after_s} exceeds damp_after_s = {self.damp_after_s}"
        if self.state_stale_s > self.state_stop_s:
            yield f"state_stale_s = {self.state_stale_s} exceeds state_stop_s = {self.state_stop_s}"
        if self.fold_start >= 1.0:
            yield f"fold_start = {self.fold_start} must be below 1, where the limit reaches rated"
        # One limit stays in force for `drive_timeout_s` at most, which moves the filter by `share`
        # of its distance to effort². The fold keeps the mean square at or below rated² as long as
        # its steepest step does not overshoot.
        share = -math.expm1(-self.drive_timeout_s / self.rms_window_s)
        peak_ratio = float((self.peak_torque / self.rated_torque).max())
        if share * (peak_ratio**2 - self.fold_start) > 1.0 - self.fold_start:
            yield (
                f"drive_timeout_s = {self.drive_timeout_s} is long enough to overshoot the effort"
                f" budget; lengthen rms_window_s = {self.rms_window_s} or lower fold_start ="
                f" {self.fold_start}"
            )


_JOINT_FIELDS: Final = (
    "lower", "upper", "max_rate", "kp", "kd", "damp_kd", "rated_torque", "peak_torque",
)  # fmt: skip
_ROBOT_FIELDS: Final = (
    "position_margin_rad", "rms_window_s", "fold_start", "tilt_limit_rad", "hold_after_s",
    "damp_after_s", "state_stale_s", "state_stop_s", "arming_s", "max_target_step_s",
)  # fmt: skip
"""Thresholds that `robot.toml` sets under the same name."""
_SCALAR_FIELDS: Final = (
    "rms_window_s", "fold_start", "budget_trip", "tilt_limit_rad", "hold_after_s", "damp_after_s",
    "state_stale_s", "state_stop_s", "drive_timeout_s", "arming_s", "max_target_step_s",
)  # fmt: skip
