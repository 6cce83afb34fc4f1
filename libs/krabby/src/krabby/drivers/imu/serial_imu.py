"""Driver of a VN-100 on a serial line, or on anything that pyserial opens by name.

`/dev/ttyUSB0` is the robot's sensor; an emulated one and the ZED Mini's readings
(`krabby.drivers.imu.server`) come on a pty or `socket://host:port`. At every start all settings are
written and read back: the sensor may come from another robot or from the factory. Nothing is
written to its flash.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Literal

import serial
from numpy.typing import ArrayLike

from krabby.drivers.clock import ClockMap
from krabby.drivers.errors import ImuError
from krabby.drivers.imu import vectornav as vn
from krabby.drivers.imu.types import ImuCounters, ImuMount, ImuSample

__all__ = ["Heading", "SerialImu"]

Heading = Literal["absolute", "relative", "indoor"]
"""What the sensor's filter takes its heading from; ICD, register 35."""

_HEADINGS: Final = {"absolute": "0", "relative": "1", "indoor": "2"}
_BITS_PER_BYTE: Final = 10
"""Start bit, eight data bits, stop bit."""
_MAX_LINE_LOAD: Final = 0.8
"""Share of the line that measurements may fill; replies need room too."""
_REPLY_S: Final = 0.2
_TRIES: Final = 3
_FIRST_SAMPLE_S: Final = 0.5
_SILENT_S: Final = 0.5
"""Without a measurement for this long the sensor is taken to have lost its settings."""
_LOOK_S: Final = 0.05
"""How often the thread looks after a line that `latest` reads."""
_BACKOFF_S: Final = (0.1, 2.0)
_CLOSE_S: Final = 1.0
_IDENTITY: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class _Line:
    """An open port with the sensor's messages on it."""

    def __init__(
        self, port: str, baud: int, parser: vn.StreamParser, clock: Callable[[], int]
    ) -> None:
        self._port, self._parser, self._clock = port, parser, clock
        self.has_speed = _has_speed(port)
        try:
            # two readers of one port would each get half of every message
            self._serial = serial.serial_for_url(port, baudrate=baud, timeout=0, exclusive=True)
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise ImuError(
                f"the IMU's port {port!r} cannot be opened: {error}; check the cable, the device's "
                "name and its permissions"
            ) from error
        with suppress(OSError, AttributeError, NotImplementedError, ValueError):
            # FTDI adapters hold bytes back for 16 ms otherwise
            self._serial.set_low_latency_mode(True)
        self._fd = self._serial.fileno()
        self.set_baud(baud)

    def set_baud(self, baud: int) -> None:
        if self.has_speed:
            self._serial.baudrate = baud
        with suppress(OSError, serial.SerialException):
            self._serial.reset_input_buffer()
        self._parser.reset()
        self._byte_ns = round(1e9 * _BITS_PER_BYTE / baud) if self.has_speed else 0

    def has_bytes(self, timeout_s: float) -> bool:
        """Wait until something can be read; whether it can."""
        # pyserial's read waits for a number of bytes: the last message would come late
        return bool(select.select([self._fd], [], [], timeout_s)[0])

    def read(self, timeout_s: float) -> Iterator[tuple[vn.Measurement | vn.Reply, int]]:
        """Messages that have come, each with when its first byte did."""
        if not self.has_bytes(timeout_s):
            return
        data = os.read(self._fd, 4096)
        now_ns = self._clock()
        if not data:
            raise ImuError(f"the IMU's port {self._port} was closed at the other end")
        for received in self._parser.feed(data):
            yield received.message, now_ns - received.from_end * self._byte_ns

    def ask(self, command: tuple[str, ...], *, tries: int = _TRIES) -> vn.Reply | None:
        """The reply to a command; None when there is none, however often it is asked."""
        for _ in range(tries):
            self._write(vn.encode_ascii(*command))
            deadline_ns = self._clock() + round(_REPLY_S * 1e9)
            while (left_ns := deadline_ns - self._clock()) > 0:
                for message, _ in self.read(left_ns * 1e-9):
                    if isinstance(message, vn.Reply) and _answers(message, command):
                        return message
        return None

    def require(self, *command: str) -> vn.Reply:
        """The reply to a command; raises `ImuError` when there is none or it is an error."""
        reply = self.ask(command)
        if reply is None:
            raise ImuError(
                f"the IMU on {self._port} does not answer ${','.join(command)}; check the wiring"
            )
        if reply.error is not None:
            raise ImuError(
                f"the IMU on {self._port} refuses ${','.join(command)}: {reply.error}; compare "
                "with its interface control document"
            )
        return reply

    def close(self) -> None:
        with suppress(OSError):
            self._serial.close()

    def _write(self, data: bytes) -> None:
        try:
            self._serial.write(data)
        except serial.SerialException as error:
            raise ImuError(f"the IMU's port {self._port} takes no commands: {error}") from error


