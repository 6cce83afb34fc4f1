"""The robot's own legs in the depth camera's image, by rays."""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco
import numpy as np

from krabby.mujoco.model import COLLISION_GROUP

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["legs_depth"]


def legs_depth(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    base_body: int,
    pos_w: NDArray[np.float64],
    optical_wc: NDArray[np.float64],
    right: NDArray[np.float32],
    down: NDArray[np.float32],
    range_m: float,
) -> NDArray[np.float32]:
    """Optical-axis distance to the robot's legs (rows, columns) [m], 0 where none is.

    Rays are cast only where a leg can be: the legs stand mostly beside the view. The body lies
    behind the camera.

    Args:
        model: Robot and course.
        data: Its state.
        base_body: The body that carries the camera.
        pos_w: Optical centre.
        optical_wc: Columns: image right, image down, optical axis.
        right: Tangents of the columns.
        down: Tangents of the rows.
        range_m: Farthest distance reported.
    """
    depth = np.zeros((len(down), len(right)), np.float32)
    mujoco.mj_kinematics(model, data)
    legs = (model.geom_group == COLLISION_GROUP) & (model.geom_bodyid != base_body)
    centers = (data.geom_xpos[legs] - pos_w) @ optical_wc
    rows, columns = np.nonzero(_may_show(centers, model.geom_rbound[legs], right, down))
    count = len(rows)
    if not count:
        return depth
    rays_w = np.column_stack([right[columns], down[rows], np.ones(count)]) @ optical_wc.T
    length = np.linalg.norm(rays_w, axis=1)
    rays_w /= length[:, None]
    distance = np.empty(count)
    groups = np.zeros(mujoco.mjNGROUP, np.uint8)
    groups[COLLISION_GROUP] = 1
    mujoco.mj_multiRay(
        model, data, pos_w, rays_w.ravel(), groups, 1, base_body,
        np.empty(count, np.int32), distance, None, count, range_m * float(length.max()),
    )  # fmt: skip
    depth[rows, columns] = np.where(distance >= 0.0, distance / length, 0.0)
    depth[depth > range_m] = 0.0
    return depth


def _may_show(
    centers_c: NDArray[np.float64],
    radii: NDArray[np.float64],
    right: NDArray[np.float32],
    down: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Pixels within the outlines of bounding spheres (rows, columns)."""
    found = np.zeros((len(down), len(right)), bool)
    for (x, y, z), radius in zip(centers_c, radii, strict=True):
        if z > -radius:
            found |= _cuts(down, y, z, radius)[:, None] & _cuts(right, x, z, radius)
    return found


def _cuts(
    tangents: NDArray[np.float32], aside: float, ahead: float, radius: float
) -> NDArray[np.bool_]:
    """Which planes through the optical centre, by their tangents, cut a sphere."""
    return np.abs(aside - tangents * ahead) <= radius * np.sqrt(1.0 + tangents * tangents)
