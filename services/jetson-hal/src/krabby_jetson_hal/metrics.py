"""What jetson-hal measures beyond what every HAL and every service does.

See `krabby.hal.metrics` and `krabby.runtime.metrics`.
"""

from krabby.drivers.can import DriveFault, DriveReadings
from krabby.drivers.imu.check import ImuFault
from krabby.runtime.metrics import (
    CAMERA_FRAMES_DROPPED,
    STREAM_INVALID,
    STREAM_RECEIVED,
    Totals,
    children,
)
from prometheus_client import Counter, Gauge

from krabby_jetson_hal.backend import Robot

__all__ = ["Exposition"]

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

    def __init__(self, robot: Robot) -> None:
        self._robot, self._totals = robot, Totals()
        names = robot.desc.joint_names
        self._by_joint = {
            name: [metric.labels(joint) for joint in names]
            for name, metric in (
                ("temperature_c", _TEMPERATURE),
                ("voltage_v", _VOLTAGE),
                ("mode", _MODE),
            )
        }
        self._missed = [_MISSED.labels(joint) for joint in names]
        self._faults = [
            {fault: _DRIVE_FAULT.labels(name, str(fault.name).lower()) for fault in DriveFault}
            for name in names
        ]
        self._shown_faults = [0] * len(names)
        self._feet = [_CONTACT.labels(leg) for leg in robot.desc.leg_names]
        self._loads = children(_BUS_LOAD, robot.buses)

    def update(self) -> None:
        """Bring every metric up to date."""
        robot, totals = self._robot, self._totals
        if robot.readings is not None:
            self._show_readings(robot.readings)
        for gauge, load in zip(self._feet, robot.estimator.foot_load_n.tolist(), strict=True):
            gauge.set(load)
        for bus, load in robot.bus.bus_load.items():
            self._loads[bus].set(load)
        if robot.sample is not None:
            _IMU_AGE.set((robot.clock_ns() - robot.sample.stamp_ns) * 1e-9)
        totals.show(_IMU_RECEIVED, robot.imu.counters.received)
        totals.show(_IMU_BAD, robot.imu.counters.bad_checksums)
        totals.show(_IMU_RECONNECTS, robot.imu.counters.reconnects)
        for fault, gauge in _IMU_FAULT.items():
            gauge.set(fault in robot.imu_check.faults)
        if robot.relay is not None:
            totals.show(_FORWARDED, robot.relay.forwarded)
            totals.show(_OVERTAKEN, robot.relay.overtaken)
            totals.show(_INVALID, robot.relay.invalid)

    def _show_readings(self, readings: DriveReadings) -> None:
        for name, gauges in self._by_joint.items():
            for gauge, value in zip(gauges, getattr(readings, name).tolist(), strict=True):
                gauge.set(value)
        for counter, count in zip(self._missed, readings.missed.tolist(), strict=True):
            self._totals.show(counter, count)
        for joint, bits in enumerate(readings.faults.tolist()):
            if bits != self._shown_faults[joint]:
                self._shown_faults[joint] = bits
                for fault, gauge in self._faults[joint].items():
                    gauge.set(bool(bits & fault))
