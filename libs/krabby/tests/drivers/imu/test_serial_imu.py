"""The driver against a sensor's other end, over real ptys and sockets."""

import termios
import threading
import time

import numpy as np
import pytest
from krabby.drivers.errors import ImuError
from krabby.drivers.imu import ImuMount, ImuSample
from krabby.drivers.imu import serial_imu as driver
from krabby.drivers.imu.serial_imu import SerialImu
from krabby.drivers.imu.server import ImuServer, Vn100Device
from krabby.drivers.imu.vectornav import QUAT_WN, Register, StreamParser
from krabby.robot import rotations

MOUNT = (1.0, 0.0, 0.0, 0.0)
QUAT_WB = rotations.from_euler(0.1, -0.2, 0.5)


class Sensor:
    """Keeps a server talking."""

    def __init__(self, listen="pty", device=None):
        self.server = ImuServer(listen, ImuMount(MOUNT, QUAT_WN), device or Vn100Device())
        self.address = self.server.address
        if isinstance(device, SpeedyDevice):
            device.far = self.server._wire._far
        self.muted = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def _talk(self):
        while not self._stop.wait(0.002):
            if self.muted.is_set():
                continue
            now_ns = time.monotonic_ns()
            values = np.array([0.5, -0.25, 1.5]), np.array([1.0, 2.0, 9.5])
            self.server.publish(ImuSample(QUAT_WB, *values, now_ns, 31.5))

    def close(self):
        self._stop.set()
        self._thread.join()
        self.server.close()


@pytest.fixture
def started():
    """Closes, newest first, what a test registers."""
    things = []
    yield lambda thing: things.append(thing) or thing
    for thing in reversed(things):
        thing.close()


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.005)


@pytest.mark.parametrize("listen", ["pty", "tcp://127.0.0.1:0"])
def test_samples_arrive_in_the_base_frame_with_the_time_of_their_measurement(listen, started):
    sensor = started(Sensor(listen))
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT))
    imu.open()
    until(lambda: imu.counters.received >= 20)
    sample = imu.latest()
    now_ns = time.monotonic_ns()
    assert sample is not None
    assert sample.quat_wb == pytest.approx(QUAT_WB, abs=1e-6)
    assert sample.ang_vel_b == pytest.approx([0.5, -0.25, 1.5])
    assert sample.lin_acc_b == pytest.approx([1.0, 2.0, 9.5])
    assert sample.temperature_c == 31.5
    assert 0 <= now_ns - sample.stamp_ns < 1_000_000_000
    assert imu.counters.bad_checksums == 0


def test_the_sensor_is_told_everything_that_matters(started):
    device = Vn100Device()
    device.registers[Register.ASYNC_TYPE] = ("14",)  # from the factory it talks ASCII
    device.registers[76] = ("1", "8", "01", "0001")
    sensor = started(Sensor(device=device))
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT, rate_hz=400, heading="absolute"))
    imu.open()
    assert device.registers[Register.ASYNC_TYPE] == ("0",)
    assert device.registers[Register.VPE_CONTROL] == ("1", "0", "1", "1")
    assert device.registers[75] == ("1", "2", "05", "0131", "0010")  # 800 Hz / 2
    assert device.registers[76][0] == "0"
    assert imu.rate_hz == 400


@pytest.mark.parametrize("listen", ["pty", "tcp://127.0.0.1:0"])
def test_a_sample_is_taken_though_the_reading_thread_has_no_turn(listen, started, monkeypatch):
    monkeypatch.setattr(SerialImu, "_listen", lambda self, line: self._stop.wait())
    sensor = started(Sensor(listen))
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT))
    imu.open()
    first, received = imu.latest(), imu.counters.received
    assert first is not None
    until(lambda: imu.latest().stamp_ns > first.stamp_ns)
    assert imu.counters.received > received


def test_to_ask_an_imu_that_is_unplugged_is_no_error(started, monkeypatch):
    monkeypatch.setattr(SerialImu, "_listen", lambda self, line: self._stop.wait())
    sensor = Sensor("tcp://127.0.0.1:0")
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT))
    imu.open()
    sensor.close()
    last = imu.latest()
    while imu.latest() is not last:  # what it sent before
        last = imu.latest()
    assert imu.latest() is last


class SecondConnector(Vn100Device):
    """Its second serial port is the one that leads here."""

    @property
    def rate_hz(self):
        return super().rate_hz if self.registers[75][0] == "2" else 0.0


def test_whichever_connector_of_the_sensor_is_wired_is_found(started):
    sensor = started(Sensor(device=SecondConnector()))
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT))
    imu.open()
    assert imu.latest() is not None


class ForgetfulDevice(Vn100Device):
    def _write(self, number, value):
        return 0


class TurnedDevice(Vn100Device):
    def __init__(self):
        super().__init__()
        turned = ("1", "0", "0", "0", "-1", "0", "0", "0", "-1")
        self.registers[Register.REFERENCE_ROTATION] = turned


