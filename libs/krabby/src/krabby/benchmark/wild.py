"""Suite `wild`: what a robot meets outside the published courses, as data.

Cells are rows of tables below. Courses come from `krabby.course`, with seeds that training never
uses; a cell is held out when its course is held out of training. A cell whose target is at least
0.97 or at most 2 % has 256 trials, the others 64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krabby.benchmark.figures import needed_s
from krabby.benchmark.outcome import TIME_FACTOR
from krabby.benchmark.published import PUBLISHED
from krabby.benchmark.scenario import (
    Cell,
    CommandSegment,
    Event,
    Pictures,
    RobotVariation,
    Scenario,
    Target,
)
from krabby.course.courses import COURSES, is_held_out, make_course
from krabby.robot.description import RobotDescription

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from krabby.benchmark.scenario import Goal

__all__ = ["WILD", "track_scenario", "walk_scenario"]

SPEED: Final = 0.5
"""Commanded speed of the mission [m/s]."""
_SEED_BASE: Final = 1_000_000_000
"""First course seed; training starts from its run's seed, a small number."""
_SHORTEST_S: Final = 30.0
_RISE_S: Final = 12.0
"""Allowed for sitting down or arming and standing up again, besides the event's duration [s]."""
_TYPES: Final = ("steps", "gap", "hurdle", "ramps")
_QUICK: Final = frozenset({
    "steps-1", "gap-1", "hurdle-1", "ramps-1", "leg-riser-0.615", "stairs-1", "rubble-0.5",
    "beam-0.5", "side-slope-0.5", "u-turn-1", "gap-45-0.5", "cliff-1", "wall-1", "release",
    "undisturbed", "outage-0.5", "late-200", "flat-vx0.5", "flat-yaw0.8",
})  # fmt: skip
"""Cells of the quick version: eight trials of each in five minutes of two cores."""


def _rng(cell: str, seed: int) -> np.random.Generator:
    entropy = np.random.SeedSequence((seed, zlib.crc32(cell.encode())))
    return np.random.Generator(np.random.PCG64(entropy))


def walk_scenario(
    seed: int,
    *,
    cell: str,
    courses: tuple[str, ...],
    difficulty: float,
    events: tuple[Event, ...] = (),
    robot: RobotVariation | None = None,
    pictures: Pictures | None = None,
    push_speed: float = 0.0,
) -> Scenario:
    """Walk from waypoint to waypoint.

    Args:
        seed: of the trial; it chooses the course's layout and where things happen.
        cell: name of the cell, which makes its draws differ from those of other cells.
        courses: taken in turn, seed by seed.
        difficulty: of the course.
        events: each happens at a random place of the course; its trigger is replaced. One
            without a needed name affects a random joint or leg.
        robot: how it differs from its description.
        pictures: how the camera differs from its description.
        push_speed: of pushes in random directions every 5 s [m/s]; 0 for none.
    """
    rng = _rng(cell, seed)
    course = make_course(
        courses[seed % len(courses)], difficulty, _SEED_BASE + int(rng.integers(1_000_000_000))
    )
    points = np.vstack([course.spawn[:2], course.waypoints[:, :2]])
    length = float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
    placed = [
        dataclasses.replace(
            event,
            name=_part(event, rng),
            at_s=None,
            at_m=round(float(rng.uniform(0.5, 0.9 * length)), 2),
        )
        for event in events
    ]
    scenario = Scenario(
        course=course,
        speed=SPEED,
        robot=robot or RobotVariation(),
        pictures=pictures or Pictures(),
    )
    waits = sum(event.duration_s for event in placed if event.action in ("release", "sit", "estop"))
    waits += _RISE_S * sum(event.action in ("sit", "estop") for event in placed)
    # The judge ends a late trial by the time in which the robot was asked to move.
    limit_s = math.ceil(TIME_FACTOR * needed_s(scenario) + waits) + 1.0
    duration_s = max(_SHORTEST_S, limit_s)
    if push_speed:
        placed += [
            Event(
                action="push",
                at_s=5.0 * i,
                value=push_speed,
                angle_rad=round(float(rng.uniform(-math.pi, math.pi)), 3),
            )
            for i in range(1, int(duration_s / 5.0))
        ]
    return dataclasses.replace(scenario, duration_s=duration_s, events=tuple(placed))


def _part(event: Event, rng: np.random.Generator) -> str:
    """Which joint or leg goes limp: the event's, or a random one where it says `any`."""
    if event.name != "any":
        return event.name
    desc = RobotDescription.load()
    names = desc.joint_names if event.action == "limp_joint" else desc.leg_names
    return names[int(rng.integers(len(names)))]


