"""What goes to the drives and what comes back, in joint order and on the joint's side.

Joint side means after calibration: zero and sense of rotation are those of `robot.toml`. The
drives' own zero, sense and scaling stay inside the bus.
"""

from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DriveFault",
    "DriveMode",
    "DriveReadings",
    "DriveTargets",
    "IdConflict",
    "JointBus",
]


class DriveMode(IntEnum):
    """What a drive says that it does; `krabby.safety.gate.DriveMode` is what it should do."""

    UNKNOWN = 0
    """It has not answered yet."""
    OFF = 1
    """The motor has no current; the joint turns freely."""
    CALIBRATING = 2
    """It measures its own encoder and must not be disturbed."""
    RUN = 3
    """It follows command frames."""


class DriveFault(IntFlag):
    """Why a joint cannot be trusted, as bits common to all makes; `faults.FAULTS` explains them."""

    # Reported by drives.
    UNDERVOLTAGE = 1 << 0
    OVERVOLTAGE = 1 << 1
    OVERCURRENT = 1 << 2
    OVER_TEMPERATURE = 1 << 3
    OVERLOAD = 1 << 4
    ENCODER = 1 << 5
    UNCALIBRATED = 1 << 6
    DRIVER = 1 << 7
    CAN_TIMEOUT = 1 << 8

    # Noticed on this side of the bus.
    NO_REPLY = 1 << 16
    BUS_OFF = 1 << 17
    DROPPED_OUT = 1 << 18
    STUCK_ENCODER = 1 << 19
    POSITION_JUMP = 1 << 20
    TOO_HOT = 1 << 21
    VOLTAGE_LOW = 1 << 22
    VOLTAGE_HIGH = 1 << 23
    SHARED_ID = 1 << 24
    UNKNOWN_ID = 1 << 25


class IdConflict(NamedTuple):
    """A CAN id that is not one drive's; `ids` has the rule. As text it names both and the joint."""

    bus: str
    can_id: int
    joint: str
    """Whose drive has the id on that bus; empty: none."""
    belongs: str = ""
    """Drive of another bus that has it; empty: none, or there is one on this bus."""

    def __str__(self) -> str:
        """How errors and operators read it."""
        if self.joint:
            return f"two drives answer to id {self.can_id} on bus {self.bus}, joint {self.joint}"
        other = f"has {self.belongs}" if self.belongs else "has none there with this id"
        return f"a drive with id {self.can_id} answers on bus {self.bus}; hardware.toml {other}"

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.joint:
            return "unplug one, give it another id"
        if self.belongs:
            return "plug it into its own bus; look for two buses that are joined"
        return "unplug it, or enter it in hardware.toml"


class DriveTargets(NamedTuple):
    """What every drive must do from now on: torque = kp (pos* - pos) + kd (vel* - vel) + torque*.

    Arrays of shape (n,), float64, joint order, joint side. Limp: kp 0, joint_vel 0, kd damping.
    """

    joint_pos: NDArray[np.float64]
    """[rad]"""
    joint_vel: NDArray[np.float64]
    """[rad/s]"""
    kp: NDArray[np.float64]
    """[N·m/rad]"""
    kd: NDArray[np.float64]
    """[N·m·s/rad]"""
    torque: NDArray[np.float64]
    """Feed-forward [N·m]."""

    @classmethod
    def limp(cls, count: int, damp_kd: float = 0.0) -> Self:
        """No stiffness, only damping `damp_kd` [N·m·s/rad], for `count` joints."""
        nothing = np.zeros(count)
        return cls(nothing, nothing, nothing, np.full(count, damp_kd), nothing)


class DriveReadings:
    """What the drives said last; one object, written in place by every exchange.

    Arrays of shape (n,), joint order, joint side. A joint whose drive did not answer keeps its
    older values, and `stamp_ns` tells.
    """

    def __init__(self, count: int) -> None:
        """Room for `count` joints that never answered."""
        self.joint_pos: NDArray[np.float64] = np.full(count, np.nan)
        """[rad]"""
        self.joint_vel: NDArray[np.float64] = np.full(count, np.nan)
        """[rad/s]"""
        self.joint_effort: NDArray[np.float64] = np.full(count, np.nan)
        """[N·m]"""
        self.temperature_c: NDArray[np.float64] = np.full(count, np.nan)
        """The hottest sensor of the drive; NaN while unknown."""
        self.voltage_v: NDArray[np.float64] = np.full(count, np.nan)
        """Supply at the drive; NaN while unknown."""
        self.mode: NDArray[np.uint8] = np.zeros(count, np.uint8)
        """`DriveMode`."""
        self.faults: NDArray[np.uint32] = np.zeros(count, np.uint32)
        """`DriveFault` bits."""
        self.stamp_ns: NDArray[np.int64] = np.zeros(count, np.int64)
        """When the reply arrived, CLOCK_MONOTONIC; 0 for never. Of a reply that came too late,
        when the command was sent that it answers: it was measured at that time or later."""
        self.missed: NDArray[np.int64] = np.zeros(count, np.int64)
        """Commands that were not answered in time, running total."""
        self.conflicts: tuple[IdConflict, ...] = ()
        """Ids that are not one drive's; kept until drives are probed or enabled again."""

    @property
    def count(self) -> int:
        """Number of joints."""
        return self.joint_pos.size


class JointBus(Protocol):
    """All drives of the robot as one object, whatever number of buses carries them.

    Order of calls: `open`, `probe`, `enable`, then `exchange` every cycle; `disable` and `close`
    are safe in any state. One thread uses it. Failures raise the `DriveError` family, except in
    `exchange`, which never raises for what drives or buses do: `DriveReadings.faults` tells.
    """

    def open(self) -> None:
        """Open every bus; raises `DriveError` naming the one that cannot be."""
        ...

    def probe(self) -> DriveReadings:
        """Ask every drive and leave all of them limp.

        Raises:
            DriveError: drives do not answer; it names them.
            DriveError: an id is not one drive's; it names bus, id, joint and remedy.
        """
        ...

    def enable(self, readings: DriveReadings) -> None:
        """Clear faults, arm the drives' own time-out, switch on at the measured pose."""
        ...

    def exchange(self, targets: DriveTargets, deadline_ns: int) -> DriveReadings:
        """Send all targets, gather replies until all are in or until `deadline_ns`."""
        ...

    def set_effort_limits(self, limits: NDArray[np.float64]) -> None:
        """Largest torque magnitude of each joint from now on [N·m], shape (n,)."""
        ...

    def set_carrying(self, joints: NDArray[np.bool_]) -> None:
        """Which joints are of legs that carry load, shape (n,).

        What stands on the ground may be held still by it and by the other legs.
        """
        ...

    def disable(self) -> None:
        """Switch every drive off; tries all of them whatever fails."""
        ...

    def close(self) -> None:
        """Close every bus."""
        ...

    @property
    def bus_load(self) -> Mapping[str, float]:
        """Share of each bus's bit rate in use at the current cycle rate, by bus name."""
        ...
