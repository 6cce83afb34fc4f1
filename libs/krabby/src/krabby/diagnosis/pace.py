"""Whether the game loop keeps its period, from the records that its ticks publish at their end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from krabby.course.timing import BUSY, CONTROL_HZ
from krabby.diagnosis.findings import Finding

if TYPE_CHECKING:
    from krabby_proto import Message

__all__ = ["Pace", "check_pace"]

_NS: Final = 1e-9
_MOST_SCORE: Final = 3.0
"""A busy host explains no sign and no mount: those are found all the same, and come first."""


@dataclass(kw_only=True)
class Pace:
    """Periods of the game loop between records of `ticks` that follow one another."""

    due: int = 0
    late: int = 0
    """Those in which no tick ended; a tick may be half a period late."""
    longest_s: float = 0.0
    """From the end of a tick to that of the next [s]."""
    _before: tuple[int, int, int] = (0, 0, 0)
    """Writer, number and time [ns] of the newest record."""

    @property
    def share(self) -> float:
        """Of the periods that had no tick, 0 to 1."""
        return self.late / max(self.due, 1)

    def take(self, message: Message) -> None:
        """Count the next message of `ticks`, in order of time."""
        header, before = message.header, self._before
        self._before = (header.instance_id, header.sequence, header.publish_ns)
        if self._before[:2] != (before[0], before[1] + 1):
            return  # another game loop, or a record that is missing
        gap_s = (header.publish_ns - before[2]) * _NS
        periods = max(math.floor(gap_s * CONTROL_HZ + 0.5), 1)
        self.due += periods
        self.late += periods - 1
        self.longest_s = max(self.longest_s, gap_s)


def check_pace(pace: Pace) -> list[Finding]:
    """Ticks that a busy host made late; in lock-step there are none."""
    if pace.share <= BUSY:
        return []
    return [
        Finding(
            kind="late-ticks",
            score=min(pace.share / BUSY, _MOST_SCORE),
            evidence=f"{pace.share:.0%} of the ticks late, {pace.late} of {pace.due}, up to "
            f"{1e3 * pace.longest_s:.0f} ms from one to the next",
        )
    ]