def track_scenario(
    seed: int, *, cell: str, difficulty: float, command: tuple[float, float, float], seconds: float
) -> Scenario:
    """Follow a constant command (vx, vy [m/s], yaw rate [rad/s]) on the course `field`.

    The start is such that the robot stays on the field.
    """
    rng = _rng(cell, seed)
    course = make_course("field", difficulty, _SEED_BASE + int(rng.integers(1_000_000_000)))
    vx, vy, yaw_rate = command
    half = 0.0 if yaw_rate else 0.5 * seconds
    middle = 0.5 * course.length_m
    x, y = rng.uniform(-1.0, 1.0, 2)
    spawn = (round(middle - vx * half + x, 3), round(-vy * half + y, 3), 0.0)
    return Scenario(
        course=course,
        duration_s=seconds,
        speed=math.hypot(vx, vy),
        commands=(CommandSegment(start_s=0.0, vx=vx, vy=vy, yaw_rate=yaw_rate),),
        spawn=spawn,
    )


def _cell(
    name: str,
    family: str,
    group: str,
    courses: str | tuple[str, ...],
    difficulty: float,
    summary: str,
    *,
    goal: Goal = "waypoints",
    target: Target | None = None,
    held_out: bool = False,
    **options: Any,
) -> Cell:
    courses = (courses,) if isinstance(courses, str) else courses
    return Cell(
        name=name,
        family=family,
        summary=summary,
        goal=goal,
        make=functools.partial(
            walk_scenario, cell=name, courses=courses, difficulty=difficulty, **options
        ),
        trials=_trials(target),
        target=target,
        held_out=held_out or any(is_held_out(course, difficulty) for course in courses),
        quick=name in _QUICK,
        facts={"group": group, "course": "/".join(courses), "difficulty": difficulty, "vx": SPEED},
    )


def _trials(target: Target | None) -> int:
    if target is None:
        return 64
    many = target.at_least is not None and target.at_least >= 0.97
    few_fail = target.at_most is not None and target.at_most <= 0.02
    return 256 if many or few_fail else 64


def _published() -> Iterator[Cell]:
    target = Target(at_least=0.97)
    for cell in PUBLISHED:
        if cell.facts["course"] in _TYPES:
            yield dataclasses.replace(
                cell, target=target, trials=_trials(target), quick=cell.name in _QUICK
            )


_FAMILIES: Final[tuple[tuple[str, float, str], ...]] = (
    ("leg-riser", 0.4, "blocks of 0.52 m"),
    ("leg-riser", 0.615, "blocks of 0.80 m"),
    ("leg-riser", 0.8, "blocks of 1.04 m"),
    ("leg-gap", 0.6, "gaps of 0.78 m"),
    ("leg-gap", 0.885, "gaps of 1.15 m"),
    ("leg-gap", 1.2, "gaps of 1.56 m"),
    ("leg-hurdle", 0.3, "bars of 0.39 m"),
    ("leg-hurdle", 0.462, "bars of 0.60 m"),
    ("leg-hurdle", 0.6, "bars of 0.78 m"),
    ("leg-stones", 0.353, "stones tilted by 10 degrees"),
    ("leg-stones", 0.536, "stones tilted by 15 degrees"),
    ("leg-stones", 1.0, "stones tilted by 26.6 degrees"),
    ("stairs", 0.5, "10 steps of 17 cm up, then down"),
    ("stairs", 1.0, "10 steps of 24 cm up, then down"),
    ("spiral", 0.5, "10 steps of 13 cm round a column, up and down"),
    ("spiral", 1.0, "10 steps of 18 cm round a column, up and down"),
    ("rubble", 0.0, "blocks to 5 cm"),
    ("rubble", 0.5, "blocks to 15 cm"),
    ("rubble", 1.0, "blocks to 25 cm"),
    ("stepping-stones", 0.0, "stones of 60 cm, gaps of 15 cm"),
    ("stepping-stones", 0.5, "stones of 45 cm, gaps of 22 cm"),
    ("stepping-stones", 1.0, "stones of 30 cm, gaps of 30 cm"),
    ("beam", 0.5, "beams 1.5 m wide"),
    ("beam", 0.75, "beams 1.05 m wide"),
    ("beam", 1.0, "beams 0.6 m wide"),
    ("rough", 0.5, "patches within +-5 cm"),
    ("rough", 1.0, "patches within +-10 cm"),
    ("slope", 0.0, "10 degrees up and down"),
    ("slope", 0.5, "20 degrees up and down"),
    ("slope", 1.0, "30 degrees up and down"),
    ("side-slope", 0.0, "10 degrees sideways"),
    ("side-slope", 0.5, "20 degrees sideways"),
    ("side-slope", 1.0, "30 degrees sideways"),
    ("steps-30", 0.5, "risers of 28 cm turned by 30 degrees"),
    ("steps-45", 0.5, "risers of 28 cm turned by 45 degrees"),
    ("hurdle-30", 0.5, "bars of 15 to 28 cm turned by 30 degrees"),
    ("hurdle-45", 0.5, "bars of 15 to 28 cm turned by 45 degrees"),
    ("gap-30", 0.5, "gaps of 45 cm turned by 30 degrees"),
    ("gap-45", 0.5, "gaps of 45 cm turned by 45 degrees"),
    ("u-turn", 0.0, "walkways 3.2 m wide, a platform 4 m deep"),
    ("u-turn", 1.0, "walkways 2.2 m wide, a platform 3 m deep"),
    ("figure-eight", 0.0, "two circles of 2.6 m radius"),
    ("figure-eight", 1.0, "two circles of 1.6 m radius"),
)
"""Course, difficulty, size."""

