"""The wire of a VectorNav VN-100: register commands in ASCII, measurements in binary.

Source: VN-100 Interface Control Document ICD10005 (firmware 3.1), sections 1.3 to 1.5 (commands,
checksums, errors), 2.1 to 2.4 (binary messages), 3.2 (registers); also VN-100 User Manual UM001,
chapters 4 to 6. Compared with VectorNav's programming library and ArduPilot's
AP_ExternalAHRS_VectorNav.

An ASCII message is `$` body `*` checksum CR LF. The checksum is two hex digits, the bytes of the
body under exclusive or, or four, their CRC-16. A binary message is

    0xFA | groups, 1 byte | one 16-bit field mask a group, little-endian | payload | CRC-16

The payload holds the chosen fields in the order of groups and bits, little-endian floats. The
CRC (polynomial 0x1021, start value 0) covers everything after the 0xFA and stands most significant
byte first, so that it is zero over a whole message. We choose one message, 60 bytes:

    group 1 (common):  TimeStartup (bit 0), Quaternion (4), AngularRate (5), Accel (8)
    group 3 (IMU):     Temp (bit 4)

Frames: the sensor's axes are printed on its case, x forward, y right, z down; the quaternion
(scalar last) takes them to north-east-down. Accel is specific force, so (0, 0, -9.81) at rest.
`krabby.drivers.imu.ImuMount(quat_bs, QUAT_WN)` takes both to ours.
"""

import binascii
import re
import struct
from functools import reduce
from operator import xor
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

BASE_RATE_HZ: Final = 800
"""Rate of the sensor's filter; an output has a whole divisor of it [Hz]."""
BAUDS: Final = (921600, 460800, 230400, 128000, 115200, 57600, 38400, 19200, 9600)
"""What register 5 takes [bit/s], fastest first."""
FACTORY_BAUD: Final = 115200
QUAT_WN: Final[NDArray[np.float64]] = np.array([1.0, 0.0, 0.0, 0.0])
"""North-east-down to a world with x north, y west and z up: half a turn about x."""
QUAT_WN.setflags(write=False)

HEADER: Final = bytes.fromhex("FA 05 3101 1000")
"""Start of our message: sync, groups 1 and 3, their masks 0x0131 and 0x0010."""
OUTPUT_FIELDS: Final = ("05", "0131", "0010")
"""The same as register 75 takes it."""
_PAYLOAD: Final = struct.Struct("<Q4f3f3ff")
FRAME_SIZE: Final = len(HEADER) + _PAYLOAD.size + 2
"""60 bytes."""


class Register:
    """Numbers of the registers that are used here."""

    MODEL = 1
    FIRMWARE = 4
    BAUD = 5
    ASYNC_TYPE = 6
    REFERENCE_ROTATION = 26
    VPE_CONTROL = 35
    BINARY_OUTPUTS = (75, 76, 77)


ERRORS: Final = {
    0x01: "hard fault",
    0x02: "serial buffer overflow",
    0x03: "invalid checksum",
    0x04: "invalid command",
    0x05: "not enough parameters",
    0x06: "too many parameters",
    0x07: "invalid parameter",
    0x08: "invalid register",
    0x09: "unauthorized access",
    0x0A: "watchdog reset",
    0x0B: "output buffer overflow",
    0x0C: "insufficient baud rate",
    0xFF: "error buffer overflow",
}
"""What `$VNERR,<hex>` means; ICD table 1.6."""

BINARY_OFF: Final = ("0", "1", "00")
"""Value of an output register that sends nothing."""


def binary_output(port: int, divisor: int) -> tuple[str, ...]:
    """Value of register 75 for our message on the sensor's serial `port` (1 or 2)."""
    return (str(port), str(divisor), *OUTPUT_FIELDS)


class Measurement(NamedTuple):
    """Our binary message, in the sensor's own frames."""

    time_startup_ns: int
    """Since the sensor was switched on."""
    quat_ns: tuple[float, float, float, float]
    """Sensor to north-east-down (x, y, z, w)."""
    ang_vel_s: tuple[float, float, float]
    """[rad/s]."""
    lin_acc_s: tuple[float, float, float]
    """Specific force [m/s^2]."""
    temperature_c: float


class Reply(NamedTuple):
    """An ASCII message: `$VNRRG,75,1,4` has the kind VNRRG and the fields 75, 1, 4."""

    kind: str
    fields: tuple[str, ...]

    @property
    def error(self) -> str | None:
        """What it complains of, if it is `$VNERR`."""
        if self.kind != "VNERR":
            return None
        code = self.fields[0] if self.fields else ""
        try:
            return f"{ERRORS.get(int(code, 16), 'unknown error')} (VNERR {code})"
        except ValueError:
            return f"unknown error (VNERR {code!r})"


