"""Walking commands: whose counts, how old one may be, how fast it may change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import numpy as np
import structlog
from krabby_proto import FLAG_OPERATOR, MAX_AHEAD_NS, Message
from numpy.typing import NDArray

from krabby.control.config import FreshnessCfg, NavCfg
from krabby.control.tape import Tape

__all__ = ["AXES", "REFUSAL_REASONS", "NavFilter", "WalkingCommand"]

log = structlog.get_logger(__name__)

RefusalReason = Literal["nonfinite", "future", "stale"]
AXES: Final[tuple[str, ...]] = ("vx", "vy", "yaw_rate")
REFUSAL_REASONS: Final[tuple[RefusalReason, ...]] = ("nonfinite", "future", "stale")
NavSource = Literal["operator", "mission", "none"]

_CUT: Final = 1e-6
"""More than the rounding of float32, by which a command at a limit may be beyond it."""
_LONGEST_STEP_S: Final = 0.05
"""A command changes by this much time's worth at most, however late the tick is."""


class Refusal(NamedTuple):
    """Why a message was left out."""

    reason: RefusalReason
    age_s: float
    """Since its capture, by the clock it was judged by; negative: stamped ahead [s]."""


class WalkingCommand(NamedTuple):
    """A message that was taken."""

    values: NDArray[np.float64]
    """vx, vy [m/s], yaw_rate [rad/s], shape (3,)."""
    stamp_ns: int
    """Its capture, or its arrival if that was earlier [ns]."""


