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
the data to tell drives apart; this project requires 0x100 + the drive's id.

Limits of this make: kd ends at 5 N·m·s/rad, so the robot's own 10 is refused when the plan is made;
there is no register for a torque limit in MIT mode and none for the supply voltage.

A drive that hears nothing for TIMEOUT switches off and reports state D, communication lost.
"""

import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from krabby.drivers.can.codec import (
    Codec,
    Command,
    DriveModel,
    Frame,
    Kind,
    Layout,
    Parameter,
    ParameterField,
    Reply,
    Request,
)
from krabby.drivers.can.types import DriveFault, DriveMode

__all__ = ["DamiaoCodec"]

_MASTER: Final = 0x100
"""MST_ID of a drive less its own id."""
_REGISTERS: Final = 0x7FF
_PADDING: Final = b"\xff" * 7
_ENDINGS: Final = {
    Kind.ENABLE: 0xFC,
    Kind.DISABLE: 0xFD,
    Kind.SET_ZERO: 0xFE,
    Kind.CLEAR_FAULTS: 0xFB,
}
_OPERATIONS: Final = {Kind.READ: 0x33, Kind.WRITE: 0x55, Kind.SAVE: 0xAA}

_FAULTS: Final = {
    0x8: DriveFault.OVERVOLTAGE,
    0x9: DriveFault.UNDERVOLTAGE,
    0xA: DriveFault.OVERCURRENT,
    0xB: DriveFault.OVER_TEMPERATURE,  # power stage
    0xC: DriveFault.OVER_TEMPERATURE,  # winding
    0xD: DriveFault.CAN_TIMEOUT,
    0xE: DriveFault.OVERLOAD,
}
_OFF, _RUN = 0, 1
_MODES: Final = dict.fromkeys((_OFF, *_FAULTS), DriveMode.OFF) | {_RUN: DriveMode.RUN}


class DamiaoCodec(Codec):
    """`Codec` of the make's MIT mode."""

    name = "damiao"
    is_extended = False
    feedback_mask = 0x7FF
    answers_under_own_id = False
    identity_digits = 8
    write_answers_with_feedback = False
    timeout_is_fault = True
    command = Layout(
        Command._fields,
        dict(can_id=11),
        dict(position=16, velocity=12, kp=12, kd=12, torque=12),
    )
    feedback = Layout(
        ("position", "velocity", "torque"),
        dict(master=3, can_id=8),
        dict(status=4, can_id=4, position=16, velocity=12, torque=12, stage_c=8, winding_c=8),
        master=_MASTER >> 8,
    )
    modes = np.array([_MODES.get(state, DriveMode.UNKNOWN) for state in range(16)], np.uint8)
    temperatures: Mapping[str, tuple[type[np.integer[Any]], float]] = {
        "stage_c": (np.uint8, 1.0),
        "winding_c": (np.uint8, 1.0),
    }
    reported_as: Mapping[DriveFault, DriveFault] = {
        DriveFault.ENCODER: DriveFault.OVERLOAD,
        DriveFault.DRIVER: DriveFault.OVERCURRENT,
        DriveFault.UNCALIBRATED: DriveFault.OVERLOAD,
    }
    faults = np.array([_FAULTS.get(state, 0) for state in range(16)], np.uint32)
    # The register list of the manual.
    parameters: Mapping[Parameter, ParameterField] = {
        # CTRL_MODE counts from 1, and 1 is MIT; `Parameter.RUN_MODE` 0 is MIT.
        Parameter.RUN_MODE: ParameterField(10, "I", offset=1),
        # 20 counts a millisecond: public drivers of the make agree, its manual gives no unit.
        Parameter.CAN_TIMEOUT: ParameterField(9, "I", 20000.0),
        # SN, the serial number.
        Parameter.IDENTITY: ParameterField(15, "I"),
        Parameter.POSITION_RANGE: ParameterField(21, "f"),
        Parameter.VELOCITY_RANGE: ParameterField(22, "f"),
        Parameter.TORQUE_RANGE: ParameterField(23, "f"),
    }
    models = (
        # DM-J8009P-2EC manual, MIT mode and feedback frame. PMAX, VMAX and TMAX as delivered, from
        # the register table of the damiao-motor package; the ranges of the MIT gains are fixed.
        DriveModel(
            name="damiao-j8009p",
            make=name,
            position_range=12.5,
            velocity_range=45.0,
            torque_range=54.0,
            kp_range=500.0,
            kd_range=5.0,
            derate_from_c=80.0,
            derate_to_c=100.0,
        ),
    )

    def feedback_key(self, can_id: int) -> int:
        """See `Codec`."""
        return _MASTER | can_id

    def request(self, request: Request) -> Frame:
        """See `Codec`."""
        if request.kind in _OPERATIONS:
            index = 0 if request.kind == Kind.SAVE else self.index(request)
            is_write = request.kind == Kind.WRITE
            value = self.pack(request.parameter, request.value) if is_write else bytes(4)
            return _register(_REGISTERS, request.can_id, _OPERATIONS[request.kind], index, value)
        return Frame(request.can_id, _PADDING + bytes((_ENDINGS[request.kind],)), False)

    def parse_request(self, frame: Frame) -> Request | None:
        """See `Codec`. Frames of feedback ids are not requests."""
        if self.is_foreign(frame):
            return None
        if frame.arbitration_id == _REGISTERS:
            can_id, operation, index = struct.unpack_from("<HBB", frame.data)
            kind = next((kind for kind, code in _OPERATIONS.items() if code == operation), None)
            if kind is None or kind == Kind.SAVE:
                return None if kind is None else Request(kind, can_id)
            parameter, value = self.unpack(index, frame.data[4:])
            return Request(kind, can_id, parameter, value if kind == Kind.WRITE else 0.0, index)
        if frame.arbitration_id > 0xFF:
            return None
        for kind, ending in _ENDINGS.items():
            if frame.data == _PADDING + bytes((ending,)):
                return Request(kind, frame.arbitration_id)
        return Request(Kind.COMMAND, frame.arbitration_id)

    def reply(self, reply: Reply) -> Frame:
        """See `Codec`. The make has no refusal: an unknown register answers 0."""
        if reply.parameter == Parameter.IDENTITY:
            reply = reply._replace(value=float(int(reply.identity or "0", 16)))
        is_known = reply.value == reply.value
        value = self.pack(reply.parameter, reply.value) if is_known else bytes(4)
        to = self.feedback_key(reply.can_id)
        return _register(to, reply.can_id, _OPERATIONS[Kind.READ], self.index(reply), value)

    def parse_reply(self, frame: Frame) -> Reply | None:
        """See `Codec`.

        A feedback looks like a reply when the drive is off, within 5 mrad of the low end of its
        position range, and the low byte is one of the operations; joints do not get there.
        """
        if self.is_foreign(frame):
            return None
        can_id, operation, index = struct.unpack_from("<HBB", frame.data)
        answers = _OPERATIONS[Kind.READ], _OPERATIONS[Kind.WRITE]
        if operation not in answers or frame.arbitration_id != self.feedback_key(can_id):
            return None
        parameter, value = self.unpack(index, frame.data[4:])
        is_identity = parameter == Parameter.IDENTITY and value
        identity = f"{int(value):08x}" if is_identity else ""
        return Reply(can_id, parameter, value, index, identity=identity)

    def sender(self, frame: Frame) -> int | None:
        """See `Codec`. Under an id that is not `feedback_key` of a drive: that id itself.

        As delivered every drive answers under id 0.
        """
        if frame.is_extended or frame.arbitration_id == _REGISTERS:
            return None
        own = frame.arbitration_id - _MASTER
        return own if 0 < own <= 0xFF else frame.arbitration_id


def _register(to: int, can_id: int, operation: int, index: int, value: bytes) -> Frame:
    return Frame(to, struct.pack("<HBB", can_id, operation, index) + value, False)
