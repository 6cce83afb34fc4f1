"""What a HAL answers to a command: a fixed 56-byte struct, acknowledgement and clock probe."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from krabby_proto.errors import BadMagic, SchemaVersionMismatch, ShortFrame
from krabby_proto.header import SCHEMA_VERSION
from krabby_proto.states import SAFETY_STATES, CommandStatus, SafetyState

__all__ = [
    "REPLY_FORMAT",
    "REPLY_MAGIC",
    "REPLY_SIZE",
    "CommandOutcome",
    "CommandReply",
    "SafetyOutcome",
]

REPLY_MAGIC: Final = b"KRPL"
REPLY_FORMAT: Final = "<4sHBBIIIIQQQQ"
_REPLY = struct.Struct(REPLY_FORMAT)
REPLY_SIZE: Final = _REPLY.size


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
    arm_count: int
    """Rises each time the gate takes a pose to arm from; a process begins anywhere. 0: unknown."""
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
    def follows(self) -> bool:
        """Whether the gate follows commands; if not, its next target is the measured pose."""
        known = self.safety_state < len(SAFETY_STATES)
        return known and SafetyState(self.safety_state).following

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

    @classmethod
    def pack(cls, status: int, *, arm_count: int = 0, **fields: int) -> bytes:
        """The 56 bytes of a reply with this status; `fields` are the others, all but the constant.

        Raises:
            TypeError: a field is missing or unknown.
        """
        reply = cls(REPLY_MAGIC, SCHEMA_VERSION, status, arm_count=arm_count, **fields)
        return _REPLY.pack(*reply)

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
    arm_count: int = 0
    """As in `CommandReply`."""


class SafetyOutcome(NamedTuple):
    """What a HAL's handler did with an operator's request."""

    ok: bool
    state: str
    """One of `SAFETY_STATES`."""
    faults: tuple[str, ...] = ()
    reason: str = ""
    """Why not, when not ok; empty otherwise."""
