"""What a benchmark trial asks of a robot, as data: cells, scenarios, commands, events, faults.

A suite is a tuple of cells. A cell makes one `Scenario` from each seed; equal seeds give equal
scenarios on every machine. Times count from the moment at which the robot has stood up and the
policy has control ("go"); lengths along a course count from its spawn along its waypoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from krabby.course.courses import Course

__all__ = [
    "ACTIONS",
    "GOALS",
    "PICTURE_FAULTS",
    "Action",
    "Cell",
    "CommandSegment",
    "Event",
    "Goal",
    "PictureFault",
    "Pictures",
    "RobotVariation",
    "Scenario",
    "ScenarioError",
    "Target",
]

Goal = Literal["waypoints", "track", "stand_off", "stand"]
GOALS: Final[tuple[Goal, ...]] = get_args(Goal)
"""waypoints: reach the last waypoint of the course. track: follow the commands to the end.
stand_off: walk towards something impassable and stay on the feet before it. stand: stay in place
while no motion is asked for."""

Action = Literal[
    "release", "sit", "estop", "swap", "push", "pictures", "limp_joint", "limp_leg", "box"
]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
"""release: zero command for `duration_s`, then as before. sit: sit down, and stand up again after
`duration_s`. estop: emergency stop; reset, arm and stand after `duration_s`. swap: walk with the
policy `name` for `duration_s`, then with the first one again. push: change the base's horizontal
velocity by `value` m/s in the direction `angle_rad` of the base frame. pictures: the picture fault
`name` for `duration_s`. limp_joint, limp_leg: the drives of the joint or leg `name` give no torque
for `duration_s`. box: a box of `half_extents` stands on the ground, its near face `value` metres
ahead of the base, for `duration_s`. A duration of 0 lasts to the end of the trial."""

PictureFault = Literal["none", "black", "frozen", "mirrored", "outage"]
PICTURE_FAULTS: Final[tuple[PictureFault, ...]] = get_args(PictureFault)
"""black: no pixel has a reading. frozen: the last picture again, with fresh stamps. mirrored: left
and right exchanged. outage: no pictures."""


class ScenarioError(ValueError):
    """A scenario or a cell contradicts itself."""


def _require(ok: bool, what: str, value: object, wanted: str) -> None:
    if not ok:
        raise ScenarioError(f"{what} is {value!r}; give {wanted}")


def _require_range(owner: object, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(
            math.isfinite(value) and low <= value <= high,
            f"{type(owner).__name__}.{name}",
            value,
            f"a number from {low:g} to {high:g}",
        )


@dataclass(frozen=True, kw_only=True)
class CommandSegment:
    """A constant walking command, base frame, from `start_s` to the start of the next segment."""

    start_s: float
    vx: float = 0.0
    """Forward [m/s]."""
    vy: float = 0.0
    """Left [m/s]."""
    yaw_rate: float = 0.0
    """Counter-clockwise [rad/s]."""

    def __post_init__(self) -> None:
        _require_range(self, 0.0, 3600.0, "start_s")
        _require_range(self, -5.0, 5.0, "vx", "vy", "yaw_rate")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens once: at a time, or when the robot has come so far."""

    action: Action
    at_s: float | None = None
    """Time from go [s]; give this or `at_m`."""
    at_m: float | None = None
    """Progress along the course [m], the furthest so far."""
    duration_s: float = 0.0
    """How long it lasts [s]; 0: to the end of the trial. A push has no duration."""
    value: float = 0.0
    """Speed of a push [m/s]; distance of a box ahead of the base [m]."""
    angle_rad: float = 0.0
    """Direction of a push in the base frame, 0 forward, counter-clockwise."""
    name: str = ""
    """Policy to swap to; joint or leg that goes limp; picture fault."""
    half_extents: tuple[float, float, float] = (0.15, 0.25, 0.85)
    """Of a box along x (away from the robot), y and z [m]; the default is a standing person."""

    def __post_init__(self) -> None:
        _require(self.action in ACTIONS, "Event.action", self.action, f"one of {ACTIONS}")
        _require(
            (self.at_s is None) != (self.at_m is None),
            "Event trigger (at_s, at_m)",
            (self.at_s, self.at_m),
            "exactly one of them",
        )
        _require_range(self, 0.0, 3600.0, "at_s" if self.at_m is None else "at_m", "duration_s")
        _require_range(self, -20.0, 20.0, "value")
        _require_range(self, -7.0, 7.0, "angle_rad")
        if self.action in ("swap", "limp_joint", "limp_leg"):
            _require(bool(self.name), f"Event.name of {self.action}", self.name, "a name")
        if self.action == "pictures":
            _require(self.name in PICTURE_FAULTS, "Event.name", self.name, str(PICTURE_FAULTS))


