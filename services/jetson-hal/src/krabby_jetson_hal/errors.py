"""What can go wrong in jetson-hal itself; what devices do is `krabby.drivers.errors`.

Every message names the value and the remedy; the command line prints it as it is.

    JetsonHalError
    ├── EstopUnavailable   the input of the emergency stop cannot be read
    └── ImuNotSane         the IMU sends what cannot be believed; the robot is not started on it
"""

__all__ = ["EstopUnavailable", "ImuNotSane", "JetsonHalError"]


class JetsonHalError(Exception):
    """Base of every error this service raises on purpose."""


class EstopUnavailable(JetsonHalError):  # noqa: N818 - the name says what happened
    """The input of the emergency stop cannot be read; without it the robot does not start."""


class ImuNotSane(JetsonHalError):  # noqa: N818 - the name says what happened
    """The IMU answers, but what it sends cannot be believed."""
