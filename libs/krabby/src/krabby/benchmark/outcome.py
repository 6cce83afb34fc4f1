"""How a trial ends: decided tick by tick, so that a trial ends with its outcome.

The rules apply in this order, and the first that holds decides. Falls are those of
`krabby.course.progress.FallMonitor`, the rule of the simulator, plus what training ends an episode
for: a safety gate that makes the robot limp unasked, and physics that diverged.
docs/benchmark.md has the definitions for readers.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np
from krabby_proto.states import Fault, SafetyState

from krabby.benchmark.figures import Standing, Tracking, needed_s
from krabby.benchmark.trace import CONTROL_S
from krabby.control.modes import Mode
from krabby.course.progress import LEANING_S, STUCK_S, FallCfg, FallMonitor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from krabby.benchmark.scenario import Goal, Scenario
    from krabby.benchmark.trace import Tick, TrialFacts

__all__ = ["Judge", "Outcome", "succeeded"]

TIME_FACTOR: Final = 1.5
"""Waypoints must be reached within this multiple of the time that the commanded speed needs."""
REARING_RAD: Final = 0.5
"""Tilt for `LEANING_S` that counts as climbing something impassable [rad]."""
APPROACH_M: Final = 1.2
"""Standing off needs to have come this near to the last waypoint before the obstacle [m]."""
DRIFT_M_S: Final = 0.005
"""A robot that stands drifts by less than this [m/s]."""

_LEANING_TICKS: Final = round(LEANING_S / CONTROL_S)
_PROGRESS_M: Final = 0.1
_PROGRESS_RAD: Final = 0.2
_STILL_RAD_S: Final = 0.3
"""Below this joint speed, root mean square over about a second, a robot stands still [rad/s]."""
_LEVER_M: Final = 0.5
"""Weighs yaw against translation in the progress along a command [m]."""


class Outcome(StrEnum):
    """How a trial ended."""

    SUCCESS = "success"
    """The goal was met."""
    FELL = "fell"
    """Tilted, in a pit, trunk on the ground, limp by a fault, or physics diverged."""
    LEANING = "leaning"
    """The trunk leant or hung on the course for over 0.5 s without a fall."""
    CROSSED = "crossed"
    """It passed something impassable, or touched a box that appeared."""
    STUCK = "stuck"
    """No progress for 5 s while asked to move."""
    REFUSED = "refused"
    """It stood off: no progress, and standing still; the success before impassable terrain."""
    TIMED_OUT = "timed_out"
    """On its feet, but the last waypoint was not reached in time."""
    MISSED = "missed"
    """On its feet to the end, but beyond a bound, or never near what it had to stand off from."""


def succeeded(goal: Goal, outcome: str) -> bool:
    """Whether an outcome meets a goal."""
    return outcome == Outcome.SUCCESS or (goal == "stand_off" and outcome == Outcome.REFUSED)


class Judge:
    """Decides one trial; ticks before go count for nothing."""

    def __init__(self, facts: TrialFacts) -> None:
        self._facts = facts
        self._goal = facts.cell.goal
        self._falls = FallMonitor(FallCfg(tilt_rad=facts.tilt_limit_rad))
        self._leaning = self._rearing = 0  # ticks
        self._walk_s = self._came_m = 0.0
        self._progress = _Progress()
        self._tracking = Tracking()
        self._standing = Standing()
        boxes_s = sum(e.duration_s for e in facts.scenario.events if e.action == "box")
        self._limit_s = math.inf
        if self._goal == "waypoints" and not facts.scenario.commands:
            self._limit_s = TIME_FACTOR * needed_s(facts.scenario) + boxes_s
        self._reason = ""
        self._rules: tuple[Callable[[Tick], Outcome | None], ...] = (
            self._fell, self._crossed, self._leant, self._arrived, self._stayed, self._late,
        )  # fmt: skip

    @property
    def reason(self) -> str:
        """The rule that decided, with its values; empty for a success."""
        return self._reason

    def tick(self, tick: Tick) -> str | None:
        """The outcome, once it is decided."""
        if tick.time_s < 0.0:
            return None
        self._walk_s += CONTROL_S * tick.walks
        self._came_m = max(self._came_m, tick.progress_m)
        if self._goal == "track":
            self._tracking.add(tick)
        if self._goal == "stand":
            self._standing.add(tick)
        for rule in self._rules:
            outcome = rule(tick)
            if outcome is not None:
                return outcome
        return None

    def at_end(self) -> str:
        """The outcome of a trial whose time is over."""
        if self._goal == "stand_off":
            return self._stood_off()
        if self._goal == "waypoints":
            return self._decide(Outcome.TIMED_OUT, "the trial's time was over")
        if self._goal == "track":
            over = [
                f"{axis} off by {error:.3f}, bound {bound:.3f}"
                for axis, error, bound in self._tracking.axes()
                if not error <= bound
            ]
            return self._decide(Outcome.MISSED, "; ".join(over)) if over else Outcome.SUCCESS
        drift = self._standing.drift_m_s
        if drift <= DRIFT_M_S:
            return Outcome.SUCCESS
        return self._decide(
            Outcome.MISSED, f"drifts by {1e3 * drift:.1f} mm/s, bound {1e3 * DRIFT_M_S:g} mm/s"
        )

    def _stood_off(self) -> Outcome:
        wanted_m = _approach_m(self._facts.scenario)
        if self._came_m < wanted_m:
            return self._decide(
                Outcome.MISSED,
                f"came to {self._came_m:.1f} m; the obstacle counts from {wanted_m:.1f} m on",
            )
        return self._decide(Outcome.REFUSED, "on its feet before the obstacle to the end")

    def _decide(self, outcome: Outcome, reason: str) -> Outcome:
        self._reason = reason
        return outcome

    def _fell(self, tick: Tick) -> Outcome | None:
        if tick.diverged:
            return self._decide(Outcome.FELL, "the physics diverged")
        fall = self._falls.update(
            round(tick.time_s * 1e9),
            tilt_rad=tick.tilt_rad,
            in_pit=tick.in_pit,
            base_contact=tick.body_contact,
            stance_m=tick.stance_m,
        )
        if fall is not None:
            return self._decide(Outcome.FELL, f"{fall} ({math.degrees(tick.tilt_rad):.0f} deg)")
        if tick.safety == SafetyState.DAMP:
            names = Fault(tick.faults).name or "no fault"
            return self._decide(Outcome.FELL, f"made limp by the safety gate: {names}")
        return None

    def _crossed(self, tick: Tick) -> Outcome | None:
        if tick.box_contact:
            return self._decide(Outcome.CROSSED, "touched the box that appeared")
        if self._goal == "stand_off" and 0 < self._facts.waypoints <= tick.waypoint:
            return self._decide(Outcome.CROSSED, "reached the waypoint beyond the obstacle")
        return None

    def _leant(self, tick: Tick) -> Outcome | None:
        on_feet = tick.mode is Mode.POLICY and tick.safety.following
        touches = on_feet and tick.body_contact
        self._leaning = self._leaning + 1 if touches else 0
        rears = on_feet and self._goal == "stand_off" and tick.tilt_rad > REARING_RAD
        self._rearing = self._rearing + 1 if rears else 0
        if self._leaning > _LEANING_TICKS:
            return self._decide(Outcome.LEANING, f"trunk in contact for over {LEANING_S:g} s")
        if self._rearing > _LEANING_TICKS:
            return self._decide(
                Outcome.LEANING, f"tilt {math.degrees(tick.tilt_rad):.0f} deg against the obstacle"
            )
        return None

    def _arrived(self, tick: Tick) -> Outcome | None:
        done = self._goal == "waypoints" and tick.waypoint >= self._facts.waypoints
        return Outcome.SUCCESS if done else None

    def _stayed(self, tick: Tick) -> Outcome | None:
        if self._goal in ("stand_off", "stand"):
            return None
        along = None if self._goal == "track" else tick.progress_m
        if self._progress.idle_s(tick, along) < STUCK_S:
            return None
        what = f"no progress for {STUCK_S:g} s at {tick.progress_m:.1f} m"
        if self._progress.still:
            return self._decide(Outcome.REFUSED, f"{what}, standing still")
        return self._decide(Outcome.STUCK, what)

    def _late(self, tick: Tick) -> Outcome | None:
        if self._walk_s <= self._limit_s:
            return None
        return self._decide(
            Outcome.TIMED_OUT,
            f"waypoint {tick.waypoint} of {self._facts.waypoints} after {self._limit_s:.1f} s, "
            f"{TIME_FACTOR:g} times what the commanded speed needs",
        )


def _approach_m(scenario: Scenario) -> float:
    """How far along the course a robot has met the obstacle that it must not cross [m].

    A box is met where it appears. Half of the waypoints of an impassable course lie beyond its
    obstacle, the last of the others 0.8 m before it.
    """
    boxes = [event.at_m for event in scenario.events if event.action == "box"]
    if boxes:
        return max(at_m or 0.0 for at_m in boxes)
    course = scenario.course
    before = course.waypoints[: len(course.waypoints) // 2, :2]
    points = np.vstack([(scenario.spawn or course.spawn)[:2], before])
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum()) - APPROACH_M


class _Progress:
    """For how long a robot that is asked to move has made no progress.

    Progress is 0.1 m further along the course than ever before; along constant commands, 0.5 s
    worth of what was asked; while only a turn is asked for, 0.2 rad of it.
    """

    def __init__(self) -> None:
        self._idle_s = self._mark = self._along = 0.0
        self._turn_mark = self._turned = 0.0
        self._speed_square = 0.0

    @property
    def still(self) -> bool:
        """Whether the joints have been at rest lately."""
        return self._speed_square < _STILL_RAD_S**2

    def idle_s(self, tick: Tick, along_m: float | None) -> float:
        """Seconds without progress; they count only while motion is asked for.

        Args:
            tick: the newest.
            along_m: furthest along the course [m]; None to go by the command.
        """
        square = float(np.mean(np.square(tick.joint_vel)))
        self._speed_square += (square - self._speed_square) * CONTROL_S
        if not tick.walks:
            return 0.0
        step = _PROGRESS_M
        if along_m is None:
            self._along += _obedience(tick.asked, tick.base_lin_vel_b, tick.base_ang_vel_b)
            along_m, step = self._along, 0.5
        turns = abs(tick.asked[2]) > 0.01 and math.hypot(tick.asked[0], tick.asked[1]) < 0.01
        if turns:
            self._turned += CONTROL_S * math.copysign(1.0, tick.asked[2]) * tick.base_ang_vel_b[2]
        self._idle_s += CONTROL_S
        if along_m >= self._mark + step or self._turned >= self._turn_mark + _PROGRESS_RAD:
            self._idle_s = 0.0
            self._mark = max(self._mark, along_m)
            self._turn_mark = self._turned
        return self._idle_s


def _obedience(
    asked: NDArray[np.float64], velocity: NDArray[np.float64], turning: NDArray[np.float64]
) -> float:
    """Seconds of the command that the robot carried out in a control period."""
    weight = np.array([1.0, 1.0, _LEVER_M**2])
    now = np.array([velocity[0], velocity[1], turning[2]])
    size = float((weight * asked * asked).sum())
    return CONTROL_S * float((weight * asked * now).sum()) / size if size > 1e-9 else CONTROL_S
