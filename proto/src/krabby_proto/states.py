"""Safety states, faults and command status: their numbers on the wire, defined only here.

The safety gate sets them, HALs report them, other processes read them.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

__all__ = [
    "FAULT_BITS",
    "SAFETY_OPS",
    "SAFETY_STATES",
    "CommandStatus",
    "Fault",
    "SafetyState",
    "fault_names",
]

SAFETY_OPS: Final = ("arm", "disarm", "estop", "reset", "status")


class SafetyState(IntEnum):
    """What the drives may do; the numbers travel on the wire."""

    DISARMED = 0
    """Limp with damping; waits for `arm`."""
    ARMING = 1
    """Holds the measured pose while the gains rise from zero."""
    ACTIVE = 2
    """Follows commands."""
    HOLD = 3
    """Holds the last target: commands or measurements are late. Recovers by itself."""
    DAMP = 4
    """Limp with damping after a fault; needs `arm`."""
    ESTOP = 5
    """Limp with damping after an emergency stop; needs `reset`, then `arm`."""

    @property
    def live(self) -> bool:
        """Whether the drives carry the robot: ARMING, ACTIVE, HOLD."""
        return self in _LIVE

    @property
    def following(self) -> bool:
        """Whether they carry it to where commands want it: ACTIVE, HOLD."""
        return self in _FOLLOWING


# Looked at several times in every cycle of the gate: building the tuples there takes 1 us of it.
_LIVE: Final = (SafetyState.ARMING, SafetyState.ACTIVE, SafetyState.HOLD)
_FOLLOWING: Final = (SafetyState.ACTIVE, SafetyState.HOLD)


class Fault(IntFlag):
    """Why the gate left ACTIVE, as bits; kept until the next `arm` or `reset`."""

    COMMAND_TIMEOUT = 1 << 0
    """No valid command for `damp_after_s`."""
    STATE_STALE = 1 << 1
    """Measurements are missing: none valid for `state_stop_s` up to the trip."""
    STATE_NONFINITE = 1 << 2
    """A measurement held NaN or infinity, or a quaternion that is not a rotation."""
    TILT = 1 << 3
    """The base tilts more than `tilt_limit_rad`."""
    EFFORT_BUDGET = 1 << 4
    """A drive's RMS effort passed `budget_trip` times its rating: it does not obey its limit."""
    JOINT_RANGE = 1 << 5
    """A joint is measured beyond its limits by more than `range_margin_rad`."""
    ESTOP = 1 << 6
    """Emergency stop."""
    HAL = 1 << 7
    """The HAL itself failed."""
    DRIVE = 1 << 8
    """A drive reports an error or does not answer."""
    OVER_TEMPERATURE = 1 << 9
    """A drive is too hot."""
    BUS = 1 << 10
    """The bus to the drives failed."""
    IMU = 1 << 11
    """The IMU failed."""
    CLOCK = 1 << 12
    """Time stepped back."""
    STATE_GAP = 1 << 13
    """Measurements were missing: a valid one came `state_stop_s` or more after the one before."""


class CommandStatus(IntEnum):
    """What became of one command. Below 16 it was valid, from 16 on it was refused unread."""

    APPLIED = 0
    SUPERSEDED = 1
    """Valid, but a newer one of the same writer was already waiting."""
    NOT_ARMED = 2
    """Valid, but the gate is disarmed or still arming: nothing moves."""
    HELD = 3
    """Valid, but the gate holds the last target."""
    REJECTED_SAFETY = 4
    """Valid, but the robot is damped or e-stopped: an operator has to act."""
    REJECTED_MALFORMED = 16
    """Wrong number of frames, header of the wrong size, wrong magic or wrong stream."""
    REJECTED_SCHEMA = 17
    REJECTED_LENGTH = 18
    REJECTED_CORRUPT = 19
    REJECTED_NONFINITE = 20
    REJECTED_STALE = 21
    """Published longer ago than the TTL, or computed from a state that is too old."""
    REJECTED_FUTURE = 22
    """Stamped ahead of the server's clock: the two processes do not share one clock."""
    REJECTED_LEASE = 23
    """Another writer holds the lease."""
    REJECTED_ORDER = 24
    """The sequence did not rise within the sending instance."""


SAFETY_STATES: Final = tuple(state.name.lower() for state in SafetyState)
"""Names of `CommandReply.safety_state`, by number."""
FAULT_BITS: Final = tuple(str(fault.name).lower() for fault in Fault)
"""Names of the bits of `CommandReply.fault_bits`, from bit 0."""


def fault_names(fault_bits: int) -> list[str]:
    """Names of the bits set, lowest first; bits without a name appear as ``bit_<n>``."""
    return [
        FAULT_BITS[bit] if bit < len(FAULT_BITS) else f"bit_{bit}"
        for bit in range(fault_bits.bit_length())
        if fault_bits >> bit & 1
    ]
