"""Work that may hang, crash or take all memory, in a child process with a time limit.

A child is a module run as a program. Its job comes on stdin; its answers are lines on a pipe of
their own, because libraries print to stdout; what it prints goes to stderr, whose end an error can
repeat. It has neither its parent's priority nor its core, and ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import IO, NamedTuple

__all__ = ["Ended", "become_child", "interrupts_ignored", "run_child"]

_POLL_S = 0.05
_END_S = 10.0
"""Longest time from a child's last line to its end."""
_TAIL = 600
"""Characters of a child's stderr that are kept."""
_PR_SET_PDEATHSIG = 1


class Ended(NamedTuple):
    """The end of a child."""

    status: int
    """As `Popen.returncode`."""
    tail: str
    """The last characters it wrote to stderr, in one line."""

    @property
    def how(self) -> str:
        """In words, for an error."""
        if self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"


def run_child(
    module: str,
    *arguments: str,
    job: bytes,
    limit_s: float,
    watch: Callable[[], None],
    hear: Callable[[bytes], None],
) -> Ended:
    """Run `module` to its end; the child does not outlive this call.

    Args:
        module: Run with `python -m`; must call `become_child`.
        arguments: Of its command line.
        job: Written to its stdin.
        limit_s: It is killed after this long [s].
        watch: Called several times a second; an error it raises kills the child.
        hear: Called with every line of the child's.

    Raises:
        TimeoutError: The time is over.
        OSError: The child could not be started.
    """
    end_s = time.monotonic() + limit_s
    with os.fdopen(os.memfd_create("stderr"), "r+b") as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdout:
            try:
                with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                    pipe.write(job)
                _listen(child.stdout, end_s, watch, hear)
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                raise TimeoutError from None
            finally:
                # Its whole group: a process that it started must not continue.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        errors.seek(0)
        tail = " ".join(errors.read().decode(errors="replace").split())[-_TAIL:]
    return Ended(child.returncode, tail)


def _listen(
    stdout: IO[bytes], end_s: float, watch: Callable[[], None], hear: Callable[[bytes], None]
) -> None:
    """Hand over lines until the child closes its pipe."""
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            watch()
            if time.monotonic() > end_s:
                raise TimeoutError
            if not selector.select(_POLL_S):
                continue
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                hear(line)


def become_child(*, nice: int) -> Callable[[bytes], None]:
    """First call of a child: leave priority and core of the parent, end with it.

    Returns:
        Sends a line to the parent.
    """
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    with contextlib.suppress(AttributeError, OSError):
        # It follows the thread that started this process, which waits for it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != int(sys.argv[-1]):  # it ended before that
        os._exit(1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where memory ends, this process does, and not its parent
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    os.nice(nice)

    def send(line: bytes) -> None:
        pipe.write(line + b"\n")

    return send


@contextlib.contextmanager
def interrupts_ignored() -> Generator[None, None, None]:
    """Processes that start meanwhile ignore Ctrl-C from their first instruction."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
