"""Damiao drives (DM-J series) in MIT mode: standard ids, CAN at 1 Mbit/s.

Sources: DM-J8009P-2EC manual and its siblings, chapters "MIT mode", "Feedback frame", "Reading and
writing registers" and the register list; firmware with register access.

| frame | id | data |
| --- | --- | --- |
| MIT command | drive id | position 16, velocity 12, kp 12, kd 12, torque 12 bits, big-endian |
| enable, disable, set zero, clear faults | drive id | seven FF, then FC, FD, FE, FB |
| read, write, keep registers | 7FF | id low, id high, 33, 55 or AA, register, value little-endian |
| feedback | feedback id | state 4, id 4, position 16, velocity 12, torque 12 bits, two times °C |
| register reply | feedback id | as the request, with the value |

The feedback id is the register MST_ID. Delivered as 0 for every drive, it leaves only four bits of
the data to tell drives apart; this project asks for one per drive: `feedback_id`.

What this make cannot do: its kd ends at 5 N·m·s/rad, so the robot's own 10 is refused when the plan
is made; it has no register for a torque limit in MIT mode and none for the supply voltage.

A drive that hears nothing for TIMEOUT switches off and reports state D, communication lost.
"""

from __future__ import annotations

import struct
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

__all__ = ["PARAMETERS", "DamiaoCodec", "feedback_id"]

_REGISTER_ID: Final = 0x7FF
_READ, _WRITE, _SAVE = 0x33, 0x55, 0xAA
_PADDING: Final = b"\xff" * 7
_ENDINGS: Final = {
    Kind.ENABLE: 0xFC,
    Kind.DISABLE: 0xFD,
    Kind.SET_ZERO: 0xFE,
    Kind.CLEAR_FAULTS: 0xFB,
}
_KINDS: Final = {ending: kind for kind, ending in _ENDINGS.items()}

PARAMETERS: Final = {
    # CTRL_MODE counts from 1, and 1 is MIT; `Parameter.RUN_MODE` 0 is MIT.
    Parameter.RUN_MODE: ParameterField(10, "I"),
    # 20 counts a millisecond: public drivers of the make agree, its manual gives no unit.
    Parameter.CAN_TIMEOUT: ParameterField(9, "I", 20000.0),
    Parameter.POSITION_RANGE: ParameterField(21, "f"),
    Parameter.VELOCITY_RANGE: ParameterField(22, "f"),
    Parameter.TORQUE_RANGE: ParameterField(23, "f"),
}
"""Register list of the manual."""
_BY_INDEX: Final = {field.index: parameter for parameter, field in PARAMETERS.items()}
_MIT: Final = 1

_STATES: Final = {
    0x8: DriveFault.OVERVOLTAGE,
    0x9: DriveFault.UNDERVOLTAGE,
    0xA: DriveFault.OVERCURRENT,
    0xB: DriveFault.OVER_TEMPERATURE,  # power stage
    0xC: DriveFault.OVER_TEMPERATURE,  # winding
    0xD: DriveFault.CAN_TIMEOUT,
    0xE: DriveFault.OVERLOAD,
}
_FAULTS_OF_STATE: Final = np.array([_STATES.get(state, 0) for state in range(16)], np.uint32)
_MODE_OF_STATE: Final = np.array(
    [
        DriveMode.RUN if state == 1 else DriveMode.OFF if state == 0 or state in _STATES else 0
        for state in range(16)
    ],
    np.uint8,
)
_STATE_OF_FAULT: Final = {
    DriveFault.OVERVOLTAGE: 0x8,
    DriveFault.UNDERVOLTAGE: 0x9,
    DriveFault.OVERCURRENT: 0xA,
    DriveFault.OVER_TEMPERATURE: 0xB,
    DriveFault.CAN_TIMEOUT: 0xD,
    DriveFault.OVERLOAD: 0xE,
    # What the state cannot say shows as the nearest thing it can.
    DriveFault.ENCODER: 0xE,
    DriveFault.DRIVER: 0xA,
    DriveFault.UNCALIBRATED: 0xE,
}


def feedback_id(can_id: int) -> int:
    """The MST_ID this project gives a drive: unlike every drive id, one per drive."""
    return 0x100 | can_id


