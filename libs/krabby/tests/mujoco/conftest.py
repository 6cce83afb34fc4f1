import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.robot.description import RobotDescription
from krabby.safety.gate import DriveCommand, DriveMode


@pytest.fixture(scope="session")
def desc():
    return RobotDescription.load()


@pytest.fixture(scope="session")
def flat():
    return make_course("flat")


@pytest.fixture
def hold(desc):
    """A drive command: hold a pose with the robot's gains, or with others."""

    def make(joint_pos=None, *, kp=None, effort_limit=120.0):
        every_joint = np.ones(18)
        return DriveCommand(
            DriveMode.POSITION,
            desc.default_joint_pos if joint_pos is None else joint_pos,
            desc.kp if kp is None else kp * every_joint,
            desc.kd,
            effort_limit * every_joint,
        )

    return make


@pytest.fixture
def limp(desc):
    every_joint = np.ones(18)
    return DriveCommand(
        DriveMode.DAMP,
        desc.default_joint_pos,
        0.0 * every_joint,
        10.0 * every_joint,
        120.0 * every_joint,
    )
