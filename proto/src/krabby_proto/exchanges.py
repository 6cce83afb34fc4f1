"""Records of the stream `trace`: what a process was asked, and what it answered.

A record is 16 bytes, the request and the answer, little-endian:

    u8 kind, u8 0, u16 0, u32 bytes of the request, u64 handled_ns, request, answer

| kind | request | answer |
| --- | --- | --- |
| 0 gate | empty | state u8, u8 0, u16 0, fault bits u32: the gate changed |
| 3 command | header and payload as they came; of what is no message, what came | reply, 56 bytes |
| 6 safety | JSON | JSON |
| 7 control | JSON | JSON; in records of `ticks` |
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from krabby_proto.codec import Message, decode
from krabby_proto.errors import FrameError, ShortFrame
from krabby_proto.header import FLAG_HOLD, HEADER_SIZE
from krabby_proto.hello import JsonObject, parse_json
from krabby_proto.replies import CommandReply
from krabby_proto.states import SAFETY_STATES, fault_names
from krabby_proto.streams import COMMAND, CONTROL, SAFETY

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["AskedTarget", "Exchange", "ExchangeKind", "GateView"]

_HEAD: Final = struct.Struct("<BBHIQ")
_GATE: Final = struct.Struct("<BBHI")
_KEPT_BYTES: Final = 4096
"""Of a request or an answer; what is longer is cut, and is JSON or no message at all."""


class ExchangeKind(IntEnum):
    """Who was asked; the stream's id, 0 for a change of the gate."""

    GATE = 0
    COMMAND = COMMAND.id
    SAFETY = SAFETY.id
    CONTROL = CONTROL.id


class GateView(NamedTuple):
    """State and faults of the safety gate."""

    safety_state: int
    """Index into `SAFETY_STATES`."""
    fault_bits: int

    @property
    def safety_name(self) -> str:
        """Name of the state, ``state_<n>`` for one this version does not know."""
        known = self.safety_state < len(SAFETY_STATES)
        return SAFETY_STATES[self.safety_state] if known else f"state_{self.safety_state}"

    @property
    def faults(self) -> tuple[str, ...]:
        """Names of the faults."""
        return tuple(fault_names(self.fault_bits))


class Exchange(NamedTuple):
    """One request and its answer, or a change of the gate."""

    kind: ExchangeKind
    handled_ns: int
    """When it was answered, by the clock of the process that did [ns]."""
    request: bytes
    answer: bytes

    @classmethod
    def of_frames(
        cls, kind: ExchangeKind, handled_ns: int, body: Sequence[bytes], answer: bytes
    ) -> Exchange:
        """From the frames of a request behind its envelope, topic first, and the answer."""
        request = b"".join(body[1:4])
        return cls(kind, handled_ns, request[:_KEPT_BYTES], answer[:_KEPT_BYTES])

    @classmethod
    def of_gate(cls, handled_ns: int, safety_state: int, fault_bits: int) -> Exchange:
        """A change of the gate."""
        answer = _GATE.pack(safety_state, 0, 0, fault_bits)
        return cls(ExchangeKind.GATE, handled_ns, b"", answer)

    def pack(self) -> bytes:
        """The record."""
        head = _HEAD.pack(self.kind, 0, 0, len(self.request), self.handled_ns)
        return b"".join((head, self.request, self.answer))

    @classmethod
    def unpack(cls, record: bytes | memoryview) -> Exchange:
        """Read a record; raises a `FrameError` when it is not one."""
        record = bytes(record)
        if len(record) < _HEAD.size:
            raise ShortFrame(f"record of trace has {len(record)} bytes, at least {_HEAD.size}")
        kind, _, _, size, handled_ns = _HEAD.unpack_from(record)
        if kind not in _KINDS:
            raise FrameError(f"record of trace has kind {kind}, which this version does not know")
        request, answer = record[_HEAD.size :][:size], record[_HEAD.size + size :]
        if len(request) < size:
            raise ShortFrame(f"record of trace ends within its request of {size} bytes")
        return cls(ExchangeKind(kind), handled_ns, request, answer)

    @property
    def command(self) -> Message | None:
        """The command; None for another kind, and for bytes that are none."""
        if self.kind is not ExchangeKind.COMMAND:
            return None
        try:
            header, payload = self.request[:HEADER_SIZE], self.request[HEADER_SIZE:]
            return decode([COMMAND.topic, header, payload], COMMAND)
        except FrameError:
            return None

    @property
    def reply(self) -> CommandReply | None:
        """The reply to a command; None for another kind."""
        if self.kind is not ExchangeKind.COMMAND:
            return None
        return CommandReply.unpack(self.answer)

    @property
    def gate(self) -> GateView | None:
        """The gate as an answer shows it: after a change of it, and in every reply to a command."""
        if self.kind is ExchangeKind.GATE and len(self.answer) == _GATE.size:
            state, _, _, faults = _GATE.unpack(self.answer)
            return GateView(state, faults)
        reply = self.reply
        return None if reply is None else GateView(reply.safety_state, reply.fault_bits)

    @property
    def asked(self) -> JsonObject:
        """The request's JSON object; empty for another kind, and for what is none."""
        return parse_json(self.request) or {} if self.kind in _JSON else {}

    @property
    def answered(self) -> JsonObject:
        """The answer's JSON object; empty for another kind, and for what is none."""
        return parse_json(self.answer) or {} if self.kind in _JSON else {}


class AskedTarget:
    """What commands ask of the joints, one after the other: on a hold the gate keeps its target."""

    def __init__(self) -> None:
        self._target: NDArray[np.float32] | None = None

    def take(self, command: Message, reply: CommandReply) -> NDArray[np.float32]:
        """The targets that a command asks for [rad], shape (18,).

        Those of a hold are the last ones that the gate was given. The first hold after it begins
        to follow carries the pose from which it does.
        """
        if not reply.follows:
            self._target = None
        kept = self._target if command.flags & FLAG_HOLD else None
        target = command.payload if kept is None else kept
        if reply.applied:
            self._target = target
        return target


_KINDS: Final = frozenset(int(kind) for kind in ExchangeKind)
_JSON: Final = (ExchangeKind.SAFETY, ExchangeKind.CONTROL)
