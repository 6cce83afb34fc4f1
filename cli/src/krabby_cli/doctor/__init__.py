"""`krabby doctor`: is this machine fit to run the robot, and if not, what to do about it?

It only looks: nothing is changed, nothing is sent to the drives. On a Jetson it judges as the
robot's computer, elsewhere it leaves out what only the robot has.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from krabby.robot.assets import assets_dir
from krabby_proto import STREAMS

from krabby_cli.doctor.host import check_host, check_realtime
from krabby_cli.doctor.jetson import check_jetson
from krabby_cli.doctor.machine import Finding, Machine
from krabby_cli.doctor.wires import check_wires
from krabby_cli.errors import UsageError

__all__ = ["Finding", "Machine", "add_parser", "examine"]

_EPILOG: Final = """\
examples:
  krabby doctor                       every check of this machine
  krabby doctor --robot --json        judged as the robot, one JSON object a check
  sudo krabby doctor                  also sees what only root may read (the calibration volume)

ok: fine; warn: it runs, and not as well as it should; fail: it does not run, or not safely;
skip: does not apply here. Exit status: 1 when a check failed, 0 otherwise.
"""

_METRICS: Final = {9101: "jetson-hal metrics", 9102: "camera metrics", 9103: "gameloop metrics"}
_WATCHERS: Final = {9090: "prometheus", 3000: "grafana"}


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="check the machine the robot runs on, and say what to do",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a check")
    parser.add_argument("--robot", action="store_true", help="judge as the robot's computer")
    parser.add_argument(
        "--hardware", type=Path, metavar="FILE", help="hardware.toml (the one in the assets folder)"
    )
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="calibration.toml")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="where the machine's files are: a container sees its host's under /host (/)",
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Examine this machine, print each finding as it comes."""
    machine = Machine(
        root=args.root,
        as_robot=True if args.robot else None,
        calibration=args.calibration,
        buses=_buses(args.hardware or assets_dir() / "crab_hex" / "hardware.toml"),
        ports=stack_ports(),
    )
    show = _print_json if args.json else _print
    findings = []
    for finding in examine(machine):
        show(finding)
        findings.append(finding)
    failed = sum(finding.status == "fail" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    if not args.json:
        sys.stdout.write(f"{len(findings)} checks: {failed} failed, {warned} with a warning\n")
    return 1 if failed else 0


def examine(machine: Machine) -> Iterator[Finding]:
    """Every check, in the order a person would ask."""
    yield from check_jetson(machine)
    yield from check_realtime(machine)
    yield from check_wires(machine)
    yield from check_host(machine)


def stack_ports() -> dict[int, str]:
    """TCP ports of the stack on the loopback interface, and what for."""
    return {stream.port: name for name, stream in STREAMS.items()} | _METRICS | _WATCHERS


def _buses(path: Path) -> dict[str, int]:
    """Interfaces of hardware.toml, with their bit rates; the rest is the HAL's to check."""
    try:
        buses = tomllib.loads(path.read_text())["buses"].values()
        return {bus["channel"]: bus["bitrate"] for bus in buses if bus["interface"] == "socketcan"}
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} does not say which buses there are ({error}); name the robot's hardware.toml "
            "with --hardware"
        ) from error


def _print(finding: Finding) -> None:
    sys.stdout.write(f"{finding.status:5} {finding.name:20} {finding.value}\n")
    if finding.remedy:
        sys.stdout.write(f"{'':27}do: {finding.remedy}\n")
    sys.stdout.flush()


def _print_json(finding: Finding) -> None:
    sys.stdout.write(json.dumps(finding._asdict()) + "\n")
    sys.stdout.flush()
