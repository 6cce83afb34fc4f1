"""The operator's stand-in: drives the robot from waypoint to waypoint.

It says where to go, as a person with a gamepad would, and knows what such a person can see: where
the robot is and where the next waypoint is. The game loop gets no more than `vx, vy, yaw_rate`.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STOP", "NavCommand", "pursue", "steer"]

_YAW_GAIN = 1.5
"""Yaw rate per heading error [1/s]."""
_MAX_YAW_RATE = 0.5
"""Gentle enough for a walking gait [rad/s]."""
_TURN_IN_PLACE = math.radians(60.0)
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


def pursue(
    pos_xy: NDArray[np.float64], yaw: float, target_xy: NDArray[np.float64], speed: float
) -> NavCommand:
    """Walk towards `target_xy` at up to `speed` [m/s]: turn the nose to it, slower while turning.

    It never walks sideways: what must be seen before it is stepped on is in front of the camera.
    """
    dx, dy = target_xy[0] - pos_xy[0], target_xy[1] - pos_xy[1]
    error = math.remainder(math.atan2(dy, dx) - yaw, math.tau)
    vx, yaw_rate = steer(error, speed, _SCALARS)
    return NavCommand(vx, 0.0, yaw_rate)


def steer(heading_error: Any, speed: Any, xp: Any) -> tuple[Any, Any]:
    """Forward velocity [m/s] and yaw rate [rad/s] towards a waypoint.

    Args:
        heading_error: Bearing of the waypoint minus the robot's yaw [rad], wrapped.
        speed: Commanded speed [m/s].
        xp: Has `clip`, `cos` and `where` for these values: the module numpy or torch.
    """
    yaw_rate = xp.clip(_YAW_GAIN * heading_error, -_MAX_YAW_RATE, _MAX_YAW_RATE)
    vx = xp.where(abs(heading_error) > _TURN_IN_PLACE, 0.0, speed * xp.cos(heading_error))
    return vx, yaw_rate


_SCALARS = SimpleNamespace(
    clip=lambda value, low, high: max(low, min(high, value)),
    cos=math.cos,
    where=lambda condition, one, other: one if condition else other,
)
