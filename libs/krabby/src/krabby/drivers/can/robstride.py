"""RobStride drives (RS-00 to RS-06): the maker's own protocol, CAN 2.0B at 1 Mbit/s.

29-bit id: communication type (5 bits), 16 bits of data, target id (8 bits). Sources: RS03 and RS04
User Manual, chapter 4 "Driver Protocol and Instructions" (types 0 to 25, parameter table 4.2, read
example 4.1.16), editions of 2025 and 2026.

Words are big-endian where 16 bits wide, little-endian otherwise.

| type | from | what | id bits 23..8 | data |
| --- | --- | --- | --- | --- |
| 1 | host | MIT command | torque | position, velocity, kp, kd: 16 bits each |
| 2 | drive | feedback | mode (2), faults (6), drive id (8) | position, velocity, torque, °C x 10 |
| 3 | host | enable | host id | 0 |
| 4 | host | disable; with data[0] = 1 clear faults too | host id | |
| 6 | host | present position becomes zero | host id | data[0] = 1 |
| 17 | both | read a parameter | host id; reply: status, drive id | index, 0, value |
| 18 | host | write a parameter until power-off | host id | index, 0, value |
| 21 | drive | faults in detail | drive id | fault bits, warning bits |
| 22 | host | keep parameters | host id | 1 to 8 |

Everything but type 17 is answered by a feedback; the target id of an answer is the host's.
A drive whose `canTimeout` ran out goes back to mode reset: the motor has no current, the drive's
own damping against being turned remains.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from krabby.drivers.can.codec import (
    Command,
    Feedback,
    Frame,
    Kind,
    Parameter,
    ParameterField,
    Reply,
    Request,
    Scale,
    Words,
    pack_parameter,
    to_value,
    to_word,
    unpack_parameter,
)
from krabby.drivers.can.types import DriveFault, DriveMode
from krabby.drivers.errors import NotRepresentable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HOST_ID", "PARAMETERS", "MessageType", "RobStrideCodec"]

HOST_ID: Final = 0xFD
"""The host's own id, as the manual's examples and the maker's tool have it."""


class MessageType(IntEnum):
    """Bits 28 to 24 of the id."""

    COMMAND = 1
    FEEDBACK = 2
    ENABLE = 3
    DISABLE = 4
    SET_ZERO = 6
    READ = 17
    WRITE = 18
    FAULTS = 21
    SAVE = 22


PARAMETERS: Final = {
    Parameter.RUN_MODE: ParameterField(0x7005, "B"),
    Parameter.TORQUE_LIMIT: ParameterField(0x700B, "f"),
    Parameter.VOLTAGE: ParameterField(0x701C, "f"),
    # The manual: 20000 is 1 s.
    Parameter.CAN_TIMEOUT: ParameterField(0x7028, "I", 20000.0),
    Parameter.ZERO_RANGE: ParameterField(0x7029, "B"),
}
"""Section 4.2 of the manual."""

_BY_INDEX: Final = {field.index: parameter for parameter, field in PARAMETERS.items()}

# Bits 16 to 21 of a feedback's id. Bit 17 is "driver fault" in the RS04 manual of 2024 and
# "three-phase overcurrent" in later ones.
_FAULT_BITS: Final = (
    DriveFault.UNDERVOLTAGE,
    DriveFault.OVERCURRENT,
    DriveFault.OVER_TEMPERATURE,
    DriveFault.ENCODER,
    DriveFault.OVERLOAD,
    DriveFault.UNCALIBRATED,
)
# What a feedback cannot say shows as the nearest thing it can.
_SAID_AS: Final = {DriveFault.DRIVER: DriveFault.OVERCURRENT}
# Bits of the first word of type 21, section 4.1.10.
_DETAIL_BITS: Final = {
    0: DriveFault.OVER_TEMPERATURE,
    1: DriveFault.DRIVER,
    2: DriveFault.UNDERVOLTAGE,
    3: DriveFault.OVERVOLTAGE,
    4: DriveFault.OVERCURRENT,
    5: DriveFault.OVERCURRENT,
    7: DriveFault.UNCALIBRATED,
    8: DriveFault.DRIVER,
    9: DriveFault.ENCODER,
    14: DriveFault.OVERLOAD,
    16: DriveFault.OVERCURRENT,
}

# Six fault bits to ours and back, as tables, so that arrays are one look-up.
_FAULTS_OF_BITS: Final = np.array(
    [
        sum(int(fault) for bit, fault in enumerate(_FAULT_BITS) if word >> bit & 1)
        for word in range(64)
    ],
    np.uint32,
)
_MODES: Final = np.array(
    [DriveMode.OFF, DriveMode.CALIBRATING, DriveMode.RUN, DriveMode.UNKNOWN], np.uint8
)
_MODE_BITS: Final = {DriveMode.CALIBRATING: 1, DriveMode.RUN: 2}

_WORD: Final = 16
_SAVE_DATA: Final = bytes(range(1, 9))
_VERSION_QUERY: Final = b"\x00\xc4"
"""A type 4 with this asks for the firmware's version and is no request to stop."""