@dataclass(frozen=True, kw_only=True)
class RobotVariation:
    """How the robot differs from its description; the policy and the gate are not told."""

    mass_factor: float = 1.0
    """On mass and inertia of every body."""
    payload_kg: float = 0.0
    """Carried by the body, spread like its own mass."""
    friction: float | None = None
    """Coulomb friction of the feet (of the body at most this); None: as described."""
    motor_strength: float = 1.0
    """Factor on the torque that is there at every speed; gains stay."""
    limp_joints: tuple[str, ...] = ()
    """Joints without torque from the start, by name."""
    limp_legs: tuple[str, ...] = ()
    """Legs without torque from the start, by name."""
    start_xy_m: float = 0.0
    """Largest offset of the start along x and y, drawn from the seed [m]."""
    start_yaw_rad: float = 0.0
    """Largest offset of the heading at the start, drawn from the seed [rad]."""

    def __post_init__(self) -> None:
        _require_range(self, 0.1, 5.0, "mass_factor")
        _require_range(self, 0.0, 100.0, "payload_kg")
        _require_range(self, 0.01, 2.0, "motor_strength")
        _require_range(self, 0.0, 2.0, "start_xy_m")
        _require_range(self, 0.0, math.pi, "start_yaw_rad")
        if self.friction is not None:
            _require_range(self, 0.0, 3.0, "friction")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How the depth camera differs from its description, from the start to the end of a trial."""

    latency_s: float | None = None
    """Mean time from exposure to delivery, in place of the described one; the jitter stays."""
    drop_share: float | None = None
    """Share of pictures that never arrive, in place of the described one."""
    noise_factor: float = 1.0
    """On the standard deviation of depth."""
    rate_hz: float | None = None
    """Exposures per second, in place of the described ones."""
    tilt_deg: float = 0.0
    """How far the mount is off, nose down."""
    fault: PictureFault = "none"
    """What is broken all the time; for a part of the time use an `Event`."""

    def __post_init__(self) -> None:
        _require(self.fault in PICTURE_FAULTS, "Pictures.fault", self.fault, str(PICTURE_FAULTS))
        _require_range(self, 0.0, 100.0, "noise_factor")
        _require_range(self, -45.0, 45.0, "tilt_deg")
        for name, low, high in (
            ("latency_s", 0.0, 1.0),
            ("drop_share", 0.0, 1.0),
            ("rate_hz", 0.5, 100.0),
        ):
            if getattr(self, name) is not None:
                _require_range(self, low, high, name)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenario:
    """One trial: a robot on a course, what it is asked to do, and what happens on the way."""

    course: Course
    """Geometry, waypoints and spawn."""
    duration_s: float = 30.0
    """Longest time from go to the end; a decided trial ends earlier."""
    speed: float = 0.35
    """Speed of the waypoint mission [m/s]; for reports also the commanded speed."""
    commands: tuple[CommandSegment, ...] = ()
    """Constant commands; empty: the mission walks from waypoint to waypoint at `speed`."""
    spawn: tuple[float, float, float] | None = None
    """x, y [m], yaw [rad] in place of the course's."""
    events: tuple[Event, ...] = ()
    robot: RobotVariation = field(default_factory=RobotVariation)
    pictures: Pictures = field(default_factory=Pictures)

    def __post_init__(self) -> None:
        _require_range(self, 0.1, 3600.0, "duration_s")
        _require_range(self, 0.0, 5.0, "speed")
        starts = [segment.start_s for segment in self.commands]
        _require(starts == sorted(set(starts)), "Scenario.commands starts", starts, "rising times")
        _require(not starts or starts[0] == 0.0, "Scenario.commands starts", starts, "0 first")
        if self.spawn is not None:
            _require(len(self.spawn) == 3, "Scenario.spawn", self.spawn, "x, y, yaw")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a cell's figure should reach."""

    figure: str = "success"
    """Name of a figure as `figures.py` defines it; `fell` is a share too."""
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        _require(
            (self.at_least is None) != (self.at_most is None),
            "Target bounds (at_least, at_most)",
            (self.at_least, self.at_most),
            "exactly one of them",
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the benchmark: a family of trials that differ by their seed alone."""

    name: str
    """Unique in its suite, lower-case words joined by `-`, such as `stairs-up-17`."""
    family: str
    """Rows of a report are grouped by it, such as `stairs`."""
    summary: str
    """One line for people, with sizes and units."""
    goal: Goal
    make: Callable[[int], Scenario]
    """Scenario of a seed, from 0 to trials - 1; pure, picklable (a module's function or
    `functools.partial` of one)."""
    trials: int = 64
    target: Target | None = None
    held_out: bool = False
    """Never used in training."""
    quick: bool = False
    """Belongs to the quick version of its suite too."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For reports: difficulty, sizes, command; JSON values."""

    def __post_init__(self) -> None:
        _require(self.goal in GOALS, "Cell.goal", self.goal, f"one of {GOALS}")
        _require_range(self, 1, 100_000, "trials")
        _require(
            bool(self.name) and not set(self.name) & set(" ,/"),
            "Cell.name",
            self.name,
            "a name without spaces, commas and slashes",
        )
