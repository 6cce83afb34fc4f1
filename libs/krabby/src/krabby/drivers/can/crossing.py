"""Finds two joints that follow each other's commands: plugs, ids or feedback ids are exchanged.

Every joint's distance from every joint's target is averaged. A pair is crossed when both are far
from their own targets and both are close to the other's; a leg that is held fast is far from its
target as well, but no other joint takes its place.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["CrossingWatch"]

_TIME_CYCLES: Final = 50
"""Cycles over which distances are averaged."""
_EVERY: Final = 2
"""Cycles between two looks."""
_FAR_RAD: Final = 0.15
_CLOSE_RAD: Final = 0.06


class CrossingWatch:
    """Compares angles with targets, in joint order."""

    def __init__(self, count: int) -> None:
        """Nothing was compared."""
        self._square = np.zeros((count, count))
        """Average of (angle of row - target of column)^2."""
        self._cycle = 0
        self._looks = 0
        self.pairs: tuple[tuple[int, int], ...] = ()
        """Joints that follow each other's commands, the smaller first."""

    def reset(self) -> None:
        """Compare anew."""
        self._looks = self._cycle = 0
        self._square[:] = 0.0
        self.pairs = ()

    def update(
        self,
        joint_pos: NDArray[np.float64],
        target: NDArray[np.float64],
        holding: NDArray[np.bool_],
    ) -> None:
        """Compare [rad]; where some joint holds no position the comparison begins anew."""
        self._cycle += 1
        if self._cycle % _EVERY:
            return
        if not holding.all():
            self._looks = 0
            self.pairs = ()
            return
        distance = joint_pos[:, None] - target
        distance *= distance
        self._looks += 1
        share = max(1.0 / self._looks, _EVERY / _TIME_CYCLES)
        distance -= self._square
        distance *= share
        self._square += distance
        own = self._square.diagonal()
        if self._looks * _EVERY < _TIME_CYCLES or own.max() < _FAR_RAD**2:
            self.pairs = ()
            return
        far = np.flatnonzero(own > _FAR_RAD**2)
        close = self._square < _CLOSE_RAD**2
        self.pairs = tuple(
            (int(a), int(b)) for a in far for b in far if a < b and close[a, b] and close[b, a]
        )
