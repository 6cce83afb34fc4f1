import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.mujoco.config import CameraCfg, DegradeCfg
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import FakeClock, free_ports
from krabby.safety.gate import DriveCommand, DriveMode
from krabby_sim_hal.backend import Simulator
from krabby_sim_hal.config import SimHalCfg


@pytest.fixture(scope="session")
def desc():
    return RobotDescription.load()


@pytest.fixture(scope="session")
def flat():
    return make_course("flat")


@pytest.fixture
def clock():
    return FakeClock()


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


@pytest.fixture
def simulator(desc, clock):
    """Build a `Simulator` on the fake clock; keyword arguments are keys of `SimHalCfg`."""

    def build(course=None, **keys):
        tables = {
            "camera": CameraCfg(**keys.pop("camera", {})),
            "degrade": DegradeCfg(**keys.pop("degrade", {})),
        }
        cfg = SimHalCfg(**({"spawn": "standing"} | tables | keys))
        return Simulator(cfg, desc, course or make_course("flat"), clock_ns=clock)

    return build


@pytest.fixture
def endpoints():
    names = ("state", "camera", "command", "safety", "truth", "nav")
    ports = free_ports(len(names))
    return {name: f"tcp://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
