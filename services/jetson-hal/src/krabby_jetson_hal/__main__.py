"""`python -m krabby_jetson_hal`."""

import sys

from krabby.drivers.errors import DeviceError
from krabby.hal.errors import HalError
from krabby.robot.errors import RobotError
from krabby.runtime.app import main as run_service
from krabby_proto import ProtoError

from krabby_jetson_hal.config import JetsonHalCfg
from krabby_jetson_hal.service import JetsonHal


def main() -> int:
    """Run until told to stop; returns the exit status."""
    return run_service(
        "jetson-hal",
        JetsonHalCfg,
        JetsonHal,
        errors=(HalError, DeviceError, RobotError, ProtoError),
    )


if __name__ == "__main__":
    sys.exit(main())
