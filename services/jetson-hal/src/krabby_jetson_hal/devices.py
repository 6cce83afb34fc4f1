"""The devices that the configuration names, not opened yet."""

import dataclasses
from typing import NamedTuple

from krabby.drivers.can.bus import CanJointBus
from krabby.drivers.can.config import load_calibration, load_hardware
from krabby.drivers.can.health import HealthCfg
from krabby.drivers.errors import HardwareError
from krabby.drivers.imu.serial_imu import SerialImu
from krabby.robot.description import RobotDescription

from krabby_jetson_hal.config import JetsonHalCfg

__all__ = ["HEALTH", "Devices", "load_devices"]

_CONTROL_HZ = 100.0
HEALTH = HealthCfg(stuck_after_s=0.09, stuck_torque_share=0.3)
"""When an encoder counts as stuck. One that sticks in mid-swing passes 12 N·m after 90 to 142 ms
(20 of them in the gait, on the emulated robot), so neither may be raised. A leg on the ground
passes that too, still to the last bit: while the robot stands up, 14.3 N·m in 95 ms and 16 N·m in
80; therefore a leg that carries load has to be asked for the rated torque."""


class Devices(NamedTuple):
    """The robot's hardware, as `Robot` and `JetsonHal` use it; a test brings fakes."""

    bus: CanJointBus
    imu: SerialImu
    imu_rate_hz: float
    """Rate at which the IMU's samples are to come."""
    bus_of_joint: tuple[str, ...]
    """Name of the bus of every joint."""
    rate_hz: float
    """Exchanges per second."""
    calibrated: str = ""
    """When the robot was calibrated; empty when it was not."""


def load_devices(cfg: JetsonHalCfg, desc: RobotDescription) -> Devices:
    """Read and check what the configuration names; nothing is opened.

    Raises:
        DeviceError: A file is wrong, or the buses cannot carry the rate.
    """
    hardware = load_hardware(cfg.can, desc)
    rate_hz = cfg.rate_hz or hardware.rate_hz
    if rate_hz % _CONTROL_HZ:
        raise HardwareError(
            f"the buses would run at {rate_hz:g} Hz; commands come at {_CONTROL_HZ:g} Hz, give "
            "rate_hz a whole multiple of that"
        )
    hardware = dataclasses.replace(hardware, rate_hz=rate_hz)
    calibration = load_calibration(cfg.can, hardware)
    imu = SerialImu(
        cfg.imu.port or hardware.imu.port,
        mount_quat=hardware.imu.mount_quat,
        baud=hardware.imu.baud,
    )
    return Devices(
        bus=CanJointBus(hardware, calibration, desc, health=HEALTH),
        imu=imu,
        imu_rate_hz=imu.rate_hz,
        bus_of_joint=tuple(drive.bus for drive in hardware.drives),
        rate_hz=rate_hz,
        calibrated=calibration.measured,
    )
