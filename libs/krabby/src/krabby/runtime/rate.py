"""Pacing on an absolute grid.

A loop that sleeps "the rest of the period" drifts by its own wake-up time every cycle. This one
sleeps until the next multiple of the period: the rate is exact, jitter does not add up, and because
the grid is anchored at multiples of the period of CLOCK_MONOTONIC (plus a phase), two processes of
one host keep a fixed phase relation without talking to each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Rate", "Tick", "sleep_until_ns"]


class Tick(NamedTuple):
    """One slot of the grid, as it was met."""

    scheduled_ns: int
    """When the slot began on the grid [ns]."""
    woke_ns: int
    """When the loop got the processor for it [ns]."""
    skipped: int
    """Slots lost since the previous tick."""

    @property
    def lateness_s(self) -> float:
        """Seconds between the grid and the wake-up."""
        return (self.woke_ns - self.scheduled_ns) * 1e-9


def sleep_until_ns(deadline_ns: int) -> None:
    """Sleep until CLOCK_MONOTONIC reads `deadline_ns`.

    `time.sleep` sets an absolute deadline itself since Python 3.11 (README, pacing).
    """
    remaining_ns = deadline_ns - time.monotonic_ns()
    if remaining_ns > 0:
        time.sleep(remaining_ns * 1e-9)


class Rate:
    """Wakes the caller on an absolute grid; missed slots are skipped and counted, the phase stays.

    A slot missed by less than `grace` of a period is still run, late, and the following ones are
    on the grid again. One missed by more is skipped: running it would crowd the next.
    """

    def __init__(
        self,
        period_s: float,
        *,
        phase_s: float = 0.0,
        grace: float = 0.5,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep_until: Callable[[int], None] = sleep_until_ns,
    ) -> None:
        """Lay the grid; the first slot is the next one after now.

        Args:
            period_s: Slot length [s].
            phase_s: Offset of the grid from the multiples of the period [s].
            grace: Share of a period by which a slot may be late and still be run.
            clock: Monotonic nanoseconds.
            sleep_until: Blocks until `clock` reads at least its argument [ns].
        """
        period_ns = round(period_s * 1e9)
        if period_ns <= 0:
            raise ValueError(f"period must be positive, got {period_s} s")
        if not 0.0 <= grace < 1.0:
            raise ValueError(f"grace must be 0 to below 1, got {grace}")
        self.period_ns = period_ns
        """Slot length [ns]."""
        self._phase_ns = round(phase_s * 1e9) % period_ns
        self._grace_ns = round(grace * period_ns)
        self._clock = clock
        self._sleep_until = sleep_until
        self.next_deadline_ns = 0
        """Begin of the next slot [ns]: what must be finished by then to be in time."""
        self.ticks = 0
        """Slots run."""
        self.skipped = 0
        """Slots lost."""
        self.reset()

    def reset(self) -> None:
        """Aim at the first slot after now without counting the ones before as lost."""
        since = self._clock() - self._phase_ns
        self.next_deadline_ns = (since // self.period_ns + 1) * self.period_ns + self._phase_ns

    def wait(self) -> Tick:
        """Sleep until the next slot; returns at once when it is due and still worth running."""
        period_ns = self.period_ns
        now = self._clock()
        due = self.next_deadline_ns
        skipped = 0
        overrun = now - due - self._grace_ns
        if overrun > 0:
            skipped = -(-overrun // period_ns)
            due += skipped * period_ns
        while now < due:
            self._sleep_until(due)
            now = self._clock()
        if now - due >= period_ns:  # overslept whole slots
            missed = (now - due) // period_ns
            skipped += missed
            due += missed * period_ns
        self.next_deadline_ns = due + period_ns
        self.skipped += skipped
        self.ticks += 1
        return Tick(due, now, skipped)
