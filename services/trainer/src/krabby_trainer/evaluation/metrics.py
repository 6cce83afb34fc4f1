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
robot-steps for MEV; `..._std_robots` are those of the robots' own means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krabby_trainer.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "GOALS",
    "OUTCOMES",
    "PAPER_WEIGHTS",
    "EpisodeRecorder",
    "Episodes",
    "Robots",
    "Run",
    "StepFacts",
    "combine",
    "summarise",
    "wilson_interval",
]

GOALS: Final = 8
"""Goals of a course, as in the paper."""

OUTCOMES: Final = ("completed", "fell", "timed out", "cut off")
"""How episodes end; the last is the end of the run, not of the episode."""
_COMPLETED, _FELL, _TIMED_OUT, _CUT_OFF = range(4)

PAPER_WEIGHTS: Final[Mapping[str, float]] = {"ramps": 2.0, "steps": 1.0, "gap": 1.0, "hurdle": 1.0}
"""The paper's grid gives the ramps two of its five columns, so its totals count them twice."""


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
class Episodes:
    """All episodes of a run, in the order in which they ended; arrays of one length E."""

    robot: NDArray[np.int64]
    number: NDArray[np.int64]
    """Which of the robot's episodes, from 0."""
    outcome: NDArray[np.int64]
    """Index into `OUTCOMES`."""
    goals: NDArray[np.int64]
    """Goals reached."""
    steps: NDArray[np.int64]
    distance_m: NDArray[np.float64]
    edge_steps: NDArray[np.int64]
    """Feet on an edge, summed over the steps."""
    collision_steps: NDArray[np.int64]
    """Steps with the body on the course."""

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which were not cut off by the end of the run."""
        return self.outcome != _CUT_OFF

    @property
    def mxd(self) -> NDArray[np.float64]:
        """Share of the way by goals, (E,) in [0, 1]."""
        return np.minimum(self.goals / (GOALS - 1), 1.0)

    def of(self, chosen: NDArray[np.bool_]) -> Episodes:
        """Those of the robots in `chosen` (N,)."""
        keep = chosen[self.robot]
        return Episodes(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Everything that was counted, (N,) sums over all steps of each robot beside the episodes."""

    robots: Robots
    episodes: Episodes
    step_s: float
    steps: NDArray[np.int64]
    edge_sum: NDArray[np.int64]
    """Feet on an edge, summed."""
    edge_square_sum: NDArray[np.int64]
    collision_steps: NDArray[np.int64]
    torque_square_sum: NDArray[np.float64]
    """(N, J) [N²·m²]"""
    saturated_sum: NDArray[np.float64]
    """(N, J)"""
    feet: int


class EpisodeRecorder:
    """Takes the facts of every step and keeps the books.

    Args:
        robots: who walks where.
        step_s: length of a control step [s].
    """

    def __init__(self, robots: Robots, *, step_s: float, joints: int = 18, feet: int = 6) -> None:
        count = len(robots)
        self._robots = robots
        self._step_s = step_s
        self._feet = feet
        self._steps = np.zeros(count, np.int64)
        self._edge_sum = np.zeros(count, np.int64)
        self._edge_square_sum = np.zeros(count, np.int64)
        self._collision_steps = np.zeros(count, np.int64)
        self._torque_square_sum = np.zeros((count, joints))
        self._saturated_sum = np.zeros((count, joints))
        # Of the episode that is going on:
        self._number = np.zeros(count, np.int64)
        self._age = np.zeros(count, np.int64)
        self._goals = np.zeros(count, np.int64)
        self._distance_m = np.zeros(count)
        self._edge_now = np.zeros(count, np.int64)
        self._collision_now = np.zeros(count, np.int64)
        self._closed: list[dict[str, NDArray[Any]]] = []

    @property
    def finished(self) -> int:
        """Episodes that have ended so far."""
        return sum(len(part["robot"]) for part in self._closed)

    def add(self, facts: StepFacts) -> None:
        """Count one step of every robot."""
        edges = (facts.feet_on_edge & facts.foot_contact).sum(axis=1)
        touches = facts.base_contact.astype(np.int64)
        self._steps += 1
        self._edge_sum += edges
        self._edge_square_sum += edges * edges
        self._collision_steps += touches
        self._torque_square_sum += np.square(facts.torque, dtype=np.float64)
        self._saturated_sum += facts.saturated

        self._age += 1
        self._goals = np.array(facts.goal_index, np.int64)
        self._distance_m = np.array(facts.distance_m, np.float64)
        self._edge_now += edges
        self._collision_now += touches
        ended = facts.ended
        if ended.any():
            outcome = np.full(len(ended), _TIMED_OUT)
            outcome[facts.terminated] = _FELL
            outcome[facts.completed] = _COMPLETED
            self._close(np.flatnonzero(ended), outcome[ended])

    def finish(self) -> Run:
        """The books, with the episodes still going on as cut off."""
        going_on = np.flatnonzero(self._age > 0)
        self._close(going_on, np.full(len(going_on), _CUT_OFF))
        names = [field.name for field in fields(Episodes)]
        parts = self._closed
        return Run(
            robots=self._robots,
            episodes=Episodes(
                **{name: np.concatenate([part[name] for part in parts]) for name in names}
            ),
            step_s=self._step_s,
            steps=self._steps,
            edge_sum=self._edge_sum,
            edge_square_sum=self._edge_square_sum,
            collision_steps=self._collision_steps,
            torque_square_sum=self._torque_square_sum,
            saturated_sum=self._saturated_sum,
            feet=self._feet,
        )

    def _close(self, robots: NDArray[np.intp], outcome: NDArray[np.integer]) -> None:
        self._closed.append(
            {
                "robot": robots.astype(np.int64),
                "number": self._number[robots],
                "outcome": outcome.astype(np.int64),
                "goals": self._goals[robots],
                "steps": self._age[robots],
                "distance_m": self._distance_m[robots],
                "edge_steps": self._edge_now[robots],
                "collision_steps": self._collision_now[robots],
            }
        )
        self._number[robots] += 1
        for sums in (self._age, self._goals, self._edge_now, self._collision_now):
            sums[robots] = 0
        self._distance_m[robots] = 0.0


