"""What can go wrong in the camera service.

CameraError
├── ReplayError        a recording that cannot be played
├── EncoderError       a depth encoder that needs what this process cannot know
├── DeviceUnusable     a camera, or its SDK, that will not do however often it is tried
├── DeviceUnavailable  a camera that cannot be had now; trying again may help
└── SelfCheckFailed    the camera does not see what its mount says it must
"""

__all__ = [
    "CameraError",
    "DeviceUnavailable",
    "DeviceUnusable",
    "EncoderError",
    "ReplayError",
    "SelfCheckFailed",
]


class CameraError(Exception):
    """Base of the tree."""


class ReplayError(CameraError):
    """A recording that cannot be played."""


class EncoderError(CameraError):
    """A depth encoder that needs what this process cannot know."""


class DeviceUnusable(CameraError):  # noqa: N818 - the name says what happened
    """A camera, or its SDK, that will not do however often it is tried."""


class DeviceUnavailable(CameraError):  # noqa: N818 - the name says what happened
    """A camera that cannot be had now: not plugged in, unplugged, or in use."""


class SelfCheckFailed(CameraError):  # noqa: N818 - the name says what happened
    """The camera does not see what its mount says it must."""
