"""What a trial records: one `Tick` per control period, streamed to recorders.

The arrays of a tick are reused by the next one; a recorder copies what it keeps. `S` is the number
of physics steps in a control period: 4 of 2.5 ms by default, 10 of 1 ms where contact peaks are
measured at 1 kHz. Samples of physics steps are taken at the end of each step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from krabby.course.timing import CONTROL_S

if TYPE_CHECKING:
    from krabby_proto.states import SafetyState
    from numpy.typing import NDArray

    from krabby.benchmark.scenario import Cell, Scenario
    from krabby.control.modes import Mode

__all__ = [
    "CONTROL_S",
    "FigureMaker",
    "Judge",
    "Recorder",
    "Tick",
    "Trace",
    "TrialFacts",
    "TrialResult",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialFacts:
    """What is known before the first tick."""

    cell: Cell
    scenario: Scenario
    seed: int
    policy: str
    """Name of the policy bundle that the trial starts with."""
    mass_kg: float
    """Of the robot as it really is, payload included."""
    rated_torque: NDArray[np.float64]
    """Of each joint's drive [N·m], shape (18,)."""
    joint_names: tuple[str, ...]
    leg_names: tuple[str, ...]
    substep_s: float
    """Physics step, which is also the period of `foot_force` and of the joint samples [s]."""
    course_m: float
    """From the spawn through all waypoints [m]."""
    waypoints: int
    tilt_limit_rad: float
    """Tilt at which the safety gate damps the robot."""


@dataclass(kw_only=True, eq=False, slots=True)
class Tick:
    """One control period, as it ended. World frame `_w`, base frame `_b`; quaternions xyzw."""

    time_s: float
    """From go; negative while arming and standing up."""
    mode: Mode
    safety: SafetyState
    faults: int
    """`krabby.safety.gate.Fault` bits of the gate."""
    policy: str
    """Bundle that gave the target."""
    blind: bool
    """The blind policy walks in place of the chosen one."""
    feature_age_s: float
    """Age of the picture that the policy used, from its exposure; NaN when it used none."""
    asked: NDArray[np.float64]
    """Walking command of the scenario vx, vy [m/s], yaw_rate [rad/s], shape (3,)."""
    command: NDArray[np.float64]
    """The same after the loop's limits, as the policy reads it, shape (3,)."""
    walks: bool
    """The scenario asks it to move now: not released, sitting, stopped or arrived."""
    base_pos_w: NDArray[np.float64]
    base_quat_w: NDArray[np.float64]
    base_lin_vel_b: NDArray[np.float64]
    base_ang_vel_b: NDArray[np.float64]
    tilt_rad: float
    """Angle between the base's z axis and the vertical."""
    joint_pos: NDArray[np.float64]
    """At the end of the period [rad], shape (18,)."""
    joint_target: NDArray[np.float64]
    """What the gate lets the drives hold [rad], shape (18,)."""
    joint_vel: NDArray[np.float64]
    """After each physics step [rad/s], shape (S, 18)."""
    joint_torque: NDArray[np.float64]
    """In each physics step [N·m], shape (S, 18)."""
    foot_force: NDArray[np.float64]
    """Normal contact force of each foot in each physics step [N], shape (S, 6)."""
    foot_soles_w: NDArray[np.float64]
    """Lowest point of every foot [m], shape (6, 3)."""
    body_contact: bool
    """The trunk touches the course or an appeared box."""
    box_contact: bool
    """Any part touches a box that appeared."""
    in_pit: bool
    """The base is below every surface there is to walk on."""
    stance_m: float
    """How far below the base the targets put the feet that carry it [m]; 0 when limp."""
    position_clamps: int
    """Joints that the gate cut to their position limits in this period."""
    rate_clamps: int
    """Joints that the gate cut to their rate limits in this period."""
    waypoint: int
    """Waypoints reached."""
    progress_m: float
    """Furthest along the course [m]."""
    diverged: bool
    """The physics state is not finite; the last tick of the trial."""


class Recorder(Protocol):
    """Takes in a trial tick by tick."""

    def tick(self, tick: Tick) -> None:
        """One control period has ended; ticks before go have a negative time."""
        ...


class Judge(Protocol):
    """Decides a trial; `krabby.benchmark.outcome.Judge` is constructed with `TrialFacts`."""

    def tick(self, tick: Tick) -> str | None:
        """Name of the outcome once it is decided: the trial ends with this tick; None before."""
        ...

    def at_end(self) -> str:
        """Name of the outcome of a trial whose time is over."""
        ...

    @property
    def reason(self) -> str:
        """The rule that decided, with its values, for people; empty for success."""
        ...


class FigureMaker(Recorder, Protocol):
    """Reduces a trial to numbers; `krabby.benchmark.figures.Figures` takes `TrialFacts`."""

    def figures(self) -> dict[str, float]:
        """Figures of the trial by name; those that it does not define are absent."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One line of `trials.jsonl`."""

    cell: str
    seed: int
    policy: str
    outcome: str
    reason: str
    time_s: float
    """From go to the end [s]."""
    waypoints: int
    """Waypoints reached."""
    of_waypoints: int
    progress_m: float
    course_m: float
    figures: dict[str, float]
    wall_s: float = 0.0
    """Share of the engine's processor time [s]."""


class Trace:
    """A recorder that keeps all: `trace.time_s` (T,), `trace.base_pos_w` (T, 3) and so on."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {field.name: [] for field in fields(Tick)}

    def tick(self, tick: Tick) -> None:
        """Keep a copy."""
        for name, column in self._columns.items():
            value = getattr(tick, name)
            column.append(value.copy() if isinstance(value, np.ndarray) else value)

    def __len__(self) -> int:
        return len(self._columns["time_s"])

    def __getattr__(self, name: str) -> NDArray[Any]:
        columns = self.__dict__.get("_columns", {})
        if name not in columns:
            raise AttributeError(name)
        return np.array(columns[name])
