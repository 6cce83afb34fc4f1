"""Inject a fault into a walking robot and measure what comes of it."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final, NamedTuple

from krabby.runtime.testing import until, worst_lateness
from krabby_proto import ProtoError, SafetyState

from krabby_faults.stack import Stack
from krabby_faults.table import Fault

__all__ = ["LIMITS", "Row", "measure", "measure_patiently"]


class Limits(NamedTuple):
    """What is required of every row."""

    safe_ms: float = 150.0
    since_publish_ms: float = 25.0
    since_capture_ms: float = 100.0
    rate: float = 1.0 + 1e-6
    beyond_rad: float = 0.0


LIMITS: Final = Limits()
_SAFE: Final = (SafetyState.HOLD, SafetyState.DAMP, SafetyState.ESTOP, SafetyState.DISARMED)
_LIMP: Final = _SAFE[1:]
_RECOVERY_S: Final = 60.0
_BUSY_S: Final = 0.01
_WATCH_S: Final = 0.4


class Row(NamedTuple):
    """What was measured; times from the injection."""

    fault: str
    robot: str
    """`simulated` or `emulated`, and `in containers`."""
    becomes: str
    """What it has to become."""
    safe_ms: float | None
    """Until the gate follows no command any more, or no drive holds; None: not within the fault."""
    limp_ms: float | None
    """Until the robot is damped."""
    by: str
    """Who stopped it: the gate, or the drives' own watchdogs."""
    commands: int
    """Applied from the injection to the end of the recovery."""
    since_publish_ms: float | None
    """Oldest applied command, since it was published; None where it is not seen."""
    since_capture_ms: float
    """The same since the state it answers was measured."""
    stale: int
    """Commands applied beyond these limits."""
    rate: float | None
    """Fastest change of a target over the limit of its joint; None where it is not seen."""
    beyond_rad: float | None
    """Farthest target beyond the range of its joint; None where it is not seen."""
    measured_beyond_rad: float | None
    """Farthest measured joint beyond its range; negative within."""
    recovery_s: float | None
    """From the repair to walking; None: not within a minute."""
    recovered: str
    """`by itself`, or `armed` by an operator."""

    def problems(self) -> list[str]:
        """What is not as it has to be."""
        found = []
        simulation_stopped = self.safe_ms is None and self.by == "simulation"
        if self.becomes in ("limp", "holds") and not simulation_stopped:
            if self.safe_ms is None:
                found.append("no safe state")
            elif self.safe_ms > LIMITS.safe_ms:
                found.append(f"safe after {self.safe_ms:.0f} ms")
        if self.becomes == "limp" and self.limp_ms is None and not simulation_stopped:
            found.append("never limp")
        if self.stale:
            found.append(f"{self.stale} stale commands applied")
        if (self.rate or 0.0) > LIMITS.rate:
            found.append(f"rate {self.rate:.6f} of its limit")
        if (self.beyond_rad or 0.0) > LIMITS.beyond_rad:
            found.append(f"target {self.beyond_rad:.3f} rad beyond the range")
        if self.recovery_s is None:
            found.append("did not walk again")
        return found

    def facts(self) -> dict[str, Any]:
        """For the report, with what is not as it has to be."""
        return {**self._asdict(), "problems": self.problems()}


def measure_patiently(stack: Stack, fault: Fault, attempts: int = 3) -> Row:
    """`measure`, again where nothing but times was exceeded and this machine had no time.

    It had none if a sleep of this process was 10 ms late meanwhile. Old commands and targets beyond
    their limits are never excused.
    """
    for _ in range(attempts - 1):
        with worst_lateness() as late_s:
            row = measure(stack, fault)
            was_busy = late_s() > _BUSY_S
        beyond = (row.rate or 0.0) > LIMITS.rate or (row.beyond_rad or 0.0) > LIMITS.beyond_rad
        if row.stale or beyond or not was_busy or not row.problems():
            return row
    return measure(stack, fault)


