"""What a backend returns: the counts, why robots fell, and poses for pictures."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from krabby_trainer.evaluation.metrics import Run

__all__ = ["Outcome", "Poses", "ProgressLine"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Poses:
    """How all robots stood, every `period_s`, T times."""

    period_s: float
    base_pos_w: NDArray[np.float32]
    """Course frame [m], (T, N, 3)."""
    base_quat_w: NDArray[np.float32]
    """Base to world, xyzw, (T, N, 4)."""
    joint_pos: NDArray[np.float32]
    """[rad], (T, N, 18)."""
    episode: NDArray[np.int64]
    """Which of the robot's episodes, from 0, (T, N)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """One evaluation in one backend."""

    run: Run
    wall_s: float
    falls: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Number of falls by obstacle type and reason, where the backend knows."""
    poses: Poses | None = None


class ProgressLine:
    """Progress on stderr: a line that is redrawn on a terminal, a line every tenth elsewhere."""

    def __init__(self, what: str, steps: int, step_s: float) -> None:
        self._what, self._steps, self._step_s = what, steps, step_s
        self._begin_s = self._next_s = time.monotonic()
        self._tenth = 0
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            sys.stderr.write("\n")

    def update(self, done: int, note: str) -> None:
        """`done` steps are done; `note` is a word about them."""
        now_s, tenth = time.monotonic(), 10 * done // self._steps
        if tenth == self._tenth and not (self._live and now_s >= self._next_s):
            return
        self._next_s, self._tenth = now_s + 0.5, tenth
        left_s = round((now_s - self._begin_s) / done * (self._steps - done))
        line = (
            f"{self._what}: {done * self._step_s:.1f} of {self._steps * self._step_s:g} s, {note}, "
            f"{left_s // 60}:{left_s % 60:02d} left"
        )
        sys.stderr.write(f"\r{line:<78}" if self._live else f"{line}\n")
        sys.stderr.flush()
