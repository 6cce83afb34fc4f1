"""Where each drive's zero lies on one robot: `calibration.toml`, written by `calibrate`.

joint angle = direction * drive angle / gear + offset

The file is replaced in one step, so a power cut leaves the old one or the new one.
"""

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from krabby.config import Config, Text, parse, read_toml
from krabby.drivers.can.codec import Command
from krabby.drivers.can.hardware import HardwareDescription, with_joints
from krabby.drivers.can.identity import emulated_identities, is_emulated
from krabby.drivers.can.types import DriveTargets
from krabby.drivers.errors import HardwareError
from krabby.robot.description import RobotDescription

__all__ = ["Calibration", "Mounting", "calibrate"]

_STILL_RAD: Final = 0.01
"""How far a joint may move while it is measured."""


class _Joint(Config, frozen=True, kw_only=True):
    offset: float
    direction: Literal[1, -1]
    drive: str = ""


class _File(Config, frozen=True, kw_only=True):
    robot: Text
    measured: str
    confirmed: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Offset and direction of every joint, in joint order."""

    robot: str
    measured: str
    """When, ISO 8601; empty for the values that `hardware.toml` starts from."""
    joint_names: tuple[str, ...]
    offset: NDArray[np.float64]
    """Joint angle at which the drive says 0 [rad], shape (n,)."""
    direction: NDArray[np.float64]
    """1 or -1, shape (n,)."""
    confirmed: str = ""
    """When an operator saw every joint move, ISO 8601; empty for never."""
    identities: tuple[str, ...] = ()
    """Which drive moved each joint then, hexadecimal, in joint order; "" where it does not say."""

    @classmethod
    def nominal(cls, hardware: HardwareDescription) -> Self:
        """What `hardware.toml` says: right for the emulated robot, a start for a real one."""
        return cls(
            robot=hardware.robot,
            measured="",
            joint_names=tuple(drive.joint for drive in hardware.drives),
            offset=np.array([drive.offset for drive in hardware.drives]),
            direction=np.array([float(drive.direction) for drive in hardware.drives]),
        )

    @classmethod
    def load(cls, path: Path, hardware: HardwareDescription) -> Self:
        """Read and check a calibration file."""
        names = tuple(drive.joint for drive in hardware.drives)
        advice = "calibrate this robot first"
        values, lines = read_toml(path, error=HardwareError, advice=advice)
        cfg = with_joints(_File, names, _Joint)
        file = parse(cfg, values, source=str(path), lines=lines, error=HardwareError)
        if file.robot != hardware.robot:
            raise HardwareError(
                f"{path}: robot is {file.robot!r}; expected {hardware.robot!r}: calibrate again"
            )
        return cls(
            robot=file.robot,
            measured=file.measured,
            joint_names=names,
            offset=np.array([getattr(file.joints, name).offset for name in names]),
            direction=np.array([float(getattr(file.joints, name).direction) for name in names]),
            confirmed=file.confirmed,
            identities=tuple(getattr(file.joints, name).drive for name in names),
        )

    def unconfirmed(self, identities: Sequence[str]) -> str:
        """Why it is not certain which drive moves which joint, and the remedy; empty when it is.

        Args:
            identities: Of the drives that answer now, in joint order; "" where unknown.
        """
        if all(map(is_emulated, identities)):
            known = emulated_identities(len(identities), len(identities[0]))
        elif not self.confirmed:
            return (
                "which drive moves which joint, and which way, was never confirmed; run "
                "krabby drives identify"
            )
        elif not self.measured:
            return "the zeros of the joints were never measured; run krabby drives calibrate"
        else:
            known = self.identities or ("",) * len(identities)
        found = [
            f"{name} has {_where(identity, known, self.joint_names)}"
            for name, identity, before in zip(self.joint_names, identities, known, strict=True)
            if identity and before and identity != before
        ]
        if not found:
            return ""
        return (
            f"{', '.join(found)}; put the drives back where they were, or run krabby drives "
            "identify and calibrate"
        )

    def save(self, path: Path) -> None:
        """Replace `path` in one step."""
        known = self.identities or [""] * len(self.joint_names)
        drives = [f', drive = "{identity}"' if identity else "" for identity in known]
        columns = self.joint_names, self.offset.tolist(), self.direction.tolist(), drives
        lines = [
            "# Written by krabby drives: joint angle = direction * drive angle / gear + offset.",
            f'robot = "{self.robot}"\nmeasured = "{self.measured}"\nconfirmed = "{self.confirmed}"',
            "\n[joints]",
            # repr of a float is the shortest text that reads back as the same number.
            *(
                f"{name} = {{ offset = {offset!r}, direction = {direction:.0f}{drive} }}"
                for name, offset, direction, drive in zip(*columns, strict=True)
            ),
        ]
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise HardwareError(
                f"cannot write {path}: {error.strerror}; nothing was changed"
            ) from error


def _where(identity: str, known: Sequence[str], names: Sequence[str]) -> str:
    """Which drive that is."""
    if identity in known:
        return f"the drive of {names[list(known).index(identity)]}"
    return f"another drive ({identity}) than when it was confirmed"


def calibrate(
    current: Calibration,
    measured: ArrayLike,
    reference: ArrayLike,
    desc: RobotDescription,
    *,
    date: str,
) -> Calibration:
    """The calibration under which the robot, as it was measured, stands in the reference pose.

    Args:
        current: The calibration of the measurements.
        measured: Joint angles of several readings, robot at rest, shape (k, n) [rad].
        reference: The pose it was put into by hand or by jig, shape (n,) [rad].
        desc: The robot.
        date: When it was measured, ISO 8601.
    """
    readings = np.atleast_2d(np.asarray(measured, dtype=np.float64))
    pose = np.asarray(reference, dtype=np.float64)
    count = len(current.joint_names)
    if readings.shape[1] != count or pose.shape != (count,):
        raise HardwareError(
            f"readings of shape {readings.shape} and a pose of shape {pose.shape}; "
            f"give (k, {count}) and ({count},)"
        )
    for i, name in enumerate(current.joint_names):
        values = readings[:, i]
        if not np.isfinite(values).all():
            raise HardwareError(f"{name} was not measured; check its drive with a probe")
        if np.ptp(values) > _STILL_RAD:
            raise HardwareError(
                f"{name} moved by {np.ptp(values):.3f} rad while it was measured; "
                f"keep it still to {_STILL_RAD} rad"
            )
        if not desc.joint_lower[i] <= pose[i] <= desc.joint_upper[i]:
            raise HardwareError(
                f"the reference pose has {name} at {pose[i]:g} rad; "
                f"its range is {desc.joint_lower[i]:g} to {desc.joint_upper[i]:g}"
            )
    offset = current.offset + (pose - readings.mean(axis=0))
    return dataclasses.replace(current, measured=date, offset=offset)


class Mounting:
    """Between the drive's shaft and the joint, in both directions; arrays of shape (n,)."""

    def __init__(self, hardware: HardwareDescription, calibration: Calibration) -> None:
        """Takes direction and offset from the calibration, the gear from the hardware."""
        self.offset = calibration.offset.copy()
        """Joint angle at which the drive says 0 [rad]; whole turns may be added to it."""
        self.ratio = calibration.direction * np.array([drive.gear for drive in hardware.drives])
        """Drive angle per joint angle, signed."""

    @property
    def stiffness_ratio(self) -> NDArray[np.float64]:
        """Gain at the joint per gain at the drive."""
        return self.ratio**2

    def part(self, joints: list[int]) -> Self:
        """The same for some of the joints."""
        part = copy.copy(self)
        part.offset, part.ratio = self.offset[joints], self.ratio[joints]
        return part

    def drive_pos(self, joint_pos: NDArray[np.float64]) -> NDArray[np.float64]:
        """Angle of the shaft [rad]."""
        return (joint_pos - self.offset) * self.ratio

    def joint_pos(self, drive_pos: NDArray[np.float64]) -> NDArray[np.float64]:
        """Angle of the joint [rad]."""
        return drive_pos / self.ratio + self.offset

    def command(self, targets: DriveTargets) -> Command:
        """Targets of joints as commands to their shafts."""
        pos, vel, kp, kd, torque = targets
        gain, ratio = self.stiffness_ratio, self.ratio
        return Command(self.drive_pos(pos), vel * ratio, kp / gain, kd / gain, torque / ratio)

    def targets(self, command: Command) -> DriveTargets:
        """The inverse of `command`."""
        pos, vel, kp, kd, torque = command
        gain, ratio = self.stiffness_ratio, self.ratio
        return DriveTargets(self.joint_pos(pos), vel / ratio, kp * gain, kd * gain, torque * ratio)

    def joint_side(
        self, pos: NDArray[np.float64], vel: NDArray[np.float64], torque: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Angle, speed and torque of joints from those of their shafts."""
        return self.joint_pos(pos), vel / self.ratio, torque * self.ratio

    def drive_side(
        self, pos: NDArray[np.float64], vel: NDArray[np.float64], torque: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The inverse of `joint_side`."""
        return self.drive_pos(pos), vel * self.ratio, torque / self.ratio
