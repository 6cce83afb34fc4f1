"""What is evaluated: the suites as data, and how large their obstacles are.

A suite becomes an `EnvCfg`, and its terrain the courses, so Isaac Lab and MuJoCo walk the same ones
with the same seeds. Layouts come from seeds that training never uses.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from krabby_trainer.errors import EvaluationError
from krabby_trainer.evaluation.metrics import Robots

if TYPE_CHECKING:
    from krabby.course.boxes import Box
    from krabby.course.courses import Course
    from numpy.typing import NDArray

    from krabby_trainer.task.config import EnvCfg
    from krabby_trainer.task.terrain import Terrain

__all__ = [
    "SUITES",
    "TYPES",
    "ObstacleSize",
    "Suite",
    "assign",
    "find_suite",
    "obedient_score",
    "obstacle_size",
    "published_tilt_deg",
    "tiles",
]

TYPES: Final = ("steps", "gap", "hurdle", "ramps")
"""Obstacle types of the paper's table, by their names here."""

_SEED_BASE: Final = 1_000_000_000
"""First seed of evaluation courses; training starts from its run's seed, a small number."""
_SEEDS_PER_RUN: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Robots, courses and time."""

    name: str
    summary: str
    difficulty_low: float
    difficulty_high: float
    levels: int = 0
    """Difficulties, evenly spaced from low to high; 0 draws one for every robot instead."""
    robots: int = 256
    seconds: float = 30.0
    episode_s: float = 20.0
    speed: tuple[float, float] = (0.3, 0.8)
    """Asked for [m/s]: drawn once per episode and held."""
    push_interval_s: float = 6.0

    @property
    def difficulties(self) -> tuple[float, ...]:
        """Fixed difficulties; empty when they are drawn."""
        if not self.levels:
            return ()
        spread = np.linspace(self.difficulty_low, self.difficulty_high, self.levels)
        return tuple(spread.round(6).tolist())

    def env_cfg(self, *, robots: int, seed: int) -> EnvCfg:
        """The environment of this suite, with a different course for each robot.

        `robots` is rounded down to a whole number for each type and difficulty.
        """
        from krabby_trainer.task.config import evaluation_env

        groups = len(TYPES) * max(self.levels, 1)
        each = robots // groups
        if each < 1:
            raise EvaluationError(
                f"{robots} robots are too few for suite {self.name!r} with its {groups} groups; "
                f"give robots={groups} or more"
            )
        if not 0 <= seed < _SEEDS_PER_RUN:
            raise EvaluationError(f"seed {seed} is outside 0 to {_SEEDS_PER_RUN - 1}")
        cfg = evaluation_env(types=list(TYPES))
        # Drawn difficulties come as a grid of tiles too, as square as the number allows.
        levels = self.levels or _largest_divisor(each, at_most=math.isqrt(each))
        cfg.num_envs = each * groups
        cfg.terrain.levels = levels
        cfg.terrain.columns = cfg.num_envs // levels
        cfg.terrain.difficulty_low = self.difficulty_low
        cfg.terrain.difficulty_high = self.difficulty_high
        cfg.terrain.random_difficulty = not self.levels
        cfg.terrain.seed = _SEED_BASE + seed * _SEEDS_PER_RUN
        cfg.episode_s = self.episode_s
        cfg.command.speed_low, cfg.command.speed_high = self.speed
        cfg.randomisation.push_interval_s = [self.push_interval_s, self.push_interval_s]
        return cfg


SUITES: Final[Mapping[str, Suite]] = MappingProxyType(
    {
        suite.name: suite
        for suite in (
            # 20 s are too short for a slow robot to finish a long course; the other suites ask what
            # it can do, so the clock leaves room for 15 m at the lowest speed asked for.
            Suite(
                name="paper",
                summary="the published protocol: difficulties drawn from 0 to 1",
                difficulty_low=0.0,
                difficulty_high=1.0,
            ),
            Suite(
                name="fixed",
                summary="every obstacle at difficulties 0.25, 0.5, 0.75 and 1",
                difficulty_low=0.25,
                difficulty_high=1.0,
                levels=4,
                seconds=50.0,
                episode_s=50.0,
            ),
            Suite(
                name="open",
                summary="beyond the published sizes, difficulties 1 to 2.5, until it fails",
                difficulty_low=1.0,
                difficulty_high=2.5,
                levels=7,
                robots=252,
                seconds=50.0,
                episode_s=50.0,
                speed=(0.8, 0.8),
            ),
            Suite(
                name="smoke",
                summary="a few robots for two seconds: does everything work",
                difficulty_low=0.0,
                difficulty_high=1.0,
                robots=8,
                seconds=2.0,
                episode_s=1.5,
                push_interval_s=1.0,
            ),
        )
    }
)


def find_suite(name: str) -> Suite:
    """The suite of that name."""
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise EvaluationError(f"no suite is called {name!r}; {hint}choose from {', '.join(SUITES)}")
    return SUITES[name]


def tiles(terrain: Terrain, robots: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Level and column of each robot: how the training environment deals out tiles."""
    column = np.arange(robots) * terrain.columns // robots % terrain.columns
    return np.arange(robots) % terrain.levels, column


