"""Whether the accelerometer and the attitude of an inertial sensor agree on gravity.

A robot that neither falls nor flies feels 9.81 m/s^2 upwards on average, standing or walking. What
the sensor measured, turned into the world by its own attitude and averaged, must be that.
"""

import dataclasses
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from krabby.drivers.imu.types import ImuSample
from krabby.robot import rotations

__all__ = ["GravityLimits", "GravityWatch", "explain"]

_G: Final = 9.81
_UP_W: Final = np.array([0.0, 0.0, 1.0])
_LOOK_EVERY: Final = 4
"""Samples: accelerations of single steps need not be looked at."""
_LEAST_LOOKS: Final = 10
_LONGEST_S: Final = 0.05
"""A sample stands for so much time at most, however long none came before it [s]."""
_DEAD: Final = 0.02
"""Share of gravity that only noise makes."""
_IN_G: Final = (0.08, 0.125)
"""1 / 9.81 is 0.10."""
_FLIPPED_RAD: Final = math.radians(150.0)
_STILL: Final = 3.0
"""Spread of the specific force's size on a body at rest, noise included [m/s^2]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GravityLimits:
    """What is still believed of the average."""

    time_s: float = 2.0
    """Time constant of the average: a few strides."""
    angle_rad: float = math.radians(20.0)
    least: float = 0.8
    most: float = 1.25
    """Share of 9.81 m/s^2."""


class GravityWatch:
    """Averages the specific force in the world's frame."""

    def __init__(self, limits: GravityLimits | None = None) -> None:
        """Nothing was seen."""
        self._limits = limits or GravityLimits()
        self.reset()

    def reset(self) -> None:
        """Forget the average: the sensor was away."""
        self._looks = self._samples = 0
        self._force_w = np.zeros(3)
        self._force_b = np.zeros(3)
        self._stamp_ns = 0
        self._least, self._most = math.inf, 0.0
        self.problem = ""
        """What is wrong and the remedy; empty while nothing is, or too little was seen."""

    @property
    def moved(self) -> bool:
        """Whether the body fell, landed or was pushed since the last reset."""
        return self._most - self._least > _STILL

    def see(self, sample: ImuSample) -> None:
        """Take in a sample; `problem` has what it comes to."""
        self._samples += 1
        if self._samples % _LOOK_EVERY:
            return
        elapsed_s = (sample.stamp_ns - self._stamp_ns) * 1e-9 if self._looks else 0.0
        self._stamp_ns = sample.stamp_ns
        self._looks += 1
        # The plain average at first, then one that forgets.
        share = max(1.0 / self._looks, min(elapsed_s, _LONGEST_S) / self._limits.time_s)
        force_w = rotations.rotate(sample.quat_wb, sample.lin_acc_b)
        if not np.isfinite(force_w).all():
            return
        size = math.hypot(*force_w.tolist())
        self._least, self._most = min(self._least, size), max(self._most, size)
        self._force_w += share * (force_w - self._force_w)
        self._force_b += share * (sample.lin_acc_b - self._force_b)
        if self._looks < _LEAST_LOOKS:
            return
        self.problem = "" if self._is_sound() else explain(self._force_b, self._force_w)

    def _is_sound(self) -> bool:
        limits, (x, y, z) = self._limits, self._force_w.tolist()
        share = math.hypot(x, y, z) / _G
        angle = math.atan2(math.hypot(x, y), z)
        return limits.least <= share <= limits.most and angle <= limits.angle_rad


def explain(force_b: NDArray[np.float64], force_w: NDArray[np.float64]) -> str:
    """What a specific force that is not gravity means, and the remedy.

    Args:
        force_b: Its average in the base frame [m/s^2], shape (3,).
        force_w: The same in the world's frame, by the sensor's attitude; should be (0, 0, 9.81).
    """
    size = float(np.linalg.norm(force_w))
    share = size / _G
    if share < _DEAD:
        return "the accelerometer says 0; it is dead or off: restart the sensor, else replace it"
    angle = math.acos(max(-1.0, min(1.0, float(force_w @ _UP_W) / size)))
    said = f"{size:.2f} m/s^2 at rest where 9.81 is due"
    if _IN_G[0] <= share <= _IN_G[1]:
        return f"the accelerometer says {said}: it counts in g; the driver needs m/s^2"
    if angle > _FLIPPED_RAD:
        return (
            "the accelerometer says that gravity points up: its sign is wrong; specific force is "
            "upwards at rest. Look at the sensor's firmware and axes"
        )
    if angle > GravityLimits.angle_rad:
        axis = "xyz"[int(np.abs(force_b).argmax())]
        sign = "+" if force_b[np.abs(force_b).argmax()] > 0.0 else "-"
        return (
            f"the accelerometer finds up along the base's {sign}{axis}, {math.degrees(angle):.0f} "
            "degrees from where the attitude has it: the sensor turns one of the two by itself; "
            "reset its reference frame (register 26) and leave the mount to mount_quat"
        )
    return f"the accelerometer says {said}: its scale is off; calibrate or replace the sensor"
