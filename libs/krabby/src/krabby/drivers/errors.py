"""What can go wrong with hardware.

Every message names the device (bus, CAN id, joint), the value that is wrong and the remedy.

    DeviceError
    ├── HardwareError         hardware.toml does not say what it must say, or its plan cannot work
    ├── CalibrationError      calibration.toml, or a measurement for it, is wrong
    ├── DriveError            the drives cannot be used
    │   ├── BusError          a CAN bus cannot be opened, or it failed
    │   ├── NoReply           a drive does not answer
    │   ├── DriveRefused      a drive answers, but reports a fault or does not do what it was told
    │   └── NotRepresentable  a value does not fit the drive's protocol
    └── ImuError              the inertial sensor cannot be used
        ├── ImuPortError      its port cannot be opened, or the line cannot carry what is asked
        ├── ImuSilent         nothing on the port answers, or no measurements come
        └── ImuRefused        it answers, but refuses a setting or does not keep it
"""

__all__ = [
    "BusError",
    "CalibrationError",
    "DeviceError",
    "DriveError",
    "DriveRefused",
    "HardwareError",
    "ImuError",
    "ImuPortError",
    "ImuRefused",
    "ImuSilent",
    "NoReply",
    "NotRepresentable",
]


class DeviceError(Exception):
    """Base of every error this package raises on purpose."""


class HardwareError(DeviceError):
    """`hardware.toml` does not say what it must say, or what it plans cannot work."""


class CalibrationError(DeviceError):
    """`calibration.toml` does not say what it must say, or a measurement cannot be one."""


class DriveError(DeviceError):
    """The drives cannot be used."""


class BusError(DriveError):
    """A CAN bus cannot be opened, or it failed."""


class NoReply(DriveError):  # noqa: N818 - the name says what happened
    """A drive does not answer."""


class DriveRefused(DriveError):  # noqa: N818 - the name says what happened
    """A drive answers, but reports a fault or does not do what it was told."""


class NotRepresentable(DriveError):  # noqa: N818 - the name says what happened
    """A value does not fit the drive's protocol."""


class ImuError(DeviceError):
    """The inertial sensor cannot be used."""


class ImuPortError(ImuError):
    """Its port cannot be opened, or the line cannot carry what is asked."""


class ImuSilent(ImuError):  # noqa: N818 - the name says what happened
    """Nothing on the port answers, or no measurements come."""


class ImuRefused(ImuError):  # noqa: N818 - the name says what happened
    """It answers, but refuses a setting or does not keep it."""
