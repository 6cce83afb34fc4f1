"""Targets and readings of all drives, in joint order and on the joint's side.

Joint side means after calibration: zero and sense of rotation are those of `robot.toml`.
"""

from enum import IntEnum, IntFlag
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DriveFault",
    "DriveMode",
    "DriveReadings",
    "DriveTargets",
    "IdConflict",
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
    CROSSED = 1 << 26
    WRONG_TORQUE = 1 << 27


class IdConflict(NamedTuple):
    """A CAN id that is not one drive's; `ids` has the rule."""

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
    """Targets of all drives: torque = kp (pos* - pos) + kd (vel* - vel) + torque*.

    Arrays of shape (n,), joint order, joint side, in rad, rad/s, N·m/rad, N·m·s/rad and N·m. Limp:
    kp 0, joint_vel 0, kd damping.
    """

    joint_pos: NDArray[np.float64]
    joint_vel: NDArray[np.float64]
    kp: NDArray[np.float64]
    kd: NDArray[np.float64]
    torque: NDArray[np.float64]

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
        self.joint_pos = np.full(count, np.nan)
        """[rad]"""
        self.joint_vel = np.full(count, np.nan)
        """[rad/s]"""
        self.joint_effort = np.full(count, np.nan)
        """[N·m]"""
        self.temperature_c = np.full(count, np.nan)
        """The hottest sensor of the drive; NaN while unknown."""
        self.voltage_v = np.full(count, np.nan)
        """Supply at the drive; NaN while unknown."""
        self.mode = np.zeros(count, np.uint8)
        """`DriveMode`."""
        self.faults = np.zeros(count, np.uint32)
        """`DriveFault` bits."""
        self.stamp_ns = np.zeros(count, np.int64)
        """When the reply arrived, CLOCK_MONOTONIC; 0 for never. Of a reply that came too late,
        when the command was sent that it answers: it was measured at that time or later."""
        self.missed = np.zeros(count, np.int64)
        """Commands that were not answered in time, running total."""
        self.conflicts: tuple[IdConflict, ...] = ()
        """Ids that are not one drive's; kept until drives are probed or enabled again."""
        self.crossed: tuple[tuple[int, int], ...] = ()
        """Pairs of joints that follow each other's commands."""

    @property
    def count(self) -> int:
        """Number of joints."""
        return self.joint_pos.size
