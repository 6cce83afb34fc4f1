"""Run a service as `python -m krabby_faults.probe FILE MODULE ARGS`, watched from within.

In a HAL it notes in FILE every command that the gate applied and every change of the gate's state,
by looking at the gate from outside: ages, change of target, distance to the limits are computed
here, not taken from the code that is tested.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from krabby.hal.handler import GateHandler
from krabby_proto import Message, SafetyState

__all__ = ["Applied", "Entered", "Probe", "Worst"]

_ROWS: Final = 2_000_000
"""Of 6 float64: 96 MB as a sparse file, an hour and a half at 100 commands a second."""
_WIDTH: Final = 6
_STATE, _COMMAND = 1.0, 2.0
_RATE_SLACK_S: Final = 20e-9


class Entered(NamedTuple):
    """The gate entered a state."""

    time_ns: int
    state: SafetyState


class Applied(NamedTuple):
    """A command became the gate's target."""

    time_ns: int
    since_publish_s: float
    since_capture_s: float
    rate: float
    """Fastest joint: change of target over what its rate limit allows in that time."""
    beyond_rad: float
    """Target beyond the mechanical range; 0 within."""


class Worst(NamedTuple):
    """Over the commands of a time."""

    commands: int
    since_publish_s: float
    since_capture_s: float
    rate: float
    beyond_rad: float


class Probe:
    """What a probed HAL has written so far; its restarts write on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(_ROWS * _WIDTH * 8)
        self._rows = np.memmap(path, np.float64, "r+", shape=(_ROWS, _WIDTH))

    @property
    def _count(self) -> int:
        return int(self._rows[0, 0])

    def _since(self, kind: float, since_ns: int) -> np.ndarray:
        rows = self._rows[1 : 1 + self._count]
        first = int(np.searchsorted(rows[:, 1], since_ns))
        return rows[first:][rows[first:, 0] == kind]

    def entered(self, since_ns: int) -> Iterator[Entered]:
        """Changes of the gate's state from a time on."""
        for row in self._since(_STATE, since_ns):
            yield Entered(int(row[1]), SafetyState(int(row[2])))

    def worst(self, since_ns: int) -> Worst:
        """The worst of each figure over the commands applied from a time on."""
        rows = self._since(_COMMAND, since_ns)
        if not len(rows):
            return Worst(0, 0.0, 0.0, 0.0, 0.0)
        return Worst(len(rows), *(float(value) for value in rows[:, 2:].max(axis=0)))

    def stale(self, since_ns: int, publish_s: float, capture_s: float) -> int:
        """Commands applied from a time on that were older than either limit."""
        rows = self._since(_COMMAND, since_ns)
        return int(((rows[:, 2] > publish_s) | (rows[:, 3] > capture_s)).sum())

    def write(self, kind: float, time_ns: int, *values: float) -> None:
        """Append a row; what does not fit is lost."""
        index = self._count + 1
        if index < _ROWS:
            self._rows[index, : 2 + len(values)] = (kind, time_ns, *values)
            self._rows[0, 0] = index


def _watch(probe: Probe) -> None:
    """Look at every gate of this process."""
    on_command, write = GateHandler.on_command, GateHandler._write
    known: dict[int, SafetyState] = {}

    def watched_command(self: GateHandler, message: Message):  # noqa: ANN202
        gate, now_ns = self.gate, self.backend.clock_ns()
        before, moved_ns = gate.target, gate._target.moved_ns
        outcome = on_command(self, message)
        if outcome.status.name == "APPLIED":
            after, cfg = gate.target, gate.cfg
            # Between the two readings of the clock time passes: judged by the later.
            later_ns = self.backend.clock_ns()
            dt_s = min((later_ns - moved_ns) * 1e-9, cfg.max_target_step_s) + _RATE_SLACK_S
            rate = float((np.abs(after - before) / (cfg.max_rate * dt_s)).max())
            beyond = float(np.maximum(cfg.lower - after, after - cfg.upper).max())
            header = message.header
            probe.write(
                _COMMAND, now_ns, (now_ns - header.publish_ns) * 1e-9,
                (now_ns - header.capture_ns) * 1e-9, rate, max(beyond, 0.0),
            )  # fmt: skip
        return outcome

    def watched_write(self: GateHandler, now_ns: int, delay_ns: int = 0) -> int:
        written = write(self, now_ns, delay_ns)
        state = self.gate.state
        if known.get(id(self)) is not state:
            known[id(self)] = state
            probe.write(_STATE, time.monotonic_ns(), int(state))
        return written

    GateHandler.on_command = watched_command
    GateHandler._write = watched_write


def main() -> int:
    """Run the service; returns its exit status."""
    path, module, *arguments = sys.argv[1:]
    if path != os.devnull:
        _watch(Probe(Path(path)))
    sys.argv = [module, *arguments]
    return importlib.import_module(f"{module}.__main__").main()


if __name__ == "__main__":
    sys.exit(main())
