"""An emulated VN-100: the robot emulator's sensor, and the source of the ZED Mini's readings.

Only the process that opened a ZED Mini can read its inertial sensor, so the camera process serves
the readings here. jetson-hal's `SerialImu` reads both. `Vn100Device` is the sensor without the
wire, `ImuServer` puts it on TCP or a pty.
"""

import contextlib
import os
import socket
import tty
from typing import Any

from krabby.drivers.errors import ImuError
from krabby.drivers.imu import vectornav as vn
from krabby.drivers.imu.types import ImuMount, ImuSample

__all__ = ["ImuServer", "Vn100Device"]

_MAX_PENDING = 4096
"""Bytes that may wait for a slow reader; the buffer of a serial driver is as large."""


class Vn100Device:
    """Registers, commands and output of the sensor; bytes in, bytes out, without a clock.

    Answers every command in the order it came. Knows the registers that `SerialImu` uses, and of
    the binary outputs only our message; anything else is refused as the sensor refuses it.
    """

    def __init__(self, *, model: str = "VN-100 emulated") -> None:
        self.registers: dict[int, tuple[str, ...]] = {
            vn.Register.MODEL: (model,),
            vn.Register.FIRMWARE: ("3.1.0.0",),
            vn.Register.BAUD: (str(vn.FACTORY_BAUD),),
            vn.Register.ASYNC_TYPE: ("0",),
            vn.Register.REFERENCE_ROTATION: ("1", "0", "0", "0", "1", "0", "0", "0", "1"),
            vn.Register.VPE_CONTROL: ("1", "1", "1", "1"),
            **dict.fromkeys(vn.Register.BINARY_OUTPUTS, vn.BINARY_OFF),
        }
        """Value of every register, as text."""
        self._paused = False
        self._parser = vn.StreamParser()
        self._due_ns = 0

    @property
    def rate_hz(self) -> float:
        """Rate of the measurements that it was told to send; 0 for none."""
        mode, divisor, *_ = self.registers[vn.Register.BINARY_OUTPUTS[0]]
        return 0.0 if self._paused or mode == "0" else vn.BASE_RATE_HZ / int(divisor)

    def receive(self, data: bytes) -> bytes:
        """Take in commands; returns the replies."""
        damaged = self._parser.bad_checksums
        replies = [
            self._answer(received.message)
            for received in self._parser.feed(data)
            if isinstance(received.message, vn.Reply)
        ]
        replies += [_error(0x03)] * (self._parser.bad_checksums - damaged)
        return b"".join(replies)

    def output(self, measurement: vn.Measurement) -> bytes:
        """The message of a measurement; empty when none is due at the rate it was told."""
        rate_hz = self.rate_hz
        now_ns = measurement.time_startup_ns
        if rate_hz == 0.0:
            return b""
        period_ns = round(1e9 / rate_hz)
        late_ns = now_ns - self._due_ns
        # a quarter of a period for jitter: 200 Hz of samples are sent at 200 Hz
        if -period_ns <= late_ns < -period_ns // 4:
            return b""
        on_grid = abs(late_ns) <= period_ns
        self._due_ns = (self._due_ns if on_grid else now_ns) + period_ns
        return vn.encode_measurement(measurement)

    def _answer(self, command: vn.Reply) -> bytes:
        kind, fields = command
        if kind == "VNASY":
            self._paused = fields[:1] == ("0",)
            return vn.encode_ascii(kind, *fields)
        number = int(fields[0]) if fields and fields[0].isdigit() else -1
        code = 0
        if kind not in ("VNRRG", "VNWRG"):
            code = 0x04
        elif number not in self.registers:
            code = 0x08
        elif kind == "VNWRG":
            code = self._write(number, fields[1:])
        if code:
            return _error(code)
        return vn.encode_ascii(kind, f"{number:02d}", *self.registers[number])

    def _write(self, number: int, value: tuple[str, ...]) -> int:
        """Set a register; returns the code of the error, 0 for none."""
        if number in (vn.Register.MODEL, vn.Register.FIRMWARE):
            return 0x09
        if number == vn.Register.BAUD and value[:1] and value[0] not in map(str, vn.BAUDS):
            return 0x07
        if number in vn.Register.BINARY_OUTPUTS:
            code = _check_output(value)
        else:
            code = 0x05 if len(value) < len(self.registers[number]) else 0
        if not code:
            self.registers[number] = value
        return code


