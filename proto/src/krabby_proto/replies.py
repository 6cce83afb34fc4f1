"""What a HAL answers to a command: a fixed 56-byte struct, acknowledgement and clock probe at once.

The meaning of safety states and fault bits is the safety gate's; their numbers are here because
they are on the wire.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from krabby_proto.errors import BadMagic, SchemaVersionMismatch, ShortFrame
from krabby_proto.header import SCHEMA_VERSION

__all__ = [
    "FAULT_BITS",
    "REPLY_FORMAT",
    "REPLY_MAGIC",
    "REPLY_SIZE",
    "SAFETY_OPS",
    "SAFETY_STATES",
    "CommandOutcome",
    "CommandReply",
    "CommandStatus",
    "SafetyOutcome",
    "fault_names",
]

REPLY_MAGIC: Final = b"KRPL"
REPLY_FORMAT: Final = "<4sHBBIIIIQQQQ"
_REPLY = struct.Struct(REPLY_FORMAT)
REPLY_SIZE: Final = _REPLY.size

SAFETY_OPS: Final = ("arm", "disarm", "estop", "reset", "status")
SAFETY_STATES: Final = ("disarmed", "arming", "active", "hold", "damp", "estop")
"""Names of `CommandReply.safety_state`, by number."""
FAULT_BITS: Final = (
    "command_timeout",
    "state_stale",
    "state_nonfinite",
    "tilt",
    "effort_budget",
    "joint_range",
    "estop",
    "hal",
    "drive",
    "over_temperature",
    "bus",
    "imu",
    "clock",
    "state_gap",
)
"""Names of the bits of `CommandReply.fault_bits`, from bit 0."""


def fault_names(fault_bits: int) -> list[str]:
    """Names of the bits set, lowest first; bits without a name appear as ``bit_<n>``."""
    return [
        FAULT_BITS[bit] if bit < len(FAULT_BITS) else f"bit_{bit}"
        for bit in range(fault_bits.bit_length())
        if fault_bits >> bit & 1
    ]


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


class CommandReply(NamedTuple):
    """The answer to one command, in wire order."""

    magic: bytes
    schema_version: int
    status: int
    """A `CommandStatus`."""
    safety_state: int
    """Index into `SAFETY_STATES`."""
    fault_bits: int
    position_clamp_mask: int
    """Bit i: joint i of this command was clamped to its position limits."""
    rate_clamp_mask: int
    """Bit i: joint i of this command was clamped to its rate limit."""
    reserved: int
    request_sequence: int
    """The sequence of the command this answers (0 when it could not be read)."""
    applied_sequence: int
    """The newest sequence applied for the current lease holder (0: none)."""
    applied_ns: int
    """Server clock when the actuator write of `applied_sequence` returned [ns] (0: none)."""
    server_ns: int
    """Server clock when the reply was made [ns]."""

    @property
    def applied(self) -> bool:
        """Whether this very command reached the actuators."""
        return self.status == CommandStatus.APPLIED

    @property
    def status_name(self) -> str:
        """The status in lower case, ``status_<n>`` for one this version does not know."""
        try:
            return CommandStatus(self.status).name.lower()
        except ValueError:
            return f"status_{self.status}"

    @property
    def safety_name(self) -> str:
        """Name of the safety state, ``state_<n>`` for one this version does not know."""
        if self.safety_state < len(SAFETY_STATES):
            return SAFETY_STATES[self.safety_state]
        return f"state_{self.safety_state}"

    @staticmethod
    def pack(
        status: int,
        *,
        safety_state: int,
        fault_bits: int,
        position_clamp_mask: int,
        rate_clamp_mask: int,
        request_sequence: int,
        applied_sequence: int,
        applied_ns: int,
        server_ns: int,
    ) -> bytes:
        """The reply's 56 bytes."""
        return _REPLY.pack(
            REPLY_MAGIC,
            SCHEMA_VERSION,
            status,
            safety_state,
            fault_bits,
            position_clamp_mask,
            rate_clamp_mask,
            0,
            request_sequence,
            applied_sequence,
            applied_ns,
            server_ns,
        )

    @classmethod
    def unpack(cls, frame: bytes | memoryview) -> CommandReply:
        """Read a reply frame; raises a `FrameError` when it is not one of this version."""
        if len(frame) != REPLY_SIZE:
            raise ShortFrame(f"reply has {len(frame)} bytes, the contract has {REPLY_SIZE}")
        reply = cls._make(_REPLY.unpack(frame))
        if reply.magic != REPLY_MAGIC:
            raise BadMagic(f"reply starts with {reply.magic!r}, expected {REPLY_MAGIC!r}")
        if reply.schema_version != SCHEMA_VERSION:
            raise SchemaVersionMismatch(
                f"server has schema version {reply.schema_version}, this process has "
                f"{SCHEMA_VERSION}; install the same krabby-proto on both sides"
            )
        return reply


class CommandOutcome(NamedTuple):
    """What a HAL's handler did with a valid command."""

    status: CommandStatus
    """APPLIED, NOT_ARMED, HELD or REJECTED_SAFETY."""
    safety_state: int
    fault_bits: int = 0
    position_clamp_mask: int = 0
    rate_clamp_mask: int = 0
    applied_ns: int = 0
    """Server clock when the actuator write returned [ns]; 0 when nothing was written."""


class SafetyOutcome(NamedTuple):
    """What a HAL's handler did with an operator's request."""

    ok: bool
    state: str
    """One of `SAFETY_STATES`."""
    faults: tuple[str, ...] = ()
    reason: str = ""
    """Why not, when not ok; empty otherwise."""
