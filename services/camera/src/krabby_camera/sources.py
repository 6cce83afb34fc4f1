"""Where frames come from: the HAL's stream, or a recording played at its own pace."""

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Protocol

import structlog
from krabby_proto import CAMERA, FLAG_LOCKSTEP, LatestSubscriber, Message
from krabby_proto.recording import Recording

from krabby_camera.errors import CameraError

__all__ = ["FrameSource", "HalSource", "ReplaySource"]

log = structlog.get_logger(__name__)


class FrameSource(Protocol):
    """Gives out the newest frame, as a `LatestSubscriber` does; older ones are dropped."""

    received: int
    discarded: int
    gaps: int
    invalid: int
    """Running totals."""
    exhausted: bool = False
    """Whether nothing will come any more."""
    doing: str = ""
    """What keeps frames from coming, for `/healthz`; empty if nothing is known to."""

    def wait(self, timeout_s: float) -> Message | None:
        """Block until there is a newer frame; None when there was none in time."""
        ...

    def close(self) -> None:
        """Close sockets and devices."""
        ...


class HalSource(LatestSubscriber):
    """The stream `camera` of a HAL, as a `FrameSource`."""

    exhausted = False
    doing = ""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, CAMERA)


class ReplaySource(FrameSource):
    """The stream `camera` of a recording, at its own pace, as if it happened now.

    Capture times are moved by one offset, so their spacing is the recorded one; each frame comes
    out as long after its capture as it did then. A recording made in lock-step has simulated
    times; played here they are real ones, so the flag goes.
    """

    _MAX_LATENCY_NS = 1_000_000_000

    def __init__(
        self,
        path: Path,
        *,
        loop: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Open an .mcap file; raises `RecordingError`, or `CameraError` without camera frames."""
        self._recording, self._loop = Recording(path), loop
        self._clock, self._sleep = clock, sleep
        self.received = self.discarded = self.gaps = self.invalid = 0
        self._frames = self._messages()
        self._next = next(self._frames, None)
        if self._next is None:
            raise CameraError(
                f"recording {str(path)!r} has no frames of the stream 'camera'; record with the "
                "camera enabled"
            )
        self._first_capture_ns = self._next.capture_ns
        self._last_capture_ns = self._first_capture_ns
        self._spacing_ns = round(1e9 / CAMERA.rate_hz)
        self._offset_ns: int | None = None

    @property
    def exhausted(self) -> bool:
        return self._next is None

    def wait(self, timeout_s: float) -> Message | None:
        deadline_ns = self._clock() + round(timeout_s * 1e9)
        newest: Message | None = None
        while self._next is not None:
            if self._offset_ns is None:
                self._offset_ns = self._clock() - self._next.capture_ns
            frame = self._now(self._next, self._offset_ns)
            due_ns = frame.header.publish_ns
            now_ns = self._clock()
            if due_ns > now_ns:
                if newest is not None:
                    return newest
                self._sleep((min(due_ns, deadline_ns) - now_ns) * 1e-9)
                if self._clock() < due_ns:
                    return None
            self.received += 1
            self.discarded += newest is not None
            newest = frame
            self._advance(self._next)
        return newest

    def close(self) -> None:
        self._frames.close()
        self._next = None

    def _now(self, frame: Message, offset_ns: int) -> Message:
        header = frame.header
        latency_ns = min(max(header.publish_ns - header.capture_ns, 0), self._MAX_LATENCY_NS)
        capture_ns = header.capture_ns + offset_ns
        return frame._replace(
            header=header._replace(
                capture_ns=capture_ns,
                publish_ns=capture_ns + latency_ns,
                flags=header.flags & ~FLAG_LOCKSTEP,
            )
        )

    def _advance(self, played: Message) -> None:
        self._spacing_ns = max(played.capture_ns - self._last_capture_ns, 0) or self._spacing_ns
        self._last_capture_ns = played.capture_ns
        self._next = next(self._frames, None)
        if self._next is None and self._recording.damage:
            log.warning("the recording is not complete", reason=self._recording.damage)
        if self._next is None and self._loop:
            self._frames = self._messages()
            self._next = next(self._frames, None)
            assert self._offset_ns is not None
            self._offset_ns += played.capture_ns - self._first_capture_ns + self._spacing_ns

    def _messages(self) -> Generator[Message, None, None]:
        return (message for message in self._recording if message.stream is CAMERA)
