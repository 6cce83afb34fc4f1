"""Breaking and mending a running emulator from the command line."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Final

from krabby_proto import ControlClient

from krabby_emulator.config import EndpointsCfg
from krabby_emulator.faults import FAULTS, FaultFacts, FaultKind, FaultRefused

__all__ = ["COMMANDS", "run_console"]

COMMANDS: Final = ("fault", "clear", "put-back", "status")
"""First words that are meant for a running emulator."""


def run_console(argv: Sequence[str]) -> int:
    """Ask the running emulator; prints its answer as one line of JSON.

    Raises:
        FaultRefused: it said no.
    """
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
        help="break something",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {kind:<17} {_line(facts)}" for kind, facts in FAULTS.items()),
    )
    fault.add_argument("kind", choices=[kind.value for kind in FaultKind], metavar="KIND")
    fault.add_argument("--joint", help="one drive; without it all, or those of --bus")
    fault.add_argument("--bus", help="one bus; without it all")
    fault.add_argument(
        "--for", dest="for_s", type=float, metavar="S", help="how long [s]; until cleared if absent"
    )
    fault.add_argument("--value", type=float, help="see below")
    clear = commands.add_parser("clear", help="mend everything, or one kind")
    clear.add_argument("kind", nargs="?", choices=[kind.value for kind in FaultKind])
    commands.add_parser("put-back", help="put the robot back to its last waypoint")
    commands.add_parser("status", help="what is broken, and how the robot is")
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
