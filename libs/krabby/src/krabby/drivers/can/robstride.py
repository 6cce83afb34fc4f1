"""RobStride drives (RS-00 to RS-06): the maker's own protocol, CAN 2.0B at 1 Mbit/s.

29-bit id: communication type (5 bits), 16 bits of data, target id (8 bits). Sources: RS03 and RS04
User Manual, chapter 4 "Driver Protocol and Instructions" (types 0 to 25, parameter table 4.2, read
example 4.1.16), editions of 2025 and 2026.

Words are big-endian where 16 bits wide, little-endian otherwise.

| type | from | what | id bits 23..8 | data |
| --- | --- | --- | --- | --- |
| 0 | both | the drive's unique number | host id; reply: drive id, to FE | reply: 64 bits |
| 1 | host | MIT command | torque | position, velocity, kp, kd: 16 bits each |
| 2 | drive | feedback | mode (2), faults (6), drive id (8) | position, velocity, torque, °C x 10 |
| 3 | host | enable | host id | 0 |
| 4 | host | disable; with data[0] = 1 clear faults too | host id | |
| 6 | host | present position becomes zero | host id | data[0] = 1 |
| 17 | both | read a parameter | host id; reply: status, drive id | index, 0, value |
| 18 | host | write a parameter until power-off | host id | index, 0, value |
| 21 | drive | faults in detail | drive id | fault bits, warning bits |
| 22 | host | keep parameters | host id | 1 to 8 |

Everything but types 0 and 17 is answered by a feedback; the target id of an answer is the host's.
A drive whose `canTimeout` ran out goes back to mode reset: the motor has no current, the drive's
own damping against being turned remains.
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

__all__ = ["RobStrideCodec"]

_HOST_ID: Final = 0xFD
"""The host's own id, as the manual's examples and the maker's tool have it."""
_IDENTITY, _COMMAND, _FEEDBACK, _DISABLE, _READ, _WRITE, _FAULTS = 0, 1, 2, 4, 17, 18, 21
_IDENTITY_TO: Final = 0xFE
"""Target id of every answer to type 0, whichever host asked."""
# Communication type and first bytes of the data; of two with one type the longer one is first.
_REQUESTS: Final = {
    Kind.ENABLE: (3, b""),
    Kind.CLEAR_FAULTS: (_DISABLE, b"\x01"),
    Kind.DISABLE: (_DISABLE, b""),
    Kind.SET_ZERO: (6, b"\x01"),
    Kind.SAVE: (22, bytes(range(1, 9))),
}
_VERSION_QUERY: Final = b"\x00\xc4"
"""A type 4 with this asks for the firmware's version; it is not a request to stop."""

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
_FIRST_DETAIL: Final = {fault: bit for bit, fault in reversed(_DETAIL_BITS.items())}
_MODES: Final = (DriveMode.OFF, DriveMode.CALIBRATING, DriveMode.RUN, DriveMode.UNKNOWN)
_STATUS: Final = range(1 << 8)
"""Two bits of mode and six of faults."""


