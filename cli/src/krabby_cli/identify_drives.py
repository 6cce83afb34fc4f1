"""`krabby drives identify`: one joint after the other moves, the operator says what was seen."""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, Final

from krabby.drivers.errors import DriveError

from krabby_cli.options import print_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from krabby.drivers.can.bus import CanJointBus
    from krabby.drivers.can.calibration import Calibration
    from krabby.drivers.can.hardware import HardwareDescription
    from krabby.drivers.can.wiggle import Wiggle
    from krabby.robot.description import RobotDescription

__all__ = ["identify"]

_LEGS: Final = {
    "lf": "left front", "lm": "left middle", "lr": "left rear",
    "rf": "right front", "rm": "right middle", "rr": "right rear",
}  # fmt: skip
_WAYS: Final = {
    "hip_yaw": ("turned counter-clockwise, seen from above", "turned clockwise, seen from above"),
    "hip_pitch": ("raised its knee", "lowered its knee"),
    "knee": ("stretched its foot out", "bent its foot down and in"),
}
"""What is seen when the angle grows and when it falls."""
_ANSWERS: Final = "y yes, o it went the other way, n another joint moved, r again, q quit"


def identify(
    bus: CanJointBus,
    desc: RobotDescription,
    hardware: HardwareDescription,
    *,
    ask_all: bool,
    move: Callable[[CanJointBus, RobotDescription, int], Wiggle],
) -> Calibration | None:
    """Move joints, ask, and return the calibration to save; None when it was not all confirmed.

    Joints whose drive is the one that was confirmed before are not asked again, unless `ask_all`.

    Raises:
        DriveError: A drive fails, does not move, or another joint than the commanded one moves.
    """
    calibration, count = bus.calibration, len(desc.joint_names)
    bus.enable(bus.probe())
    known = calibration.identities if calibration.confirmed and not ask_all else ("",) * count
    direction, offset = calibration.direction.copy(), calibration.offset.copy()
    turned: list[str] = []
    others: dict[str, str] = {}
    for joint, name in enumerate(desc.joint_names):
        if known[joint] and known[joint] == bus.identities[joint]:
            print_line(f"{name}: confirmed {calibration.confirmed}, the same drive")
            continue
        answer = _ask(bus, desc, joint, f"{joint + 1}/{count}", move)
        if answer == "q":
            print_line("ended; nothing is written")
            return None
        if answer == "o":
            # The angle where it is stays; from there it counts the other way.
            here = float(bus.readings.joint_pos[joint])
            direction[joint], offset[joint] = -direction[joint], 2.0 * here - offset[joint]
            turned.append(name)
        elif answer != "y":
            others[name] = answer
    if others:
        _explain(others, hardware)
        return None
    measured = "" if turned else calibration.measured
    if turned:
        print_line(f"direction changed: {', '.join(turned)}")
    if not measured:
        print_line("next: krabby drives calibrate, which measures the zeros")
    return dataclasses.replace(
        calibration,
        direction=direction,
        offset=offset,
        measured=measured,
        confirmed=datetime.date.today().isoformat(),
        identities=bus.identities,
    )


def _ask(
    bus: CanJointBus,
    desc: RobotDescription,
    joint: int,
    number: str,
    move: Callable[[CanJointBus, RobotDescription, int], Wiggle],
) -> str:
    """Move the joint until there is an answer: y, o, q, or the name of the joint that moved."""
    name = desc.joint_names[joint]
    leg, _, kind = name.partition("_")
    way = ""
    while True:
        way = way or _seen(move(bus, desc, joint).way, kind)
        answer = input(f"{number} {name}: the {_LEGS.get(leg, leg)} leg {way}, and came back? ")
        bus.enable(bus.probe())  # the drives let go while they waited
        match answer.strip().lower():
            case "y" | "o" | "q" as known:
                return known
            case "r":
                way = ""
            case "n":
                other = _which(desc.joint_names)
                if other == name:
                    return "y"
                return other
            case _:
                print_line(_ANSWERS)


def _seen(way: int, kind: str) -> str:
    """In words, what is to be seen."""
    grows, falls = _WAYS.get(kind, ("moved up its scale", "moved down its scale"))
    return grows if way > 0 else falls


def _which(names: Sequence[str]) -> str:
    while (answer := input("which joint moved? ").strip()) not in names:
        print_line(f"one of {', '.join(names)}")
    return answer


def _explain(others: dict[str, str], hardware: HardwareDescription) -> None:
    """Say which entries of hardware.toml have to change."""
    drives = {drive.joint: drive for drive in hardware.drives}
    for name, moved in others.items():
        drive = drives[name]
        print_line(
            f"the drive with id {drive.can_id} on bus {drive.bus} moves {moved}, not {name}: give "
            f"{moved} this bus and id in hardware.toml, or exchange the plugs"
        )
    print_line("nothing is written; change that and identify again")
    if len(set(others.values())) < len(others):
        raise DriveError("two drives are said to move the same joint; identify again")
