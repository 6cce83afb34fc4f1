"""`krabby doctor`: check whether this machine can run the robot, and print a remedy per problem.

It changes nothing and sends nothing to the drives. On a Jetson it checks as on the robot's
computer, elsewhere it skips what only the robot has.
"""

from __future__ import annotations

import argparse
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from krabby.robot.assets import robot_dir
from krabby_proto import STREAMS

from krabby_cli.doctor.host import check_host, check_realtime
from krabby_cli.doctor.jetson import check_jetson
from krabby_cli.doctor.machine import Finding, Machine, Status
from krabby_cli.doctor.wires import check_wires
from krabby_cli.errors import UsageError
from krabby_cli.options import add_command, flag, option, print_json, print_line

__all__ = ["Finding", "Machine", "add_parser", "examine"]

_EPILOG: Final = """\
examples:
  krabby doctor                       every check of this machine
  krabby doctor --robot --json        checked as the robot, one JSON object per check
  sudo krabby doctor                  also reads what only root may (the calibration volume)

ok: fine; warn: it runs with reduced performance; fail: it does not run, or not safely;
skip: does not apply here. Exit status: 1 when a check failed, 0 otherwise.
"""

_METRICS: Final = {9101: "jetson-hal metrics", 9102: "camera metrics", 9103: "gameloop metrics"}
_WATCHERS: Final = {9090: "prometheus", 3000: "grafana"}


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "doctor", run, "check the machine, print a remedy per problem", __doc__, _EPILOG
    )
    flag(parser, "--json", "print one JSON object per check")
    flag(parser, "--robot", "check as the robot's computer, also if it is not a Jetson")
    text = "hardware.toml (default in the assets folder)"
    option(parser, "--hardware", "FILE", None, text, type=Path)
    text = "calibration.toml (default in the calibration volume)"
    option(parser, "--calibration", "FILE", None, text, type=Path)
    text = "root of the machine's files; in a container /host"
    option(parser, "--root", "DIR", Path("/"), text, type=Path)


def run(args: argparse.Namespace) -> int:
    machine = Machine(
        root=args.root,
        as_robot=True if args.robot else None,
        calibration=args.calibration,
        buses=_buses(args.hardware or robot_dir() / "hardware.toml"),
        ports=stack_ports(),
    )
    counts: Counter[Status] = Counter()
    for finding in examine(machine):
        counts[finding.status] += 1
        if args.json:
            print_json(finding._asdict())
        else:
            _print(finding)
    if not args.json:
        failed, warned = counts["fail"], counts["warn"]
        print_line(f"{counts.total()} checks: {failed} failed, {warned} with a warning")
    return 1 if counts["fail"] else 0


def examine(machine: Machine) -> Iterator[Finding]:
    """Every check: computer, real time, connections, host."""
    yield from check_jetson(machine)
    yield from check_realtime(machine)
    yield from check_wires(machine)
    yield from check_host(machine)


def stack_ports() -> dict[int, str]:
    """TCP ports of the stack on the loopback interface, and their purpose."""
    return {stream.port: name for name, stream in STREAMS.items()} | _METRICS | _WATCHERS


def _buses(path: Path) -> dict[str, int]:
    """CAN interfaces of hardware.toml and their bit rates; the HAL checks the rest."""
    try:
        buses = tomllib.loads(path.read_text())["buses"].values()
        return {bus["channel"]: bus["bitrate"] for bus in buses if bus["interface"] == "socketcan"}
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} does not define the buses ({error}); name the robot's hardware.toml "
            "with --hardware"
        ) from error


def _print(finding: Finding) -> None:
    remedy = f"\n{'':27}do: {finding.remedy}" if finding.remedy else ""
    print_line(f"{finding.status:5} {finding.name:20} {finding.value}{remedy}")