_TARGETS: Final = {
    "leg-riser-0.615", "leg-gap-0.885", "leg-hurdle-0.462", "leg-stones-0.536",
}  # fmt: skip
"""Success of at least 0.9, as is asked of what is held out."""


def _families() -> Iterator[Cell]:
    for course, difficulty, size in _FAMILIES:
        name = f"{course}-{difficulty:g}"
        wanted = name in _TARGETS or is_held_out(course, difficulty)
        target = Target(at_least=0.9) if wanted else None
        family = COURSES[course].family
        yield _cell(name, family, family, course, difficulty, size, target=target)


def _impassable() -> Iterator[Cell]:
    target = Target(at_least=0.95)
    for course, recipe in COURSES.items():
        if not recipe.passable:
            yield _cell(
                f"{course}-1", "impassable", "impassable", course, 1.0, recipe.summary,
                goal="stand_off", target=target,
            )  # fmt: skip
    # 2 to 2.5 m from the middle of the body: more than a leg's reach away.
    yield _cell(
        "person", "impassable", "impassable", "flat", 0.5,
        "a box as large as a person appears 2 m ahead",
        goal="stand_off", target=target, held_out=True,
        events=(Event(action="box", at_m=0.0, value=2.0),),
    )  # fmt: skip


def _stops() -> Iterator[Cell]:
    target = Target(figure="fell_disturbed", at_most=0.02)

    def row(name: str, summary: str, *events: Event, difficulty: float = 1.0) -> Cell:
        where = f"{summary}, anywhere at difficulty {difficulty:g}"
        return _cell(
            name, "stops", "stops", _TYPES, difficulty, where, target=target, events=events
        )

    release = Event(action="release", at_m=0.0, duration_s=5.0)
    yield row("release", "the stick released for 5 s", release)
    yield row("stop-and-go", "the stick released for 3 s, four times",
              *[dataclasses.replace(release, duration_s=3.0)] * 4, difficulty=0.5)  # fmt: skip
    yield row("sit", "sit for 5 s", Event(action="sit", at_m=0.0, duration_s=5.0))
    yield row("estop", "emergency stop for 5 s", Event(action="estop", at_m=0.0, duration_s=5.0))
    yield row("swap", "the blind gait in its place for 2 s",
              Event(action="swap", at_m=0.0, duration_s=2.0, name="gait"))  # fmt: skip


def _pictures() -> Iterator[Cell]:
    def row(name: str, summary: str, target: Target | None = None, **options: Any) -> Cell:
        cell = _cell(name, "pictures", "pictures", _TYPES, 0.75, summary, target=target, **options)
        return dataclasses.replace(cell, facts={**cell.facts, "baseline": "undisturbed"})

    little = Target(figure="success_change", at_least=-0.05)
    yield row("undisturbed", "the courses of this family as they are")
    for seconds, most in ((0.2, 0.02), (0.5, 0.02), (1.0, 0.04), (2.0, 0.06)):
        event = Event(action="pictures", name="outage", at_m=0.0, duration_s=seconds)
        yield row(
            f"outage-{seconds:g}",
            f"no pictures for {seconds:g} s at a random place",
            Target(figure="fell_disturbed", at_most=most),
            events=(event,),
        )
    for milliseconds in (120, 200, 500):
        late, what = Pictures(latency_s=milliseconds / 1000), f"pictures {milliseconds} ms late"
        target = little if milliseconds <= 200 else None
        yield row(f"late-{milliseconds}", what, target, pictures=late)
    yield row("lost-50", "half of the pictures lost", little, pictures=Pictures(drop_share=0.5))
    yield row("rate-10", "10 pictures per second", little, pictures=Pictures(rate_hz=10.0))
    yield row("noise", "ten times the noise of depth", pictures=Pictures(noise_factor=10.0))
    yield row("black", "no pixel with a reading", pictures=Pictures(fault="black"))
    yield row("frozen", "the first picture again and again", pictures=Pictures(fault="frozen"))
    yield row("mirrored", "left and right exchanged", pictures=Pictures(fault="mirrored"))


