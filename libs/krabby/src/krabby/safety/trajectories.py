"""Standing up and sitting down, as joint trajectories that depend on time alone.

Between the two poses, belly on the ground and spider stance, the feet stay where they are: lying,
the robot folds its legs until its feet touch the ground at their standing places; then all six
push at once and the body rises straight up. Sitting down is the same, backwards. From rest no drive
gives more than 32 N·m, less than its rating.

Any measured pose will do as a start, with one exception: legs that lie across one another block
each other, and nothing here untangles them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions, leg_ik

__all__ = ["JointTrajectory", "min_jerk", "rest_joint_pos", "sit_down", "stand_up"]

_SAMPLE_S = 0.01
_SPEED_SHARE = 0.15
"""Share of the target rate limit that a trajectory uses at most: unhurried, and never clamped."""
_MOVE_S = 0.3
"""Time for even the smallest movement [s]: quick ones would be jerks."""
_RISE_S = 1.2
"""Time to lift the body [s]; its joints move half as fast as the rest may."""
HALT_S = 0.3
"""In which a robot that walks is brought to a stand [s] ..."""
_SETTLE_S = 0.3
"""... and for how long it stands then before it is lowered [s]."""
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

    A robot on its feet goes there directly; one that lies folds its legs first.
    """
    start = np.asarray(start, dtype=np.float64)
    if _on_its_feet(desc, start):
        return JointTrajectory(_move(desc, start, desc.default_joint_pos))
    fold = _move(desc, start, rest_joint_pos(desc))
    return JointTrajectory(np.concatenate([fold, _lift(desc)[1:]]))


def sit_down(desc: RobotDescription, start: ArrayLike, *, walking: bool = False) -> JointTrajectory:
    """From `start` [rad], shape (18,), to `rest_joint_pos`.

    A robot that is `walking` has to get its feet under itself before it does anything else. Of 64
    that walked at 0.8 m/s, half of them on obstacles of difficulty 0.5, in MuJoCo, none fell when
    all joints went to the default pose within 0.3 s, 17 when they went unhurried, and 37 when the
    last targets were held.
    """
    start = np.asarray(start, dtype=np.float64)
    if walking:
        halt = _between(start, desc.default_joint_pos, HALT_S)
        stand = np.tile(desc.default_joint_pos, (round(_SETTLE_S / _SAMPLE_S), 1))
        return JointTrajectory(np.concatenate([halt, stand, _lift(desc)[::-1][1:]]))
    if not _on_its_feet(desc, start):
        return JointTrajectory(_move(desc, start, rest_joint_pos(desc)))
    gather = _move(desc, start, desc.default_joint_pos)
    return JointTrajectory(np.concatenate([gather, _lift(desc)[::-1][1:]]))


def _on_its_feet(desc: RobotDescription, joint_pos: NDArray[np.float64]) -> bool:
    """Whether the feet are nearer to where they are standing than to where they are lying."""
    standing = foot_positions(desc, desc.default_joint_pos)[:, 2].mean()
    mean = foot_positions(desc, joint_pos)[:, 2].mean()
    return bool(mean < 0.5 * (standing + _resting_foot_height(desc)))


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
    shares = _steps(round(_RISE_S / _SAMPLE_S))
    points = _clip(desc, leg_ik(desc, low + shares[:, None, None] * (high - low)))
    points[-1] = desc.default_joint_pos  # not a rounding beside it
    return points


def _move(
    desc: RobotDescription, start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Straight from one pose to the other in joint space, all joints arriving together."""
    mean_speed = _SPEED_SHARE * desc.velocity_limit / _MIN_JERK_PEAK
    return _between(start, end, max(_MOVE_S, float((np.abs(end - start) / mean_speed).max())))


def _between(
    start: NDArray[np.float64], end: NDArray[np.float64], duration_s: float
) -> NDArray[np.float64]:
    return start + _steps(math.ceil(duration_s / _SAMPLE_S))[:, None] * (end - start)


def min_jerk(share: Any) -> Any:
    """How far along a minimum-jerk move is, 0 to 1, at these shares of its time, 0 to 1.

    Neither speed nor acceleration at the ends. Arrays, tensors and the symbols of a graph, of any
    shape; the result has the same.
    """
    return share * share * share * (10.0 + share * (6.0 * share - 15.0))


def _steps(count: int) -> NDArray[np.float64]:
    """A minimum-jerk move in `count` steps, shape (count + 1,)."""
    steps: NDArray[np.float64] = min_jerk(np.linspace(0.0, 1.0, count + 1))
    return steps


def _clip(desc: RobotDescription, joint_pos: NDArray[np.float64]) -> NDArray[np.float64]:
    """Within the limits that the safety gate keeps."""
    margin = desc.safety.position_margin_rad
    return np.clip(joint_pos, desc.joint_lower + margin, desc.joint_upper - margin)
