"""Starts services as processes, watches them, restarts those that died, stops them in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from krabby_cli.errors import ServiceDied
from krabby_cli.logs import LogFollower, LogLine

__all__ = ["Child", "ChildSpec", "Supervisor"]

_LAST_LINES: Final = 8
_READY: Final = "running"
"""The event a service logs when its startup is over."""
_SUMMARY: Final = "summary"
_LAST_GRACE_S: Final = 2.0
_RESTART_WINDOW_S: Final = 60.0
_PAUSE_S: Final = 2.0
"""Shortest time between two starts of an expendable process."""
_FULL_BYTES: Final = 1 << 16
_TETHER: Final = str(Path(__file__).with_name("_tether.py"))


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    name: str
    argv: tuple[str, ...]
    has_ready_event: bool = True
    """Whether it logs the end of its startup."""
    may_end: bool = False
    """Whether it may end by itself, with status 0."""
    expendable: bool = False
    """Whether it is started again whenever it ends: no other process depends on it."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Further environment of this process alone: a secret, which a command line would show."""
    memory_bytes: int = 512 << 20
    """Most private memory; at this limit its allocations fail, and it ends."""


class Child:
    """A running process and its log so far."""

    def __init__(
        self,
        spec: ChildSpec,
        folder: Path,
        env: Mapping[str, str],
        before: Child | None = None,
    ) -> None:
        """Start it; one that replaces the process `before` continues its log."""
        self.spec = spec
        self.name = spec.name
        self.log_path = folder / f"{spec.name}.log"
        self.is_ready = not spec.has_ready_event
        self.started_s = time.monotonic()
        self.running: dict[str, Any] = {}
        """Facts of the event that ended its startup; empty until it came."""
        self.summary: dict[str, Any] = {}
        """Facts of its last event; empty until it came."""
        self.last_lines: deque[LogLine] = deque(maxlen=_LAST_LINES)
        self._log = LogFollower(self.log_path) if before is None else before._log
        with self.log_path.open("wb" if before is None else "ab") as log:
            self.process = subprocess.Popen(
                (
                    sys.executable,
                    "-IS",
                    _TETHER,
                    str(os.getpid()),
                    str(spec.memory_bytes),
                    *spec.argv,
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**env, **spec.env},
                # Ctrl-C then reaches the supervisor alone, which stops the services in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self.process.poll()

    def follow(self) -> list[LogLine]:
        """Read the new lines of its log; notes the end of its startup and its summary."""
        lines = self._log.read() if self.status is None else self._log.rest()
        for line in lines:
            self.last_lines.append(line)
            if line.event == _READY:
                self.is_ready, self.running = True, line.facts
            elif line.event == _SUMMARY:
                self.summary = line.facts
        return lines

    def stop(self, grace_s: float, is_impatient: Callable[[], bool]) -> int:
        """End it: SIGINT, after `grace_s` SIGTERM, 2 s later SIGKILL; returns its exit status.

        One that may still be starting gets SIGTERM at once: an interpreter interrupted in the
        middle of its imports complains at length. Ending by that counts as ending well.
        """
        early = not (self.is_ready and self.spec.has_ready_event)
        polite = signal.SIGTERM if early else signal.SIGINT
        for number, patience_s in ((polite, grace_s), (signal.SIGTERM, _LAST_GRACE_S)):
            if self.status is not None:
                break
            self.process.send_signal(number)
            self._wait(patience_s, is_impatient)
        if self.status is None:
            self.process.kill()
        status = self.process.wait()
        return 0 if early and status == -signal.SIGTERM else status

    def _wait(self, timeout_s: float, is_impatient: Callable[[], bool]) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and not is_impatient():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
                return


@dataclass(kw_only=True)
class Supervisor(contextlib.AbstractContextManager["Supervisor"]):
    """Runs a set of processes; as a context manager it leaves none behind."""

    specs: Sequence[ChildSpec]
    """The processes, in the order of their start."""
    folder: Path
    """Gets one log file per process."""
    env: Mapping[str, str]
    """Environment of the processes."""
    echo: Callable[[str, LogLine], None]
    """Called with a name and a line for every warning, error and unstructured line."""
    stop_order: Sequence[str] = ()
    """Names in the order to stop; the others are stopped last."""
    grace_s: float = 10.0
    """Longest wait for a process to end after SIGINT [s]."""
    restarts: int = 0
    """How often in a minute a process that died after its startup is started again."""
    is_impatient: Callable[[], bool] = lambda: False
    """Asked while waiting for an end; True skips the grace."""
    children: dict[str, Child] = field(default_factory=dict)
    deaths: list[str] = field(default_factory=list)
    """How processes died that were started again, each with its last lines."""
    _restarted_s: dict[str, deque[float]] = field(default_factory=dict)

    def start(self) -> None:
        for spec in self.specs:
            self.children[spec.name] = Child(spec, self.folder, self.env)

    @property
    def all_ready(self) -> bool:
        """Whether every process has finished its startup."""
        return all(child.is_ready for child in self.children.values())

    @property
    def not_ready(self) -> list[str]:
        return [child.name for child in self.children.values() if not child.is_ready]

    def poll(self) -> str | None:
        """Follow the logs, restart; returns the name of a process that ended as it may, else None.

        Raises:
            ServiceDied: one ended that must not; the message has the last lines of its log.
        """
        ended = None
        for child in tuple(self.children.values()):
            status = child.status
            self._follow(child)
            if status is None:
                continue
            if status == 0 and child.spec.may_end:
                ended = child.name
            elif child.spec.expendable and time.monotonic() - child.started_s < _PAUSE_S:
                continue  # one that cannot start must not take the processor
            elif child.spec.expendable or self._may_restart(child):
                if not child.spec.expendable:
                    self.deaths.append(_last_words(child, status))
                self.children[child.name] = Child(child.spec, self.folder, self.env, child)
            else:
                raise ServiceDied(_last_words(child, status))
        return ended

    def _may_restart(self, child: Child) -> bool:
        """Whether it had started up, and has not died too often; counts the restart."""
        if not (child.is_ready and child.spec.has_ready_event):
            return False
        now = time.monotonic()
        times = self._restarted_s.setdefault(child.name, deque())
        while times and now - times[0] > _RESTART_WINDOW_S:
            times.popleft()
        if len(times) >= self.restarts:
            return False
        times.append(now)
        return True

    def stop(self) -> dict[str, int]:
        rank = {name: index for index, name in enumerate(self.stop_order)}
        order = sorted(self.children.values(), key=lambda child: rank.get(child.name, len(rank)))
        statuses: dict[str, int] = {}
        for child in order:
            statuses[child.name] = child.stop(self.grace_s, self.is_impatient)
            self._follow(child)
        return statuses

    def _follow(self, child: Child) -> None:
        for line in child.follow():
            if line.is_loud:
                self.echo(child.name, line)

    def __exit__(self, *_: object) -> None:
        self.stop()


def _last_words(child: Child, status: int) -> str:
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    lines = "".join(f"\n    {line.readable()}" for line in child.last_lines)
    full = shutil.disk_usage(child.log_path.parent).free < _FULL_BYTES
    said = (
        ", which is incomplete: the disk is full" if full else "" if lines else ", which is empty"
    )
    return f"{child.name} ended {how}, log {child.log_path}{said}{lines}"
