"""`krabby drives`: commission the drives before the robot walks.

    krabby drives adapters     name the CAN adapters by the drives that hang on them
    krabby drives probe        list the drives that answer, their temperatures and faults
    krabby drives watch        show the angle of every joint while they are moved by hand
    krabby drives identify     move one joint after the other; the operator says what moved
    krabby drives calibrate    measure the zeros and write the calibration file
    krabby drives bench        try one drive on a bench: `--joint lf_knee --channel can0`

Only identify and bench switch drives on, limp, and move one at a time: the robot hangs on its
stand, the single drive is clamped, one hand is on the emergency stop. A robot is armed only after
identify and calibrate.

The command uses the CAN buses itself and refuses to run beside a HAL. Exit status: 1 when a drive
does not answer or reports a fault, 0 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from krabby.drivers.errors import DeviceError
from krabby.robot.description import RobotDescription
from numpy.typing import NDArray

from krabby_cli.errors import CliError
from krabby_cli.name_adapters import add_options, name_adapters
from krabby_cli.options import add_command, flag, option, print_line

if TYPE_CHECKING:
    from krabby.drivers.can import DriveReadings
    from krabby.drivers.can.bus import CanJointBus
    from krabby.drivers.can.calibration import Calibration
    from krabby.drivers.can.hardware import HardwareDescription

__all__ = ["add_parser"]

_STATE_PORT: Final = 6001
_READINGS: Final = 50
_READING_S: Final = 0.02
_WATCH_S: Final = 0.2
_CYCLES: Final = 100
"""Half a second: it also finds a second drive on one id that answers every tenth time."""
_CYCLE_NS: Final = 5_000_000
_ROUNDS: Final = 4
"""Of so many cycles, for a drive that answered and then fell silent."""
_POSES: Final = {
    "zero": "every leg straight out from the body and level, feet on trestles",
    "default": "the standing pose: thighs 0.45 rad up, shins 1.95 rad down and in, on the jigs",
}


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "drives", run, "probe, identify or calibrate the drives (HAL stopped)", __doc__
    )
    option(parser, "--hardware", "FILE", "", "hardware.toml (default in the assets folder)")
    option(parser, "--interface", "NAME", "", "python-can interface (default of hardware.toml)")
    text = "python-can channel (default of hardware.toml); once per bus"
    parser.add_argument("--channel", action="append", default=[], metavar="NAME", help=text)
    path = Path("/var/lib/krabby/calibration.toml")
    option(parser, "--calibration", "FILE", path, "calibration.toml", type=Path)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, act, text in (
        ("probe", _probe, "list the drives that answer, their temperatures and faults"),
        ("watch", _watch, "show the angle of every joint"),
        ("identify", _identify, "move every joint a little; confirm which it is and which way"),
        ("adapters", name_adapters, "name the CAN adapters by the drives that hang on them"),
        ("calibrate", _calibrate, "measure the zeros and write the calibration file"),
        ("bench", _bench, "try one drive and one adapter on a bench, before the robot is built"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(act=act)
        if act is name_adapters:
            add_options(action)
        if act is _identify:
            flag(action, "--all", "ask also for drives that were confirmed before")
        if act is _bench:
            option(action, "--joint", "NAME", "", "whose drive it is (default the first)")
            flag(action, "--no-plug", "leave out pulling the plug, for which it asks")
        if act is _calibrate:
            option(action, "--pose", None, "zero", "pose of the legs", choices=_POSES)
            flag(action, "--yes", "measure at once, without asking")


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
    args: argparse.Namespace,
) -> Iterator[tuple[RobotDescription, HardwareDescription, Calibration, CanJointBus]]:
    """The buses of hardware.toml, open; every drive stays off."""
    # Loaded here: the drivers take 0.1 s, which `krabby estop` must not wait for.
    from krabby.drivers.can.bus import CanJointBus
    from krabby.drivers.can.calibration import Calibration
    from krabby.drivers.can.config import CanCfg, load_hardware

    desc = RobotDescription.load()
    cfg = CanCfg(hardware=args.hardware, interface=args.interface, channels=tuple(args.channel))
    hardware = load_hardware(cfg, desc)
    if args.calibration.exists():
        calibration = Calibration.load(args.calibration, hardware)
    else:
        calibration = Calibration.nominal(hardware)
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
        print_line(
            f"{'joint':14} {'bus':8} {'id':>3} {'number':16} {'angle rad':>10} {'°C':>6}  faults"
        )
        for i, drive in enumerate(hardware.drives):
            faults = int(readings.faults[i])
            print_line(
                f"{drive.joint:14} {drive.bus:8} {drive.can_id:3d} "
                f"{bus.identities[i] or 'unknown':16} {readings.joint_pos[i]:10.3f} "
                f"{readings.temperature_c[i]:6.1f}  {fault_names(faults) or 'none'}"
            )
            if faults:
                print_line(f"{'':14} do: {remedy(faults)}")
        for conflict in readings.conflicts:
            print_line(f"{conflict}: {conflict.remedy}")
        doubt = bus.unconfirmed
    count, measured = len(hardware.drives), calibration.measured or "never"
    print_line(
        f"{count} drives answer; calibrated: {measured}; "
        f"confirmed: {calibration.confirmed or 'never'}"
    )
    if doubt:
        print_line(f"it is not armed: {doubt}")
    return 1 if readings.faults.any() else 0


def _bench(args: argparse.Namespace) -> int:
    from krabby.drivers.can.bus import CanJointBus
    from krabby.drivers.can.calibration import Calibration
    from krabby.drivers.can.config import CanCfg, load_hardware

    from krabby_cli.bench_drive import alone, bench

    whole = RobotDescription.load()
    hardware = load_hardware(CanCfg(hardware=args.hardware), whole)
    joint = whole.joint_index(args.joint) if args.joint else 0
    desc, single = alone(whole, hardware, joint)
    if args.interface or args.channel:
        name = single.buses[0].name
        channels = {name: args.channel[0]} if args.channel else None
        single = single.with_interface(args.interface or "socketcan", channels)
    drive, spec = single.drives[0], single.buses[0]
    print_line(f"{drive.joint}: {drive.model.name}, id {drive.can_id}, on {spec.channel}")
    if not args.no_plug:
        input("Clamp the drive, nothing on its shaft. It turns by 0.2 rad. Press Enter. ")
    bus = CanJointBus(single, Calibration.nominal(single), desc)
    bus.open()
    try:
        plug = None if args.no_plug else lambda text: print_line(f"      now {text}")
        return 0 if bench(bus, desc, plug=plug) else 1
    finally:
        bus.disable()
        bus.close()


def _listen(bus: CanJointBus, count: int) -> DriveReadings:
    """Exchange with all drives off until their reports have settled.

    Of a host that stood still the newest answers are old: a drive is silent only if it stays so.
    """
    from krabby.drivers.can import DriveFault, DriveTargets

    readings = bus.probe()
    for _ in range(_ROUNDS):
        for _ in range(_CYCLES):
            begin_ns = time.monotonic_ns()
            readings = bus.exchange(DriveTargets.limp(count), begin_ns + _CYCLE_NS)
            time.sleep(max(0.0, (begin_ns + _CYCLE_NS - time.monotonic_ns()) * 1e-9))
        if not (readings.faults & int(DriveFault.NO_REPLY)).any():
            break
    return readings


def _watch(args: argparse.Namespace) -> int:
    with _opened(args) as (desc, _, _, bus):
        print_line(f"{desc.name}, angles in rad; Ctrl-C ends it")
        print_line(" ".join(name[-12:].rjust(12) for name in desc.joint_names))
        while True:
            angles = bus.probe().joint_pos.tolist()
            print_line(" ".join(f"{angle:12.3f}" for angle in angles))
            time.sleep(_WATCH_S)


def _calibrate(args: argparse.Namespace) -> int:
    from krabby.drivers.can.calibration import calibrate

    desc = RobotDescription.load()
    pose = np.zeros(len(desc.joint_names)) if args.pose == "zero" else desc.default_joint_pos
    print_line(f"The pose {args.pose!r}: {_POSES[args.pose]}.")
    if not args.yes:
        input("The drives are off. Put every leg into it, keep it still, press Enter. ")
    with _opened(args) as (desc, hardware, current, bus):
        readings = _readings(bus, len(hardware.drives))
        today = datetime.date.today().isoformat()
        measured = calibrate(current, readings, pose, desc, date=today)
        _warn_of_turns(current.offset, measured.offset, desc.joint_names)
        measured.save(args.calibration)
    print_line(f"{args.calibration} written: {len(measured.joint_names)} joints")
    return 0


def _identify(args: argparse.Namespace) -> int:
    from krabby.drivers.can.wiggle import wiggle

    from krabby_cli.identify_drives import identify

    print_line(
        "Each joint goes 0.2 rad there and back, with half of its rated torque. The robot hangs on "
        "its stand, no foot reaches the ground, no hand is near the legs but the one on the "
        "emergency stop."
    )
    input("Press Enter to begin. ")
    with _opened(args) as (desc, hardware, _, bus):
        confirmed = identify(bus, desc, hardware, ask_all=args.all, move=wiggle)
    if confirmed is None:
        return 1
    confirmed.save(args.calibration)
    print_line(f"{args.calibration} written: {len(confirmed.joint_names)} joints confirmed")
    return 0


def _readings(bus: CanJointBus, count: int) -> NDArray[np.float64]:
    taken = np.empty((_READINGS, count))
    for row in taken:
        row[:] = bus.probe().joint_pos
        time.sleep(_READING_S)
    return taken


def _warn_of_turns(
    old: NDArray[np.float64], new: NDArray[np.float64], names: Sequence[str]
) -> None:
    """A zero that moved by over a quarter turn: the leg was mounted anew or is in a wrong pose."""
    for name, before, after in zip(names, old.tolist(), new.tolist(), strict=True):
        if abs(after - before) > np.pi / 2.0:
            print_line(
                f"note: {name} moved by {after - before:+.2f} rad against the last calibration"
            )
