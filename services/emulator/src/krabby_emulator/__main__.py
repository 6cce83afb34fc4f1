"""`python -m krabby_emulator`: the service, or a word to a running one."""

import sys

from krabby.drivers.errors import DeviceError
from krabby.mujoco.errors import SimulationError
from krabby.robot.errors import RobotError
from krabby.runtime.app import main as run_service
from krabby_proto import ProtoError

from krabby_emulator.config import EmulatorCfg
from krabby_emulator.console import COMMANDS, run_console
from krabby_emulator.service import RobotEmulator

_EXPECTED = (SimulationError, DeviceError, RobotError, ProtoError)


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
