"""The camera process's depth images, published again under the HAL's own endpoint.

So consumers see one contract in simulation and on the robot. Newest only: an image that a newer
one overtook is dropped. Capture times stay; the image itself is not read.
"""

from krabby.hal.backend import Image
from krabby_proto import CAMERA, LatestSubscriber

__all__ = ["CameraRelay"]


class CameraRelay(LatestSubscriber):
    """From `endpoints.raw` to the HAL's `camera`; the camera process may come and go."""

    def __init__(self, endpoint: str) -> None:
        """Connect."""
        super().__init__(endpoint, CAMERA)
        self.forwarded = 0
        """Images published again."""
        self.overtaken = 0
        """Images dropped because a newer one was there."""

    def newest(self) -> Image | None:
        """The newest image that came since the last call, None when none did; never waits."""
        images = self.drain()
        if not images:
            return None
        self.forwarded += 1
        self.overtaken += len(images) - 1
        newest = images[-1]
        return Image(newest.payload, newest.capture_ns, newest.flags)
