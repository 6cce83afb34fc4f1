"""Trials made up tick by tick, of a robot of 10 kg with 6 feet and 18 joints rated at 40 N·m."""

from dataclasses import replace

import numpy as np
import pytest
from krabby.benchmark.scenario import Cell, CommandSegment, Scenario
from krabby.benchmark.trace import Tick, TrialFacts
from krabby.control.modes import Mode
from krabby.course.courses import make_course
from krabby.robot.description import RobotDescription
from krabby_proto.states import SafetyState

_DESC = RobotDescription.load()
SUBSTEPS = 4
SUBSTEP_S = 0.0025


@pytest.fixture(scope="session")
def course():
    """Waypoints 10 m and 20 m ahead of the spawn."""
    return replace(
        make_course("flat", 0.0, 0),
        spawn=(0.0, 0.0, 0.0),
        waypoints=np.array([[10.0, 0.0, 0.0], [20.0, 0.0, 0.0]]),
    )


@pytest.fixture
def make_facts(course):
    def make(goal="waypoints", *, commands=(), speed=0.5, events=(), **changes):
        scenario = Scenario(
            course=course, speed=speed, commands=commands, events=events, duration_s=100.0
        )
        cell = Cell(name="cell", family="family", summary="", goal=goal, make=lambda seed: scenario)
        facts = TrialFacts(
            cell=cell,
            scenario=scenario,
            seed=0,
            policy="policy",
            mass_kg=10.0,
            rated_torque=np.full(18, 40.0),
            joint_names=_DESC.joint_names,
            leg_names=_DESC.leg_names,
            substep_s=SUBSTEP_S,
            course_m=20.0,
            waypoints=2,
            tilt_limit_rad=1.0,
        )
        return replace(facts, **changes)

    return make


@pytest.fixture
def make_tick():
    """A tick of a robot that walks forward at 0.5 m/s as it is asked to, all feet down."""

    def make(time_s=0.0, **changes):
        tick = Tick(
            time_s=time_s,
            mode=Mode.POLICY,
            safety=SafetyState.ACTIVE,
            faults=0,
            policy="policy",
            blind=False,
            feature_age_s=0.05,
            asked=np.array([0.5, 0.0, 0.0]),
            command=np.array([0.5, 0.0, 0.0]),
            walks=True,
            base_pos_w=np.array([0.5 * time_s, 0.0, 0.4]),
            base_quat_w=np.array([0.0, 0.0, 0.0, 1.0]),
            base_lin_vel_b=np.array([0.5, 0.0, 0.0]),
            base_ang_vel_b=np.zeros(3),
            tilt_rad=0.0,
            joint_pos=np.zeros(18),
            joint_target=np.zeros(18),
            joint_vel=np.ones((SUBSTEPS, 18)),
            joint_torque=np.full((SUBSTEPS, 18), 10.0),
            foot_force=np.full((SUBSTEPS, 6), 20.0),
            foot_soles_w=np.zeros((6, 3)),
            body_contact=False,
            box_contact=False,
            in_pit=False,
            stance_m=0.4,
            position_clamps=0,
            rate_clamps=0,
            waypoint=0,
            progress_m=0.5 * max(time_s, 0.0),
            diverged=False,
        )
        for name, value in changes.items():
            setattr(tick, name, np.array(value) if isinstance(value, (list, tuple)) else value)
        return tick

    return make


@pytest.fixture
def command():
    return lambda vx=0.0, vy=0.0, yaw=0.0: (
        CommandSegment(start_s=0.0, vx=vx, vy=vy, yaw_rate=yaw),
    )