def crc16(data: bytes) -> int:
    """CRC-16 of binary messages, and of ASCII ones with four digits."""
    return binascii.crc_hqx(data, 0)


def checksum8(body: bytes) -> int:
    """Exclusive or of the bytes of an ASCII body."""
    return reduce(xor, body, 0)


def encode_ascii(*fields: str) -> bytes:
    """`encode_ascii("VNRRG", "75")` is `$VNRRG,75*71`, CR, LF."""
    body = ",".join(fields).encode("ascii")
    return b"$%s*%02X\r\n" % (body, checksum8(body))


def decode_reply(line: bytes) -> Reply | None:
    """An ASCII message without its line end; None unless its checksum is right."""
    body, star, digits = line.removeprefix(b"$").rpartition(b"*")
    if not star or len(digits) not in (2, 4):
        return None
    try:
        checksum = int(digits, 16)
        fields = body.decode("ascii").split(",")
    except ValueError:  # UnicodeDecodeError is one
        return None
    if checksum != (checksum8(body) if len(digits) == 2 else crc16(body)):
        return None
    return Reply(fields[0], tuple(field.strip() for field in fields[1:]))


def encode_measurement(measurement: Measurement) -> bytes:
    """The sensor's side: 60 bytes."""
    time_ns, quat, ang_vel, lin_acc, temperature_c = measurement
    body = HEADER[1:] + _PAYLOAD.pack(time_ns, *quat, *ang_vel, *lin_acc, temperature_c)
    return HEADER[:1] + body + crc16(body).to_bytes(2, "big")


def decode_measurement(frame: bytes) -> Measurement | None:
    """Our message from its `FRAME_SIZE` bytes; None if header or CRC are wrong."""
    if len(frame) != FRAME_SIZE or not frame.startswith(HEADER) or crc16(frame[1:]) != 0:
        return None
    time_ns, *v = _PAYLOAD.unpack_from(frame, len(HEADER))
    return Measurement(
        time_ns, (v[0], v[1], v[2], v[3]), (v[4], v[5], v[6]), (v[7], v[8], v[9]), v[10]
    )


class Received(NamedTuple):
    """A message out of the stream, and where it stood."""

    message: Measurement | Reply
    from_end: int
    """Bytes from its first to the end of what had been fed: how long ago that first byte came."""


_START: Final = re.compile(rb"[\xfa$]")
_LINE: Final = re.compile(rb"\$[\x20-\x7e]{0,255}")


class StreamParser:
    """Finds messages in a stream of bytes that may start anywhere and hold anything."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.bad_checksums = 0
        """Messages with the right frame and the wrong checksum."""
        self.skipped_bytes = 0
        """Bytes that belonged to no message."""

    def reset(self) -> None:
        """Forget a message begun: what comes next is another connection."""
        self._buffer.clear()

    def feed(self, data: bytes) -> list[Received]:
        """All messages that end in `data`, in order. Keeps at most 256 bytes for later."""
        self._buffer += data
        messages: list[Received] = []
        position = 0
        while start := _START.search(self._buffer, position):
            self._skip(position, start.start())
            position = start.start()
            is_binary = self._buffer[position] == HEADER[0]
            size = self._frame_size(position) if is_binary else self._line_size(position)
            if size is None:  # the rest of it is still to come
                break
            message = self._decode(position, size, is_binary) if size else None
            if message is None:
                self.skipped_bytes += 1
                position += 1  # it may hide a message that begins inside
                continue
            messages.append(Received(message, len(self._buffer) - position))
            position += size
        else:
            self._skip(position, len(self._buffer))
            position = len(self._buffer)
        del self._buffer[:position]
        return messages

    def _skip(self, start: int, end: int) -> None:
        # a line's CR and LF are no garbage
        self.skipped_bytes += len(self._buffer[start:end].strip(b"\r\n"))

    def _frame_size(self, position: int) -> int | None:
        """Bytes of a binary message; 0 if it is not ours, None if more must come."""
        head = self._buffer[position : position + len(HEADER)]
        if not HEADER.startswith(head):
            return 0
        return FRAME_SIZE if len(self._buffer) - position >= FRAME_SIZE else None

    def _line_size(self, position: int) -> int | None:
        """Bytes of an ASCII message up to its line end; 0 if it is none, None if more must come."""
        line = _LINE.match(self._buffer, position)
        assert line is not None
        end = line.end()
        if end - position < 256 and end == len(self._buffer):
            return None
        ends = end - position < 256 and self._buffer[end] in b"\r\n"
        return end - position if ends else 0

    def _decode(self, position: int, size: int, is_binary: bool) -> Measurement | Reply | None:
        raw = bytes(self._buffer[position : position + size])
        message = decode_measurement(raw) if is_binary else decode_reply(raw)
        self.bad_checksums += message is None
        return message