def measure(stack: Stack, fault: Fault) -> Row:
    """One fault from a walk to the next."""
    stack.make_walk()
    _walk_for(stack, 0.7)
    stack.joints.beyond_rad = -float("inf")
    began_ns = time.monotonic_ns()
    fault.inject(stack)
    watch_s = min(fault.lasts_s, _WATCH_S) if stack.robot == "emulated" else 0.0
    drives_ns = _watch_drives(stack, watch_s)
    left_s = fault.lasts_s - (time.monotonic_ns() - began_ns) * 1e-9
    time.sleep(max(left_s, 0.0))
    mended_ns = time.monotonic_ns()
    fault.mend(stack)
    recovery_s, recovered = _recover(stack, mended_ns)
    stops_simulation = stack.robot == "simulated" and fault.name.startswith("hal ")
    safe_ns, limp_ns, by = _times(
        stack, began_ns, mended_ns, drives_ns, stops_simulation=stops_simulation
    )
    worst = stack.probe.worst(began_ns)
    return Row(
        fault=fault.name,
        robot=stack.robot,
        becomes=fault.becomes,
        safe_ms=_ms(safe_ns, began_ns),
        limp_ms=_ms(limp_ns, began_ns),
        by=by,
        commands=worst.commands,
        since_publish_ms=worst.since_publish_s * 1e3,
        since_capture_ms=worst.since_capture_s * 1e3,
        stale=stack.probe.stale(
            began_ns, LIMITS.since_publish_ms * 1e-3, LIMITS.since_capture_ms * 1e-3
        ),
        rate=worst.rate,
        beyond_rad=worst.beyond_rad,
        measured_beyond_rad=float(stack.joints.beyond_rad),
        recovery_s=recovery_s,
        recovered=recovered,
    )


def _walk_for(stack: Stack, seconds: float) -> None:
    """So long without a stop; armed again when this machine stumbles."""
    since_s = time.monotonic()
    while time.monotonic() - since_s < seconds:
        if not stack.is_walking:
            stack.make_walk()
            since_s = time.monotonic()
        time.sleep(0.05)


def _watch_drives(stack: Stack, seconds: float) -> int | None:
    """When no drive of the emulated robot held a position any more [ns]."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        with contextlib.suppress(ProtoError):
            running, now_ns = stack.drives_running()
            if not running:
                return now_ns
        time.sleep(0.002)
    return None


def _recover(stack: Stack, mended_ns: int) -> tuple[float | None, str]:
    """How long until it walks again, and whether it had to be armed for that."""
    with contextlib.suppress(TimeoutError):
        until(lambda: stack.is_walking, timeout_s=0.6)
        return (time.monotonic_ns() - mended_ns) * 1e-9, "by itself"
    try:
        armed = stack.make_walk(_RECOVERY_S)
    except TimeoutError:
        return None, "not"
    return (time.monotonic_ns() - mended_ns) * 1e-9, "armed" if armed else "by itself"


def _times(
    stack: Stack, began_ns: int, mended_ns: int, drives_ns: int | None, *, stops_simulation: bool
) -> tuple[int | None, int | None, str]:
    """When it was safe and when limp, and who saw to it."""
    entered = [
        one for one in stack.probe.entered(began_ns) if one.time_ns <= mended_ns + 200_000_000
    ]
    safe_ns = next((one.time_ns for one in entered if one.state in _SAFE), None)
    limp_ns = next((one.time_ns for one in entered if one.state in _LIMP), None)
    by = "gate"
    if stops_simulation:
        return None, None, "simulation"
    if drives_ns is not None and (limp_ns is None or drives_ns < limp_ns):
        limp_ns, by = drives_ns, "drives"
        safe_ns = drives_ns if safe_ns is None else min(safe_ns, drives_ns)
    return safe_ns, limp_ns, by


def _ms(time_ns: int | None, began_ns: int) -> float | None:
    return None if time_ns is None else (time_ns - began_ns) * 1e-6
