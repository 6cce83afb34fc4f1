"""Oriented boxes as ground: exact heights and exact edges, without a grid.

Everything a course is made of is a box, so heights are ray-box intersections and edges are line
segments. A height field would round both to its cell, and the feet-on-edge metric is about 5 cm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from krabby.robot.rotations import to_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["BOX_FACES", "Bounds", "Box", "BoxField", "distance_to_segments"]

EDGE_PROBE_M: Final = 0.03
"""How far outside a top edge the ground is probed for a drop [m]: one foot radius, so that a crack
which no foot can enter is no edge."""

_CORNER_SIGNS: Final = np.array(
    [[sx, sy, sz] for sz in (1, -1) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))], dtype=float
)
"""The eight corners: the first four go round the top face, the last four round the bottom."""

BOX_FACES: Final = np.array(
    [[0, 1, 2], [0, 2, 3], [4, 6, 5], [4, 7, 6]]
    + [
        triangle
        for i in range(4)
        for j in [(i + 1) % 4]
        for triangle in ([i, 4 + i, 4 + j], [i, 4 + j, j])
    ]
)
"""Twelve triangles over `Box.corners`, counter-clockwise seen from outside; shape (12, 3)."""

_BOX_EDGES: Final = np.array(
    [[i, (i + 1) % 4] for i in range(4)]
    + [[4 + i, 4 + (i + 1) % 4] for i in range(4)]
    + [[i, 4 + i] for i in range(4)]
)

_TOP_EDGE_NORMALS: Final = np.array([[0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]], dtype=float)
"""Outward side normal, box frame, of the top edge that starts at corner i."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Axis-aligned rectangle on the ground plane [m], course frame."""

    x_min: float
    x_max: float
    y_min: float
    y_max: float

    def contains(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the points (..., 2) lie strictly inside."""
        x, y = xy[..., 0], xy[..., 1]
        return (x > self.x_min) & (x < self.x_max) & (y > self.y_min) & (y < self.y_max)


@dataclass(frozen=True, kw_only=True)
class Box:
    """One oriented box, course frame (x along the course, y left, z up) [m]."""

    center: tuple[float, float, float]
    half_extents: tuple[float, float, float]
    quat: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    """Box to course frame, (x, y, z, w)."""
    kind: str

    @cached_property
    def rotation(self) -> NDArray[np.float64]:
        """Box to course frame, shape (3, 3)."""
        return to_matrix(self.quat)

    @cached_property
    def corners(self) -> NDArray[np.float64]:
        """The corners, top face first and counter-clockwise seen from above; shape (8, 3)."""
        local = _CORNER_SIGNS * np.asarray(self.half_extents)
        return np.asarray(self.center) + local @ self.rotation.T


class BoxField:
    """The upper surface of a set of boxes over the plane."""

    def __init__(self, boxes: Sequence[Box], *, void_height: float) -> None:
        """`void_height` is what `height_at` says where there is no box [m]."""
        self.boxes = tuple(boxes)
        self.void_height = void_height
        self._centers = np.array([box.center for box in boxes])
        self._half = np.array([box.half_extents for box in boxes])
        rotations = np.array([box.rotation for box in boxes])
        self._to_box_xy = np.ascontiguousarray(rotations.transpose(0, 2, 1)[:, :, :2])
        """Rows take a horizontal offset (2,) to box coordinates; shape (B, 3, 2)."""
        up = rotations[:, 2, :]
        # A vertical ray never leaves the slab of an axis it is parallel to: infinite slope there.
        with np.errstate(divide="ignore"):
            self._per_up = np.where(np.abs(up) > 1e-12, 1.0 / up, np.inf)
        self._parallel = np.abs(up) <= 1e-12

    def heights(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Top of every box over each point: shape (..., B) [m], -inf where the box is elsewhere."""
        offset = np.stack(np.broadcast_arrays(x, y), axis=-1)[..., None, :] - self._centers[:, :2]
        local = (self._to_box_xy @ offset[..., None])[..., 0]
        outside = np.any(self._parallel & (np.abs(local) > self._half + 1e-9), axis=-1)
        with np.errstate(invalid="ignore"):
            reach = np.where(self._parallel, np.inf, self._half * np.abs(self._per_up))
            middle = np.where(self._parallel, 0.0, -local * self._per_up)
        leave = np.min(middle + reach, axis=-1)
        enter = np.max(middle - reach, axis=-1)
        missed = outside | (enter > leave + 1e-9)
        return np.where(missed, -np.inf, self._centers[:, 2] + leave)

    def height_at(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Height of the highest surface over each point [m], in the shape of x and y broadcast."""
        return np.maximum(self.heights(x, y).max(axis=-1), self.void_height)

    def exposed_edges(self, *, min_drop_m: float, bounds: Bounds) -> NDArray[np.float64]:
        """Top edges beside which the ground falls by more than min_drop_m; shape (M, 2, 3).

        Exact: each edge is cut where the surface below or above it changes piece, not sampled.
        Edges on the border of `bounds` are left out, since what lies beyond is not known.
        """
        found = [
            piece
            for box in self.boxes
            for side in range(4)
            for piece in self._exposed_pieces(box, side, min_drop_m, bounds)
        ]
        return np.array(found).reshape(-1, 2, 3)

    def _exposed_pieces(
        self, box: Box, side: int, min_drop_m: float, bounds: Bounds
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        start, stop = box.corners[side], box.corners[(side + 1) % 4]
        outward = (box.rotation @ _TOP_EDGE_NORMALS[side])[:2]
        outward = outward / np.linalg.norm(outward)
        lines = np.stack([start[:2] - 1e-6 * outward, start[:2] + EDGE_PROBE_M * outward])
        along = stop - start
        cuts = self._cuts(lines, along[:2])
        cuts = self._with_crossings(cuts, lines, start, along, min_drop_m)

        middle = (cuts[1:] + cuts[:-1]) / 2
        z = start[2] + middle * along[2]
        inside, probe = (line + middle[:, None] * along[:2] for line in lines)
        bare = self.height_at(inside[:, 0], inside[:, 1]) <= z + 1e-4
        drops = z - self.height_at(probe[:, 0], probe[:, 1]) > min_drop_m
        keep = bare & drops & bounds.contains(probe) & (np.diff(cuts) > 1e-3)

        pieces: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        previous = -2
        for i in np.flatnonzero(keep):
            end = start + cuts[i + 1] * along
            pieces.append((pieces.pop()[0] if i == previous + 1 else start + cuts[i] * along, end))
            previous = i
        return pieces

    def _cuts(self, lines: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.float64]:
        """Parameters in [0, 1] at which one of the lines passes over an edge of any box, sorted."""
        ends = np.concatenate([box.corners[_BOX_EDGES][:, :, :2] for box in self.boxes])
        base, other = ends[:, 0], ends[:, 1] - ends[:, 0]
        cross = along[0] * other[:, 1] - along[1] * other[:, 0]
        crossing = np.abs(cross) > 1e-12
        base, other, cross = base[crossing], other[crossing], cross[crossing]
        found = [np.array([0.0, 1.0])]
        for line in lines:
            offset = base - line
            t = (offset[:, 0] * other[:, 1] - offset[:, 1] * other[:, 0]) / cross
            u = (offset[:, 0] * along[1] - offset[:, 1] * along[0]) / cross
            found.append(t[(t > 0) & (t < 1) & (u > -1e-9) & (u < 1 + 1e-9)])
        return np.unique(np.concatenate(found).round(9))

    def _with_crossings(
        self,
        cuts: NDArray[np.float64],
        lines: NDArray[np.float64],
        start: NDArray[np.float64],
        along: NDArray[np.float64],
        min_drop_m: float,
    ) -> NDArray[np.float64]:
        """Adds the parameters at which the edge passes through a surface, or `min_drop_m` above it.

        Between two cuts each box top is a straight line over the edge, so a crossing is its root.
        """
        near, far = cuts[:-1] + 1e-7, cuts[1:] - 1e-7
        found = [cuts]
        for line, clearance in ((lines[0], 0.0), (lines[1], min_drop_m)):
            gaps = []
            for t in (near, far):
                xy = line + t[:, None] * along[:2]
                z = start[2] + t * along[2] - clearance
                gaps.append(z[:, None] - self.heights(xy[:, 0], xy[:, 1]))
            with np.errstate(invalid="ignore", divide="ignore"):
                changes = np.isfinite(gaps[0]) & np.isfinite(gaps[1]) & (gaps[0] * gaps[1] < 0)
                share = gaps[0] / (gaps[0] - gaps[1])
                t = near[:, None] + share * (far - near)[:, None]
            found.append(t[changes])
        return np.unique(np.concatenate(found).round(9))


def distance_to_segments(
    points: NDArray[np.float64], segments: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance [m] of points (..., 3) to the nearest of the segments (M, 2, 3); inf if M is 0."""
    if len(segments) == 0:
        return np.full(points.shape[:-1], np.inf)
    start, along = segments[:, 0], segments[:, 1] - segments[:, 0]
    offset = points[..., None, :] - start
    t = np.einsum("...mi,mi->...m", offset, along) / np.einsum("mi,mi->m", along, along)
    off = offset - np.clip(t, 0.0, 1.0)[..., None] * along
    return np.sqrt(np.einsum("...mi,...mi->...m", off, off).min(axis=-1))
