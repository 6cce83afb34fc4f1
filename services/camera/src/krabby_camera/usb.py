"""How fast a camera's USB link is, as the kernel has it."""

import contextlib
from pathlib import Path

__all__ = ["link_mbps"]

_DEVICES = Path("/sys/bus/usb/devices")


def link_mbps(vendor: str, devices: Path = _DEVICES) -> float | None:
    """Speed of the fastest USB device of a vendor (hexadecimal) [Mbit/s]; None without one.

    A ZED's sensors are a second device of the same make, always slow: the fastest is the camera.
    """
    speeds = []
    for file in devices.glob("*/idVendor"):
        with contextlib.suppress(OSError, ValueError):  # unplugged meanwhile
            if file.read_text().strip() == vendor:
                speeds.append(float((file.parent / "speed").read_text()))
    return max(speeds, default=None)
