"""A benchmark trial of a scenario that is in no suite: the gait is pushed while it stands.

python examples/own_trial.py 1.5        # speed of the push [m/s]
"""

import logging
import sys

import structlog
from krabby.benchmark.outcome import Judge
from krabby.benchmark.scenario import Cell, CommandSegment, Event, Scenario
from krabby.benchmark.trace import TrialResult
from krabby.benchmark.trial import Policies, Trial
from krabby.course.courses import make_course
from krabby.robot.description import RobotDescription


def scenario(seed: int, push: float) -> Scenario:
    """Stand for 8 s; after 2 s the base is pushed to the left."""
    return Scenario(
        course=make_course("flat", 0.5, seed),
        commands=(CommandSegment(start_s=0.0),),
        events=(Event(action="push", at_s=2.0, value=push, angle_rad=1.57),),
        duration_s=8.0,
    )


def run(push: float, policy: str = "gait", seed: int = 0) -> TrialResult:
    """One trial; the same seed gives the same trajectory."""
    cell = Cell(
        name="pushed",
        family="pushed",
        summary=f"a push of {push:g} m/s on level ground",
        goal="stand",
        make=lambda seed: scenario(seed, push),
    )
    desc = RobotDescription.load()
    trial = Trial(cell, seed, Policies(desc, policy), desc)
    return trial.run(Judge(trial.facts))


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    result = run(float(sys.argv[1]))
    sys.stdout.write(f"{result.outcome} after {result.time_s:g} s {result.reason}\n")
