"""SIGINT, SIGTERM and SIGHUP end a run in order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator
from types import FrameType

__all__ = ["Signals"]


class Signals:
    """Counts the signals that end a run: the first stops it in order, a second one at once."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        self.name = self.name or signal.Signals(number).name

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
