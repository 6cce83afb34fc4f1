"""What a paced loop says about itself: the same numbers to the exposition and to the summary."""

from __future__ import annotations

from krabby.runtime.metrics import (
    DEADLINE_MISSES,
    LOOP_LATENESS,
    LOOP_LATENESS_MAX,
    LOOP_PERIOD,
    SKIPPED_CYCLES,
    Quantiles,
)
from krabby.runtime.rate import Rate, Tick

__all__ = ["LoopStats", "WindowMax"]


class WindowMax:
    """Largest value of the last one to two windows: the single spike a scrape would never see."""

    __slots__ = ("_before", "_current", "_started_ns", "_window_ns")

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_ns = round(window_s * 1e9)
        self._started_ns: int | None = None
        self._before = 0.0
        self._current = 0.0

    def add(self, value: float, now_ns: int) -> bool:
        """Take a value in; says whether `maximum` changed."""
        if self._started_ns is None:
            self._started_ns = now_ns
        changed = False
        if now_ns - self._started_ns >= self._window_ns:
            self._before, self._current, self._started_ns = self._current, 0.0, now_ns
            changed = True
        if value > self._current:
            self._current = value
            changed = True
        return changed

    @property
    def maximum(self) -> float:
        """The largest value of the running window and the one before it."""
        return max(self._before, self._current)


class LoopStats:
    """Counts and quantiles of one loop; `begin` and `end` around the work of each slot."""

    def __init__(self, rate: Rate) -> None:
        """Watch a loop paced by `rate`."""
        self._rate = rate
        self._scheduled_ns = 0
        self._woke_ns = 0
        self._first_woke_ns = 0
        self._worst = WindowMax()
        self.ticks = 0
        """Slots run."""
        self.skipped = 0
        """Slots lost after the first one."""
        self.deadline_misses = 0
        """Slots whose work ended after their deadline."""
        self.lateness = Quantiles()
        """Wake-up lateness [s]."""
        self.work = Quantiles()
        """Work per slot [s], wake-up to `end`."""

    def begin(self, tick: Tick) -> None:
        """A slot starts."""
        lateness_s = tick.lateness_s
        if self.ticks:
            LOOP_PERIOD.observe((tick.woke_ns - self._woke_ns) * 1e-9)
            if tick.skipped:
                self.skipped += tick.skipped
                SKIPPED_CYCLES.inc(tick.skipped)
        else:
            self._first_woke_ns = tick.woke_ns
        self.ticks += 1
        self._scheduled_ns, self._woke_ns = tick.scheduled_ns, tick.woke_ns
        LOOP_LATENESS.observe(lateness_s)
        self.lateness.add(lateness_s)
        if self._worst.add(lateness_s, tick.woke_ns):
            LOOP_LATENESS_MAX.set(self._worst.maximum)

    def end(self, now_ns: int, *, deadline_ns: int | None = None) -> bool:
        """A slot's work is done; says whether that was in time.

        Args:
            now_ns: The loop's clock [ns].
            deadline_ns: When it had to be done [ns]; the end of the slot by default.
        """
        self.work.add((now_ns - self._woke_ns) * 1e-9)
        due = self._scheduled_ns + self._rate.period_ns if deadline_ns is None else deadline_ns
        if now_ns <= due:
            return True
        self.deadline_misses += 1
        DEADLINE_MISSES.inc()
        return False

    @property
    def late(self) -> int:
        """Slots whose work ended late, and those lost."""
        return self.deadline_misses + self.skipped

    @property
    def hz(self) -> float:
        """Slots run per second, first wake-up to last; 0 before the second."""
        elapsed_ns = self._woke_ns - self._first_woke_ns
        return (self.ticks - 1) / (elapsed_ns * 1e-9) if elapsed_ns > 0 else 0.0

    def summary(self) -> dict[str, float]:
        """Facts for the summary event."""
        return {
            "ticks": self.ticks,
            "loop_hz": round(self.hz, 3),
            "deadline_misses": self.deadline_misses,
            "skipped": self.skipped,
            **self.lateness.summary_ms("lateness"),
            **self.work.summary_ms("work"),
        }
