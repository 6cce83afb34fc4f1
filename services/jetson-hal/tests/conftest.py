"""A robot of fakes: drives that obey at once, an IMU that stands level, a button, a clock."""

import time

import numpy as np
import pytest
from krabby.drivers.can import DriveMode, DriveReadings
from krabby.drivers.errors import DriveError
from krabby.drivers.imu import ImuCounters, ImuSample
from krabby.hal.backend import Slot
from krabby.hal.handler import GateHandler
from krabby.hal.measurement import StatePayload
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import FakeClock, free_ports
from krabby_jetson_hal.backend import Robot
from krabby_jetson_hal.config import EndpointsCfg, ImuCfg, JetsonHalCfg
from krabby_jetson_hal.devices import Devices

BUSES = ("front", "middle", "rear") * 2


class FakeBus:
    """Drives whose joints are at their target with the next exchange; with faults on demand."""

    def __init__(self, desc, clock):
        self._clock = clock
        self.readings = DriveReadings(18)
        self.pos = desc.default_joint_pos.copy()
        self.vel = np.zeros(18)
        self.effort = np.zeros(18)
        self.bits = np.zeros(18, np.uint32)
        self.silent = np.zeros(18, bool)
        """Drives that do not answer."""
        self.present = np.ones(18, bool)
        self.refuses = False
        self.unconfirmed = ""
        self.calls = []
        """Everything but exchanges."""
        self.targets = []
        self.limits = None
        self.took_ns = 0
        """How long an exchange takes."""
        self.stall_ns = 0
        """How long the process stands in the next exchange, with its replies waiting to be read."""
        self.bus_load = {"front": 0.36, "middle": 0.36, "rear": 0.36}

    def open(self):
        self.calls.append("open")

    def probe(self):
        self.calls.append("probe")
        if not self.present.all():
            raise DriveError("lf_knee (bus front, id 13) does not answer; check its power and plug")
        self._measure()
        return self.readings

    def recover(self, beat):
        self.calls.append("recover")
        beat()
        readings = self.probe()
        self.enable(readings)
        return readings

    def enable(self, readings):
        self.calls.append("enable")
        if self.refuses:
            raise DriveError("lf_knee (bus front, id 13) stays off; look at its fault")
        self.readings.mode[:] = DriveMode.RUN
        self.bits[:] = 0

    def exchange(self, targets, deadline_ns):
        self.targets.append(targets)
        stiff = (targets.kp > 0.0) & (self.readings.mode == DriveMode.RUN)
        self.pos[stiff] = targets.joint_pos[stiff]
        if self.took_ns and isinstance(self._clock, FakeClock):
            self._clock.now_ns += self.took_ns
        self._measure()
        if self.stall_ns:
            self._clock.now_ns += self.stall_ns
            self.stall_ns = 0
        return self.readings

    def _measure(self):
        heard = ~self.silent
        readings = self.readings
        readings.joint_pos[heard] = self.pos[heard]
        readings.joint_vel[heard] = self.vel[heard]
        readings.joint_effort[heard] = self.effort[heard]
        readings.temperature_c[heard] = 31.0
        readings.voltage_v[heard] = 48.0
        readings.stamp_ns[heard] = self._clock()
        readings.missed += self.silent
        readings.faults[:] = self.bits

    def set_effort_limits(self, limits):
        self.limits = limits

    def set_carrying(self, joints):
        self.carrying = joints.copy()

    def disable(self):
        self.calls.append("disable")
        self.readings.mode[:] = DriveMode.OFF

    def close(self):
        self.calls.append("close")


class FakeImu:
    """Level and at rest, with a real sensor's restless last digits."""

    def __init__(self, clock):
        self._clock = clock
        self.counters = ImuCounters()
        self.quat_wb = np.array([0.0, 0.0, 0.0, 1.0])
        self.force = np.array([0.0, 0.0, 9.81])
        self.silent = False
        self._sample = None
        self.calls = []

    def open(self):
        self.calls.append("open")

    def latest(self):
        if not self.silent:
            self.counters.received += 1
            noise = 1e-4 * (self.counters.received % 7)
            self._sample = ImuSample(
                self.quat_wb,
                np.array([noise, 0.0, 0.0]),
                self.force + np.array([0.0, noise, 0.0]),
                self._clock(),
            )
        return self._sample

    def close(self):
        self.calls.append("close")


