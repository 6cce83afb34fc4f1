"""What a person does with the drives before the robot walks. None is switched on.

    krabby drives probe        who answers, how warm, which faults
    krabby drives watch        the angle of every joint, while somebody moves them by hand
    krabby drives calibrate    where the zeros are, written to the robot's calibration file

It speaks with the drives itself, so it refuses to while a HAL does.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from krabby.drivers.errors import DeviceError
from krabby.robot.description import RobotDescription

from krabby_cli.errors import CliError

if TYPE_CHECKING:
    from krabby.drivers.can import DriveReadings
    from krabby.drivers.can.bus import CanJointBus
    from krabby.drivers.can.calibration import Calibration
    from krabby.drivers.can.hardware import HardwareDescription
    from numpy.typing import NDArray

__all__ = ["add_parser"]

_STATE_PORT: Final = 6001
_READINGS: Final = 50
_READING_S: Final = 0.02
_WATCH_S: Final = 0.2
_CYCLES: Final = 100
"""Half a second: a second drive under one id that answers every tenth time is found too."""
_CYCLE_NS: Final = 5_000_000
_POSES: Final = {
    "zero": "every leg straight out from the body and level, feet on trestles",
    "default": "the standing pose: thighs 0.45 rad up, shins 1.95 rad down and in, on the jigs",
}


def add_parser(commands: Any) -> None:
    """Add the subcommand, which has some of its own."""
    parser = commands.add_parser(
        "drives",
        help="on the robot, its HAL stopped: probe, watch or calibrate the drives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hardware", default="", metavar="FILE", help="hardware.toml")
    parser.add_argument("--interface", default="", help="python-can interface in place of its own")
    parser.add_argument(
        "--channel", action="append", default=[], metavar="NAME", help="once for each bus"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        default=Path("/var/lib/krabby/calibration.toml"),
        metavar="FILE",
        help="%(default)s",
    )
    parser.set_defaults(handler=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("probe", help="who answers").set_defaults(act=_probe)
    actions.add_parser("watch", help="angles, while joints are moved").set_defaults(act=_watch)
    command = actions.add_parser("calibrate", help="measure the zeros, write the file")
    command.add_argument(
        "--pose", choices=_POSES, default="zero", help="what the legs are put into (%(default)s)"
    )
    command.add_argument("--yes", action="store_true", help="measure at once, do not ask")
    command.set_defaults(act=_calibrate)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; returns the exit status.

    Raises:
        CliError: A HAL is running, or the drives cannot be used.
    """
    try:
        _refuse_beside_a_hal()
        return args.act(args)
    except DeviceError as error:
        raise CliError(f"{args.action}: {error}") from error


def _refuse_beside_a_hal() -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", _STATE_PORT), 0.2):
        raise DeviceError(
            f"a HAL answers on port {_STATE_PORT} and speaks with the drives; stop it first: "
            "docker compose -f compose.jetson.yaml stop jetson-hal"
        )


@contextlib.contextmanager
def _opened(
    args: argparse.Namespace, calibration: Calibration | None = None
) -> Iterator[tuple[RobotDescription, HardwareDescription, Calibration, CanJointBus]]:
    """The buses of hardware.toml, open; every drive stays off."""
    # Loaded here: the drivers take 0.1 s, which `krabby estop` must not wait for.
    from krabby.drivers.can.bus import CanJointBus
    from krabby.drivers.can.calibration import Calibration
    from krabby.drivers.can.config import CanCfg, load_hardware

    desc = RobotDescription.load()
    cfg = CanCfg(hardware=args.hardware, interface=args.interface, channels=tuple(args.channel))
    hardware = load_hardware(cfg, desc)
    if calibration is None:
        calibration = (
            Calibration.load(args.calibration, hardware)
            if args.calibration.exists()
            else Calibration.nominal(hardware)
        )
    bus = CanJointBus(hardware, calibration, desc)
    bus.open()
    try:
        yield desc, hardware, calibration, bus
    finally:
        bus.disable()
        bus.close()