def summarise(run: Run, chosen: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """The metrics of the robots in `chosen` (N,), by default of all.

    A value that nothing was counted for, such as the MXD of a run without a finished episode, is
    None.
    """
    if chosen is None:
        chosen = np.ones(len(run.robots), bool)
    if not chosen.any():
        raise EvaluationError("no robot is in this group; give the suite more robots")
    episodes = run.episodes.of(chosen)
    finished = episodes.finished
    first = episodes.number == 0
    mxd, outcome = episodes.mxd, episodes.outcome
    ended = int(finished.sum())
    succeeded = episodes.goals >= GOALS
    steps = int(run.steps[chosen].sum())
    torque_square = run.torque_square_sum[chosen].sum(axis=0) / max(steps, 1)
    saturated = run.saturated_sum[chosen].sum(axis=0) / max(steps, 1)
    mev, mev_std = _mean_and_std(
        float(run.edge_sum[chosen].sum()), float(run.edge_square_sum[chosen].sum()), steps
    )
    mev_robots = run.edge_sum[chosen] / np.maximum(run.steps[chosen], 1)
    mxd_robots = _means_by(episodes.robot[finished], mxd[finished])
    return {
        "robots": int(chosen.sum()),
        "robot_steps": steps,
        "seconds": steps * run.step_s / int(chosen.sum()),
        "episodes": ended,
        "episodes_cut_off": len(mxd) - ended,
        "mxd": _mean(mxd[finished]),
        "mxd_std": _std(mxd[finished]),
        "mxd_std_robots": _std(mxd_robots),
        "mxd_all": _mean(mxd),
        "mxd_all_std": _std(mxd),
        "mxd_first": _mean(mxd[first]),
        "mev": mev,
        "mev_std": mev_std,
        "mev_std_robots": _std(mev_robots),
        "mev_per_foot": None if mev is None else mev / run.feet,
        "success": _mean(succeeded[finished]),
        "success_ci95": wilson_interval(int(succeeded[finished].sum()), ended),
        "success_first": _mean(succeeded[first]),
        "fall_rate": _mean(outcome[finished] == _FELL),
        "time_out_rate": _mean(outcome[finished] == _TIMED_OUT),
        "falls_per_minute": int((outcome == _FELL).sum()) / (steps * run.step_s / 60.0),
        "collision_share": int(run.collision_steps[chosen].sum()) / max(steps, 1),
        "collision_episodes": _mean(episodes.collision_steps > 0),
        "distance_m": _mean(episodes.distance_m[finished]),
        "episode_s": _mean(episodes.steps[finished] * run.step_s),
        "torque_rms_nm": float(np.sqrt(torque_square.mean())),
        "torque_rms_hardest_nm": float(np.sqrt(torque_square.max())),
        "torque_rms_hardest_joint": int(torque_square.argmax()),
        "saturation_share": float(saturated.mean()),
    }


def combine(
    groups: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float]
) -> dict[str, float | None]:
    """MXD, MEV and the rates of several groups as one, by weights rather than by head count.

    Spreads are those of the mixture: of draws that take a group by its weight first.
    """
    total: dict[str, float | None] = {}
    for name in ("mxd", "mxd_all", "mev"):
        means = [groups[group][name] for group in weights]
        spreads = [groups[group][f"{name}_std"] for group in weights]
        total[name], total[f"{name}_std"] = _mixture(means, spreads, list(weights.values()))
    for name in ("mxd_first", "mev_per_foot", "success", "success_first", "fall_rate",
                 "time_out_rate", "collision_share", "saturation_share"):  # fmt: skip
        means = [groups[group][name] for group in weights]
        total[name], _ = _mixture(means, [0.0] * len(means), list(weights.values()))
    square = [groups[group]["torque_rms_nm"] ** 2 for group in weights]
    total["torque_rms_nm"] = math.sqrt(float(np.average(square, weights=list(weights.values()))))
    return total


def wilson_interval(successes: int, trials: int) -> list[float] | None:
    """95 % interval of a success rate (Wilson); None without a trial."""
    if trials == 0:
        return None
    z = 1.959964
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return [max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)]


def _mixture(
    means: Sequence[float | None], spreads: Sequence[float | None], weights: Sequence[float]
) -> tuple[float | None, float | None]:
    if any(mean is None for mean in means):
        return None, None
    m, s = np.array(means, float), np.array(spreads, float)
    mean = float(np.average(m, weights=weights))
    square = float(np.average(s * s + m * m, weights=weights))
    return mean, math.sqrt(max(0.0, square - mean * mean))


def _mean_and_std(total: float, squares: float, count: int) -> tuple[float | None, float | None]:
    if count == 0:
        return None, None
    mean = float(total) / count
    return mean, math.sqrt(max(0.0, float(squares) / count - mean * mean))


def _means_by(keys: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the values of each key that occurs."""
    _, group = np.unique(keys, return_inverse=True)
    return np.bincount(group, values) / np.maximum(np.bincount(group), 1)


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _std(values: NDArray[Any]) -> float | None:
    """Over the values as a population, as numpy and the published code do."""
    return float(values.std()) if len(values) else None
