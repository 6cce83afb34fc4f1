"""Fakes and helpers shipped with the library: every package tests against the same seams."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Generator, MutableMapping
from pathlib import Path
from typing import Any

import structlog

from krabby.runtime.app import Runtime, Service
from krabby.runtime.ports import free_port, free_ports
from krabby.runtime.thread import ServiceThread

__all__ = [
    "FakeClock",
    "captured_logs",
    "ended_after",
    "free_port",
    "free_ports",
    "kept_rate",
    "lateness",
    "log_events",
    "may_go_first",
    "running",
    "slowdown",
    "until",
    "worst_lateness",
]


class FakeClock:
    """Nanoseconds that pass only when told to; also the sleep that goes with them.

    >>> clock = FakeClock()
    >>> rate = Rate(0.01, clock=clock, sleep_until=clock.sleep_until)
    """

    def __init__(self, start_ns: int = 1_000_000_000) -> None:
        self.now_ns = start_ns
        self.sleeps: list[int] = []
        """Deadlines asked for [ns]."""
        self.oversleep_ns = 0
        """How late every sleep returns [ns]."""

    def __call__(self) -> int:
        """Now [ns]."""
        return self.now_ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ns += round(seconds * 1e9)

    def sleep_until(self, deadline_ns: int) -> None:
        """Jump to the deadline, plus `oversleep_ns`."""
        self.sleeps.append(deadline_ns)
        self.now_ns = max(self.now_ns, deadline_ns + self.oversleep_ns)

    def sleep(self, seconds: float) -> None:
        """Let a relative sleep pass."""
        self.sleep_until(self.now_ns + round(seconds * 1e9))


def may_go_first() -> bool:
    """Whether this process may have SCHED_FIFO, and let others have it."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return False
    os.sched_setscheduler(0, policy, parameter)
    return True


@contextlib.contextmanager
def captured_logs() -> Generator[list[MutableMapping[str, Any]], None, None]:
    """Log events of the block as dictionaries, `event` and `log_level` among their keys."""
    with structlog.testing.capture_logs() as events:
        yield events


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Return once `condition` holds; for what another thread or process is about to do.

    Raises:
        TimeoutError: It did not come to hold.
    """
    began_s = time.monotonic()
    while not condition():
        passed_s = time.monotonic() - began_s
        if passed_s > timeout_s:
            raise TimeoutError(f"still not so after {timeout_s:g} s: {condition}")
        # A condition that reads files would otherwise keep a core from what it waits for.
        time.sleep(0.002 if passed_s < 1.0 else 0.02)


def log_events(path: Path) -> list[dict[str, Any]]:
    """What services have logged into a file so far; a line that is being written is left out."""
    *lines, _ = path.read_text().split("\n")
    return [json.loads(line) for line in lines if line[:1] == "{" and line[-1:] == "}"]


def lateness(seconds: float) -> float:
    """By how much a process that sleeps ten times a second falls behind on this machine [s].

    What a bound on the time of another process may be exceeded by on a busy machine.
    """
    late_s, end_s = 0.0, time.monotonic() + seconds
    while (now_s := time.monotonic()) < end_s:
        time.sleep(0.1)
        late_s += time.monotonic() - now_s - 0.1
    return late_s


def slowdown(seconds: float) -> float:
    """How much longer than its processor time work takes on this machine now; 1 on a free core.

    What a bound on work of another process may be exceeded by on a busy machine: a sleep is in time
    there long after work is not.
    """
    began_s, used_s = time.monotonic(), time.thread_time()
    while (passed_s := time.monotonic() - began_s) < seconds:
        pass
    return passed_s / (time.thread_time() - used_s)


@contextlib.contextmanager
def kept_rate(period_s: float = 0.01) -> Generator[Callable[[], float], None, None]:
    """A function that tells how often a second a thread here woke that is to wake every period.

    Of the last half minute [Hz]; the floor for the rate of a loop in another process.
    """
    over = threading.Event()
    due_and_woken_s = collections.deque[tuple[float, float]](maxlen=round(30.0 / period_s))

    def pace() -> None:
        due_s = time.monotonic()
        while not over.is_set():
            due_s += period_s * max(1, math.ceil((time.monotonic() - due_s) / period_s))
            time.sleep(max(due_s - time.monotonic(), 0.0))
            due_and_woken_s.append((due_s, time.monotonic()))

    def rate_hz() -> float:
        count = len(due_and_woken_s)
        if count < 2:
            return 0.0
        # From when the first was due: a late first one must not make the rest look fast.
        return (count - 1) / (due_and_woken_s[-1][1] - due_and_woken_s[0][0])

    thread = threading.Thread(target=pace, name="paces")
    thread.start()
    try:
        yield rate_hz
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def worst_lateness() -> Generator[Callable[[], float], None, None]:
    """A function that tells by how much the worst sleep of a thread here was late so far [s].

    What a busy machine may add to each step of a chain of processes.
    """
    over, worst_s = threading.Event(), 0.0

    def nap() -> None:
        nonlocal worst_s
        while not over.is_set():
            began_s = time.monotonic()
            time.sleep(0.005)
            worst_s = max(worst_s, time.monotonic() - began_s - 0.005)

    thread = threading.Thread(target=nap, name="naps")
    thread.start()
    try:
        yield lambda: worst_s
    finally:
        over.set()
        thread.join()


def ended_after(process: subprocess.Popen[Any], patience_s: float = 30.0) -> float:
    """Wait for the end of a process; the time that took, less what a busy machine adds to it [s].

    That is three times the time by which sleeps of this process were late meanwhile.

    Raises:
        TimeoutError: It did not end.
    """
    began_s, late_s = time.monotonic(), 0.0
    while process.poll() is None:
        slept_s = time.monotonic()
        if slept_s - began_s > patience_s:
            raise TimeoutError(f"process {process.pid} still runs after {patience_s:g} s")
        time.sleep(0.02)
        late_s += time.monotonic() - slept_s - 0.02
    return time.monotonic() - began_s - 3.0 * late_s


@contextlib.contextmanager
def running(service: Service, *, name: str = "test") -> Generator[Runtime, None, None]:
    """Start a service in a thread, stop it at the end, and raise here what it raised there.

    What `shutdown` returned is in `runtime.summary` afterwards.
    """
    thread = ServiceThread(service, name)
    thread.start()
    try:
        if not thread.started.wait(60.0):
            raise TimeoutError(f"{name} did not start within 60 s")
        if thread.failure is None:
            yield thread.runtime
    finally:
        thread.runtime.stop("test over")
        thread.join(60.0)
    if thread.failure is not None:
        raise thread.failure
