"""A camera of this machine as a source of frames.

Opening one takes seconds, minutes when the SDK prepares its network for this GPU the first time,
and grabbing blocks. So a thread owns the camera, and the service takes the newest frame. A camera
that is unplugged is opened again until it is back.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import structlog
from krabby_proto import CAMERA, Message, decode, encode, new_instance_id
from numpy.typing import NDArray

from krabby_camera import metrics
from krabby_camera.errors import CameraError, DeviceUnavailable
from krabby_camera.sources import FrameSource

__all__ = ["ColourImage", "DepthDevice", "DeviceSource", "Shot"]

log = structlog.get_logger(__name__)

_BACKOFF_S = (0.5, 8.0)
_CLOSE_S = 1.5
"""How long closing a camera may take: a grab takes a second at most."""


class Shot(NamedTuple):
    """One exposure, as the robot's camera would have seen it."""

    depth: NDArray[np.float32]
    """(60, 106) along the optical axis [m], 0 where there is no reading."""
    capture_ns: int
    """Middle of the exposure as far as it is known, CLOCK_MONOTONIC."""
    picture: NDArray[np.uint8] | None = None
    """The same view in colour, sRGB, a multiple of depth's size, black where the sensor does not
    reach; None when it was not asked for or there is none."""


class ColourImage(NamedTuple):
    """What a camera saw in colour."""

    picture: NDArray[np.uint8]
    """(height, width, 3), sRGB."""
    capture_ns: int
    """As in `Shot`."""


class DepthDevice(Protocol):
    """A make of camera. One thread uses it; `close` is safe in any state."""

    name: str
    """For logs."""
    gaps: int = 0
    """Exposures lost on the way, running total."""
    invalid: int = 0
    """Exposures that arrived damaged, running total."""

    def open(self) -> Mapping[str, object]:
        """Open and configure it; returns facts for the log.

        Raises `DeviceUnavailable` where a later try may succeed, else `CameraError`.
        """
        ...

    def grab(self, *, colour: bool = False) -> Shot | None:
        """Wait for the next exposure, a second at most; None when there was none to use.

        With `colour` its picture too, where the device was made with colour.

        Raises `DeviceUnavailable` when the camera is gone.
        """
        ...

    def close(self) -> None:
        """Close the camera; it may be opened again."""
        ...

    def release(self) -> None:
        """Close everything else too."""


class DeviceSource(FrameSource):
    """Frames of a device, the newest first, at most at `rate_hz`.

    `backoff_s`: pause before the second try to open it, and the longest.
    """

    def __init__(
        self,
        device: DepthDevice,
        *,
        rate_hz: float,
        clock: Callable[[], int] = time.monotonic_ns,
        backoff_s: tuple[float, float] = _BACKOFF_S,
    ) -> None:
        self._device = device
        self._period_ns = round(1e9 / rate_hz)
        self._clock = clock
        self._backoff_s = backoff_s
        self._instance_id = new_instance_id()
        self._sequence = 0
        self._last_ns: int | None = None
        self._newest: Message | None = None
        self.colour_hz = 0.0
        """Colour images to take per second, at most; 0 for none. Any thread may set it."""
        self._colour: ColourImage | None = None
        self._coloured_ns: int | None = None
        self._failure: BaseException | None = None
        self._news = threading.Condition()
        self._stop = threading.Event()
        self.received = self.discarded = self.gaps = self.invalid = 0
        self.doing = f"opening the {device.name}; the first time it can take minutes"
        """What keeps frames from coming; empty while they do."""
        self.reconnects = 0
        metrics.DEVICE_CONNECTED.set(0)
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> Message | None:
        """The newest frame not yet given out; None when there was none in time."""
        with self._news:
            self._news.wait_for(lambda: self._newest or self._failure, timeout_s)
            if self._failure is not None:
                raise self._failure
            newest, self._newest = self._newest, None
        return newest

    def take_colour(self) -> ColourImage | None:
        """The newest colour image not yet given out; None when there is none."""
        with self._news:
            newest, self._colour = self._colour, None
        return newest

    def close(self) -> None:
        self._stop.set()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():  # in the SDK, which may take minutes: it is left behind
            log.warning("camera does not close", device=self._device.name, doing=self.doing)
            return
        self._device.release()

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            with self._news:
                self._failure = error
                self._news.notify_all()
            if not isinstance(error, CameraError):
                log.exception("the camera's thread crashed")

    def _serve(self) -> None:
        wait_s = self._backoff_s[0]
        opened = False
        while not self._stop.is_set():
            try:
                facts = self._device.open()
                log.info("camera open", device=self._device.name, **facts)
                self.reconnects += opened
                metrics.DEVICE_RECONNECTS.inc(int(opened))
                opened, self.doing, wait_s = True, "", self._backoff_s[0]
                metrics.DEVICE_CONNECTED.set(1)
                while not self._stop.is_set():
                    self._take(self._device.grab(colour=self._colour_due()))
            except DeviceUnavailable as error:
                self.doing = str(error)
                log.error("no camera", reason=str(error), next_try_s=wait_s)
            finally:
                metrics.DEVICE_CONNECTED.set(0)
                self._device.close()
            self._stop.wait(wait_s)
            wait_s = min(2.0 * wait_s, self._backoff_s[1])

    def _colour_due(self) -> bool:
        rate_hz, last_ns = self.colour_hz, self._coloured_ns
        if rate_hz == 0.0:
            return False
        return last_ns is None or (self._clock() - last_ns) * 1e-9 * rate_hz >= 1.0

    def _take(self, shot: Shot | None) -> None:
        self.gaps, self.invalid = self._device.gaps, self._device.invalid
        if shot is None:
            return
        self.received += 1
        if shot.picture is not None:
            self._coloured_ns = self._clock()
            with self._news:
                self._colour = ColourImage(shot.picture, shot.capture_ns)
        # a quarter of a period for jitter: 30 Hz out of 60 takes every second one
        last = self._last_ns
        if last is not None and 0 <= shot.capture_ns - last < 0.75 * self._period_ns:
            return
        self._last_ns = shot.capture_ns
        self._sequence += 1
        words = {"instance_id": self._instance_id, "sequence": self._sequence}
        stamps = {"capture_ns": shot.capture_ns, "publish_ns": self._clock()}
        message = decode(encode(CAMERA, shot.depth.reshape(-1), **words, **stamps))
        with self._news:
            self.discarded += self._newest is not None
            self._newest = message
            self._news.notify_all()
