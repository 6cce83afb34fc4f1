"""SIGINT, SIGTERM and SIGHUP end a run in order."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Generator
from types import FrameType

__all__ = ["Signals"]

_NAP_S = 0.2


class Signals:
    """Counts the signals that end a run: the first stops it in order, a second one at once."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        self.name = self.name or signal.Signals(number).name

    def wait(self, seconds: float) -> None:
        """Sleep for at most a fifth of a second, not at all after a signal."""
        if not self.count and seconds > 0.0:
            time.sleep(min(seconds, _NAP_S))

    @contextlib.contextmanager
    def caught(self) -> Generator[Signals, None, None]:
        """Count SIGINT, SIGTERM and SIGHUP inside the block."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
