"""Whether the wiring can carry the loop: bits on every bus, and what the drives can represent.

A classic CAN data frame of 8 bytes is 111 bits with an 11-bit id and 131 with a 29-bit one, the
three bits between frames included (ISO 11898-1). Where five equal bits follow each other another is
stuffed in: at worst one for every four of the bits that are stuffed, from the start of the frame to
the checksum (34 or 54, and the data).
"""

import sys
from typing import Final, NamedTuple

import numpy as np

from krabby.drivers.can.calibration import Mounting
from krabby.drivers.can.codec import Parameter
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.errors import DriveError, HardwareError
from krabby.robot.description import RobotDescription

__all__ = [
    "AUX_EVERY",
    "BusPlan",
    "check_representable",
    "frame_bits",
    "markdown",
    "plan",
]

_MAX_LOAD: Final = 0.7
"""Share of the bit rate a plan may use at worst; the rest is for repeated frames and jitter."""

AUX_EVERY: Final = 2
"""Cycles between two voltage readings or torque limits of a bus, each of one drive."""


def frame_bits(*, is_extended: bool, stuffed: bool) -> int:
    """Bits of one data frame and the gap behind it; `stuffed`: with every possible stuff bit."""
    bits = 64 + (54 if is_extended else 34)
    return bits + 13 + ((bits - 1) // 4 if stuffed else 0)


class BusPlan(NamedTuple):
    """Load of one bus at the planned rate."""

    bus: str
    channel: str
    drives: int
    frames_per_s: float
    load: float
    """Share of the bit rate without stuff bits."""
    worst_load: float
    """Share of the bit rate with every possible stuff bit."""


def plan(hardware: HardwareDescription, rate_hz: float | None = None) -> tuple[BusPlan, ...]:
    """Loads of all buses at `rate_hz`, by default the file's; refuses what does not fit."""
    rate = hardware.rate_hz if rate_hz is None else rate_hz
    rows = []
    for spec in hardware.buses:
        codec = hardware.codec_of(spec.name)
        drives = len(hardware.drives_of(spec.name))
        aux = 2.0 / AUX_EVERY if Parameter.VOLTAGE in codec.parameters else 0.0
        frames = rate * (2.0 * drives + aux)
        loads = (
            frames * frame_bits(is_extended=codec.is_extended, stuffed=stuffed) / spec.bitrate
            for stuffed in (False, True)
        )
        row = BusPlan(spec.name, spec.channel, drives, frames, *loads)
        if row.worst_load > _MAX_LOAD:
            fits = int(drives * _MAX_LOAD / row.worst_load)
            raise HardwareError(
                f"bus {spec.name} would carry {drives} drives at {rate:g} Hz with up to "
                f"{row.worst_load:.0%} of its {spec.bitrate} bit/s, at most {_MAX_LOAD:.0%} are "
                f"allowed; put at most {fits} drives on it or lower rate_hz"
            )
        rows.append(row)
    return tuple(rows)


def check_representable(
    hardware: HardwareDescription, mounting: Mounting, desc: RobotDescription
) -> None:
    """Refuse drives whose words cannot hold what the robot's description asks of them.

    With a smaller gain the robot differs from the trained one and may not stand: so it is an error
    here and not a clamp later.
    """
    ends = np.sort(
        [mounting.drive_pos(desc.joint_lower), mounting.drive_pos(desc.joint_upper)], axis=0
    )
    for i, drive in enumerate(hardware.drives):
        model, where = drive.model, f"{drive.model.name} of {drive}"
        for name, at_joint, most in (
            ("kp", desc.kp[i], model.kp_range),
            ("kd", desc.kd[i], model.kd_range),
            ("safety.damp_kd", desc.safety.damp_kd, model.kd_range),
        ):
            value = at_joint / mounting.stiffness_ratio[i]
            if value > most:
                raise DriveError(
                    f"{where} takes {name} up to {most:g}, robot.toml asks {value:g}; lower it "
                    "there or use another drive"
                )
        if ends[0, i] < -model.position_range or ends[1, i] > model.position_range:
            raise DriveError(
                f"{where} counts from -{model.position_range:.2f} to {model.position_range:.2f} "
                f"rad, its joint needs {ends[0, i]:.2f} to {ends[1, i]:.2f}; set the drive's zero "
                "near the middle of the joint's range and calibrate again"
            )


def markdown(rows: tuple[BusPlan, ...]) -> str:
    """The plan as a table."""
    lines = [
        "| bus | channel | drives | frames/s | load | load, worst stuffing |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.bus} | {row.channel} | {row.drives} | {row.frames_per_s:.0f} | "
        f"{row.load:.1%} | {row.worst_load:.1%} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    WIRED = HardwareDescription.load(None, RobotDescription.load())
    sys.stdout.write(f"at {WIRED.rate_hz:g} Hz:\n\n{markdown(plan(WIRED))}")
