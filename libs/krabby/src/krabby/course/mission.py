"""The operator's stand-in: drives the robot from waypoint to waypoint.

It says where to go, as a person with a gamepad would, and knows what such a person can see: where
the robot is and where the next waypoint is. The game loop gets no more than `vx, vy, yaw_rate`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_YAW_RATE", "STOP", "TURN_IN_PLACE_RAD", "NavCommand", "pursue"]

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


def pursue(
    pos_xy: NDArray[np.float64], yaw: float, target_xy: NDArray[np.float64], speed: float
) -> NavCommand:
    """Walk towards `target_xy` at up to `speed` [m/s]: turn the nose to it, slower while turning.

    It never walks sideways: what must be seen before it is stepped on is in front of the camera.
    """
    dx, dy = target_xy[0] - pos_xy[0], target_xy[1] - pos_xy[1]
    error = math.remainder(math.atan2(dy, dx) - yaw, math.tau)
    yaw_rate = max(-MAX_YAW_RATE, min(MAX_YAW_RATE, _YAW_GAIN * error))
    vx = 0.0 if abs(error) > TURN_IN_PLACE_RAD else speed * math.cos(error)
    return NavCommand(vx, 0.0, yaw_rate)