class DamiaoCodec:
    """`Codec` of the make's MIT mode; stateless."""

    name = "damiao"
    is_extended = False
    parameters = frozenset(PARAMETERS)
    feedback_mask = 0x7FF
    write_answers_with_feedback = False

    def feedback_key(self, can_id: int) -> int:
        """See `Codec`."""
        return feedback_id(can_id)

    def encode_commands(
        self, can_ids: NDArray[np.uint32], scale: Scale, command: Command
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """See `Codec`."""
        position = to_word(command.position, -scale.position, scale.position, 16)
        velocity = to_word(command.velocity, -scale.velocity, scale.velocity, 12)
        kp = to_word(command.kp, 0.0, scale.kp, 12)
        kd = to_word(command.kd, 0.0, scale.kd, 12)
        torque = to_word(command.torque, -scale.torque, scale.torque, 12)
        data = np.empty((len(can_ids), 8), np.uint8)
        data[:, 0] = position >> 8
        data[:, 1] = position & 0xFF
        data[:, 2] = velocity >> 4
        data[:, 3] = (velocity & 0xF) << 4 | kp >> 8
        data[:, 4] = kp & 0xFF
        data[:, 5] = kd >> 4
        data[:, 6] = (kd & 0xF) << 4 | torque >> 8
        data[:, 7] = torque & 0xFF
        return can_ids, data

    def decode_commands(self, scale: Scale, ids: Words, data: NDArray[np.uint8]) -> Command:
        """See `Codec`."""
        d = data.astype(np.uint32)
        return Command(
            position=to_value(d[:, 0] << 8 | d[:, 1], -scale.position, scale.position, 16),
            velocity=to_value(d[:, 2] << 4 | d[:, 3] >> 4, -scale.velocity, scale.velocity, 12),
            kp=to_value((d[:, 3] & 0xF) << 8 | d[:, 4], 0.0, scale.kp, 12),
            kd=to_value(d[:, 5] << 4 | d[:, 6] >> 4, 0.0, scale.kd, 12),
            torque=to_value((d[:, 6] & 0xF) << 8 | d[:, 7], -scale.torque, scale.torque, 12),
        )

    def encode_feedbacks(
        self, can_ids: NDArray[np.uint32], scale: Scale, feedback: Feedback
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """See `Codec`. Both temperatures are the hottest."""
        position = to_word(feedback.position, -scale.position, scale.position, 16)
        velocity = to_word(feedback.velocity, -scale.velocity, scale.velocity, 12)
        torque = to_word(feedback.torque, -scale.torque, scale.torque, 12)
        states = [
            _state(int(mode), int(faults))
            for mode, faults in zip(feedback.mode, feedback.faults, strict=True)
        ]
        data = np.empty((len(can_ids), 8), np.uint8)
        data[:, 0] = np.array(states, np.uint32) << 4 | can_ids & 0xF
        data[:, 1] = position >> 8
        data[:, 2] = position & 0xFF
        data[:, 3] = velocity >> 4
        data[:, 4] = (velocity & 0xF) << 4 | torque >> 8
        data[:, 5] = torque & 0xFF
        data[:, 6] = data[:, 7] = np.rint(np.clip(feedback.temperature_c, 0.0, 255.0))
        return np.uint32(feedback_id(0)) | can_ids, data

    def decode_feedbacks(self, scale: Scale, ids: Words, data: NDArray[np.uint8]) -> Feedback:
        """See `Codec`."""
        d = data.astype(np.uint32)
        state = d[:, 0] >> 4
        torque = (d[:, 4] & 0xF) << 8 | d[:, 5]
        return Feedback(
            position=to_value(d[:, 1] << 8 | d[:, 2], -scale.position, scale.position, 16),
            velocity=to_value(d[:, 3] << 4 | d[:, 4] >> 4, -scale.velocity, scale.velocity, 12),
            torque=to_value(torque, -scale.torque, scale.torque, 12),
            temperature_c=np.maximum(d[:, 6], d[:, 7]).astype(np.float64),
            mode=_MODE_OF_STATE[state],
            faults=_FAULTS_OF_STATE[state],
        )

    def request(self, request: Request) -> Frame:
        """See `Codec`."""
        match request.kind:
            case Kind.READ:
                return self._register(request.can_id, _READ, _index(request), bytes(4))
            case Kind.WRITE:
                value = _pack(request.parameter, request.value)
                return self._register(request.can_id, _WRITE, _index(request), value)
            case Kind.SAVE:
                return self._register(request.can_id, _SAVE, 0, bytes(4))
            case Kind.COMMAND:
                raise NotRepresentable("commands go through encode_commands; use that")
            case kind:
                return Frame(request.can_id, _PADDING + bytes((_ENDINGS[kind],)), False)

    def parse_request(self, frame: Frame) -> Request | None:
        """See `Codec`. Frames of feedback ids are no requests."""
        if frame.is_extended or len(frame.data) != 8:
            return None
        if frame.arbitration_id == _REGISTER_ID:
            can_id, operation, index = _register_head(frame.data)
            parameter = _BY_INDEX.get(index, Parameter.OTHER)
            match operation:
                case 0x33:
                    return Request(Kind.READ, can_id, parameter, 0.0, index)
                case 0x55:
                    value = _unpack(parameter, frame.data[4:])
                    return Request(Kind.WRITE, can_id, parameter, value, index)
                case 0xAA:
                    return Request(Kind.SAVE, can_id)
            return None
        if frame.arbitration_id > 0xFF:
            return None
        if frame.data[:7] == _PADDING and frame.data[7] in _KINDS:
            return Request(_KINDS[frame.data[7]], frame.arbitration_id)
        return Request(Kind.COMMAND, frame.arbitration_id)

    def reply(self, reply: Reply) -> Frame:
        """See `Codec`. The make has no refusal: an unknown register answers 0."""
        known = reply.parameter in PARAMETERS
        index = PARAMETERS[reply.parameter].index if known else reply.index
        value = _pack(reply.parameter, reply.value) if reply.value == reply.value else bytes(4)
        head = struct.pack("<HBB", reply.can_id, _READ, index)
        return Frame(feedback_id(reply.can_id), head + value, False)

    def parse_reply(self, frame: Frame) -> Reply | None:
        """See `Codec`.

        A feedback looks like a reply when the drive is off, within 5 mrad of the low end of its
        position range, and the low byte is one of the three operations; no joint gets there.
        """
        if frame.is_extended or len(frame.data) != 8:
            return None
        can_id, operation, index = _register_head(frame.data)
        if operation not in (_READ, _WRITE) or frame.arbitration_id != feedback_id(can_id):
            return None
        parameter = _BY_INDEX.get(index, Parameter.OTHER)
        return Reply(can_id, parameter, _unpack(parameter, frame.data[4:]), index)

    def sender(self, frame: Frame) -> int | None:
        """See `Codec`. Under an id that is not `feedback_id` of a drive: that id itself.

        As delivered every drive answers under id 0.
        """
        if frame.is_extended or frame.arbitration_id == _REGISTER_ID:
            return None
        own = frame.arbitration_id - feedback_id(0)
        return own if 0 < own <= 0xFF else frame.arbitration_id

    def _register(self, can_id: int, operation: int, index: int, value: bytes) -> Frame:
        return Frame(_REGISTER_ID, struct.pack("<HBB", can_id, operation, index) + value, False)


def _register_head(data: bytes) -> tuple[int, int, int]:
    return data[0] | data[1] << 8, data[2], data[3]


def _state(mode: int, faults: int) -> int:
    for fault, state in _STATE_OF_FAULT.items():
        if faults & fault:
            return state
    return 1 if mode == DriveMode.RUN else 0


def _index(request: Request) -> int:
    if request.parameter == Parameter.OTHER:
        return request.index
    if request.parameter not in PARAMETERS:
        raise NotRepresentable(
            f"a Damiao drive has no register for {request.parameter.name}; leave it out"
        )
    return PARAMETERS[request.parameter].index


def _pack(parameter: Parameter, value: float) -> bytes:
    field = PARAMETERS.get(parameter, ParameterField(0, "I"))
    stored = value + _MIT if parameter == Parameter.RUN_MODE else value
    return pack_parameter(parameter, field, stored)


def _unpack(parameter: Parameter, data: bytes) -> float:
    value = unpack_parameter(PARAMETERS.get(parameter, ParameterField(0, "I")), data)
    return value - _MIT if parameter == Parameter.RUN_MODE else value
