"""`krabby drives adapters`: names for the CAN adapters by what hangs on them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from krabby.drivers.errors import DriveError, HardwareError
from krabby.robot.description import RobotDescription

from krabby_cli.options import option, print_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krabby.drivers.can.adapters import Adapter

__all__ = ["add_options", "name_adapters"]

RULES: Final = Path("/etc/udev/rules.d/70-krabby-can.rules")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "given",
        nargs="*",
        metavar="BUS=INTERFACE",
        help="which interface a bus has now, as front=can2; default: the one on which its drives "
        "answer",
    )
    option(
        parser,
        "--by",
        None,
        "auto",
        "what an adapter is known by",
        choices=("auto", "serial", "port"),
    )
    option(parser, "--write", "FILE", None, f"write the rules, on the robot {RULES}", type=Path)
    option(parser, "--root", "DIR", Path("/"), "root of the machine's files", type=Path)


def name_adapters(args: argparse.Namespace) -> int:
    """List the adapters, find the bus of each, print or write udev's rules."""
    from krabby.drivers.can.adapters import assign, find_adapters, rules
    from krabby.drivers.can.config import CanCfg, load_hardware

    hardware = load_hardware(CanCfg(hardware=args.hardware), RobotDescription.load())
    adapters = find_adapters(args.root)
    if not adapters:
        raise DriveError(
            "no CAN interface; plug the adapters in and load their driver (sudo modprobe gs_usb)"
        )
    print_line(f"{'interface':12} {'port':16} {'channel':>7} serial number")
    for adapter in adapters:
        serial = adapter.serial or "none"
        print_line(f"{adapter.name:12} {adapter.port:16} {adapter.channel:7d} {serial}")
    names = [bus.name for bus in hardware.buses]
    found = _given(args.given, names, adapters) if args.given else assign(hardware, adapters)
    for bus in names:
        print_line(f"{bus}: {found[bus].name}")
    text = rules({bus: found[bus] for bus in names}, args.by)
    if args.write is None:
        print_line(text.rstrip())
        print_line(f"nothing is written; add --write {RULES}")
        return 0
    try:
        args.write.write_text(text)
    except OSError as error:
        raise HardwareError(
            f"cannot write {args.write}: {error.strerror}; run this with sudo, or write another "
            "file and move it"
        ) from error
    print_line(f"{args.write} written; sudo udevadm control --reload, unplug the adapters once")
    return 0


def _given(words: list[str], buses: list[str], adapters: list[Adapter]) -> Mapping[str, Adapter]:
    """What the operator said: one interface for every bus."""
    by_name = {adapter.name: adapter for adapter in adapters}
    found: dict[str, Adapter] = {}
    for word in words:
        bus, _, interface = word.partition("=")
        if bus not in buses or interface not in by_name:
            raise HardwareError(
                f"{word!r} is not BUS=INTERFACE; buses are {', '.join(buses)}, interfaces "
                f"{', '.join(by_name)}"
            )
        found[bus] = by_name[interface]
    if len(found) < len(buses) or len(set(found.values())) < len(found):
        raise HardwareError(f"give {', '.join(buses)} a separate interface each")
    return found