class RobStrideCodec:
    """`Codec` of the makers' own protocol; stateless."""

    name = "robstride"
    is_extended = True
    parameters = frozenset(PARAMETERS)
    feedback_mask = 0x1F00FFFF
    write_answers_with_feedback = True

    def __init__(self, host_id: int = HOST_ID) -> None:
        """Args: the id that drives send their answers to."""
        self.host_id = host_id

    def feedback_key(self, can_id: int) -> int:
        """Type 2 from this drive to this host."""
        return MessageType.FEEDBACK << 24 | can_id << 8 | self.host_id

    def encode_commands(
        self, can_ids: NDArray[np.uint32], scale: Scale, command: Command
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """See `Codec`."""
        torque = to_word(command.torque, -scale.torque, scale.torque, _WORD)
        words = np.empty((len(can_ids), 4), ">u2")
        words[:, 0] = to_word(command.position, -scale.position, scale.position, _WORD)
        words[:, 1] = to_word(command.velocity, -scale.velocity, scale.velocity, _WORD)
        words[:, 2] = to_word(command.kp, 0.0, scale.kp, _WORD)
        words[:, 3] = to_word(command.kd, 0.0, scale.kd, _WORD)
        ids = np.uint32(MessageType.COMMAND << 24) | torque << np.uint32(8) | can_ids
        return ids, words.view(np.uint8)

    def decode_commands(self, scale: Scale, ids: Words, data: NDArray[np.uint8]) -> Command:
        """See `Codec`."""
        words = _words(data)
        return Command(
            position=to_value(words[:, 0], -scale.position, scale.position, _WORD),
            velocity=to_value(words[:, 1], -scale.velocity, scale.velocity, _WORD),
            kp=to_value(words[:, 2], 0.0, scale.kp, _WORD),
            kd=to_value(words[:, 3], 0.0, scale.kd, _WORD),
            torque=to_value(ids >> 8 & 0xFFFF, -scale.torque, scale.torque, _WORD),
        )

    def encode_feedbacks(
        self, can_ids: NDArray[np.uint32], scale: Scale, feedback: Feedback
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """See `Codec`."""
        words = np.empty((len(can_ids), 4), ">u2")
        words[:, 0] = to_word(feedback.position, -scale.position, scale.position, _WORD)
        words[:, 1] = to_word(feedback.velocity, -scale.velocity, scale.velocity, _WORD)
        words[:, 2] = to_word(feedback.torque, -scale.torque, scale.torque, _WORD)
        tenths = np.rint(np.clip(feedback.temperature_c * 10.0, -32768.0, 32767.0))
        words[:, 3] = tenths.astype(np.int16).view(np.uint16)
        bits = [
            _MODE_BITS.get(DriveMode(int(mode)), 0) << 6 | _fault_bits(int(faults))
            for mode, faults in zip(feedback.mode, feedback.faults, strict=True)
        ]
        ids = (
            np.uint32(MessageType.FEEDBACK << 24 | self.host_id)
            | np.array(bits, np.uint32) << np.uint32(16)
            | can_ids << np.uint32(8)
        )
        return ids, words.view(np.uint8)

    def decode_feedbacks(self, scale: Scale, ids: Words, data: NDArray[np.uint8]) -> Feedback:
        """See `Codec`."""
        words = _words(data)
        return Feedback(
            position=to_value(words[:, 0], -scale.position, scale.position, _WORD),
            velocity=to_value(words[:, 1], -scale.velocity, scale.velocity, _WORD),
            torque=to_value(words[:, 2], -scale.torque, scale.torque, _WORD),
            temperature_c=words[:, 3].astype(np.int16) * 0.1,
            mode=_MODES[ids >> 22 & 3],
            faults=_FAULTS_OF_BITS[ids >> 16 & 63],
        )

    def request(self, request: Request) -> Frame:
        """See `Codec`."""
        match request.kind:
            case Kind.ENABLE:
                return self._frame(MessageType.ENABLE, request.can_id)
            case Kind.DISABLE:
                return self._frame(MessageType.DISABLE, request.can_id)
            case Kind.CLEAR_FAULTS:
                return self._frame(MessageType.DISABLE, request.can_id, b"\x01")
            case Kind.SET_ZERO:
                return self._frame(MessageType.SET_ZERO, request.can_id, b"\x01")
            case Kind.SAVE:
                return self._frame(MessageType.SAVE, request.can_id, _SAVE_DATA)
            case Kind.READ:
                data = struct.pack("<HHI", _index(request), 0, 0)
                return self._frame(MessageType.READ, request.can_id, data)
            case Kind.WRITE:
                data = struct.pack("<HH", _index(request), 0)
                data += _pack(request.parameter, request.value)
                return self._frame(MessageType.WRITE, request.can_id, data)
            case Kind.COMMAND:
                raise NotRepresentable("commands go through encode_commands; use that")

    def parse_request(self, frame: Frame) -> Request | None:
        """See `Codec`."""
        if not frame.is_extended or len(frame.data) != 8:
            return None
        kind, can_id = frame.arbitration_id >> 24, frame.arbitration_id & 0xFF
        if kind == MessageType.COMMAND:
            return Request(Kind.COMMAND, can_id)
        if frame.arbitration_id >> 8 & 0xFF != self.host_id:
            return None
        match kind:
            case MessageType.ENABLE:
                return Request(Kind.ENABLE, can_id)
            case MessageType.DISABLE:
                if frame.data[:2] == _VERSION_QUERY:
                    return None
                clear = frame.data[0] == 1
                return Request(Kind.CLEAR_FAULTS if clear else Kind.DISABLE, can_id)
            case MessageType.SET_ZERO if frame.data[0] == 1:
                return Request(Kind.SET_ZERO, can_id)
            case MessageType.SAVE if frame.data == _SAVE_DATA:
                return Request(Kind.SAVE, can_id)
            case MessageType.READ:
                index = frame.data[0] | frame.data[1] << 8
                return Request(Kind.READ, can_id, _parameter(index), 0.0, index)
            case MessageType.WRITE:
                index = frame.data[0] | frame.data[1] << 8
                parameter = _parameter(index)
                value = _unpack(parameter, frame.data[4:])
                return Request(Kind.WRITE, can_id, parameter, value, index)
        return None

    def reply(self, reply: Reply) -> Frame:
        """See `Codec`. NaN goes out as status 1: the drive has no such parameter."""
        if reply.faults:
            bits = sum(1 << bit for bit, fault in _FIRST_DETAIL.items() if fault & reply.faults)
            ids = MessageType.FAULTS << 24 | reply.can_id << 8 | self.host_id
            return Frame(ids, struct.pack("<II", bits, 0), True)
        refused = reply.value != reply.value
        index = PARAMETERS[reply.parameter].index if reply.parameter else reply.index
        data = struct.pack("<HH", index, 0)
        data += bytes(4) if refused else _pack(reply.parameter, reply.value)
        ids = MessageType.READ << 24 | refused << 16 | reply.can_id << 8 | self.host_id
        return Frame(ids, data, True)

    def parse_reply(self, frame: Frame) -> Reply | None:
        """See `Codec`."""
        if not frame.is_extended or len(frame.data) != 8:
            return None
        kind, can_id = frame.arbitration_id >> 24, frame.arbitration_id >> 8 & 0xFF
        if frame.arbitration_id & 0xFF != self.host_id:
            return None
        if kind == MessageType.FAULTS:
            word = int.from_bytes(frame.data[:4], "little")
            faults = DriveFault(0)
            for bit, fault in _DETAIL_BITS.items():
                if word >> bit & 1:
                    faults |= fault
            return Reply(can_id, Parameter.OTHER, float("nan"), 0, int(faults))
        if kind != MessageType.READ:
            return None
        index = frame.data[0] | frame.data[1] << 8
        parameter = _parameter(index)
        failed = frame.arbitration_id >> 16 & 0xFF
        value = float("nan") if failed else _unpack(parameter, frame.data[4:])
        return Reply(can_id, parameter, value, index)

    def sender(self, frame: Frame) -> int | None:
        """See `Codec`. Feedbacks and fault frames to any host; replies to this one."""
        if not frame.is_extended:
            return None
        kind, host = frame.arbitration_id >> 24, frame.arbitration_id & 0xFF
        # Another host's request to read has the same type as the reply.
        is_drives = kind in (MessageType.FEEDBACK, MessageType.FAULTS) or (
            kind == MessageType.READ and host == self.host_id
        )
        return frame.arbitration_id >> 8 & 0xFF if is_drives else None

    def _frame(self, kind: MessageType, can_id: int, data: bytes = b"") -> Frame:
        return Frame(kind << 24 | self.host_id << 8 | can_id, data.ljust(8, b"\x00"), True)


_FIRST_DETAIL: Final = {
    next(bit for bit, named in _DETAIL_BITS.items() if named == fault): fault
    for fault in set(_DETAIL_BITS.values())
}


def _words(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return np.ascontiguousarray(data, np.uint8).view(">u2").astype(np.uint16)


def _fault_bits(faults: int) -> int:
    if not faults:
        return 0
    for ours, said in _SAID_AS.items():
        if faults & ours:
            faults |= said
    return sum(1 << bit for bit, fault in enumerate(_FAULT_BITS) if faults & fault)


def _parameter(index: int) -> Parameter:
    return _BY_INDEX.get(index, Parameter.OTHER)


def _index(request: Request) -> int:
    if request.parameter == Parameter.OTHER:
        return request.index
    return PARAMETERS[request.parameter].index


def _pack(parameter: Parameter, value: float) -> bytes:
    return pack_parameter(parameter, PARAMETERS.get(parameter, ParameterField(0, "I")), value)


def _unpack(parameter: Parameter, data: bytes) -> float:
    return unpack_parameter(PARAMETERS.get(parameter, ParameterField(0, "I")), data)
