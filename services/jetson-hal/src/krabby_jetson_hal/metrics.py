"""What jetson-hal measures beyond what every HAL and every service does.

See `krabby.hal.metrics` and `krabby.runtime.metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from krabby.drivers.can import DriveFault
from krabby.drivers.imu.check import ImuFault
from krabby.hal.metrics import GateMetrics
from krabby.runtime.metrics import (
    CAMERA_FRAMES_DROPPED,
    LOOP_WORK,
    STREAM_INVALID,
    STREAM_RECEIVED,
    Totals,
    children,
)
from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krabby_jetson_hal.backend import Robot
    from krabby_jetson_hal.camera_relay import CameraRelay

__all__ = ["BUS_PERIOD", "WORK", "Exposition"]

WORK = children(LOOP_WORK, ("exchange", "publish"))
"""`exchange`: to the drives and back, with estimation and gate."""
BUS_PERIOD = Histogram(
    "krabby_bus_period_seconds",
    "Time between the begins of two exchanges with the drives",
    buckets=[ms * 1e-3 for ms in (1, 2, 3, 4, 4.5, 4.8, 4.9, 5.1, 5.2, 5.5, 6, 7, 8, 10, 15, 20)],
)
_TEMPERATURE = Gauge(
    "krabby_drive_temperature_celsius", "Hottest sensor of the drive, NaN while unknown", ["joint"]
)
_VOLTAGE = Gauge("krabby_drive_voltage_volts", "Supply at the drive, NaN while unknown", ["joint"])
_MISSED = Counter(
    "krabby_drive_replies_missed_total", "Commands that a drive did not answer in time", ["joint"]
)
_DRIVE_FAULT = Gauge(
    "krabby_drive_fault_active", "1 while the joint's drive has the fault", ["joint", "fault"]
)
_MODE = Gauge("krabby_drive_mode", "0 unknown, 1 off, 2 calibrating, 3 follows commands", ["joint"])
_BUS_LOAD = Gauge("krabby_bus_load_ratio", "Share of the bit rate in use", ["bus"])
_CONTACT = Gauge("krabby_foot_load_newtons", "Load of the foot, from its leg's torques", ["leg"])
_IMU_AGE = Gauge("krabby_imu_age_seconds", "Age of the newest IMU sample when it was last used")
_IMU_RECEIVED = Counter("krabby_imu_samples_total", "Samples from the IMU")
_IMU_BAD = Counter("krabby_imu_bad_checksums_total", "Messages of the IMU that came damaged")
_IMU_RECONNECTS = Counter("krabby_imu_reconnects_total", "Times the IMU was lost and found again")
_IMU_FAULT = children(
    Gauge(
        "krabby_imu_fault_active", "1 while the IMU cannot be believed for the reason", ["fault"]
    ),
    [str(fault) for fault in ImuFault],
)
_OVERTAKEN = CAMERA_FRAMES_DROPPED.labels("overtaken")
_FORWARDED = STREAM_RECEIVED.labels("camera")
_INVALID = STREAM_INVALID.labels("camera")


class Exposition:
    """Hands what is counted elsewhere to the metrics, a few times a second."""

    def __init__(self, robot: Robot, relay: CameraRelay | None, buses: tuple[str, ...]) -> None:
        self._robot, self._relay = robot, relay
        self._gate = GateMetrics(robot.handler, robot.desc.joint_names)
        self.note_state = self._gate.note_state
        names = robot.desc.joint_names
        self._joints = {
            metric: [metric.labels(name) for name in names]
            for metric in (_TEMPERATURE, _VOLTAGE, _MODE)
        }
        self._missed = [_MISSED.labels(name) for name in names]
        self._faults = [
            {fault: _DRIVE_FAULT.labels(name, str(fault.name).lower()) for fault in DriveFault}
            for name in names
        ]
        self._shown_faults = [0] * len(names)
        self._feet = [_CONTACT.labels(leg) for leg in robot.desc.leg_names]
        self._loads = children(_BUS_LOAD, buses)
        self._totals = Totals()

    def update(self, commands: Mapping[str, int], now_ns: int) -> None:
        """Bring every metric up to date; `commands` are totals by status."""
        robot, totals = self._robot, self._totals
        self._gate.update(robot.measured, robot.drive, commands)
        readings = robot.readings
        if readings is not None:
            for metric, values in (
                (_TEMPERATURE, readings.temperature_c),
                (_VOLTAGE, readings.voltage_v),
                (_MODE, readings.mode),
            ):
                for gauge, value in zip(self._joints[metric], values.tolist(), strict=True):
                    gauge.set(value)
            for counter, count in zip(self._missed, readings.missed.tolist(), strict=True):
                totals.show(counter, count)
            self._show_faults(readings.faults.tolist())
        for gauge, load in zip(self._feet, robot.foot_load_n.tolist(), strict=True):
            gauge.set(load)
        for bus, load in robot.bus.bus_load.items():
            self._loads[bus].set(load)
        self._show_imu(now_ns)
        if self._relay is not None:
            totals.show(_FORWARDED, self._relay.forwarded)
            totals.show(_OVERTAKEN, self._relay.overtaken)
            totals.show(_INVALID, self._relay.invalid)

    def _show_faults(self, faults: list[int]) -> None:
        for joint, bits in enumerate(faults):
            if bits != self._shown_faults[joint]:
                self._shown_faults[joint] = bits
                for fault, gauge in self._faults[joint].items():
                    gauge.set(bool(bits & fault))

    def _show_imu(self, now_ns: int) -> None:
        robot, counters = self._robot, self._robot.imu.counters
        if robot.sample is not None:
            _IMU_AGE.set((now_ns - robot.sample.stamp_ns) * 1e-9)
        self._totals.show(_IMU_RECEIVED, counters.received)
        self._totals.show(_IMU_BAD, counters.bad_checksums)
        self._totals.show(_IMU_RECONNECTS, counters.reconnects)
        for fault, gauge in _IMU_FAULT.items():
            gauge.set(fault in robot.imu_check.faults)
