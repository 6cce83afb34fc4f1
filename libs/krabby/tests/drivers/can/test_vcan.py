"""The drives' buses on the kernel's own SocketCAN: needs root and the modules vcan and slcan.

    sudo modprobe -a vcan slcan && .venv/bin/python -m pytest -m hardware libs/krabby/tests/drivers

On a machine whose kernel has no CAN: tools/uml .venv/bin/python -m pytest -m hardware ...
"""

import fcntl
import os
import pty
import select
import struct
import subprocess
import threading
import time
import tty

import can
import pytest
from krabby.drivers.can.bus import CanJointBus
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import FakeDrives
from krabby.drivers.can.types import DriveFault, DriveMode, DriveTargets
from krabby.drivers.errors import DriveError
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import until

pytestmark = pytest.mark.hardware

DESC = RobotDescription.load()
NAMES = {"front": "vk-front", "middle": "vk-middle", "rear": "vk-rear"}
REPLY_NS = 50_000_000
"""Ten times a cycle: a virtual machine is slow. A bus that has its replies does not wait."""
TIOCSETD, SIOCGIFNAME, N_SLCAN = 0x5423, 0x8910, 17


def ip(*words):
    subprocess.run(["ip", "link", *words], check=True)


def plug(name):
    ip("add", "dev", name, "type", "vcan")
    ip("set", "dev", name, "up")


class SerialAdapter:
    """A CAN adapter on a serial line, as the kernel's driver slcan talks to it: lines of ASCII.

    Frames go to and come from another interface, where the drives are.
    """

    def __init__(self, name, wire):
        self.line, self._kernel = pty.openpty()
        tty.setraw(self._kernel)
        fcntl.ioctl(self._kernel, TIOCSETD, struct.pack("i", N_SLCAN))
        made = fcntl.ioctl(self._kernel, SIOCGIFNAME, bytes(16)).rstrip(b"\0").decode()
        ip("set", "dev", made, "name", name)
        self.name, self.heard, self.is_off = name, [], False
        self._wire = can.Bus(interface="socketcan", channel=wire)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        ip("set", "dev", name, "type", "can", "bitrate", "1000000")
        ip("set", "dev", name, "up")

    def tell(self, line):
        os.write(self.line, line + b"\r")

    def go_off(self):
        """As a controller after too many errors: it reports that and takes no part any more."""
        self.is_off = True
        self.tell(b"sb000255")  # its counters of errors: received 0, sent 255

    def come_back(self):
        self.is_off = False
        self.tell(b"sa000000")

    def _run(self):
        rest = b""
        while not self._stop.is_set():
            for ready in select.select([self.line, self._wire], (), (), 0.02)[0]:
                if ready is self._wire:
                    frame = self._wire.recv(0.0)
                    if self.is_off:
                        continue
                    data = frame.data.hex().upper()
                    self.tell(f"T{frame.arbitration_id:08X}{frame.dlc}{data}".encode())
                    continue
                *lines, rest = (rest + os.read(self.line, 4096)).split(b"\r")
                for line in lines:
                    self._hear(line)

    def _hear(self, line):
        if line[:1] != b"T":
            self.heard.append(line)
            return
        data = bytes.fromhex(line[10:].decode())
        if not self.is_off:
            self._wire.send(can.Message(arbitration_id=int(line[1:9], 16), data=data))

    def close(self):
        self._stop.set()
        self._thread.join()
        self._wire.shutdown()
        os.close(self._kernel)  # its interface goes with the line
        os.close(self.line)


@pytest.fixture
def hardware():
    for name in NAMES.values():
        plug(name)
    yield HardwareDescription.load(None, DESC).with_interface("socketcan", NAMES)
    for name in NAMES.values():
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


@pytest.fixture
def fakes(hardware):
    with FakeDrives(hardware) as fakes:
        yield fakes


def opened(hardware):
    bus = CanJointBus(hardware, Calibration.nominal(hardware), DESC)
    bus.open()
    try:
        yield bus
    finally:
        bus.disable()
        bus.close()


@pytest.fixture
def bus(hardware, fakes):
    yield from opened(hardware)


@pytest.fixture
def adapter():
    adapter = SerialAdapter("vk-serial", NAMES["front"])
    yield adapter
    adapter.close()


@pytest.fixture
def serial_bus(hardware, fakes, adapter):
    names = NAMES | {"front": adapter.name}
    yield from opened(hardware.with_interface("socketcan", names))


def exchange(bus, cycles):
    for _ in range(cycles):
        began_ns = time.monotonic_ns()
        bus.exchange(DriveTargets.limp(18, DESC.safety.damp_kd), began_ns + REPLY_NS)
        time.sleep(max(0.0, 5e-3 - (time.monotonic_ns() - began_ns) * 1e-9))
    return bus.readings


def joints_of(bus, name):
    return [joint for joint, each in enumerate(bus.wire.bus_of) if each.spec.name == name]


def test_every_drive_answers_with_the_kernel_s_time_stamp(bus):
    bus.enable(bus.probe())
    began_ns = time.monotonic_ns()
    readings = exchange(bus, 20)
    assert (readings.mode == DriveMode.RUN).all()
    assert (readings.stamp_ns > began_ns).all()
    assert (readings.stamp_ns <= time.monotonic_ns()).all()
    assert not readings.faults.any()


def test_an_interface_that_is_gone_is_a_bus_that_is_off_and_comes_back_with_a_reset(bus):
    bus.enable(bus.probe())
    ip("delete", NAMES["middle"])
    readings = exchange(bus, 20)
    lost = DriveFault.BUS_OFF | DriveFault.NO_REPLY
    assert all(int(readings.faults[joint]) & lost for joint in joints_of(bus, "middle"))
    with pytest.raises(DriveError, match="cannot open bus middle"):
        bus.recover()
    plug(NAMES["middle"])
    until(lambda: runs(bus), timeout_s=30.0)


def runs(bus):
    """After a reset; drives whose interface was away open the new one within milliseconds."""
    try:
        bus.recover()
    except DriveError:
        return False
    readings = exchange(bus, 20)
    return (readings.mode == DriveMode.RUN).all() and not readings.faults.any()


def test_drives_behind_an_adapter_answer_and_the_kernel_s_bus_off_is_named(serial_bus, adapter):
    until(lambda: runs(serial_bus), timeout_s=30.0)
    assert adapter.heard == [b"C", b"S8", b"O"]  # closed, 1 Mbit/s, open
    adapter.go_off()
    readings = exchange(serial_bus, 20)
    front = joints_of(serial_bus, "front")
    off = [int(fault) & DriveFault.BUS_OFF for fault in readings.faults]
    assert [joint for joint, is_off in enumerate(off) if is_off] == front
    adapter.come_back()
    ip("set", "dev", adapter.name, "down")
    ip("set", "dev", adapter.name, "up")
    until(lambda: runs(serial_bus), timeout_s=30.0)
