"""The emulator from outside: its processes, its wires, its faults."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from krabby.drivers.can import DriveFault, DriveMode, DriveTargets
from krabby.drivers.can.bus import BusCfg, CanJointBus
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import free_multicast_channels
from krabby.drivers.imu.serial_imu import SerialImu
from krabby.hal.jpeg import from_jpeg
from krabby.robot import rotations
from krabby.runtime.rate import Rate
from krabby.runtime.testing import ended_after, free_ports, may_go_first, until, worst_lateness
from krabby.safety.trajectories import stand_up
from krabby_proto import (
    CAMERA,
    COLOUR,
    NAV,
    STATE,
    TRUTH,
    ControlClient,
    LatestSubscriber,
    Publisher,
    unpack,
)

pytestmark = pytest.mark.slow


class Emulator:
    """A running emulator, and the host's ends of its wires."""

    def __init__(self, desc, *arguments):
        self.desc = desc
        plain = HardwareDescription.load(None, desc)
        channels = free_multicast_channels(plain)
        self.hardware = plain.with_interface("udp_multicast", channels)
        names = ("raw", "truth", "fault", "nav")
        *ports, imu = free_ports(len(names) + 1)
        self.endpoints = {
            name: f"tcp://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "krabby_emulator",
                "metrics_port=0",
                "realtime.fifo_priority=50",  # where it is refused, a warning
                "can.interface=udp_multicast",
                f"can.channels={json.dumps(list(channels.values()))}",
                f"imu.listen=tcp://127.0.0.1:{imu}",
                *(f"endpoints.{name}={endpoint}" for name, endpoint in self.endpoints.items()),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.control = ControlClient(self.endpoints["fault"])
        self.control.hello(60.0)
        patient = BusCfg(answer_s=0.1)  # others use this machine too
        nominal = Calibration.nominal(self.hardware)
        self.bus = CanJointBus(self.hardware, nominal, desc, cfg=patient)
        self.bus.open()
        self.streams = []
        """Read in every cycle, as a consumer does."""
        self.imu_port = f"socket://127.0.0.1:{imu}"

    def run(self, seconds, target, until=None):
        """Exchange at 200 Hz with what `target(t)` says; stops early when `until(readings)`."""
        rate = Rate(0.005)
        for cycle in range(round(seconds / 0.005)):
            rate.wait()
            for stream in self.streams:
                stream.latest()
            readings = self.bus.exchange(target(cycle * 0.005), rate.next_deadline_ns - 1_000_000)
            if until is not None and until(readings):
                return (cycle + 1) * 0.005
        return None

    def hold(self, joint_pos):
        zero = np.zeros(18)
        return DriveTargets(joint_pos, zero, self.desc.kp, self.desc.kd, zero)

    def stand(self):
        """Probe, switch on, stand up, stand for a moment."""
        readings = self.bus.probe()
        self.bus.enable(readings)
        trajectory = stand_up(self.desc, readings.joint_pos.copy())
        self.run(trajectory.duration_s + 0.5, lambda t: self.hold(trajectory.at(t)))
        return readings

    def fault(self, kind, **where):
        answer = self.control.request("fault", kind=kind, **where)
        assert answer["ok"], answer
        return answer

    def stop(self):
        """Its log lines and how long it took to end."""
        self.process.send_signal(signal.SIGTERM)
        took_s = ended_after(self.process)
        out, err = self.process.communicate()
        assert self.process.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()], took_s

    def close(self):
        self.bus.close()
        self.control.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(desc):
    running = []

    def launch(*arguments):
        running.append(Emulator(desc, *arguments))
        return running[-1]

    yield launch
    for each in running:
        each.close()


@pytest.fixture
def goes_first():
    """This test goes before everything else, as a HAL does, where that is allowed."""
    if not may_go_first():
        yield
        return
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(60))
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_its_colour_images_show_the_angles_that_the_hal_measures(start, desc):
    place, state = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    places = (f"endpoints.colour={place}", f"endpoints.state={state}")
    robot = start("course.name=steps", "colour.enabled=true", "colour.scale=2", *places)
    measured = np.zeros(STATE.size)
    joint_pos = unpack(STATE, measured)["joint_pos"]

    def picture():
        """The first of a time after the joints were as they are now."""
        began_ns, images = time.monotonic_ns(), []

        def shown():
            states.publish(measured, capture_ns=time.monotonic_ns())
            images.extend(image for image in seen.drain() if image.capture_ns > began_ns)
            return len(images) >= 2  # the first may have been drawn with the state before

        until(shown)
        return from_jpeg(images[-1].payload.tobytes()).astype(float)

    with Publisher(state, STATE) as states, LatestSubscriber(place, COLOUR, queue=100) as seen:
        joint_pos[:] = desc.default_joint_pos
        at_rest = picture()
        assert at_rest.shape == (120, 212, 3)
        assert at_rest.std() > 10, "a course under a sky is not of one colour"
        joint_pos[:3] = -0.9, 0.0, -1.3  # the left front leg straight ahead
        assert np.abs(picture() - at_rest).max() > 50, "that leg is in the view"
    robot.stop()


