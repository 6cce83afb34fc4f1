"""The end of a process: requested by a signal, and bounded in time in any state of the process.

SIGTERM or SIGINT asks for a graceful end. The process has `STOP_S` for it; then a thread ends it
with status 1, and the log says where it was stuck. That thread hears of the signal through the
descriptor of `signal.set_wakeup_fd`, since Python's own handler runs in the main thread only, which
may be inside a library. What does not let go of the interpreter's lock cannot be ended like that.

An end like this switches nothing off: the drives fall limp by themselves without commands
(`can_timeout`), and the HAL damps a robot whose game loop is gone.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

import structlog

__all__ = ["EXIT_FAILED", "STOP_S", "Ending", "stack_of"]

log = structlog.get_logger(__name__)

EXIT_FAILED = 1
STOP_S = 3.0
"""A process has ended so long after the first signal."""
_LAST_WORDS_S = 0.2
"""The part of it in which the log says why it had to be ended."""
_SAME_SIGNAL_S = 0.5
"""Signals closer together than this are one request to stop."""
_HANDLER_S = 0.1
"""The main thread ends the process at the second signal, as the signal does by default, if it can
run at all; the thread gives it so long."""
_STACK_LINES = 12


class Ending:
    """Context in which signals end this process; to be entered by the main thread."""

    def __init__(
        self,
        stop: Callable[[str], None],
        flush: Callable[[float], bool],
        *,
        limit_s: float = STOP_S,
    ) -> None:
        """Prepare.

        Args:
            stop: Told the name of the first signal.
            flush: Writes the log's last lines within a time [s].
            limit_s: When the process has ended after the first signal [s].
        """
        self._stop = stop
        self._flush = flush
        self._limit_s = limit_s
        self._main = threading.get_ident()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._end_s = math.inf
        self._before: dict[int, object] = {}
        self._heard, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self.asked_s = math.inf
        """time.monotonic() of the first signal; infinite before it."""

    @property
    def left_s(self) -> float:
        """What is left of the time to end in [s]; infinite while no end is expected."""
        return self._end_s - time.monotonic()

    def __enter__(self) -> Ending:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        self._wakeup_before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="ending", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._over.set()
        os.write(self._wake, b"\0")  # the thread closes both ends

    def _handle(self, number: int, _: FrameType | None) -> None:
        """The first signal asks for a graceful end, another one later ends at once.

        One Ctrl-C can arrive twice, from the terminal and from a supervisor that passes it on.
        """
        if time.monotonic() - self.asked_s > _SAME_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked_s = min(self.asked_s, time.monotonic())
        self._stop(signal.Signals(number).name)

    def _watch(self) -> None:
        first_s = math.inf
        while not self._over.is_set():
            number = os.read(self._heard, 1)[0]
            if self._over.is_set():
                break
            if number not in self._before:
                continue
            if time.monotonic() - first_s > _SAME_SIGNAL_S:
                if not self._over.wait(_HANDLER_S):
                    os._exit(128 + number)
            elif first_s == math.inf:
                first_s = time.monotonic()
                self.asked_s = min(self.asked_s, first_s)
                self._stop(signal.Signals(number).name)
                self.expect()
        os.close(self._heard)
        os.close(self._wake)

    def expect(self) -> None:
        """The process ends within the limit from now on, or from an earlier call."""
        with self._lock:
            if self._end_s == math.inf:
                self._end_s = time.monotonic() + self._limit_s
                threading.Thread(target=self._end_late, name="deadline", daemon=True).start()

    def _end_late(self) -> None:
        if self._over.wait(max(self.left_s - _LAST_WORDS_S, 0.0)):
            return
        log.error(
            "did not end in time, ended by force",
            limit_s=self._limit_s,
            stuck_at=stack_of(self._main),
            threads=[thread.name for thread in threading.enumerate()],
        )
        self._flush(max(self.left_s, 0.05))
        os._exit(EXIT_FAILED)


def stack_of(thread: int) -> list[str]:
    """Where a thread is, innermost last: file, line and function."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    if frame is None:
        return []
    entries = traceback.extract_stack(frame)[-_STACK_LINES:]
    return [f"{entry.filename}:{entry.lineno} {entry.name}" for entry in entries]
