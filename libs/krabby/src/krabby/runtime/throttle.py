"""Log lines that repeat, at most once per period.

Apart from `krabby.runtime.logging`, so that a library may limit its warnings without the process's
output and metrics.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

__all__ = ["log_every"]


class Throttle:
    """A logger that logs each event at most once per period and counts those left out."""

    def __init__(self, log: Any, period_s: float, clock: Callable[[], int]) -> None:
        self._log = log
        self._period_ns = round(period_s * 1e9)
        self._clock = clock
        self._said: dict[str, list[int]] = {}  # event -> [logged at, left out since]
        self.info, self.warning, self.error = (
            functools.partial(self._say, level) for level in ("info", "warning", "error")
        )

    def _say(self, level: str, event: str, **facts: Any) -> None:
        now = self._clock()
        last = self._said.get(event)
        if last is None:
            self._said[event] = [now, 0]
        elif now - last[0] < self._period_ns:
            last[1] += 1
            return
        else:
            if last[1]:
                facts["suppressed"] = last[1]
            last[0], last[1] = now, 0
        getattr(self._log, level)(event, **facts)


def log_every(
    log: Any, period_s: float = 1.0, *, clock: Callable[[], int] = time.monotonic_ns
) -> Throttle:
    """Limit repeated events of `log`: each event text at most once per `period_s`.

    The next line that comes through says how many were left out. Keep event texts constant and put
    what varies into the facts, or every line is a new event.
    """
    return Throttle(log, period_s, clock)
