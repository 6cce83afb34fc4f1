"""Colour images of a camera of this machine, on the stream `colour`.

Made while the stream is read, and only then: the SDK copies no image in vain.
"""

import time
from collections.abc import Callable
from typing import Final

from krabby.hal.jpeg import to_jpeg
from krabby_proto import COLOUR, WatchedPublisher

from krabby_camera.config import ColourCfg
from krabby_camera.devices import DeviceSource

__all__ = ["ColourStream"]

_NEVER_HZ: Final = 0.0


class ColourStream:
    """Publishes what a device's source has in colour."""

    def __init__(
        self,
        cfg: ColourCfg,
        endpoint: str,
        source: DeviceSource,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Bind the stream."""
        self._cfg, self._source = cfg, source
        self._publisher = WatchedPublisher(endpoint, COLOUR, clock=clock)
        self.published = 0
        """Images published."""

    def work(self) -> None:
        """Ask the source for images while there is a reader, and publish the newest."""
        self._source.colour_hz = self._cfg.rate_hz if self._publisher.is_read() else _NEVER_HZ
        image = self._source.take_colour()
        if image is not None:
            self._publisher.publish(to_jpeg(image.picture), capture_ns=image.capture_ns)
            self.published += 1

    def close(self) -> None:
        """Close the socket."""
        self._publisher.close()