class OldDevice(Vn100Device):
    def __init__(self):
        super().__init__()
        del self.registers[77]


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        (ForgetfulDevice, r"did not keep register 35: told 1,0,1,1, it has 1,1,1,1"),
        (TurnedDevice, r"register 26 is 1,0,0,0,-1,0,0,0,-1.*hardware.toml"),
        (OldDevice, r"refuses \$VNWRG,77,0,1,00: invalid register \(VNERR 08\)"),
    ],
)
def test_a_sensor_that_does_not_do_as_told_is_refused(device, complaint, started):
    sensor = started(Sensor(device=device()))
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT, heading="absolute"))
    with pytest.raises(ImuError, match=complaint):
        imu.open()


class SpeedyDevice(Vn100Device):
    """Understands only what is sent at its own speed, as a real line has it."""

    far: int
    _speeds = (("115200", termios.B115200), ("921600", termios.B921600))

    def receive(self, data):
        mine = dict(self._speeds)[self.registers[Register.BAUD][0]]
        return super().receive(data) if termios.tcgetattr(self.far)[4] == mine else b""

    def output(self, measurement):
        mine = dict(self._speeds)[self.registers[Register.BAUD][0]]
        frame = super().output(measurement)
        return frame if termios.tcgetattr(self.far)[4] == mine else bytes(len(frame))


def test_a_sensor_at_factory_speed_is_found_and_told_ours(started, monkeypatch):
    monkeypatch.setattr(driver, "_has_speed", lambda port: True)
    monkeypatch.setattr(driver, "_REPLY_S", 0.5)
    device = SpeedyDevice()
    sensor = started(Sensor(device=device))
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT, baud=921600))
    imu.open()
    assert device.registers[Register.BAUD] == ("921600",)
    assert imu.latest() is not None


def test_stamps_on_a_real_line_are_those_of_the_first_byte(monkeypatch):
    monkeypatch.setattr(driver, "_has_speed", lambda port: True)
    server = ImuServer("pty", ImuMount(MOUNT, QUAT_WN))
    parser = StreamParser()
    line = driver._Line(server.address, 115200, parser, lambda: 10**9)
    try:
        server.device.registers[75] = ("1", "4", "05", "0131", "0010")
        server.publish(ImuSample(QUAT_WB, np.zeros(3), np.zeros(3), 10**9, 31.5))
        ((_, first_byte_ns),) = line.read(1.0)
        # 60 bytes of 10 bits at 115200 bit/s are 5.208 ms
        assert first_byte_ns == pytest.approx(10**9 - 5_208_333, abs=60)
    finally:
        line.close()
        server.close()


def test_after_the_connection_is_lost_it_is_made_again_with_all_settings(started):
    sensor = Sensor("tcp://127.0.0.1:0")
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT))
    imu.open()
    sensor.close()
    until(lambda: imu.last_error is not None)
    again = started(Sensor(sensor.address.replace("socket", "tcp")))
    until(lambda: imu.counters.reconnects == 1)
    assert imu.last_error is None
    assert again.server.device.rate_hz == 200
    received = imu.counters.received
    until(lambda: imu.counters.received > received + 5)


def test_a_sensor_that_restarts_and_forgets_is_set_up_again(started):
    sensor = started(Sensor())
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT))
    imu.open()
    sensor.server.device.registers[75] = ("0", "1", "00")  # as after a power cycle
    until(lambda: imu.counters.reconnects == 1)
    assert sensor.server.device.rate_hz == 200


def test_a_dead_line_is_named_with_what_to_check(started, monkeypatch):
    monkeypatch.setattr(driver, "_REPLY_S", 0.02)
    sensor = started(Sensor())
    sensor.muted.set()
    imu = started(SerialImu(sensor.address, mount_quat=MOUNT))
    with pytest.raises(ImuError, match="answers as a VN-100 at 921600 bit/s; check power"):
        imu.open()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"port": "/dev/does-not-exist"}, "'/dev/does-not-exist' cannot be opened"),
        ({"port": "nonsense://x"}, "cannot be opened"),
        ({"baud": 1234}, "baud is 1234; use one of"),
        ({"rate_hz": 300.0}, "rate_hz = 300.0 is not 800 over a whole number"),
        ({"rate_hz": 0.0}, "rate_hz = 0.0"),
        ({"baud": 115200}, "200 Hz of 60 bytes fill 104% of a line of 115200 bit/s"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(options, complaint):
    options = {"port": "/dev/ttyUSB99", **options}
    with pytest.raises(ImuError, match=complaint):
        SerialImu(mount_quat=MOUNT, **options).open()


def test_two_processes_cannot_share_one_port(started):
    sensor = started(Sensor())
    started(SerialImu(sensor.address, mount_quat=MOUNT)).open()
    with pytest.raises(ImuError, match="cannot be opened"):
        SerialImu(sensor.address, mount_quat=MOUNT).open()
