"""Who drives from the browser, and the deadmen that end it; without sockets or clock.

A page that drives sends its sticks 20 times a second. Motion needs all of these, and ends within
0.3 s when one is missing:

- the page is the driver's and has a stick or a key held;
- its newest message is fresh: a hidden, closed, frozen or disconnected page sends none, and
  messages that a stalled link delivers late do not count;
- the person did something in the last 2 s: a held key repeats, a stick moves.

Then zeros follow until the driver hands the robot back: no mission takes over from a person whose
browser has gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from krabby_cli.keys import DEADMAN_S, Nav, NavLimits

__all__ = ["FRESH_S", "Driving", "clamped"]

FRESH_S: Final = 0.25
"""A page's command counts for this long without the next one [s]."""
_LATE_S: Final = 0.25
"""A message that took so much longer than the fastest one is not fresh [s]."""
_DRIFT: Final = 1e-3
"""A browser's clock may run away from ours by this share."""


@dataclass
class _Page:
    """What one page sent."""

    offset_s: float = math.inf
    """Smallest difference of our clock to the page's: of the message that took the least time."""
    heard_s: float = -math.inf
    fresh_s: float = -math.inf
    """When the newest message came that was not late."""
    inputs: int = -1
    """The page's count of input events."""
    input_s: float = -math.inf
    """When that last rose."""
    sticks: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def rest(self) -> None:
        """Forget the sticks: motion needs another input."""
        self.sticks, self.fresh_s, self.input_s = (0.0, 0.0, 0.0), -math.inf, -math.inf

    def is_late(self, sent_s: float, now_s: float) -> bool:
        """Judge a message that the page stamped `sent_s` by its own clock [s]."""
        if math.isfinite(self.heard_s):
            self.offset_s += _DRIFT * (now_s - self.heard_s)
        self.heard_s = now_s
        offset_s = now_s - sent_s
        self.offset_s = min(self.offset_s, offset_s)
        return offset_s - self.offset_s > _LATE_S


class Driving:
    """The walking command of the page that drives. Times are on one clock of the caller [s]."""

    def __init__(self, limits: NavLimits) -> None:
        self._limits = limits
        self._pages: dict[int, _Page] = {}
        self.driver: int | None = None
        """Number of the page that drives."""
        self.engaged = False
        """Whether a person has taken the robot and not handed it back: zeros keep missions off."""

    def is_late(self, page: int, sent_s: float, now_s: float) -> bool:
        """Whether a message of a page took so long that it must not move or arm a robot."""
        return self._pages.setdefault(page, _Page()).is_late(sent_s, now_s)

    def take(self, page: int) -> None:
        """Let a page drive, from rest; the one before does no longer."""
        self.driver, self.engaged = page, True
        self._pages.setdefault(page, _Page()).rest()

    def hand_back(self, page: int) -> None:
        """End driving, by the driver or after the driver's page has gone: a mission may walk."""
        if self.driver in (page, None):
            self.driver, self.engaged = None, False

    def leave(self, page: int) -> None:
        """A page has gone. The robot it drove stays commanded to stand."""
        self._pages.pop(page, None)
        if self.driver == page:
            self.driver = None

    def hear(
        self, page: int, sticks: Sequence[float], inputs: int, sent_s: float, now_s: float
    ) -> bool:
        """Take the sticks of a page in; True if it drives.

        A page takes the robot with its first stick if there is no driver.

        Args:
            page: Number of the page.
            sticks: Forward, left and turn to the left, each -1 to 1; zeros when nothing is held.
            inputs: The page's count of input events of the person.
            sent_s: By the page's clock.
            now_s: Now.
        """
        told = self._pages.setdefault(page, _Page())
        late, wanted = told.is_late(sent_s, now_s), any(sticks)
        if self.driver is None and wanted and not late:
            self.take(page)
        if page != self.driver:
            return False
        if not wanted:
            told.sticks = (0.0, 0.0, 0.0)
        elif not late:
            forward, left, turn = (min(max(float(value), -1.0), 1.0) for value in sticks)
            told.sticks, told.fresh_s = (forward, left, turn), now_s
            if inputs > told.inputs:
                told.inputs, told.input_s = inputs, now_s
        return True

    def stop(self) -> None:
        """Rest until the person moves a stick again: after an e-stop or a request to sit."""
        for page in self._pages.values():
            page.rest()

    def command(self, now_s: float) -> Nav | None:
        """What the robot is commanded now; None when no person has taken it."""
        if not self.engaged:
            return None
        told = self._pages.get(self.driver) if self.driver is not None else None
        if told is None or now_s - told.fresh_s > FRESH_S or now_s - told.input_s >= DEADMAN_S:
            return Nav()
        forward, left, turn = told.sticks
        limits = self._limits
        return Nav(forward * limits.speed, left * limits.speed, turn * limits.yaw_rate)

    def left_s(self, now_s: float) -> float | None:
        """How long motion lasts without another input [s]; None while nothing moves."""
        nav = self.command(now_s)
        if nav is None or nav == Nav() or self.driver is None:
            return None
        return max(0.0, self._pages[self.driver].input_s + DEADMAN_S - now_s)


def clamped(nav: Nav, within: Mapping[str, Any] | None) -> Nav:
    """A command within the range of the policy's manifest, as the game loop's status has it.

    `within` is lowest and highest by axis; None for no limit.
    """
    for axis, limits in (within or {}).items():
        if axis in Nav._fields:
            low, high = limits
            nav = nav._replace(**{axis: min(max(getattr(nav, axis), low), high)})
    return nav
