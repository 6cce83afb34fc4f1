"""Decides which commands reach a HAL's handler; the clocks are arguments."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from krabby_proto.clocks import clocks_differ
from krabby_proto.codec import Message, decode
from krabby_proto.errors import CorruptPayload, FrameError, SchemaVersionMismatch, WrongLength
from krabby_proto.header import HEADER_SIZE, MAGIC
from krabby_proto.states import CommandStatus
from krabby_proto.streams import COMMAND

__all__ = ["MAX_AHEAD_NS", "Admission", "CommandAdmission", "untimely"]

MAX_AHEAD_NS: Final = 1_000_000
"""A stamp further ahead of the reader's clock is refused: rounding and two reads of one clock may
differ by this [ns]."""
_SEQUENCE = struct.Struct("<Q")
_SEQUENCE_OFFSET: Final = 16
_REQUEST_TTL_NS: Final = 1_000_000_000


def untimely(op: str, sent_ns: object, now_ns: int) -> str:
    """Why an operator's request must not be carried out now; empty when it may.

    Args:
        op: what was asked for.
        sent_ns: when, by CLOCK_MONOTONIC of the sender; anything but a number is not judged [ns].
        now_ns: CLOCK_MONOTONIC of this host.
    """
    if not isinstance(sent_ns, (int, float)):
        return ""
    if not 0 <= sent_ns < 1 << 63:  # JSON has numbers that no float holds
        return f"{op} refused: its sent_ns is not a time in ns"
    differ = clocks_differ((now_ns - sent_ns) * 1e-9)
    if differ:
        return f"{op} refused: {differ}"
    if now_ns - sent_ns > _REQUEST_TTL_NS:
        # The client has timed out by then and reported a failure.
        return f"{op} was sent more than 1 s ago; send it again"
    if sent_ns - now_ns > MAX_AHEAD_NS:
        ahead_s = (sent_ns - now_ns) * 1e-9
        return f"{op} is stamped {ahead_s:.3g} s ahead of this host's clock; send it from this host"
    return ""


class Admission(NamedTuple):
    """Verdict on one command request: `message` when admitted, else the reason in `status`."""

    status: CommandStatus
    sequence: int
    """Of the command, 0 when it could not be read."""
    message: Message | None


class CommandAdmission:
    """Admits commands of one writer at a time.

    Checked in this order, and the first that fails is the answer: frames and header, schema
    version, length, CRC, finite, age, lease, order. Only an admitted command takes or renews the
    lease, so a writer of invalid or late commands loses it.

    Args:
        ttl_s: age since publishing above which a command is refused [s].
        lease_s: silence after which another writer may take over [s].
        capture_ttl_s: age of the state a command answers above which it is refused [s].
    """

    def __init__(self, *, ttl_s: float, lease_s: float, capture_ttl_s: float) -> None:
        self.holder: int | None = None
        """Instance id of the writer that holds the lease."""
        self._sequence = 0
        self._lease_until_ns = 0
        self._ttl_ns = round(ttl_s * 1e9)
        self._lease_ns = round(lease_s * 1e9)
        self._capture_ttl_ns = round(capture_ttl_s * 1e9)

    def admit(self, body: Sequence[bytes], now_ns: int, process_ns: int) -> Admission:
        """Judge one request.

        Args:
            body: topic, header, payload.
            now_ns: the clock that stamps states and commands (simulated in lock-step) [ns].
            process_ns: CLOCK_MONOTONIC, for the lease [ns].
        """
        try:
            message = decode(body, COMMAND)
        except FrameError as error:
            return Admission(_status_of(error), _peek_sequence(body), None)
        header = message.header
        status = self._refusal(message, now_ns, process_ns)
        if status is not None:
            return Admission(status, header.sequence, None)
        self.holder = header.instance_id
        self._sequence = header.sequence
        self._lease_until_ns = process_ns + self._lease_ns
        return Admission(CommandStatus.APPLIED, header.sequence, message)

    def is_stale(self, message: Message, now_ns: int) -> bool:
        """Whether a command is too old; also to be asked right before it is applied."""
        return (
            now_ns - message.header.publish_ns > self._ttl_ns
            or now_ns - message.capture_ns > self._capture_ttl_ns
        )

    def _refusal(self, message: Message, now_ns: int, process_ns: int) -> CommandStatus | None:
        header = message.header
        if not np.isfinite(message.payload).all():
            return CommandStatus.REJECTED_NONFINITE
        if max(header.publish_ns, header.capture_ns) - now_ns > MAX_AHEAD_NS:
            return CommandStatus.REJECTED_FUTURE
        if self.is_stale(message, now_ns):
            return CommandStatus.REJECTED_STALE
        newcomer = header.instance_id != self.holder
        if newcomer and self.holder is not None and process_ns < self._lease_until_ns:
            return CommandStatus.REJECTED_LEASE
        if header.sequence <= (0 if newcomer else self._sequence):
            return CommandStatus.REJECTED_ORDER
        return None


def _status_of(error: FrameError) -> CommandStatus:
    return _STATUS.get(type(error), CommandStatus.REJECTED_MALFORMED)


_STATUS: Final[dict[type[FrameError], CommandStatus]] = {
    SchemaVersionMismatch: CommandStatus.REJECTED_SCHEMA,
    WrongLength: CommandStatus.REJECTED_LENGTH,
    CorruptPayload: CommandStatus.REJECTED_CORRUPT,
}
"""A frame error not named here: `REJECTED_MALFORMED`."""


def _peek_sequence(body: Sequence[bytes]) -> int:
    """The sequence of a refused command, as far as it can be read."""
    if len(body) > 1 and len(body[1]) == HEADER_SIZE and body[1].startswith(MAGIC):
        return _SEQUENCE.unpack_from(body[1], _SEQUENCE_OFFSET)[0]
    return 0