def assign(terrain: Terrain, robots: int) -> tuple[Robots, list[Course]]:
    """Type, difficulty and course of each robot."""
    level, column = tiles(terrain, robots)
    courses = [terrain.courses[i][j] for i, j in zip(level, column, strict=True)]
    who = Robots(
        type=np.array([course.name for course in courses]),
        difficulty=np.array([course.difficulty for course in courses]),
        course_seed=np.array([course.seed for course in courses]),
    )
    return who, courses


@dataclass(frozen=True, kw_only=True)
class ObstacleSize:
    """How large the obstacles of some courses are: smallest and largest, as they were built."""

    what: str
    unit: str
    low: float
    high: float

    def __str__(self) -> str:
        digits = 1 if self.unit == "deg" else 2
        low, high = f"{self.low:.{digits}f}", f"{self.high:.{digits}f}"
        return f"{low} {self.unit}" if low == high else f"{low} to {high} {self.unit}"


def obstacle_size(*courses: Course) -> ObstacleSize:
    """Of courses of one type: width of gaps, height of risers and hurdles, slope of stones."""
    what, unit, sizes = _SIZES[courses[0].name]
    found = np.concatenate([sizes(course) for course in courses])
    return ObstacleSize(what=what, unit=unit, low=float(found.min()), high=float(found.max()))


def published_tilt_deg(difficulty: float) -> float:
    """Cross-slope of the published suite's stones [deg].

    Theirs are 1 m wide and 0.25 d higher or lower at either edge. Ours keep those heights on stones
    of 3.2 m, which a robot that is 2.3 m wide can stand on, so they are less steep.
    """
    return math.degrees(math.atan(0.5 * difficulty))


def obedient_score(
    course: Course, speed: tuple[float, float], episode_s: float
) -> tuple[float, float]:
    """MXD and success of a robot that walks from goal to goal exactly as fast as it is told.

    The clock ends an episode, so that a slow command reaches less than a whole course; a higher
    score means walking faster than commanded. Means over speeds drawn from `speed`.
    """
    points = np.vstack([course.spawn[:2], course.waypoints[:, :2]])
    needed = np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)) / episode_s
    low, high = speed
    if high > low:
        reached = np.clip((high - needed) / (high - low), 0.0, 1.0)
    else:
        reached = (needed <= low).astype(float)
    return float(reached[:-1].mean()), float(reached[-1])  # MXD is full at the goal before the last


def _gap_widths(course: Course) -> NDArray[np.float64]:
    """Between landings, and from the last of them to the ground."""
    spans = [_span(box) for box in course.boxes if box.kind == "landing"]
    beyond = max(_span(box)[0] for box in course.boxes if box.kind == "ground")
    spans = sorted([*spans, (beyond, math.inf)])
    return np.array([ahead[0] - behind[1] for behind, ahead in pairwise(spans)])


def _risers(course: Course) -> NDArray[np.float64]:
    return np.diff([0.0, *sorted({round(top, 6) for top in _tops(course, "step")})])


def _tilts(course: Course) -> NDArray[np.float64]:
    sines = [abs(box.quat[0]) for box in course.boxes if box.kind == "stone"]
    return np.degrees(2.0 * np.arcsin(sines))


def _span(box: Box) -> tuple[float, float]:
    return box.center[0] - box.half_extents[0], box.center[0] + box.half_extents[0]


def _tops(course: Course, kind: str) -> list[float]:
    return [box.center[2] + box.half_extents[2] for box in course.boxes if box.kind == kind]


_SIZES: Final[Mapping[str, tuple[str, str, Callable[[Course], NDArray[np.float64]]]]] = (
    MappingProxyType(
        {
            "gap": ("gap", "m", _gap_widths),
            "steps": ("riser", "m", _risers),
            "hurdle": ("hurdle", "m", lambda course: np.array(_tops(course, "hurdle"))),
            "ramps": ("cross-slope", "deg", _tilts),
        }
    )
)


def _largest_divisor(number: int, *, at_most: int) -> int:
    return next(d for d in range(max(at_most, 1), 0, -1) if number % d == 0)
