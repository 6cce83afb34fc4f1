"""Standing up and sitting down, as joint trajectories that depend on time alone.

The legs first go where the feet lie on the ground under their standing places, the belly on the
ground; then all six push at once and the body rises straight up between feet that do not slide.
Sitting down is the same, backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from krabby_robot.kinematics import foot_positions, leg_ik

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from krabby_robot.description import RobotDescription

__all__ = ["JointTrajectory", "rest_joint_pos", "sit_down", "stand_up"]

_SAMPLE_S = 0.01
_SPEED_SHARE = 0.15
"""Share of the target rate limit that a trajectory uses at most: unhurried, and never clamped."""
_RISE_S = 1.2
"""Time to lift the body, at least [s]."""
_MIN_JERK_PEAK = 1.875
"""Largest speed of a minimum-jerk movement over its mean speed."""


@dataclass(frozen=True, eq=False)
class JointTrajectory:
    """Joint targets over time; before its start the first one, after its end the last one."""

    points: NDArray[np.float64]
    """Targets [rad], shape (n, 18), one every 10 ms."""

    @property
    def duration_s(self) -> float:
        """How long it takes [s]."""
        return (len(self.points) - 1) * _SAMPLE_S

    def at(self, t_s: float) -> NDArray[np.float64]:
        """Targets [rad] `t_s` after its start, shape (18,)."""
        place = min(max(t_s / _SAMPLE_S, 0.0), len(self.points) - 1.0)
        index = min(int(place), len(self.points) - 2)
        share = place - index
        return (1.0 - share) * self.points[index] + share * self.points[index + 1]


def rest_joint_pos(desc: RobotDescription) -> NDArray[np.float64]:
    """Belly on the ground, feet on the ground at their standing places [rad], shape (18,)."""
    return _clip(desc, leg_ik(desc, _feet_at(desc, _resting_foot_height(desc))))


def stand_up(desc: RobotDescription, start: ArrayLike) -> JointTrajectory:
    """From `start` [rad], shape (18,), to the default pose.

    A robot that is on its feet goes there directly; one that lies folds its legs first.
    """
    start = np.asarray(start, dtype=np.float64)
    default = np.asarray(desc.default_joint_pos, dtype=np.float64)
    standing = foot_positions(desc, default)[:, 2].mean()
    resting = _resting_foot_height(desc)
    if foot_positions(desc, start)[:, 2].mean() < 0.5 * (standing + resting):
        return JointTrajectory(_move(desc, start, default))
    fold = _move(desc, start, rest_joint_pos(desc))
    return JointTrajectory(np.concatenate([fold, _lift(desc)[1:]]))


def sit_down(desc: RobotDescription, start: ArrayLike) -> JointTrajectory:
    """From `start` [rad], shape (18,), to `rest_joint_pos`."""
    start = np.asarray(start, dtype=np.float64)
    default = np.asarray(desc.default_joint_pos, dtype=np.float64)
    standing = foot_positions(desc, default)[:, 2].mean()
    resting = _resting_foot_height(desc)
    if foot_positions(desc, start)[:, 2].mean() > 0.5 * (standing + resting):
        return JointTrajectory(_move(desc, start, rest_joint_pos(desc)))
    gather = _move(desc, start, default)
    return JointTrajectory(np.concatenate([gather, _lift(desc)[::-1][1:]]))


def _resting_foot_height(desc: RobotDescription) -> float:
    """Foot centre in the base frame with belly and feet on flat ground [m]."""
    return desc.geometry.foot_radius - desc.geometry.body_size[2] / 2.0


def _feet_at(desc: RobotDescription, height: float) -> NDArray[np.float64]:
    feet = foot_positions(desc, desc.default_joint_pos).copy()
    feet[:, 2] = height
    return feet


def _lift(desc: RobotDescription) -> NDArray[np.float64]:
    """From rest to the default pose, feet straight below where they stand, shape (n, 18)."""
    low = _feet_at(desc, _resting_foot_height(desc))
    high = foot_positions(desc, desc.default_joint_pos)
    shares = _min_jerk(round(_RISE_S / _SAMPLE_S))
    return _clip(desc, leg_ik(desc, low + shares[:, None, None] * (high - low)))


def _move(
    desc: RobotDescription, start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Straight from one pose to the other in joint space, as slow as the slowest joint needs."""
    allowed = _SPEED_SHARE * np.asarray(desc.velocity_limit) / _MIN_JERK_PEAK
    steps = max(1, round(float((np.abs(end - start) / allowed).max()) / _SAMPLE_S))
    return start + _min_jerk(steps)[:, None] * (end - start)


def _min_jerk(steps: int) -> NDArray[np.float64]:
    """0 to 1 in `steps`, at rest at both ends, shape (steps + 1,)."""
    t = np.linspace(0.0, 1.0, steps + 1)
    return t**3 * (10.0 - 15.0 * t + 6.0 * t**2)


def _clip(desc: RobotDescription, joint_pos: NDArray[np.float64]) -> NDArray[np.float64]:
    """Within the limits that the safety gate keeps."""
    margin = desc.safety.position_margin_rad
    return np.clip(joint_pos, desc.joint_lower + margin, desc.joint_upper - margin)
