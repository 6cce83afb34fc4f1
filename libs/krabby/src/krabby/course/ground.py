"""Height of the ground under a patch of points, fast because only the boxes near it are tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from krabby.course.boxes import BoxField
from krabby.course.lanes import PIT_DEPTH_M

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.course.boxes import Box
    from krabby.course.courses import Course

__all__ = ["Ground"]


class Ground:
    """`Course.height_at` for a patch of points, made fast by looking only at the boxes near it."""

    def __init__(self, course: Course) -> None:
        level = [box for box in course.boxes if box.quat == (0.0, 0.0, 0.0, 1.0)]
        tilted = [box for box in course.boxes if box.quat != (0.0, 0.0, 0.0, 1.0)]
        self._level = [(*_rectangle(box), box.center[2] + box.half_extents[2]) for box in level]
        self._tilted = [
            (*_rectangle(box), BoxField([box], void_height=-PIT_DEPTH_M)) for box in tilted
        ]

    def heights(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Height of the ground at the points, (P,) [m]."""
        x_min, x_max, y_min, y_max = x.min(), x.max(), y.min(), y.max()
        found = np.full(x.shape, -PIT_DEPTH_M)
        for x0, x1, y0, y1, top in self._level:
            if x0 > x_max or x1 < x_min or y0 > y_max or y1 < y_min:
                continue
            over = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
            np.maximum(found, top, out=found, where=over)
        for x0, x1, y0, y1, field in self._tilted:
            if x0 > x_max or x1 < x_min or y0 > y_max or y1 < y_min:
                continue
            over = np.flatnonzero((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1))
            if over.size:
                found[over] = np.maximum(found[over], field.height_at(x[over], y[over]))
        return found


def _rectangle(box: Box) -> tuple[float, float, float, float]:
    """Range of x, then of y, that a box covers, with the tolerance of `BoxField` [m]."""
    low = box.corners[:, :2].min(axis=0) - 1e-9
    high = box.corners[:, :2].max(axis=0) + 1e-9
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])