@pytest.mark.usefixtures("goes_first")
def test_it_stands_up_over_can_and_its_other_wires_agree(start, desc):
    robot = start("course.name=mixed")
    imu = SerialImu(robot.imu_port, mount_quat=robot.hardware.imu.mount_quat)
    imu.open()
    with (
        LatestSubscriber(robot.endpoints["truth"], TRUTH) as truth,
        LatestSubscriber(robot.endpoints["raw"], CAMERA) as raw,
        LatestSubscriber(robot.endpoints["nav"], NAV, bind=True) as nav,
    ):
        robot.streams = [truth, raw, nav]
        readings = robot.stand()
        used, since = psutil.Process(robot.process.pid).cpu_times(), time.monotonic()
        missed = readings.missed.sum()
        seen = imu.counters.received
        robot.run(5.0, lambda t: robot.hold(desc.default_joint_pos))
        after, elapsed_s = psutil.Process(robot.process.pid).cpu_times(), time.monotonic() - since
        where = unpack(TRUTH, truth.latest().payload)
        sample = imu.latest()
        assert raw.latest().payload.size == 60 * 106
        assert nav.latest().payload[0] == pytest.approx(0.35, abs=0.05)
    assert where["base_pos_w"][2] == pytest.approx(0.42, abs=0.02)
    assert readings.joint_pos == pytest.approx(desc.default_joint_pos, abs=0.15)
    assert readings.mode.tolist() == [DriveMode.RUN] * 18
    assert not readings.faults.any()
    # Of 18 · 1000 exchanges: a hundred where both ends come first, more on a slow or busy machine.
    assert readings.missed.sum() - missed < 1800
    assert float(rotations.tilt(sample.quat_wb)) == pytest.approx(0.0, abs=0.05)
    assert sample.lin_acc_b == pytest.approx([0.0, 0.0, 9.81], abs=0.5)
    assert (imu.counters.received - seen) / elapsed_s == pytest.approx(200.0, rel=0.1)
    imu.close()
    lines, took_s = robot.stop()
    assert took_s < 3.0
    summary = lines[-1]
    assert summary["event"] == "summary"
    assert summary["falls"] == 0
    assert summary["joint_limits_kept"]
    cores = (after.user + after.system - used.user - used.system) / elapsed_s
    # A third to two thirds of a core, by its speed; what a loop that spins takes is all of it.
    assert cores < 0.9, f"{cores:.3f} cores; {summary}"


def test_silence_damps_the_legs_within_150_ms_and_a_fallen_robot_is_not_put_back(start, desc):
    robot = start("camera.enabled=false")
    robot.stand()
    with worst_lateness() as late_s:
        began = time.monotonic()
        until(lambda: robot.control.request("status")["drives_running"] == 0)
        assert time.monotonic() - began < 0.15 + 3 * late_s()
    until(lambda: robot.control.request("status")["base_height_m"] < 0.1)
    time.sleep(2.5)
    assert robot.control.request("status")["base_height_m"] < 0.1
    lines, _ = robot.stop()
    assert lines[-1]["drive_trips"] == 18
    assert lines[-1]["resets"] == 0
    assert lines[-1]["joint_limits_kept"], lines[-1]


def test_faults_reach_the_wire_while_it_runs(start, desc):
    robot = start("camera.enabled=false")
    robot.stand()
    knee = desc.joint_index("lf_knee")
    hold = robot.hold(desc.default_joint_pos)

    robot.fault("over-temperature", joint="lf_knee", for_s=0.2)
    within = robot.run(
        0.3, lambda t: hold, until=lambda r: r.faults[knee] & DriveFault.OVER_TEMPERATURE
    )
    assert within is not None
    assert within < 0.15

    robot.fault("bus-off", bus="rear", for_s=0.3)
    within = robot.run(0.3, lambda t: hold, until=lambda r: r.faults[6] & DriveFault.BUS_OFF)
    assert within is not None
    assert within < 0.15

    refused = robot.control.request("fault", kind="lost-replies", joint="lf_toe")
    assert not refused["ok"]
    assert "lf_toe" in refused["reason"]


def test_the_console_breaks_and_mends(start):
    robot = start("camera.enabled=false", "imu.listen=pty")
    ask = [sys.executable, "-m", "krabby_emulator"]
    where = ["--endpoint", robot.endpoints["fault"]]

    def console(*words):
        return subprocess.run([*ask, *words, *where], capture_output=True, text=True, timeout=60)

    done = console("fault", "imu-jump", "--for", "60", "--value", "0.3")
    assert done.returncode == 0, done.stderr
    (fault,) = json.loads(done.stdout)["faults"]
    assert (fault["kind"], fault["value"]) == ("imu-jump", 0.3)
    assert json.loads(console("status").stdout)["imu"].startswith("/dev/")
    assert json.loads(console("clear").stdout)["faults"] == []
    done = console("fault", "bus-off", "--joint", "lf_knee")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "omit joint=lf_knee" in done.stderr
