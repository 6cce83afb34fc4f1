"""The drives' buses on SocketCAN, with the kernel's virtual interfaces: needs root and `vcan`.

    sudo modprobe vcan && .venv/bin/python -m pytest -m hardware libs/krabby/tests/drivers

Not run where this project is tested: those kernels have no CAN.
"""

import subprocess
import time

import pytest
from krabby.drivers.can.bus import CanJointBus
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import FakeDrives
from krabby.drivers.can.types import DriveFault, DriveMode, DriveTargets
from krabby.drivers.errors import DriveError
from krabby.robot.description import RobotDescription

pytestmark = pytest.mark.hardware

DESC = RobotDescription.load()
NAMES = {"front": "vk-front", "middle": "vk-middle", "rear": "vk-rear"}
REPLY_NS = 4_000_000


def ip(*words):
    subprocess.run(["ip", "link", *words], check=True)


def plug(name):
    ip("add", "dev", name, "type", "vcan")
    ip("set", "dev", name, "up")


@pytest.fixture
def hardware():
    for name in NAMES.values():
        plug(name)
    yield HardwareDescription.load(None, DESC).with_interface("socketcan", NAMES)
    for name in NAMES.values():
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


@pytest.fixture
def bus(hardware):
    with FakeDrives(hardware) as fakes:
        bus = CanJointBus(hardware, Calibration.nominal(hardware), DESC)
        bus.fakes = fakes
        bus.open()
        try:
            yield bus
        finally:
            bus.disable()
            bus.close()


def exchange(bus, cycles):
    for _ in range(cycles):
        began_ns = time.monotonic_ns()
        bus.exchange(DriveTargets.limp(18, DESC.safety.damp_kd), began_ns + REPLY_NS)
        time.sleep(max(0.0, 5e-3 - (time.monotonic_ns() - began_ns) * 1e-9))
    return bus.readings


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
    middle = [joint for joint, drive in enumerate(bus.wire.bus_of) if drive.spec.name == "middle"]
    lost = DriveFault.BUS_OFF | DriveFault.NO_REPLY
    assert all(int(readings.faults[joint]) & lost for joint in middle)
    with pytest.raises(DriveError, match="cannot open bus middle"):
        bus.recover()
