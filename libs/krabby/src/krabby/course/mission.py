"""The simulated operator: drives the robot from waypoint to waypoint.

It gives the command that a person with a gamepad would give, and knows what such a person can see:
where the robot is and where the next waypoint is. The game loop gets `vx, vy, yaw_rate`, no more.

`steer` and `wrap_angle` take single numbers, NumPy arrays and torch tensors, so simulation,
benchmark and training obey one rule.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MAX_YAW_RATE",
    "STOP",
    "TURN_IN_PLACE_RAD",
    "NavCommand",
    "pursue",
    "steer",
    "wrap_angle",
]

_YAW_GAIN = 1.5
"""Yaw rate per heading error [1/s]."""
MAX_YAW_RATE = 0.5
"""Gentle enough for a walking gait [rad/s]."""
TURN_IN_PLACE_RAD = math.radians(60.0)
"""Heading error beyond which it turns before it walks [rad]."""


@dataclass(frozen=True, slots=True)
class NavCommand:
    """Velocity asked for in the base frame: `vx` forward, `vy` left [m/s], `yaw_rate` [rad/s]."""

    vx: float
    vy: float
    yaw_rate: float

    def as_array(self) -> NDArray[np.float32]:
        """Payload of the `nav` stream, shape (3,)."""
        return np.array([self.vx, self.vy, self.yaw_rate], np.float32)


STOP = NavCommand(0.0, 0.0, 0.0)


def wrap_angle(angle: Any) -> Any:
    """The same angle in [-pi, pi) [rad]; a number, an array or a tensor."""
    return angle - math.tau * ((angle + math.pi) // math.tau)


def steer(heading_error: Any, speed: Any, xp: Any) -> tuple[Any, Any]:
    """Forward speed [m/s] and yaw rate [rad/s] that turn the nose to a waypoint, walking to it.

    Args:
        heading_error: bearing of the waypoint minus the robot's yaw, wrapped [rad].
        speed: asked for where the nose points at the waypoint [m/s].
        xp: the namespace whose `cos` takes the error: `math`, `numpy` or `torch`.
    """
    rate = _YAW_GAIN * heading_error
    inside = abs(rate) < MAX_YAW_RATE
    limited = MAX_YAW_RATE * (rate >= MAX_YAW_RATE) - MAX_YAW_RATE * (rate <= -MAX_YAW_RATE)
    ahead = abs(heading_error) <= TURN_IN_PLACE_RAD
    return ahead * (speed * xp.cos(heading_error)), inside * rate + limited


def pursue(
    pos_xy: NDArray[np.float64], yaw: float, target_xy: NDArray[np.float64], speed: float
) -> NavCommand:
    """Walk towards `target_xy` at up to `speed` [m/s]: turn the nose to it, slower while turning.

    It never walks sideways: what must be seen before it is stepped on is in front of the camera.
    """
    dx, dy = target_xy[0] - pos_xy[0], target_xy[1] - pos_xy[1]
    vx, yaw_rate = steer(wrap_angle(math.atan2(dy, dx) - yaw), speed, math)
    return NavCommand(vx, 0.0, yaw_rate)
