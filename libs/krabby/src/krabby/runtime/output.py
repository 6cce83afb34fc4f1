"""Writing to stdout and stderr without ever waiting for their reader.

A pipe that is not read is full after 64 KiB, and then a write waits until it is read: for a
terminal that was stopped with Ctrl-S, a log collector that hangs, a disk that is busy. A robot's
loop must not wait for that. So a thread does the writing, and the loop only appends to a queue. The
queue is bounded in bytes: what comes while it is full is dropped and counted, and a line says how
many as soon as there is room again. O_NONBLOCK is no way out: it belongs to the open file, which a
terminal shares with every process that was started from it.
"""

from __future__ import annotations

import io
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from typing import TextIO

from krabby.runtime.metrics import LOG_LINES_DROPPED

__all__ = ["LineStream", "Output", "descriptor"]

QUEUE_BYTES = 1 << 20
"""Most that waits to be written, some 3000 lines."""


class Output:
    """A descriptor and the thread that writes to it, in the order of the calls."""

    def __init__(
        self, fd: int, notice: Callable[[int], str], *, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        """Start the thread.

        Args:
            fd: Where to write; stays the caller's.
            notice: Gives the line that tells how many were dropped.
            queue_bytes: Most that waits to be written.
        """
        self._fd = fd
        self._notice = notice
        self._limit = queue_bytes
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # Reentrant: a signal handler may write a line while the same thread is in here.
        self._lock = threading.RLock()
        self._waiting = 0
        self._untold = 0
        self.dropped = 0
        """Lines that were never written, since the start."""
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Have a line written, the newline is added; never waits, never raises."""
        data = f"{line}\n".encode(errors="backslashreplace")
        with self._lock:
            # Once a line was dropped, so are those after it until half the queue is free: the
            # notice then stands where the gap is, and there is one for a gap.
            behind = self._untold and self._waiting > self._limit // 2
            if behind or self._waiting + len(data) > self._limit:
                self._drop()
                self._tell()
            else:
                self._put(data)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written, for `timeout_s` at most; says whether it is."""
        end = time.monotonic() + timeout_s
        while self._waiting:
            if time.monotonic() >= end:
                return False
            time.sleep(0.001)
        return True

    def _put(self, data: bytes) -> None:
        self._waiting += len(data)
        self._queue.put(data)

    def _drop(self) -> None:
        self._untold += 1
        self.dropped += 1
        LOG_LINES_DROPPED.inc()

    def _tell(self) -> None:
        """Say how many are missing, if there is room to."""
        if self._untold and self._waiting <= self._limit // 2:
            note, self._untold = self._notice(self._untold), 0
            self._put(f"{note}\n".encode(errors="backslashreplace"))

    def _run(self) -> None:
        while True:
            data = self._queue.get()
            written = self._write_all(data)
            with self._lock:
                self._waiting -= len(data)
                if written:
                    self._tell()
                else:
                    self._drop()

    def _write_all(self, data: bytes) -> bool:
        """Write it, however long that takes; False when it can never be read."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # another process made the open file non-blocking
                select.select((), (self._fd,), ())
            except OSError:  # closed, or its reader is gone
                return False
        return True


class LineStream(io.TextIOBase):
    """An `Output` in place of `sys.stdout` or `sys.stderr`, for what prints and does not log."""

    def __init__(self, output: Output, fd: int) -> None:
        self._output = output
        self._fd = fd
        self._partial = ""

    def write(self, text: str) -> int:
        """Hand over every line that is complete."""
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._output.write(line)
        if len(self._partial) > QUEUE_BYTES // 16:
            self._output.write(self._partial)
            self._partial = ""
        return len(text)

    def writable(self) -> bool:
        """Yes."""
        return True

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._fd)

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd


def descriptor(stream: TextIO | None) -> int | None:
    """The descriptor behind a stream; None for one in memory."""
    if stream is None:
        return None
    try:
        fd = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return None if stream.closed else fd