def _check_output(value: tuple[str, ...]) -> int:
    if len(value) < 3:
        return 0x05
    mode, divisor, *fields = value
    if mode not in ("0", "1", "2", "3") or not divisor.isdigit() or int(divisor) < 1:
        return 0x07
    ours = [int(field, 16) for field in vn.OUTPUT_FIELDS]
    try:
        wanted = [int(field, 16) for field in fields]
    except ValueError:
        return 0x07
    return 0 if mode == "0" or wanted == ours else 0x07


def _error(code: int) -> bytes:
    return vn.encode_ascii("VNERR", f"{code:02X}")


class ImuServer:
    """A `Vn100Device` on a wire. One thread uses it; nothing in it blocks.

    Call `publish` with every sample, or `poll` where there is none: both also answer commands.
    """

    def __init__(self, listen: str, mount: ImuMount, device: Vn100Device | None = None) -> None:
        """Open the wire; raises `ImuError`.

        Args:
            listen: `tcp://address:port` (port 0 for a free one, address * for all), or `pty`.
            mount: How the emulated sensor sits on the robot; its reader must use the same.
            device: Its registers; fresh ones by default.
        """
        self.device = device or Vn100Device()
        self._mount = mount
        self._wire = _open_wire(listen)
        self.address = self._wire.address
        """What `SerialImu` takes as port on this machine: `socket://...` or the pty's path."""
        self._pending = b""
        self._started_ns: int | None = None
        self.sent = 0
        """Measurements sent."""
        self.dropped = 0
        """Measurements that a slow reader, or none, left no room for."""

    def poll(self) -> None:
        """Answer commands and send what waits."""
        if data := self._wire.receive():
            self._pending += self.device.receive(data)
        self._flush()

    def publish(self, sample: ImuSample) -> None:
        """Send a sample, if the reader wants one now."""
        if self._started_ns is None:
            self._started_ns = sample.stamp_ns
        self.poll()
        if self.device.rate_hz == 0.0:
            return
        time_ns = max(0, sample.stamp_ns - self._started_ns)
        vectors: Any = [tuple(vector.tolist()) for vector in self._mount.to_sensor(sample)]
        frame = self.device.output(
            vn.Measurement(time_ns, vectors[0], vectors[1], vectors[2], sample.temperature_c)
        )
        if frame and len(self._pending) + len(frame) > _MAX_PENDING:
            self.dropped += 1
        elif frame:
            self._pending += frame
            self.sent += 1
            self._flush()

    def close(self) -> None:
        """Close the wire."""
        self._wire.close()

    def _flush(self) -> None:
        if self._pending:
            self._pending = self._pending[self._wire.send(self._pending) :]


def _open_wire(listen: str) -> "_Wire":
    try:
        if listen == "pty":
            return _Wire()
        scheme, _, rest = listen.partition("://")
        host, _, port = rest.rpartition(":")
        if scheme != "tcp" or not port.isdigit():
            raise ImuError(f"an IMU cannot be served on {listen!r}; use tcp://address:port or pty")
        return _TcpWire(host, int(port))
    except OSError as error:
        raise ImuError(
            f"an IMU cannot be served on {listen!r}: {error.strerror}; choose another address"
        ) from error


class _Wire:
    """A pty. Our own handle of the far end stays open, so that readers may come and go."""

    def __init__(self) -> None:
        self._fd, self._far = os.openpty()
        tty.setraw(self._far)
        os.set_blocking(self._fd, False)
        self.address = os.ttyname(self._far)

    def receive(self) -> bytes:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._drop()
        return data

    def send(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            self._drop()
            return len(data)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._far)

    def _drop(self) -> None:
        """The reader is gone."""


class _TcpWire(_Wire):
    """One reader at a time: a new connection takes the place of the old one."""

    _LOOKS = 8
    """While there is a reader, another one is looked for every so many times."""

    def __init__(self, host: str, port: int) -> None:
        self._looks = 0
        self._server = socket.create_server(("" if host in ("", "*") else host, port))
        self._server.setblocking(False)
        self._client: socket.socket | None = None
        name, number, *_ = self._server.getsockname()
        self.address = f"socket://{'127.0.0.1' if name == '0.0.0.0' else name}:{number}"

    def receive(self) -> bytes:
        self._looks += 1
        if self._client is None or self._looks % self._LOOKS == 0:
            with contextlib.suppress(BlockingIOError):
                client, _ = self._server.accept()
                self._drop()
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._client, self._fd = client, client.fileno()
        return b"" if self._client is None else super().receive()

    def send(self, data: bytes) -> int:
        return len(data) if self._client is None else super().send(data)

    def close(self) -> None:
        self._drop()
        self._server.close()

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
