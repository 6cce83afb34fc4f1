"""At which height a robot stands clear of what is below it."""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco
import numpy as np

from krabby.mujoco.model import COLLISION_GROUP

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.course.courses import Course

__all__ = ["lift_clear"]

_CLEARANCE_M = 0.002
"""The robot is put down this far above the ground, so that it does not start inside it."""

_GRID = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 2, [-1.0]), axis=-1).reshape(-1, 3)
"""Underside of a box of half extents 1."""
_AXIS = np.linspace(-1, 1, 9)[:, None] * [0.0, 0.0, 1.0]
"""Axis of a capsule of half length 1."""


def lift_clear(model: mujoco.MjModel, data: mujoco.MjData, course: Course, base_z: float) -> float:
    """Height of the base at which the robot's parts are above what is below them.

    Beside a wall a rounded part may still reach into it, by less than its own radius.
    """
    points_w, radii = _support_points(model, data)
    ground = course.height_at(points_w[:, 0], points_w[:, 1])
    return float(base_z + (ground - points_w[:, 2] + radii).max()) + _CLEARANCE_M


def _support_points(
    model: mujoco.MjModel, data: mujoco.MjData
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sample of the robot's collision shapes: points (n, 3) [m] and the radius around each."""
    points: list[NDArray[np.float64]] = []
    radii: list[float] = []
    for geom in np.flatnonzero(model.geom_group == COLLISION_GROUP):
        size = model.geom_size[geom]
        kind = model.geom_type[geom]
        if kind == mujoco.mjtGeom.mjGEOM_BOX:
            local, radius = _GRID * size, 0.0
        elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
            local, radius = _AXIS * size[1], float(size[0])
        else:
            local, radius = np.zeros((1, 3)), float(model.geom_rbound[geom])
        points.append(data.geom_xpos[geom] + local @ data.geom_xmat[geom].reshape(3, 3).T)
        radii.extend([radius] * len(local))
    return np.concatenate(points), np.array(radii)