class FakeEstop:
    def __init__(self):
        self.is_pressed = False
        self.closed = False

    def pressed(self):
        return self.is_pressed

    def close(self):
        self.closed = True


class Rig:
    """A `Robot` on fakes, and time that passes in slots of 5 ms."""

    def __init__(self, desc, clock, **keys):
        self.clock = clock
        self.desc = desc
        self.bus, self.imu, self.estop = FakeBus(desc, clock), FakeImu(clock), FakeEstop()
        self.devices = Devices(self.bus, self.imu, 200.0, bus_of_joint(desc), 200.0, "2026-11-01")
        endpoints = EndpointsCfg(raw="")
        self.cfg = JetsonHalCfg(**({"metrics_port": 0, "endpoints": endpoints} | keys))
        self.robot = Robot(
            self.cfg, desc, self.devices, self.estop, clock_ns=clock, wait=clock.advance
        )
        self.handler = GateHandler(self.robot)
        self.gate = self.handler.gate
        self._payload = StatePayload()

    def bring_up(self):
        self.robot.start()
        self.slots(4)
        return self

    def slot(self):
        """The `state` payload and its capture time, None while the measurement is incomplete."""
        self.clock.now_ns += 5_000_000
        now_ns = self.clock()
        reading = self.handler.cycle(Slot(now_ns, now_ns, 1, now_ns + 5_000_000))
        if reading.measured is None:
            return None
        return self._payload.fill(reading.measured), reading.capture_ns

    def slots(self, count):
        for _ in range(count):
            state = self.slot()
        return state

    def follow(self, target, seconds):
        """Let commands come at 100 Hz; the status of each answer."""
        statuses = []
        for number in range(round(seconds / 0.005)):
            self.slot()
            if number % 2 == 0:
                statuses.append(self.command(target))
        return statuses

    def command(self, target):
        return self.gate.command(target, self.clock()).status

    def armed(self, seconds=0.6):
        """Armed and following its own pose."""
        assert self.handler.on_safety("arm", "test").ok
        self.follow(self.bus.pos.copy(), seconds)
        return self

    def until_state(self, state, limit_s=0.5):
        """Milliseconds until the gate is in a state, while commands go on."""
        began = self.clock()
        while self.gate.state is not state:
            self.slot()
            self.command(self.bus.pos)
            if (self.clock() - began) * 1e-9 > limit_s:
                raise AssertionError(f"still {self.gate.state!r}")
        return (self.clock() - began) * 1e-6


def bus_of_joint(desc):
    return tuple(BUSES[desc.leg_names.index(name[:2])] for name in desc.joint_names)


@pytest.fixture(scope="session")
def desc():
    return RobotDescription.load()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def rig(desc, clock):
    """Brought up, disarmed."""
    return Rig(desc, clock).bring_up()


@pytest.fixture
def build_rig(desc, clock):
    """Not brought up; keyword arguments are keys of `JetsonHalCfg`."""
    return lambda **keys: Rig(desc, clock, **keys)


@pytest.fixture
def build_devices(desc):
    """Fakes on the host's own clock, for a service with sockets."""

    def make():
        clock = time.monotonic_ns
        bus, imu = FakeBus(desc, clock), FakeImu(clock)
        return Devices(bus, imu, 200.0, bus_of_joint(desc), 200.0, "2026-11-01")

    return make


@pytest.fixture
def endpoints():
    names = ("state", "camera", "command", "safety", "raw")
    ports = free_ports(len(names))
    return {name: f"tcp://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}


@pytest.fixture
def cfg(endpoints):
    def make(**keys):
        imu = ImuCfg(settle_s=0.05)
        return JetsonHalCfg(
            **({"endpoints": EndpointsCfg(**endpoints), "imu": imu, "metrics_port": 0} | keys)
        )

    return make
