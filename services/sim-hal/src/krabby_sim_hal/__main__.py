"""`python -m krabby_sim_hal`."""

import sys

from krabby.hal.errors import HalError
from krabby.mujoco.errors import SimulationError
from krabby.robot.errors import RobotError
from krabby.runtime.app import main as run_service
from krabby_proto import ProtoError

from krabby_sim_hal.config import SimHalCfg
from krabby_sim_hal.service import SimHal


def main() -> int:
    """Run until told to stop; returns the exit status."""
    return run_service(
        "sim-hal", SimHalCfg, SimHal, errors=(HalError, SimulationError, RobotError, ProtoError)
    )


if __name__ == "__main__":
    sys.exit(main())
