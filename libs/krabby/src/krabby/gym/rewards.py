"""Reward of a control step: a few terms for one robot, in the trainer's names and units.

The trainer's own table has thirty (`krabby_trainer.task.rewards`); a learner with other ideas wraps
the environment and takes `info["reward_terms"]` apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from krabby.course.timing import CONTROL_S

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WEIGHTS", "Step", "reward_terms"]

WEIGHTS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "goal_velocity": 1.5 * CONTROL_S,
        "goal_heading": 0.5 * CONTROL_S,
        "torque": -1e-5 * CONTROL_S,
        "action_rate": -0.02 * CONTROL_S,
        "waypoint": 1.0,
        "failed": -2.0,
    }
)
"""Weight of each term; those of terms that last are per second, as the trainer's."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a control step came to."""

    velocity_xy_w: NDArray[np.float64]
    """Of the base [m/s], shape (2,)."""
    yaw: float
    """Of the base [rad]."""
    to_goal_w: NDArray[np.float64] | None
    """From the base to the next waypoint [m], shape (2,); None when none is left."""
    speed: float
    """Commanded [m/s]."""
    torque: NDArray[np.float64]
    """Mean of the step [N·m], shape (18,)."""
    action_change: NDArray[np.floating]
    """Action minus the action before, shape (18,)."""
    waypoints: int
    """Reached in this step."""
    failed: bool
    """Whether the robot fell, or its gate gave up on it."""


def reward_terms(step: Step) -> dict[str, float]:
    """Every term of the step, weighted; their sum is the reward."""
    values = {
        "goal_velocity": 0.0,
        "goal_heading": 0.0,
        "torque": float(step.torque @ step.torque),
        "action_rate": float(step.action_change @ step.action_change),
        "waypoint": float(step.waypoints),
        "failed": float(step.failed),
    }
    if step.to_goal_w is not None and not step.failed:
        distance = max(float(np.hypot(*step.to_goal_w)), 1e-6)
        along = float(step.velocity_xy_w @ step.to_goal_w) / distance
        values["goal_velocity"] = min(along, step.speed) / max(step.speed, 0.1)
        bearing = math.atan2(step.to_goal_w[1], step.to_goal_w[0])
        values["goal_heading"] = math.cos(bearing - step.yaw)
    return {name: WEIGHTS[name] * value for name, value in values.items()}
