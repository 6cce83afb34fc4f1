"""Suite `published`: the courses of the published parkour suite, as this project builds them."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Final

from krabby.benchmark.figures import needed_s
from krabby.benchmark.outcome import TIME_FACTOR
from krabby.benchmark.scenario import Cell, Scenario, Target
from krabby.course.courses import COURSES, make_course

__all__ = ["PUBLISHED", "SPEED", "published_scenario"]

SPEED: Final = 0.35
"""Commanded speed of the mission [m/s]."""
_COURSES: Final = ("flat", "steps", "gap", "hurdle", "ramps", "mixed", "demo")
_OF_ONE_DIFFICULTY: Final = ("flat", "demo")
_DIFFICULTIES: Final = (0.25, 0.5, 0.75, 1.0)
_QUICK: Final = (0.5, 1.0)


def published_scenario(seed: int, *, course: str, difficulty: float) -> Scenario:
    """Walk the course `make_course(course, difficulty, seed)` from waypoint to waypoint."""
    scenario = Scenario(course=make_course(course, difficulty, seed), speed=SPEED)
    limit_s = math.ceil(TIME_FACTOR * needed_s(scenario)) + 1.0  # the judge is the one to end it
    return dataclasses.replace(scenario, duration_s=limit_s)


def _cell(course: str, difficulty: float) -> Cell:
    return Cell(
        name=f"{course}-{difficulty:g}",
        family=course,
        summary=f"{COURSES[course].summary}, difficulty {difficulty:g}",
        goal="waypoints",
        make=functools.partial(published_scenario, course=course, difficulty=difficulty),
        target=Target(at_least=0.95),
        quick=difficulty in _QUICK,
        facts={"group": "published", "course": course, "difficulty": difficulty, "vx": SPEED},
    )


PUBLISHED: Final[tuple[Cell, ...]] = tuple(
    _cell(course, difficulty)
    for course in _COURSES
    for difficulty in (_DIFFICULTIES if course not in _OF_ONE_DIFFICULTY else (0.5,))
)