class SerialImu:
    """A VN-100, read by `latest`, and by a thread while nothing asks.

    A lost connection is made again, with all settings, for as long as the object is open; meanwhile
    `latest` returns the last sample, however old, and `last_error` has the reason.

    Args:
        port: Device, pty or pyserial URL.
        mount_quat: Sensor to base (x, y, z, w); (1, 0, 0, 0) for x forward, y right, z down.
        baud: Speed of the line [bit/s]; the sensor is found at any and set to this.
        rate_hz: Rate of the samples; 800 Hz over a whole number.
        heading: `relative` keeps the heading of the gyroscopes between disturbances of the
            magnetic field: eighteen motors are near. `absolute` trusts the field.
        clock: CLOCK_MONOTONIC [ns].
    """

    def __init__(
        self,
        port: str,
        *,
        mount_quat: ArrayLike,
        baud: int = 921600,
        rate_hz: float = 200.0,
        heading: Heading = "relative",
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        _check_line(port, baud, rate_hz)
        self._port, self._baud, self._heading = port, baud, heading
        self._divisor = round(vn.BASE_RATE_HZ / rate_hz)
        self._mount = ImuMount(mount_quat, vn.QUAT_WN)
        self._clock = clock
        self._clock_map = ClockMap()
        self._parser = vn.StreamParser()
        self.counters = ImuCounters()
        """Running totals."""
        self._latest: ImuSample | None = None
        self._line: _Line | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._reading = threading.Lock()
        """Held by the one that reads the line or closes it."""
        self._asked = False
        """Whether `latest` read the line since the thread looked, without an error."""
        self.rate_hz = vn.BASE_RATE_HZ / self._divisor
        """Rate of the samples."""
        self.last_error: str | None = None
        """Why there is no connection; None while there is one."""

    def open(self) -> None:
        """Find the sensor, configure it, and wait for its first sample; raises `ImuError`."""
        self.close()
        self._line = self._connect()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="imu", daemon=True)
        self._thread.start()

    def latest(self) -> ImuSample | None:
        """The newest sample, however old; None before the first. Never blocks.

        Takes what waits in the port: on a busy machine a thread for that came later than its
        caller, and a sensor that sent was called silent. A sample's stamp is that of the sensor's
        clock, so reading it late does not make it look newer.
        """
        if self._reading.acquire(blocking=False):
            try:
                if self._line is not None:
                    with suppress(OSError, ImuError):  # the thread meets it too and connects again
                        self._take(self._line, 0.0)
                        self._asked = True
            finally:
                self._reading.release()
        return self._latest

    def close(self) -> None:
        """Stop reading and close the port; safe in any state."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)  # opening a port again may take longer
            self._thread = None
        if self._line is not None:
            self._line.close()
            self._line = None

    def _run(self) -> None:
        line = self._line
        while not self._stop.is_set():
            if line is None:
                line = self._line = self._connect_again()
                continue
            try:
                self._listen(line)
            except (OSError, ImuError) as error:  # unplugged, closed, restarted
                self.last_error = str(error)
                with self._reading:
                    line.close()
                    line = self._line = None

    def _listen(self, line: _Line) -> None:
        """Take samples until told to stop; raises when there is nothing to take any more."""
        heard_ns, received = self._clock(), self.counters.received
        while not self._stop.is_set():
            asked, self._asked = self._asked, False
            if asked:  # two threads that wake up for every sample wait for each other
                self._stop.wait(_LOOK_S)
            elif line.has_bytes(0.1):
                with self._reading:
                    self._take(line, 0.0)
            if received != self.counters.received:  # here or by `latest`
                heard_ns, received = self._clock(), self.counters.received
            if self._clock() - heard_ns > _SILENT_S * 1e9:
                raise ImuError(f"the IMU on {self._port} stopped sending; it is set up again")

    def _connect_again(self) -> _Line | None:
        wait_s = _BACKOFF_S[0]
        while not self._stop.wait(wait_s):
            try:
                line = self._connect()
            except (OSError, ImuError) as error:
                self.last_error = str(error)
                wait_s = min(2 * wait_s, _BACKOFF_S[1])
            else:
                self.counters.reconnects += 1
                return line
        return None

    def _connect(self) -> _Line:
        self._parser.reset()
        self._clock_map.reset()
        line = _Line(self._port, self._baud, self._parser, self._clock)
        try:
            self._meet(line)
            self._configure(line)
        except BaseException:
            line.close()
            raise
        self.last_error = None
        return line

    def _meet(self, line: _Line) -> None:
        """Find out at which speed it talks, and have it talk at ours."""
        bauds = [self._baud]
        if line.has_speed:
            bauds += [baud for baud in vn.BAUDS if baud != self._baud]
        for baud in bauds:
            line.set_baud(baud)
            if line.ask(("VNRRG", f"{vn.Register.MODEL:02d}"), tries=2) is None:
                continue
            if baud != self._baud:
                # it answers at the old speed and then changes
                line.ask(("VNWRG", f"{vn.Register.BAUD:02d}", str(self._baud)), tries=1)
                line.set_baud(self._baud)
                line.require("VNRRG", f"{vn.Register.MODEL:02d}")
            return
        raise ImuError(
            f"nothing on {self._port} answers as a VN-100 at {self._baud} bit/s"
            f"{' or any other speed' if line.has_speed else ''}; check power, wiring and the port"
        )

    def _configure(self, line: _Line) -> None:
        line.require("VNASY", "0")
        rotation = line.require("VNRRG", f"{vn.Register.REFERENCE_ROTATION}").fields[1:]
        if _numbers(rotation) != _IDENTITY:
            raise ImuError(
                f"the IMU on {self._port} turns its axes by itself (register 26 is "
                f"{','.join(rotation)}); the mount belongs in hardware.toml. Write "
                "1,0,0,0,1,0,0,0,1 to register 26 and save with $VNWNV"
            )
        first, *others = vn.Register.BINARY_OUTPUTS
        self._set(line, vn.Register.ASYNC_TYPE, "0")
        self._set(line, vn.Register.VPE_CONTROL, "1", _HEADINGS[self._heading], "1", "1")
        for register in others:
            self._set(line, register, *vn.BINARY_OFF)
        # Which of its two connectors leads here it cannot say: whichever carries measurements.
        for connector in (1, 2):
            self._set(line, first, *vn.binary_output(connector, self._divisor))
            line.require("VNASY", "1")
            if self._await_first(line):
                return
        raise ImuError(
            f"the IMU on {self._port} answers but sends no measurements on either of its serial "
            "ports; restore its factory settings with $VNRFS"
        )

    def _set(self, line: _Line, register: int, *value: str) -> None:
        """Write a register and read it back."""
        line.require("VNWRG", f"{register:02d}", *value)
        kept = line.require("VNRRG", f"{register:02d}").fields[1:]
        base = 16 if register in vn.Register.BINARY_OUTPUTS else 10
        # an output that is off may keep its other fields
        count = 1 if value == vn.BINARY_OFF else len(value)
        if _numbers(kept[:count], base) != _numbers(value[:count], base):
            raise ImuError(
                f"the IMU on {self._port} did not keep register {register}: told "
                f"{','.join(value)}, it has {','.join(kept)}; update its firmware"
            )

    def _await_first(self, line: _Line) -> bool:
        deadline_ns = self._clock() + round(_FIRST_SAMPLE_S * 1e9)
        while (left_ns := deadline_ns - self._clock()) > 0:
            if self._take(line, left_ns * 1e-9):
                return True
        return False

    def _take(self, line: _Line, timeout_s: float) -> bool:
        """Take the measurements that come; returns whether there were any."""
        before, counters = self.counters.received, self.counters
        for message, first_byte_ns in line.read(timeout_s):
            if isinstance(message, vn.Measurement):
                stamp_ns = self._clock_map(message.time_startup_ns, first_byte_ns)
                base = self._mount.to_base(*message[1:4])
                self._latest = ImuSample(*base, stamp_ns, message.temperature_c)
                counters.received += 1
        counters.bad_checksums = self._parser.bad_checksums
        counters.skipped_bytes = self._parser.skipped_bytes
        return counters.received > before


def _answers(reply: vn.Reply, command: tuple[str, ...]) -> bool:
    """Whether it is the echo of this command, or an error, which does not say of which."""
    if reply.kind == "VNERR":
        return True
    is_register = command[0] != "VNASY"
    number = reply.fields[0] if reply.fields else ""
    return reply.kind == command[0] and not (
        is_register and not (number.isdigit() and int(number) == int(command[1]))
    )


def _numbers(fields: tuple[str, ...], base: int = 10) -> tuple[float, ...] | None:
    """Values of a register; in those of binary outputs all but mode and divisor are hexadecimal."""
    with suppress(ValueError):
        if base == 16:
            return tuple(int(field, 10 if i < 2 else 16) for i, field in enumerate(fields))
        return tuple(float(field) for field in fields)
    return None


def _has_speed(port: str) -> bool:
    """Whether bytes take their time on it: not on sockets and not on a pty."""
    return "://" not in port and not os.path.realpath(port).startswith("/dev/pts/")


def _check_line(port: str, baud: int, rate_hz: float) -> None:
    if baud not in vn.BAUDS:
        raise ImuError(
            f"the IMU's baud is {baud}; use one of {', '.join(map(str, sorted(vn.BAUDS)))}"
        )
    divisor = vn.BASE_RATE_HZ / rate_hz if rate_hz > 0 else 0.0
    if divisor < 1 or abs(divisor - round(divisor)) > 1e-9:
        raise ImuError(
            f"the IMU's rate_hz = {rate_hz} is not {vn.BASE_RATE_HZ} over a whole number; "
            "use 200, 400 or 800"
        )
    load = vn.FRAME_SIZE * _BITS_PER_BYTE * rate_hz / baud
    if _has_speed(port) and load > _MAX_LINE_LOAD:
        raise ImuError(
            f"{rate_hz:g} Hz of {vn.FRAME_SIZE} bytes fill {load:.0%} of a line of {baud} bit/s; "
            "use baud = 921600 or a lower rate_hz"
        )
