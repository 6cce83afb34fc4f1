import pytest
from krabby.course.courses import make_course
from krabby.mujoco.config import CameraCfg, DegradeCfg
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import FakeClock, free_ports
from krabby_sim_hal.backend import Simulator
from krabby_sim_hal.config import SimHalCfg


@pytest.fixture(scope="session")
def desc():
    return RobotDescription.load()


@pytest.fixture
def clock():
    return FakeClock()


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
