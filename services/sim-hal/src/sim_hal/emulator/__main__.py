"""The `robot-emulator` command: the service, or a word to a running one."""

import sys

from krabby_devices.errors import DeviceError
from krabby_proto import ProtoError
from krabby_robot.errors import RobotError
from krabby_service.app import main as run_service

from sim_hal.emulator.config import EmulatorCfg
from sim_hal.emulator.console import COMMANDS, run_console
from sim_hal.emulator.service import RobotEmulator
from sim_hal.errors import SimHalError

_EXPECTED = (SimHalError, DeviceError, RobotError, ProtoError)


def main() -> int:
    """Run until told to stop, or ask a running emulator; returns the exit status."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        try:
            return run_console(sys.argv[1:])
        except _EXPECTED as error:
            sys.stderr.write(f"robot-emulator: {error}\n")
            return 1
    return run_service("robot-emulator", EmulatorCfg, RobotEmulator, errors=_EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
