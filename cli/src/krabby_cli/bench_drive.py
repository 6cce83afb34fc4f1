"""`krabby drives bench`: one drive and one adapter on a bench, tried before the robot is built.

Each row is a claim of the emulated robot that only a drive can confirm: frames, unique number,
read-back, rate, latency, sense of motion, the drive's own time-out, a plug that is pulled.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from krabby.drivers.errors import DriveError

from krabby_cli.options import print_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from krabby.drivers.can.bus import CanJointBus
    from krabby.drivers.can.hardware import HardwareDescription
    from krabby.robot.description import RobotDescription

__all__ = ["Row", "alone", "bench"]

_CYCLE_NS: Final = 5_000_000
_REPLY_NS: Final = 4_000_000
_CYCLES: Final = 1000
"""Five seconds at the robot's rate."""
_MOST_MISSED: Final = 0.005
_SILENCE_S: Final = 0.15
"""A drive that hears nothing for so long has let go."""
_PULLED_S: Final = 60.0
"""How long the operator has to pull the plug, and to plug it in."""
_ARRAYS: Final = (
    "joint_lower", "joint_upper", "default_joint_pos", "kp", "kd", "velocity_limit",
    "rated_torque", "peak_torque", "no_load_speed", "armature",
)  # fmt: skip


class Row(NamedTuple):
    """One line of the bench's report."""

    name: str
    is_good: bool
    text: str
    """What was measured, and what it has to be."""


def alone(
    desc: RobotDescription, hardware: HardwareDescription, joint: int
) -> tuple[RobotDescription, HardwareDescription]:
    """A robot that consists of this joint's drive on its bus."""
    drive, one = hardware.drives[joint], slice(joint, joint + 1)
    changes: dict[str, Any] = {name: getattr(desc, name)[one] for name in _ARRAYS}
    single = dataclasses.replace(desc, joint_names=(drive.joint,), **changes)
    buses = tuple(bus for bus in hardware.buses if bus.name == drive.bus)
    return single, dataclasses.replace(hardware, buses=buses, drives=(drive,))


def bench(
    bus: CanJointBus,
    desc: RobotDescription,
    *,
    plug: Callable[[str], None] | None,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    wait: Callable[[float], None] = time.sleep,
    cycles: int = _CYCLES,
) -> bool:
    """Try the drive and print a row for each claim; whether all hold.

    Args:
        bus: Open, with this one drive on it.
        desc: The robot of this one joint.
        plug: Tells the operator what to do with the plug; None leaves that out.
        clock_ns: The clock of the bus.
        wait: Sleeps [s].
        cycles: Exchanges at 200 Hz.
    """
    good = True
    for row in _Bench(bus, desc, clock_ns, wait).rows(plug, cycles):
        print_line(f"{'ok' if row.is_good else 'fail':5} {row.name:12} {row.text}")
        good = good and row.is_good
    return good


class _Bench:
    """The drive, and the clock by which it is tried."""

    def __init__(
        self,
        bus: CanJointBus,
        desc: RobotDescription,
        clock_ns: Callable[[], int],
        wait: Callable[[float], None],
    ) -> None:
        self._bus, self._desc, self._clock_ns, self._wait = bus, desc, clock_ns, wait

    def rows(self, plug: Callable[[str], None] | None, cycles: int) -> Iterator[Row]:
        """Every claim, in the order in which it is tried."""
        bus = self._bus
        readings = bus.probe()
        number = bus.identities[0]
        yield Row("number", bool(number), number or "the drive does not say; update its firmware")
        bus.enable(readings)
        yield Row("switched on", True, "time-out, limits and ranges were written and read back")
        yield from self._rate(cycles)
        volts, heat = float(readings.voltage_v[0]), float(readings.temperature_c[0])
        yield Row("supply", not volts < 1.0, f"{volts:.1f} V at the drive, {heat:.0f} °C")
        yield self._motion()
        yield self._time_out()
        if plug is not None:
            yield from self._pulled(plug)

    def _exchange(self) -> float:
        """One cycle with a limp drive; milliseconds from its begin to the arrival of the answer."""
        from krabby.drivers.can import DriveTargets

        began_ns = self._clock_ns()
        targets = DriveTargets.limp(1, self._desc.safety.damp_kd)
        readings = self._bus.exchange(targets, began_ns + _REPLY_NS)
        self._wait(max(0.0, (began_ns + _CYCLE_NS - self._clock_ns()) * 1e-9))
        return (int(readings.stamp_ns[0]) - began_ns) * 1e-6

    def _rate(self, cycles: int) -> Iterator[Row]:
        readings = self._bus.readings
        missed = int(readings.missed[0])
        answers = np.array([self._exchange() for _ in range(cycles)])
        missed = int(readings.missed[0]) - missed
        text = f"{missed} of {cycles} at 200 Hz (at most {_MOST_MISSED:.1%})"
        yield Row("missed", missed <= _MOST_MISSED * cycles, text)
        answers = answers[answers >= 0.0]
        p50, p99 = np.quantile(answers, (0.5, 0.99)) if answers.size else (np.nan, np.nan)
        text = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms after the command (below 4)"
        yield Row("latency", bool(p99 < 4.0), text)
        load = max(self._bus.bus_load.values())
        yield Row("bus load", load < 0.2, f"{load:.1%}, one drive of the six that share a bus")

    def _motion(self) -> Row:
        from krabby.drivers.can.wiggle import wiggle

        try:
            moved = wiggle(self._bus, self._desc, 0, clock_ns=self._clock_ns, wait=self._wait)
        except DriveError as error:
            return Row("motion", False, str(error))
        way = "grew" if moved.way > 0 else "fell"
        text = f"turned by {moved.travel[0]:.2f} rad (0.2) and back; its angle {way} first"
        return Row("motion", bool(moved.travel[0] < 0.3), text)

    def _time_out(self) -> Row:
        """Say nothing for a while: a drive that lost its host has to be off by itself."""
        from krabby.drivers.can import DriveMode

        self._exchange()
        self._wait(_SILENCE_S)
        self._exchange()
        is_off = bool(self._bus.readings.mode[0] == DriveMode.OFF)
        text = "let go" if is_off else "it still runs: look at canTimeout with the maker's tool"
        return Row("time-out", is_off, f"{_SILENCE_S * 1e3:.0f} ms without a command: {text}")

    def _pulled(self, plug: Callable[[str], None]) -> Iterator[Row]:
        self._bus.recover()
        plug("pull the adapter's plug, or the drive's")
        found = self._until_lost()
        yield Row("unplugged", found, "named" if found else f"not noticed in {_PULLED_S:g} s")
        plug("plug it in again")
        problem = self._until_back()
        yield Row("plugged in", not problem, problem or "found, asked and switched on again")

    def _until_lost(self) -> bool:
        from krabby.drivers.can import DriveFault

        lost = int(DriveFault.NO_REPLY | DriveFault.BUS_OFF)
        end_ns = self._clock_ns() + round(_PULLED_S * 1e9)
        while self._clock_ns() < end_ns:
            self._exchange()
            if int(self._bus.readings.faults[0]) & lost:
                return True
        return False

    def _until_back(self) -> str:
        """Why the drive does not come back; empty when it does."""
        problem = "it was not tried"
        end_ns = self._clock_ns() + round(_PULLED_S * 1e9)
        while problem and self._clock_ns() < end_ns:
            try:
                self._bus.recover()
                problem = ""
            except DriveError as error:
                problem = str(error)
                self._wait(0.5)
        return problem
