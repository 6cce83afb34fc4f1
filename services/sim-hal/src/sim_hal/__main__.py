"""The `sim-hal` command."""

import sys

from krabby_proto import ProtoError
from krabby_robot.errors import RobotError
from krabby_service.app import main as run_service

from sim_hal.config import SimHalCfg
from sim_hal.errors import SimHalError
from sim_hal.service import SimHal


def main() -> int:
    """Run until told to stop; returns the exit status."""
    return run_service("sim-hal", SimHalCfg, SimHal, errors=(SimHalError, RobotError, ProtoError))


if __name__ == "__main__":
    sys.exit(main())
