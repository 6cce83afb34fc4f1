"""Where the feet are, and which joint angles put them there.

Closed form: every leg is a yaw axis and two parallel pitch axes. All functions take any leading
batch shape. Foot means the centre of the foot's sphere; positions are in the base frame.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from krabby.robot.description import JOINTS_PER_LEG, NUM_LEGS, RobotDescription

__all__ = [
    "foot_positions",
    "leg_ik",
    "standing_height",
    "torque_envelope",
    "torque_speed_limit",
]

FloatArray = NDArray[np.float64]


def foot_positions(description: RobotDescription, joint_pos: ArrayLike) -> FloatArray:
    """Feet in the base frame [m], shape (..., 6, 3), for `joint_pos` (..., 18) [rad]."""
    geometry = description.geometry
    yaw, pitch, knee = _per_leg(joint_pos)
    reach = (
        geometry.hip_length
        + geometry.femur_length * np.cos(pitch)
        + geometry.tibia_length * np.cos(pitch + knee)
    )
    height = geometry.femur_length * np.sin(pitch) + geometry.tibia_length * np.sin(pitch + knee)
    heading = geometry.leg_yaw + yaw
    offset = np.stack([reach * np.cos(heading), reach * np.sin(heading), height], axis=-1)
    return geometry.hip_pos_b + offset


def leg_ik(description: RobotDescription, foot_pos_b: ArrayLike) -> FloatArray:
    """Joint angles (..., 18) [rad] that put the feet at `foot_pos_b` (..., 6, 3) [m].

    The knee bends upwards (knee angle in [-pi, 0]) and the leg points at the foot. A foot out of
    reach gets the straight (or fully folded) leg that points at it. Joint limits are not applied:
    the caller clips, or tests whether `foot_positions` gives the foot back.
    """
    geometry = description.geometry
    femur, tibia = geometry.femur_length, geometry.tibia_length
    from_hip = np.asarray(foot_pos_b, dtype=np.float64) - geometry.hip_pos_b
    heading = np.arctan2(from_hip[..., 1], from_hip[..., 0])
    yaw = _wrap(heading - geometry.leg_yaw)
    reach = np.hypot(from_hip[..., 0], from_hip[..., 1]) - geometry.hip_length
    height = from_hip[..., 2]
    cos_knee = (reach**2 + height**2 - femur**2 - tibia**2) / (2.0 * femur * tibia)
    knee = -np.arccos(np.clip(cos_knee, -1.0, 1.0))
    pitch = np.arctan2(height, reach) - np.arctan2(
        tibia * np.sin(knee), femur + tibia * np.cos(knee)
    )
    angles = np.stack([yaw, _wrap(pitch), knee], axis=-1)
    return angles.reshape(*angles.shape[:-2], NUM_LEGS * JOINTS_PER_LEG)


def standing_height(description: RobotDescription) -> float:
    """Height of the base over flat ground [m] with rigid joints in the default pose."""
    feet = foot_positions(description, description.default_joint_pos)
    return float(description.geometry.foot_radius - feet[:, 2].min())


def torque_speed_limit(
    description: RobotDescription, joint_vel: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest torque [N·m] the drives can give at `joint_vel` (..., 18) [rad/s].

    In the direction of motion the torque falls linearly from peak at rest to zero at the no-load
    speed (back-EMF); against it, braking, the full peak is there.
    """
    speed = np.asarray(joint_vel, dtype=np.float64) / description.no_load_speed

    def share(left: FloatArray) -> FloatArray:  # np.clip, at a third of its price
        return np.minimum(np.maximum(left, 0.0), 1.0)

    return torque_envelope(speed, description.peak_torque, share)


def torque_envelope(speed: Any, peak: Any, share: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Lowest and highest torque [N·m] at `speed`, a share of the no-load speed.

    `peak` is the peak torque [N·m] and `share` clips to 0 to 1; NumPy arrays or torch tensors.
    """
    return -peak * share(1.0 + speed), peak * share(1.0 - speed)


def _per_leg(joint_pos: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    angles = np.asarray(joint_pos, dtype=np.float64)
    angles = angles.reshape(*angles.shape[:-1], NUM_LEGS, JOINTS_PER_LEG)
    return angles[..., 0], angles[..., 1], angles[..., 2]


def _wrap(angle: FloatArray) -> FloatArray:
    """Into [-pi, pi)."""
    return (angle + np.pi) % (2.0 * np.pi) - np.pi
