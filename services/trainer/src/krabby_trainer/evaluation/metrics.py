"""The parkour metrics: what is counted, over which steps and episodes.

`MXD` and `MEV` are those of Extreme Parkour (Cheng et al., arXiv 2309.14341) as its published code
counts them, without that code's traps:

* MXD of an episode is the index of the goal it was heading for when it ended, over 7, at most 1:
  with 8 goals, 1 means seven reached and the eighth in sight. A robot that never gets beyond the
  goal on the start platform scores 1/7, one that falls before that goal 0.
* MEV is the number of feet that stand on an edge, per robot and step: 0 to 6 here, 0 to 4 there.
* The published code keeps only the last 1000 episodes and, with 256 robots, the last four steps.
  Here every step and every episode counts.
* It drops the episodes that the end of the run cuts off. `mxd` does the same, for comparison;
  `mxd_all` counts them too. Both weigh a robot that falls often by the number of its falls;
  `mxd_first` and `success_first` take the first episode of each robot, so each counts once.

Spreads are standard deviations as the published code prints them, over episodes for MXD and over
robot-steps for MEV. Intervals (`estimates`) are those of `krabby.benchmark.intervals`, over robots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from krabby.benchmark import intervals
from krabby.benchmark.outcome import Outcome

from krabby_trainer.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Episodes = NDArray[np.void]

__all__ = [
    "GOALS",
    "OUTCOMES",
    "PAPER_WEIGHTS",
    "EpisodeRecorder",
    "Robots",
    "Run",
    "StepFacts",
    "combine",
    "mxd_of",
    "summarise",
]

GOALS: Final = 8
"""Goals of a course, as in the paper."""

OUTCOMES: Final = (Outcome.SUCCESS, Outcome.FELL, Outcome.TIMED_OUT, "cut_off")
"""How episodes end; the last is the end of the run, not of the episode."""
_COMPLETED, _FELL, _TIMED_OUT, _CUT_OFF = range(4)

PAPER_WEIGHTS: Final[Mapping[str, float]] = {"ramps": 2.0, "steps": 1.0, "gap": 1.0, "hurdle": 1.0}
"""The paper's grid gives the ramps two of its five columns, so its totals count them twice."""

_EPISODE: Final = np.dtype(
    [
        ("robot", np.int64),
        ("number", np.int64),  # which of the robot's episodes, from 0
        ("outcome", np.int64),  # index into OUTCOMES
        ("goals", np.int64),  # reached
        ("steps", np.int64),
        ("distance_m", np.float64),
    ]
)


@dataclass(kw_only=True)
class StepFacts:
    """What was true of N robots after one control step, before any of them was put back."""

    goal_index: NDArray[np.integer]
    """Goals reached in this episode, (N,)."""
    foot_contact: NDArray[np.bool_]
    """Feet that carry load, (N, 6)."""
    feet_on_edge: NDArray[np.bool_]
    """Feet near an edge, (N, 6); only those in contact are counted."""
    terminated: NDArray[np.bool_]
    """The episode ended in a fall, (N,)."""
    timed_out: NDArray[np.bool_]
    """The episode ended by the clock, (N,)."""
    completed: NDArray[np.bool_]
    """The episode ended at the last goal, (N,); this comes before the other two."""
    torque: NDArray[np.floating]
    """Of the drives [N·m], (N, J); mean over the step or at its end."""
    saturated: NDArray[np.bool_] | NDArray[np.floating]
    """Drives that gave all they had, or their share of the substeps, (N, J)."""
    base_contact: NDArray[np.bool_]
    """The body touches the course, (N,)."""
    distance_m: NDArray[np.floating]
    """Metres along the course in this episode, (N,)."""

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Whose episode ended, (N,)."""
        return self.terminated | self.timed_out | self.completed


@dataclass(frozen=True, kw_only=True, eq=False)
class Robots:
    """Which course each of the N robots walks, for the whole run."""

    type: NDArray[np.str_]
    """Obstacle type, (N,)."""
    difficulty: NDArray[np.float64]
    course_seed: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.type)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Everything that was counted, (N,) sums over all steps of each robot beside the episodes."""

    robots: Robots
    step_s: float
    feet: int
    steps: NDArray[np.int64]
    edge_sum: NDArray[np.int64]
    """Feet on an edge, summed."""
    edge_square_sum: NDArray[np.int64]
    collision_steps: NDArray[np.int64]
    torque_square_sum: NDArray[np.float64]
    """(N, J) [N²·m²]"""
    saturated_sum: NDArray[np.float64]
    """(N, J)"""
    episodes: Episodes = field(default_factory=lambda: np.zeros(0, _EPISODE))
    """All episodes in the order in which they ended, (E,), with the fields robot, number, outcome
    (an index into `OUTCOMES`), goals, steps and distance_m."""


