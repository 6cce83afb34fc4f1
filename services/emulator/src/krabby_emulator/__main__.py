"""`python -m krabby_emulator`: the service, or a request to a running one."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Final

from krabby.drivers.errors import DeviceError
from krabby.mujoco.errors import SimulationError
from krabby.robot.errors import RobotError
from krabby.runtime.app import main as run_service
from krabby_proto import ControlClient, ProtoError

from krabby_emulator.config import EmulatorCfg, EndpointsCfg
from krabby_emulator.faults import FAULTS, FaultFacts, FaultRefused
from krabby_emulator.service import RobotEmulator

_EXPECTED = (SimulationError, DeviceError, RobotError, ProtoError)
_COMMANDS: Final = ("fault", "clear", "put-back", "status")
"""First words that are meant for a running emulator."""


def main() -> int:
    """Run until told to stop, or ask a running emulator; returns the exit status."""
    if sys.argv[1:2] and sys.argv[1] in _COMMANDS:
        try:
            return _ask(sys.argv[1:])
        except _EXPECTED as error:
            sys.stderr.write(f"robot-emulator: {error}\n")
            return 1
    return run_service("robot-emulator", EmulatorCfg, RobotEmulator, errors=_EXPECTED)


def _ask(argv: Sequence[str]) -> int:
    """Ask the running emulator; prints its answer as one line of JSON."""
    args = _parser().parse_args(argv)
    request = {
        name: value
        for name in ("kind", "joint", "bus", "for_s", "value")
        if (value := getattr(args, name, None)) is not None
    }
    with ControlClient(args.endpoint) as client:
        answer = client.request(args.op, timeout_s=args.timeout, **request)
    if not answer.get("ok"):
        raise FaultRefused(f"{args.op}: {answer.get('reason') or 'refused without a reason'}")
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m krabby_emulator")
    commands = parser.add_subparsers(dest="op", required=True)
    fault = commands.add_parser(
        "fault",
        help="inject a fault",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {kind:<17} {_line(facts)}" for kind, facts in FAULTS.items()),
    )
    fault.add_argument("kind", choices=FAULTS, metavar="KIND")
    fault.add_argument("--joint", help="one drive; without it all, or those of --bus")
    fault.add_argument("--bus", help="one bus; without it all")
    fault.add_argument(
        "--for", dest="for_s", type=float, metavar="S", help="how long [s]; until cleared if absent"
    )
    fault.add_argument("--value", type=float, help="see below")
    clear = commands.add_parser("clear", help="lift all faults, or those of one kind")
    clear.add_argument("kind", nargs="?", choices=FAULTS)
    commands.add_parser("put-back", help="put the robot back to its last waypoint")
    commands.add_parser("status", help="faults in force and the state of the robot")
    for each in commands.choices.values():
        each.add_argument(
            "--endpoint", default=EndpointsCfg().fault, help="endpoints.fault (%(default)s)"
        )
        each.add_argument("--timeout", type=float, default=2.0, metavar="S", help="%(default)s s")
    return parser


def _line(facts: FaultFacts) -> str:
    if math.isnan(facts.value):
        return facts.text
    return f"{facts.text}: {facts.value:g} {facts.unit} unless --value is given"


if __name__ == "__main__":
    sys.exit(main())
