"""Errors of the camera service.

CameraError            a recording, an encoder, a camera or the self-check: final
└── DeviceUnavailable  a camera that is not there now: trying again may help
"""

__all__ = ["CameraError", "DeviceUnavailable"]


class CameraError(Exception):
    """A recording, an encoder, a camera or the self-check cannot do."""


class DeviceUnavailable(CameraError):  # noqa: N818 - the name says what happened
    """A camera that is not plugged in, was unplugged, or is in use."""
