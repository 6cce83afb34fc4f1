"""The `jetson-hal` command."""

import sys

from krabby_devices.errors import DeviceError
from krabby_proto import ProtoError
from krabby_robot.errors import RobotError
from krabby_service.app import main as run_service

from jetson_hal.config import JetsonHalCfg
from jetson_hal.errors import JetsonHalError
from jetson_hal.service import JetsonHal


def main() -> int:
    """Run until told to stop; returns the exit status."""
    return run_service(
        "jetson-hal",
        JetsonHalCfg,
        JetsonHal,
        errors=(JetsonHalError, DeviceError, RobotError, ProtoError),
    )


if __name__ == "__main__":
    sys.exit(main())
