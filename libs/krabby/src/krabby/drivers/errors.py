"""Errors of the hardware. Every message names the device, the wrong value and the remedy.

DeviceError
├── HardwareError   hardware.toml or calibration.toml is wrong, or its plan cannot work
├── DriveError      a bus or a drive cannot be used: it is silent, refuses or reports a fault
└── ImuError        the inertial sensor cannot be used: it is silent, refuses or is implausible
"""

__all__ = ["DeviceError", "DriveError", "HardwareError", "ImuError"]


class DeviceError(Exception):
    """Base of every error that this package raises on purpose."""


class HardwareError(DeviceError):
    """`hardware.toml`, `calibration.toml`, or a measurement for it."""


class DriveError(DeviceError):
    """A CAN bus or a drive."""


class ImuError(DeviceError):
    """The inertial sensor."""