class EpisodeRecorder:
    """Takes the facts of every step and keeps the books.

    Args:
        robots: the course of each robot.
        step_s: length of a control step [s].
    """

    def __init__(self, robots: Robots, *, step_s: float, joints: int = 18, feet: int = 6) -> None:
        n = len(robots)
        names = ("steps", "edge_sum", "edge_square_sum", "collision_steps")
        counts: dict[str, Any] = {name: np.zeros(n, np.int64) for name in names}
        self._run = Run(
            robots=robots,
            step_s=step_s,
            feet=feet,
            torque_square_sum=np.zeros((n, joints)),
            saturated_sum=np.zeros((n, joints)),
            **counts,
        )
        self._going_on = np.zeros(n, _EPISODE)
        self._going_on["robot"] = np.arange(n)
        self._closed: list[NDArray[Any]] = []

    @property
    def finished(self) -> int:
        """Episodes that have ended so far."""
        return sum(map(len, self._closed))

    def add(self, facts: StepFacts) -> None:
        """Count one step of every robot."""
        run, now = self._run, self._going_on
        edges = (facts.feet_on_edge & facts.foot_contact).sum(axis=1)
        np.add(run.steps, 1, out=run.steps)
        np.add(run.edge_sum, edges, out=run.edge_sum)
        np.add(run.edge_square_sum, edges * edges, out=run.edge_square_sum)
        np.add(run.collision_steps, facts.base_contact, out=run.collision_steps)
        square = np.square(facts.torque, dtype=np.float64)
        np.add(run.torque_square_sum, square, out=run.torque_square_sum)
        np.add(run.saturated_sum, facts.saturated, out=run.saturated_sum)
        now["steps"] += 1
        now["goals"] = facts.goal_index
        now["distance_m"] = facts.distance_m
        now["outcome"] = np.select(
            [facts.completed, facts.terminated], [_COMPLETED, _FELL], _TIMED_OUT
        )
        self._close(facts.ended)

    def finish(self) -> Run:
        """The books, with the episodes still going on as cut off."""
        self._going_on["outcome"] = _CUT_OFF
        self._close(self._going_on["steps"] > 0)
        episodes: Any = np.concatenate([np.zeros(0, _EPISODE), *self._closed])
        return replace(self._run, episodes=episodes)

    def _close(self, ended: NDArray[np.bool_]) -> None:
        if not ended.any():
            return
        self._closed.append(self._going_on[ended])
        self._going_on["number"][ended] += 1
        self._going_on["steps"][ended] = 0


def mxd_of(episodes: Episodes) -> NDArray[np.float64]:
    """Share of the way by goals, (E,) in [0, 1]."""
    return np.minimum(episodes["goals"] / (GOALS - 1), 1.0)