def _robots() -> Iterator[Cell]:
    def row(
        name: str, summary: str, courses: str | tuple[str, ...] = _TYPES, **options: Any
    ) -> Cell:
        return _cell(name, "robots", "robots", courses, 0.5, summary, **options)

    yield row("push", "pushes of 1 m/s every 5 s", push_speed=1.0)
    yield row("load", "10 kg on the back", robot=RobotVariation(payload_kg=10.0))
    yield row("heavy", "1.5 times the mass", robot=RobotVariation(mass_factor=1.5))
    yield row("slippery", "friction 0.3", robot=RobotVariation(friction=0.3))
    yield row("weak", "0.6 of the motors' torque", robot=RobotVariation(motor_strength=0.6))
    joint = Event(action="limp_joint", at_m=0.0, name="any")
    yield row("limp-joint", "a random joint goes limp on level ground", "flat", events=(joint,))
    leg = Event(action="limp_leg", at_m=0.0, name="any")
    yield row("limp-leg", "a random leg goes limp on level ground", "flat", events=(leg,))


_COMMANDS: Final[tuple[tuple[float, float, float], ...]] = (
    *((vx, 0.0, 0.0) for vx in (-0.5, -0.25, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2)),
    *((0.0, vy, 0.0) for vy in (-0.4, -0.2, 0.2, 0.4)),
    *((0.0, 0.0, yaw) for yaw in (-0.8, -0.4, 0.4, 0.8)),
    (0.5, 0.2, 0.0),
    (0.35, -0.35, 0.0),
    (0.3, 0.0, 0.4),
    (0.5, 0.0, -0.8),
    (-0.3, 0.0, 0.4),
    (0.3, 0.2, -0.4),
)
"""vx, vy [m/s], yaw rate [rad/s]."""


def _commands() -> Iterator[Cell]:
    for ground, difficulty, text in (("flat", 0.0, "level"), ("rough", 0.5, "rough +-5 cm")):
        for command in _COMMANDS:
            parts = zip(("vx", "vy", "yaw"), command, strict=True)
            name = "-".join([ground, *(f"{axis}{value:g}" for axis, value in parts if value)])
            vx, vy, yaw = command
            what = f"{vx:g}, {vy:g} m/s, {yaw:g} rad/s for 30 s on {text} ground"
            yield _tracking(name, difficulty, command, 30.0, "track", what)
        yield _tracking(
            f"{ground}-stand", difficulty, (0.0, 0.0, 0.0), 60.0, "stand",
            f"stand for 60 s on {text} ground",
        )  # fmt: skip


def _tracking(
    name: str,
    difficulty: float,
    command: tuple[float, float, float],
    seconds: float,
    goal: Goal,
    summary: str,
) -> Cell:
    return Cell(
        name=name,
        family="commands-flat" if difficulty == 0.0 else "commands-rough",
        summary=summary,
        goal=goal,
        make=functools.partial(
            track_scenario, cell=name, difficulty=difficulty, command=command, seconds=seconds
        ),
        target=Target(at_least=0.9),
        quick=name in _QUICK,
        facts={
            "group": "commands",
            "course": "field",
            "difficulty": difficulty,
            **dict(zip(("vx", "vy", "yaw_rate"), command, strict=True)),
        },
    )


def _all(*parts: Iterable[Cell]) -> tuple[Cell, ...]:
    cells = tuple(cell for part in parts for cell in part)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names), "cells of a suite have different names"
    assert {cell.name for cell in cells if cell.quick} == _QUICK
    return cells


WILD: Final[tuple[Cell, ...]] = _all(
    _published(), _families(), _impassable(), _stops(), _pictures(), _robots(), _commands()
)