class NavFilter:
    """Turns what arrives on `nav` into what the policy is asked to walk.

    A mission's stamps and time-out are on the clock of the states, which is simulated in lock-step.
    An operator's are on the host's clock always, and so is the time for which missions wait.
    """

    def __init__(
        self,
        limits: NavCfg,
        freshness: FreshnessCfg,
        *,
        host_clock: Callable[[], int] = time.monotonic_ns,
        tape: Tape | None = None,
    ) -> None:
        self._bound = np.array([limits.max_vx, limits.max_vy, limits.max_yaw_rate])
        self._slew = np.array([limits.max_acc, limits.max_acc, limits.max_yaw_acc])
        self._timeout_ns = round(freshness.nav_s * 1e9)
        self._operator_ns = round(freshness.operator_s * 1e9)
        self._tape = tape
        self._host_clock = host_clock
        self._operator: WalkingCommand | None = None
        self._operator_until_ns: int | None = None
        self._mission: WalkingCommand | None = None
        self._forgotten_ns: dict[bool, int] = {}
        """When commands were forgotten last, by the operator's and by the mission's clock [ns]."""
        self._stepped_ns: int | None = None
        self.source: NavSource = "none"
        """Who drove in the last step."""
        self.command: NDArray[np.float64] = np.zeros(3)
        """vx, vy [m/s], yaw_rate [rad/s], limited, shape (3,)."""
        self.asked: NDArray[np.float64] = np.zeros(3)
        """What the last step was asked for, before any limit, shape (3,)."""
        self.clamped: tuple[str, ...] = ()
        """Of `AXES`, those that the last step was asked for beyond a limit."""
        self.clamped_steps: dict[str, int] = dict.fromkeys(AXES, 0)
        """Steps in which that was so."""
        self._told: set[tuple[str, float, float]] = set()

    def receive(self, message: Message, now_ns: int) -> Refusal | None:
        """Take a message in; messages of several writers may come in any order.

        An operator's message counts as spoken even if its command is refused: missions wait and
        the robot stands still.

        Args:
            message: As it came off the wire.
            now_ns: The loop's clock, read after the message arrived [ns].

        Returns:
            Why it is left out; None when it was taken.
        """
        if self._tape is not None:
            self._tape.add_nav(message, now_ns)
        is_operator = bool(message.flags & FLAG_OPERATOR)
        clock_ns = now_ns
        if is_operator:
            clock_ns = self._host_clock()
            self._operator_until_ns = clock_ns + self._operator_ns
        reason = self._refusal(message, clock_ns)
        if reason is not None:
            return Refusal(reason, message.age_s(clock_ns))
        if message.capture_ns <= self._forgotten_ns.get(is_operator, -1) <= clock_ns:
            return None
        command = WalkingCommand(
            message.payload.astype(np.float64), min(message.capture_ns, clock_ns)
        )
        if is_operator:
            self._operator = _newer(self._operator, command, clock_ns)
        else:
            self._mission = _newer(self._mission, command, clock_ns)
        return None

    def _refusal(self, message: Message, clock_ns: int) -> RefusalReason | None:
        if not np.isfinite(message.payload).all():
            return "nonfinite"
        if max(message.capture_ns, message.header.publish_ns) - clock_ns > MAX_AHEAD_NS:
            return "future"
        if clock_ns - message.capture_ns > self._timeout_ns:
            return "stale"
        return None

    def step(
        self, now_ns: int, within: NDArray[np.float64] | None = None, *, halt: bool = False
    ) -> NDArray[np.float64]:
        """The command of this tick; goes to zero when there is no recent one.

        Args:
            now_ns: The loop's clock [ns].
            within: Lowest and highest command of the policy that walks, shape (2, 3); None: any.
            halt: Whether it goes to zero in any case.
        """
        host_ns = self._host_clock()
        until_ns = self._operator_until_ns
        if until_ns is not None and host_ns < until_ns:
            source, wanted = "operator", self._fresh(self._operator, host_ns)
        else:
            wanted = self._fresh(self._mission, now_ns)
            source = "none" if wanted is None else "mission"
        self._tell(source)
        dt_s = 0.0 if self._stepped_ns is None else (now_ns - self._stepped_ns) * 1e-9
        self._stepped_ns = now_ns
        reach = self._slew * min(max(dt_s, 0.0), _LONGEST_STEP_S)
        self.asked = np.zeros(3) if wanted is None else wanted
        if halt:
            target, self.clamped = np.zeros(3), ()
        else:
            target = self._clamp(self.asked, within)
        self.command = np.clip(target, self.command - reach, self.command + reach)
        return self.command

    def _clamp(
        self, asked: NDArray[np.float64], within: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Cut to the limits of configuration and policy; logs each limit that cuts once."""
        low, high = -self._bound, self._bound
        if within is not None:
            low, high = np.maximum(low, within[0]), np.minimum(high, within[1])
        target = np.clip(asked, low, high)
        cut = np.abs(target - asked) > _CUT
        self.clamped = tuple(axis for axis, is_cut in zip(AXES, cut, strict=True) if is_cut)
        for axis in self.clamped:
            self.clamped_steps[axis] += 1
            i = AXES.index(axis)
            limit = (axis, float(low[i]), float(high[i]))
            if limit not in self._told:
                self._told.add(limit)
                log.warning(
                    "walking command clamped",
                    axis=axis,
                    asked=round(float(asked[i]), 4),
                    low=limit[1],
                    high=limit[2],
                )
        return target

    def _fresh(self, command: WalkingCommand | None, clock_ns: int) -> NDArray[np.float64] | None:
        # Simulated time starts again when the HAL does: a stamp ahead of it is from before.
        if command is None or not 0 <= clock_ns - command.stamp_ns <= self._timeout_ns:
            return None
        return command.values

    def _tell(self, source: NavSource) -> None:
        """Log the source of walking commands; an operator that fell silent is a warning."""
        if source == self.source:
            return
        say = log.warning if self.source == "operator" else log.info
        say("walking commands", now=source, before=self.source)
        self.source = source

    def forget(self, now_ns: int) -> None:
        """Drop what was asked for up to now, also what arrives later; a person still outranks."""
        self._operator = self._mission = None
        self._forgotten_ns = {True: self._host_clock(), False: now_ns}
        self.restart()

    def restart(self) -> None:
        """Rise from zero again: the next walk begins from standing."""
        self.command = np.zeros(3)


def _newer(known: WalkingCommand | None, command: WalkingCommand, clock_ns: int) -> WalkingCommand:
    """The later capture of two counts, so that a backlog displaces no fresh command."""
    if known is not None and command.stamp_ns < known.stamp_ns <= clock_ns:
        return known
    return command