def summarise(run: Run, chosen: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """The metrics of the robots in `chosen` (N,), by default of all.

    A value that nothing was counted for, such as the MXD of a run without a finished episode, is
    None.
    """
    if chosen is None:
        chosen = np.ones(len(run.robots), bool)
    if not chosen.any():
        raise EvaluationError("no robot is in this group; give the suite more robots")
    everything = run.episodes[chosen[run.episodes["robot"]]]
    ended = everything[everything["outcome"] != _CUT_OFF]
    first = everything[everything["number"] == 0]
    mxd, mxd_all = mxd_of(ended), mxd_of(everything)
    steps = int(run.steps[chosen].sum())
    torque_square = run.torque_square_sum[chosen].sum(axis=0) / max(steps, 1)
    mev = run.edge_sum[chosen].sum() / steps if steps else None
    square = run.edge_square_sum[chosen].sum() / max(steps, 1)
    return {
        "robots": int(chosen.sum()),
        "robot_steps": steps,
        "episodes": len(ended),
        "episodes_cut_off": len(everything) - len(ended),
        "mxd": _mean(mxd),
        "mxd_std": _std(mxd),
        "mxd_all": _mean(mxd_all),
        "mxd_all_std": _std(mxd_all),
        "mxd_first": _mean(mxd_of(first)),
        "mev": mev,
        "mev_std": None if mev is None else math.sqrt(max(0.0, square - mev * mev)),
        "mev_per_foot": None if mev is None else mev / run.feet,
        "success": _mean(ended["goals"] >= GOALS),
        "success_first": _mean(first["goals"] >= GOALS),
        "fall_rate": _mean(ended["outcome"] == _FELL),
        "time_out_rate": _mean(ended["outcome"] == _TIMED_OUT),
        "collision_share": int(run.collision_steps[chosen].sum()) / max(steps, 1),
        "torque_rms_nm": float(np.sqrt(torque_square.mean())),
        "torque_rms_hardest_nm": float(np.sqrt(torque_square.max())),
        "torque_rms_hardest_joint": int(torque_square.argmax()),
        "saturation_share": float(run.saturated_sum[chosen].mean(axis=1).sum() / max(steps, 1)),
        "estimates": {
            name: e.as_json() for name, e in _estimates(everything, ended, first).items()
        },
    }


def _estimates(
    everything: Episodes, ended: Episodes, first: Episodes
) -> dict[str, intervals.Estimate]:
    """Shares over first episodes, so that trials are independent; MXD and MEV keep their own."""
    n = len(first)
    _, robot = np.unique(ended["robot"], return_inverse=True)
    falls = int((everything["outcome"] == _FELL).sum())
    walked_m = float(np.maximum(everything["distance_m"], 0.0).sum())
    return {
        "success": intervals.share(int((first["goals"] >= GOALS).sum()), n),
        "fell": intervals.share(int((first["outcome"] == _FELL).sum()), n),
        "timed_out": intervals.share(int((first["outcome"] == _TIMED_OUT).sum()), n),
        "mxd": intervals.ratio(
            np.bincount(robot, mxd_of(ended)).tolist(), np.bincount(robot).tolist(),
            low=0.0, high=1.0,
        ),
        "falls_per_100m": intervals.poisson_rate(falls, walked_m / 100.0, n),
    }  # fmt: skip


def combine(
    groups: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float]
) -> dict[str, float | None]:
    """MXD and MEV of several groups as one, by weights rather than by head count.

    Spreads are those of the mixture: of draws that take a group by its weight first.
    """
    total: dict[str, float | None] = {}
    share = list(weights.values())
    for name in ("mxd", "mxd_all", "mxd_first", "mev", "mev_per_foot", "obedient_mxd"):
        means = [groups[group].get(name) for group in weights]
        known = [mean for mean in means if mean is not None]
        complete = len(known) == len(means)
        total[name] = float(np.average(known, weights=share)) if complete else None
    for name in ("mxd", "mxd_all", "mev"):
        mean = total[name]
        squares = [
            groups[group][name] ** 2 + groups[group][f"{name}_std"] ** 2
            for group in weights if mean is not None
        ]  # fmt: skip
        total[f"{name}_std"] = (
            None if mean is None
            else math.sqrt(max(0.0, float(np.average(squares, weights=share)) - mean * mean))
        )  # fmt: skip
    return total


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _std(values: NDArray[Any]) -> float | None:
    """Over the values as a population, as numpy and the published code do."""
    return float(values.std()) if len(values) else None