def _probe(args: argparse.Namespace) -> int:
    from krabby.drivers.can.faults import fault_names, remedy

    with _opened(args) as (_, hardware, calibration, bus):
        readings = _listen(bus, len(hardware.drives))
        sys.stdout.write(f"{'joint':14} {'bus':8} {'id':>3} {'angle rad':>10} {'°C':>6}  faults\n")
        for i, drive in enumerate(hardware.drives):
            sys.stdout.write(
                f"{drive.joint:14} {drive.bus:8} {drive.can_id:3d} {readings.joint_pos[i]:10.3f} "
                f"{readings.temperature_c[i]:6.1f}  "
                f"{fault_names(int(readings.faults[i])) or 'none'}\n"
            )
            if readings.faults[i]:
                sys.stdout.write(f"{'':14} do: {remedy(int(readings.faults[i]))}\n")
        for conflict in readings.conflicts:
            sys.stdout.write(f"{conflict}: {conflict.remedy}\n")
    sys.stdout.write(
        f"{len(hardware.drives)} drives answer; calibrated: {calibration.measured or 'never'}\n"
    )
    return 1 if readings.faults.any() else 0


def _listen(bus: CanJointBus, count: int) -> DriveReadings:
    """Cycles with nothing switched on, until what the drives say of themselves has settled."""
    from krabby.drivers.can import DriveTargets

    readings = bus.probe()
    for _ in range(_CYCLES):
        begin_ns = time.monotonic_ns()
        readings = bus.exchange(DriveTargets.limp(count), begin_ns + _CYCLE_NS)
        time.sleep(max(0.0, (begin_ns + _CYCLE_NS - time.monotonic_ns()) * 1e-9))
    return readings


def _watch(args: argparse.Namespace) -> int:
    with _opened(args) as (desc, _, _, bus):
        sys.stdout.write(f"{desc.name}, angles in rad; Ctrl-C ends it\n")
        sys.stdout.write(" ".join(name[-12:].rjust(12) for name in desc.joint_names) + "\n")
        while True:
            angles = bus.probe().joint_pos.tolist()
            sys.stdout.write(" ".join(f"{angle:12.3f}" for angle in angles) + "\n")
            sys.stdout.flush()
            time.sleep(_WATCH_S)


def _calibrate(args: argparse.Namespace) -> int:
    from krabby.drivers.can.calibration import calibrate

    desc = RobotDescription.load()
    pose = np.zeros(len(desc.joint_names)) if args.pose == "zero" else desc.default_joint_pos
    sys.stdout.write(f"The pose {args.pose!r}: {_POSES[args.pose]}.\n")
    if not args.yes:
        input("The drives are off. Put every leg into it, keep it still, press Enter. ")
    with _opened(args) as (desc, hardware, current, bus):
        measured = calibrate(
            current,
            _readings(bus, len(hardware.drives)),
            pose,
            desc,
            date=datetime.date.today().isoformat(),
        )
        _warn_of_turns(current.offset, measured.offset, desc.joint_names)
        measured.save(args.calibration)
    sys.stdout.write(f"{args.calibration} written: {len(measured.joint_names)} joints\n")
    return 0


def _readings(bus: CanJointBus, count: int) -> NDArray[np.float64]:
    taken = np.empty((_READINGS, count))
    for row in taken:
        readings: DriveReadings = bus.probe()
        row[:] = readings.joint_pos
        time.sleep(_READING_S)
    return taken


def _warn_of_turns(
    old: NDArray[np.float64], new: NDArray[np.float64], names: Sequence[str]
) -> None:
    """A zero that moved by half a turn is a leg that was mounted anew, or in the wrong pose."""
    for name, before, after in zip(names, old.tolist(), new.tolist(), strict=True):
        if abs(after - before) > np.pi / 2.0:
            sys.stdout.write(
                f"note: {name} moved by {after - before:+.2f} rad against the last calibration\n"
            )
