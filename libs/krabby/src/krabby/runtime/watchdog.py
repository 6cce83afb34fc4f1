"""Ends a process whose loop is stuck, within 1 s; its supervisor starts it again.

Two clocks watch the loop, because one alone misses a case:

- a thread looks ten times a second whether the loop has beaten. The time between two looks counts
  up to twice that: a process that was frozen (SIGSTOP, a suspended machine, a debugger that is
  attached) is not stuck, and continues afterwards;
- a timer of the loop's processor time, which that thread sets back at every look. It fires when a
  library keeps the interpreter's lock, so that no thread of Python runs. faulthandler then writes
  the stack to stderr and the signal ends the process.

A library that sleeps and keeps the lock looks frozen: only the peers notice, and damp the robot.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator

import structlog

from krabby.runtime.ending import EXIT_FAILED, stack_of

__all__ = ["STUCK_S", "watched"]

log = structlog.get_logger(__name__)

STUCK_S = 0.8
"""A loop that does not beat for so long is stuck [s]. A period has 10 ms at most."""
_LOOK_S = 0.1
_LAST_WORDS_S = 0.05
_SIGNAL = signal.SIGPROF
_DEBUGGERS = ("bdb", "pdb", "_pydevd", "pydevd", "debugpy")
"""Modules whose frames on the loop's stack mean that a person has stopped it."""


@contextlib.contextmanager
def watched(
    beats: Callable[[], int],
    flush: Callable[[float], bool],
    end: Callable[[int], object] = os._exit,
) -> Generator[None, None, None]:
    """Inside, the calling thread's loop has to beat.

    Args:
        beats: How often it has so far.
        flush: Writes the log's last lines within a time [s].
        end: Ends the process with a status.
    """
    over = threading.Event()
    loop = threading.get_ident()
    with _processor_timer() as set_back:

        def look() -> None:
            seen, silent_s, looked_s = beats(), 0.0, time.monotonic()
            while not over.wait(_LOOK_S):
                set_back(STUCK_S)
                before_s, looked_s = looked_s, time.monotonic()
                before, seen = seen, beats()
                if seen != before or _debugged(loop):
                    silent_s = 0.0
                    continue
                silent_s += min(looked_s - before_s, 2.0 * _LOOK_S)
                if silent_s < STUCK_S:
                    continue
                log.error("loop stuck, process ended", limit_s=STUCK_S, stuck_at=stack_of(loop))
                flush(_LAST_WORDS_S)
                end(EXIT_FAILED)
                return

        threading.Thread(target=look, name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            over.set()


def _debugged(thread: int) -> bool:
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_DEBUGGERS):
            return True
        frame = frame.f_back
    return False


class _SigEvent(ctypes.Structure):
    """The kernel's struct sigevent: a signal to one thread."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("tid", ctypes.c_int),
        ("pad", ctypes.c_char * 44),
    )


class _TimerSpec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


_SIGEV_THREAD_ID = 4


@contextlib.contextmanager
def _processor_timer() -> Generator[Callable[[float], None], None, None]:
    """A timer of the calling thread's processor time that ends the process with its stack.

    Yields:
        Sets it to expire after so much more of it [s].
    """
    libc = ctypes.CDLL(None, use_errno=True)
    timer = ctypes.c_void_p()
    clock = time.pthread_getcpuclockid(threading.get_ident())
    event = _SigEvent(signo=_SIGNAL, notify=_SIGEV_THREAD_ID, tid=threading.get_native_id())
    faulthandler.register(_SIGNAL, file=sys.stderr, all_threads=False, chain=True)
    if libc.timer_create(clock, ctypes.byref(event), ctypes.byref(timer)) != 0:
        raise OSError(ctypes.get_errno(), "timer_create: " + os.strerror(ctypes.get_errno()))

    def set_back(seconds: float) -> None:
        spec = _TimerSpec(value_s=int(seconds), value_ns=round(seconds % 1 * 1e9))
        libc.timer_settime(timer, 0, ctypes.byref(spec), None)

    set_back(STUCK_S)
    try:
        yield set_back
    finally:
        libc.timer_delete(timer)
        faulthandler.unregister(_SIGNAL)
