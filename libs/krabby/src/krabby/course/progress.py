"""How far the robot has come along the course, and whether it has fallen.

Both are pure: positions and times in, facts out. They know the truth of the simulation, so they
serve the mission, the evaluation and the reset, never the game loop.

The times and distances of the rules are the constants below. `on_leg` and `reached` use operators
alone, so that single numbers, NumPy arrays and torch tensors go through the same lines.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DWELL_S",
    "GROUNDED_S",
    "LEANING_S",
    "PASS_WIDTH_M",
    "REACH_M",
    "RESPAWN_S",
    "STUCK_S",
    "CourseProgress",
    "FallCfg",
    "FallMonitor",
    "FallReason",
    "Pose2",
    "on_leg",
    "reached",
]

Vector = NDArray[np.float64]

REACH_M = 0.2
"""A waypoint counts once the base has been this near to it [m] ..."""
DWELL_S = 0.1
"""... for this long [s]; the published rule."""
PASS_WIDTH_M = 0.5
"""A waypoint walked past counts at once, this close beside and behind it [m]."""
GROUNDED_S = 0.5
"""A body that lies on the ground for this long, while the targets ask it to stand, has fallen."""
LEANING_S = 0.5
"""A body that touches the course for this long leans or hangs on it."""
STUCK_S = 5.0
"""A robot that makes no progress for this long, while it is asked to move, is stuck."""
RESPAWN_S = 2.0
"""A robot that fell lies there for this long before it is put back."""


def on_leg(dx: Any, dy: Any, leg_x: Any, leg_y: Any) -> tuple[Any, Any]:
    """Components of an offset (dx, dy) along a leg of the way and to its left.

    `leg_x`, `leg_y` is the leg's unit vector.
    """
    return dx * leg_x + dy * leg_y, leg_x * dy - leg_y * dx


def reached(to_go_m: Any, aside_m: Any, near_s: Any, *, pass_width_m: float = PASS_WIDTH_M) -> Any:
    """Whether a waypoint counts now.

    Args:
        to_go_m: distance to it along its leg, negative beyond it.
        aside_m: distance from the leg's line.
        near_s: time since the base came within reach of it; negative while it is not.
        pass_width_m: 0 for the published rule, which does not count waypoints that are passed.
    """
    dwelt = near_s >= DWELL_S - 1e-6
    beside = (to_go_m <= 0.0) & (to_go_m >= -pass_width_m) & (abs(aside_m) <= pass_width_m)
    return dwelt | (beside & (pass_width_m > 0.0))


@dataclass(frozen=True, slots=True)
class Pose2:
    """A place to stand: position [m] and heading [rad] in the world."""

    x: float
    y: float
    yaw: float


class CourseProgress:
    """Waypoints reached and metres walked.

    The way is the line from the spawn through the waypoints. `distance_m` is how far along it the
    robot has come, the furthest since it was last put down; what it had walked before a reset stays
    in the sum, the reset itself adds nothing.
    """

    def __init__(self, spawn: Pose2, waypoints: Vector, *, reach_m: float = REACH_M) -> None:
        self._spawn = spawn
        self._points = np.vstack([[spawn.x, spawn.y], waypoints[:, :2]])
        legs = np.diff(self._points, axis=0)
        self._lengths = np.maximum(np.linalg.norm(legs, axis=1), 1e-9)
        self._directions = legs / self._lengths[:, None]
        self._starts = np.concatenate([[0.0], np.cumsum(self._lengths)[:-1]])
        self._reach_m = reach_m
        self._near_since_ns: int | None = None
        self._walked_before = 0.0
        self._origin = 0.0
        self._best = 0.0
        self.index = 0
        """Waypoints reached so far; also the index of the next one."""
        self.furthest_m = 0.0
        """How far along the course the robot has ever been."""

    @property
    def count(self) -> int:
        """Waypoints of the course."""
        return len(self._lengths)

    @property
    def length_m(self) -> float:
        """From the spawn through all waypoints [m]."""
        return float(self._lengths.sum())

    @property
    def completed(self) -> bool:
        """Whether the last waypoint has been reached."""
        return self.index >= self.count

    @property
    def distance_m(self) -> float:
        """Metres walked forward along the course, over all resets."""
        return float(self._walked_before + self._best - self._origin)

    @property
    def target_xy(self) -> Vector | None:
        """The next waypoint (2,), None when there is none left."""
        return None if self.completed else self._points[self.index + 1]

    def update(self, pos_xy: Vector, now_ns: int) -> bool:
        """Take in where the base is; says whether a waypoint was reached just now."""
        along, aside, to_go = self._on_leg(pos_xy)
        self._best = max(self._best, float(self._starts[self._leg]) + along)
        self.furthest_m = max(self.furthest_m, self._best)
        if self.completed:
            return False
        if math.hypot(to_go, aside) > self._reach_m:
            self._near_since_ns = None
        elif self._near_since_ns is None:
            self._near_since_ns = now_ns
        near_s = -1.0 if self._near_since_ns is None else (now_ns - self._near_since_ns) / 1e9
        if not reached(to_go, aside, near_s):
            return False
        self.index += 1
        self._near_since_ns = None
        return True

    def restart_pose(self) -> Pose2:
        """Where to put a robot that fell: the last waypoint reached, facing the next."""
        if self.index == 0:
            return self._spawn
        x, y = self._points[self.index]
        dx, dy = self._directions[self._leg]
        return Pose2(float(x), float(y), math.atan2(dy, dx))

    def restart(self) -> None:
        """The robot was put down at `restart_pose`; counting continues from there."""
        self._walked_before = self.distance_m
        reached = self._starts[self.index] if not self.completed else self._starts[-1]
        self._origin = self._best = float(reached)
        self._near_since_ns = None

    def start_over(self) -> None:
        """The next `restart_pose` is the start of the course; metres go on counting."""
        self._walked_before = self.distance_m
        self._origin = self._best = 0.0
        self.index = 0
        self._near_since_ns = None

    @property
    def _leg(self) -> int:
        """The stretch being walked; the last one stays when the course is completed."""
        return min(self.index, self.count - 1)

    def _on_leg(self, pos_xy: Vector) -> tuple[float, float, float]:
        """Metres along the present leg (clipped to it), to its side, and to go to its end."""
        offset = (pos_xy - self._points[self._leg]).tolist()
        along, aside = on_leg(*offset, *self._directions[self._leg].tolist())
        length = float(self._lengths[self._leg])
        return min(max(along, 0.0), length), aside, length - along


class FallReason(StrEnum):
    """Why the robot counts as fallen."""

    TILT = "tilt"
    GROUNDED = "base on the ground"
    PIT = "in a pit"


@dataclass(frozen=True, kw_only=True)
class FallCfg:
    """What counts as a fall."""

    tilt_rad: float
    grounded_s: float = GROUNDED_S
    stance_m: float = 0.2
    """Only while the targets ask for legs longer than this: sitting is not falling."""


class FallMonitor:
    """Decides from the truth of the simulation whether the robot has fallen."""

    def __init__(self, cfg: FallCfg) -> None:
        self._cfg = cfg
        self._grounded_since_ns: int | None = None

    def reset(self) -> None:
        """The robot was put back on its feet."""
        self._grounded_since_ns = None

    def update(
        self, now_ns: int, *, tilt_rad: float, in_pit: bool, base_contact: bool, stance_m: float
    ) -> FallReason | None:
        """Judge one sample.

        Args:
            now_ns: Simulated or real time.
            tilt_rad: Angle between the base's z axis and the vertical.
            in_pit: Whether the base is below every surface there is to walk on.
            base_contact: Whether the body touches the course.
            stance_m: How far below the base the targets in force would put the feet; 0 or less
                when the robot is limp.
        """
        if tilt_rad > self._cfg.tilt_rad:
            return FallReason.TILT
        if in_pit:
            return FallReason.PIT
        if not (base_contact and stance_m > self._cfg.stance_m):
            self._grounded_since_ns = None
            return None
        if self._grounded_since_ns is None:
            self._grounded_since_ns = now_ns
        if now_ns - self._grounded_since_ns >= self._cfg.grounded_s * 1e9:
            return FallReason.GROUNDED
        return None
