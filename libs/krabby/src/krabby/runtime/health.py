"""Health is "did the loop turn lately?", not "does the process exist?".

The loop beats; a beat touches a file at most twice a second, and a container's health check asks
`find` for the file's age, which costs 3 ms where starting Python would cost 70.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Heartbeat", "Pulse"]

_STALLED_S = 2.0
"""Age of the last beat at which a loop counts as stalled [s]."""


class Heartbeat:
    """Proof of life of one loop."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        touch_every_s: float = 0.5,
        stalled_after_s: float = _STALLED_S,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Prepare to beat; nothing is written before the first beat.

        Args:
            path: File to touch, on a tmpfs; None keeps the beat inside the process.
            touch_every_s: Least time between two touches [s].
            stalled_after_s: Age of the last beat at which `healthy` turns false [s].
            clock: Monotonic nanoseconds.
        """
        self._path = path
        self._touch_every_ns = round(touch_every_s * 1e9)
        self._stalled_after_ns = round(stalled_after_s * 1e9)
        self._clock = clock
        self._touched_ns: int | None = None
        self._beat_ns: int | None = None
        self.beats = 0
        """How often the loop has turned."""
        self.doing = ""
        """What keeps the process from its work although it is alive, such as "building"; empty
        while nothing does."""

    def beat(self, now_ns: int | None = None) -> None:
        """Say that the loop turned. Costs a comparison, and a touch twice a second."""
        now = self._clock() if now_ns is None else now_ns
        self._beat_ns = now
        self.beats += 1
        if self._path is None:
            return
        if self._touched_ns is None or now - self._touched_ns >= self._touch_every_ns:
            self._touched_ns = now
            with contextlib.suppress(OSError):  # a full disk shows as a stalled loop, and ends none
                self._touch(self._path)

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)
        except FileNotFoundError:
            path.touch()

    def healthy(self) -> bool:
        """Whether the last beat is recent."""
        return self._beat_ns is not None and self._clock() - self._beat_ns < self._stalled_after_ns

    def clear(self) -> None:
        """Remove the file: a process that has ended is not healthy."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Pulse:
    """Proof of life of a process for its parent or child, over a pipe that is made before the fork.

    The one that is watched calls `beat`, the other `stalled`, both several times a second.
    """

    def __init__(
        self,
        *,
        look_s: float,
        stalled_after_s: float = _STALLED_S,
        starts_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the pipe.

        Args:
            look_s: Usual time between two looks. A longer one counts up to twice that: a process
                that was frozen itself accuses no other.
            stalled_after_s: Silence after which `stalled` turns true [s].
            starts_s: How much longer the first beat may take [s].
            clock: Monotonic seconds.
        """
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._look_s, self._stalled_after_s, self._clock = look_s, stalled_after_s, clock
        self._silent_s = -starts_s
        self._looked_s = clock()

    def beat(self) -> None:
        """Say that the loop turned."""
        with contextlib.suppress(BlockingIOError):  # full: it has not been read for hours
            os.write(self._writer, b".")

    def stalled(self) -> bool:
        """Whether the other process has been silent for too long."""
        before_s, self._looked_s = self._looked_s, self._clock()
        try:
            os.read(self._reader, 1 << 16)
        except BlockingIOError:
            self._silent_s += min(self._looked_s - before_s, 2.0 * self._look_s)
        else:
            self._silent_s = 0.0
        return self._silent_s >= self._stalled_after_s

    def close(self) -> None:
        """Close both ends, in this process."""
        os.close(self._reader)
        os.close(self._writer)