class RobStrideCodec(Codec):
    """`Codec` of the maker's own protocol."""

    name = "robstride"
    is_extended = True
    feedback_mask = 0x1F00FFFF
    command_mask = 0x1F0000FF
    answers_under_own_id = True
    identity_digits = 16
    write_answers_with_feedback = True
    timeout_is_fault = False
    command = Layout(
        Command._fields,
        dict(type=5, torque=16, can_id=8),
        dict(position=16, velocity=16, kp=16, kd=16),
        type=_COMMAND,
    )
    modes = np.array([_MODES[status >> 6] for status in _STATUS], np.uint8)
    faults = np.array(
        [sum(f for bit, f in enumerate(_FAULT_BITS) if status >> bit & 1) for status in _STATUS],
        np.uint32,
    )
    temperatures: Mapping[str, tuple[type[np.integer[Any]], float]] = {"tenths_c": (np.int16, 10.0)}
    reported_as: Mapping[DriveFault, DriveFault] = {DriveFault.DRIVER: DriveFault.OVERCURRENT}
    # Section 4.2 of the manual.
    parameters: Mapping[Parameter, ParameterField] = {
        Parameter.RUN_MODE: ParameterField(0x7005, "B"),
        Parameter.TORQUE_LIMIT: ParameterField(0x700B, "f"),
        Parameter.VOLTAGE: ParameterField(0x701C, "f"),
        # The manual: 20000 is 1 s.
        Parameter.CAN_TIMEOUT: ParameterField(0x7028, "I", 20000.0),
        Parameter.ZERO_RANGE: ParameterField(0x7029, "B"),
    }
    # RS03 and RS04 User Manual, section 4.1.2 (communication types 1 and 2); 4.1.10:
    # over-temperature warning at 135 °C, shut-down at 145 °C by default. Some public libraries say
    # 50 rad/s for the RS03; section 4.1.2 and the program sample say 20.
    models = tuple(
        DriveModel(
            name=model,
            make="robstride",
            position_range=4.0 * np.pi,
            velocity_range=velocity_range,
            torque_range=torque_range,
            kp_range=5000.0,
            kd_range=100.0,
            derate_from_c=100.0,
            derate_to_c=130.0,
        )
        for model, velocity_range, torque_range in (
            ("robstride-rs04", 15.0, 120.0),
            ("robstride-rs03", 20.0, 60.0),
        )
    )

    def __init__(self, host_id: int = _HOST_ID) -> None:
        """Args: the id that drives send their answers to."""
        self.host_id = host_id
        self.feedback = Layout(
            ("position", "velocity", "torque"),
            dict(type=5, status=8, can_id=8, host=8),
            dict(position=16, velocity=16, torque=16, tenths_c=16),
            type=_FEEDBACK,
            host=host_id,
        )

    def feedback_key(self, can_id: int) -> int:
        """Type 2 from this drive to this host."""
        return _FEEDBACK << 24 | can_id << 8 | self.host_id

    def command_key(self, can_id: int) -> int:
        """Type 1 to this drive."""
        return _COMMAND << 24 | can_id

    def request(self, request: Request) -> Frame:
        """See `Codec`."""
        if request.kind not in (Kind.READ, Kind.WRITE):
            return self._frame(*_REQUESTS[request.kind], request.can_id)
        if request.parameter == Parameter.IDENTITY:
            return self._frame(_IDENTITY, bytes(8), request.can_id)
        kind, value = _READ, bytes(4)
        if request.kind == Kind.WRITE:
            kind, value = _WRITE, self.pack(request.parameter, request.value)
        return self._frame(kind, struct.pack("<HH", self.index(request), 0) + value, request.can_id)

    def parse_request(self, frame: Frame) -> Request | None:
        """See `Codec`."""
        if self.is_foreign(frame):
            return None
        kind, can_id = frame.arbitration_id >> 24, frame.arbitration_id & 0xFF
        if kind == _COMMAND:
            return Request(Kind.COMMAND, can_id)
        if frame.arbitration_id >> 8 & 0xFF != self.host_id:
            return None
        if kind == _IDENTITY:
            return Request(Kind.READ, can_id, Parameter.IDENTITY)
        if kind in (_READ, _WRITE):
            index = int.from_bytes(frame.data[:2], "little")
            parameter, value = self.unpack(index, frame.data[4:])
            if kind == _READ:
                return Request(Kind.READ, can_id, parameter, 0.0, index)
            return Request(Kind.WRITE, can_id, parameter, value, index)
        if kind == _DISABLE and frame.data.startswith(_VERSION_QUERY):
            return None
        for request, (type_, head) in _REQUESTS.items():
            if kind == type_ and frame.data.startswith(head):
                return Request(request, can_id)
        return None

    def reply(self, reply: Reply) -> Frame:
        """See `Codec`. NaN goes out as status 1: the drive has no such parameter."""
        if reply.parameter == Parameter.IDENTITY:
            to = _IDENTITY << 24 | reply.can_id << 8 | _IDENTITY_TO
            return Frame(to, bytes.fromhex(reply.identity.zfill(16)), True)
        to_host = reply.can_id << 8 | self.host_id
        if reply.faults:
            bits = sum(1 << bit for fault, bit in _FIRST_DETAIL.items() if fault & reply.faults)
            return Frame(_FAULTS << 24 | to_host, struct.pack("<II", bits, 0), True)
        refused = reply.value != reply.value
        value = bytes(4) if refused else self.pack(reply.parameter, reply.value)
        data = struct.pack("<HH", self.index(reply), 0) + value
        return Frame(_READ << 24 | refused << 16 | to_host, data, True)

    def parse_reply(self, frame: Frame) -> Reply | None:
        """See `Codec`."""
        if self.is_foreign(frame):
            return None
        kind, can_id = frame.arbitration_id >> 24, frame.arbitration_id >> 8 & 0xFF
        if kind == _IDENTITY and frame.arbitration_id & 0xFF == _IDENTITY_TO:
            number = int.from_bytes(frame.data)
            identity = f"{number:016x}" if number else ""
            return Reply(can_id, Parameter.IDENTITY, float(bool(number)), identity=identity)
        if frame.arbitration_id & 0xFF != self.host_id:
            return None
        if kind == _FAULTS:
            word = int.from_bytes(frame.data[:4], "little")
            faults = DriveFault(0)
            for bit, fault in _DETAIL_BITS.items():
                faults |= fault if word >> bit & 1 else 0
            return Reply(can_id, Parameter.OTHER, float("nan"), 0, int(faults))
        if kind != _READ:
            return None
        index = int.from_bytes(frame.data[:2], "little")
        parameter, value = self.unpack(index, frame.data[4:])
        is_refused = frame.arbitration_id >> 16 & 0xFF
        return Reply(can_id, parameter, float("nan") if is_refused else value, index)

    def sender(self, frame: Frame) -> int | None:
        """See `Codec`. Feedbacks and fault frames to any host; replies to this one."""
        if not frame.is_extended:
            return None
        kind, host = frame.arbitration_id >> 24, frame.arbitration_id & 0xFF
        # Another host's request to read has the same type as the reply.
        is_drives = kind in (_FEEDBACK, _FAULTS) or (kind == _READ and host == self.host_id)
        is_drives |= kind == _IDENTITY and host == _IDENTITY_TO
        return frame.arbitration_id >> 8 & 0xFF if is_drives else None

    def _frame(self, kind: int, data: bytes, can_id: int) -> Frame:
        return Frame(kind << 24 | self.host_id << 8 | can_id, data.ljust(8, b"\x00"), True)
