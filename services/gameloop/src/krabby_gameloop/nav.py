"""Walking commands: whose counts, how old one may be, how fast it may change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from krabby_proto import FLAG_OPERATOR

if TYPE_CHECKING:
    from krabby_proto import Message
    from numpy.typing import NDArray

    from krabby_gameloop.config import FreshnessCfg, NavCfg

__all__ = ["NavFilter"]

_LONGEST_STEP_S = 0.05
"""A command changes by this much time's worth at most, however late the tick is."""


class NavFilter:
    """Turns what arrives on `nav` into what the policy is asked to walk."""

    def __init__(self, limits: NavCfg, freshness: FreshnessCfg) -> None:
        self._bound = np.array([limits.max_vx, limits.max_vy, limits.max_yaw_rate])
        self._slew = np.array([limits.max_acc, limits.max_acc, limits.max_yaw_acc])
        self._timeout_ns = round(freshness.nav_s * 1e9)
        self._operator_ns = round(freshness.operator_s * 1e9)
        self._wanted = np.zeros(3)
        self._wanted_ns: int | None = None
        self._operator_until_ns = 0
        self._stepped_ns: int | None = None
        self.command: NDArray[np.float64] = np.zeros(3)
        """vx, vy [m/s], yaw_rate [rad/s], limited, shape (3,)."""

    def receive(self, message: Message) -> bool:
        """Take a message in; False when it is not finite. A mission's yields to a person's."""
        if not np.isfinite(message.payload).all():
            return False
        if message.flags & FLAG_OPERATOR:
            self._operator_until_ns = message.capture_ns + self._operator_ns
        elif message.capture_ns < self._operator_until_ns:
            return True
        self._wanted = np.clip(message.payload.astype(np.float64), -self._bound, self._bound)
        self._wanted_ns = message.capture_ns
        return True

    def step(self, now_ns: int) -> NDArray[np.float64]:
        """The command of this tick; goes to zero when nobody has asked for anything lately."""
        # Another clock's stamp may lie ahead (a person's in lock-step) and must time out as well.
        if self._wanted_ns is not None:
            self._wanted_ns = min(self._wanted_ns, now_ns)
        self._operator_until_ns = min(self._operator_until_ns, now_ns + self._operator_ns)
        silent = self._wanted_ns is None or now_ns - self._wanted_ns > self._timeout_ns
        wanted = np.zeros(3) if silent else self._wanted
        dt_s = 0.0 if self._stepped_ns is None else (now_ns - self._stepped_ns) * 1e-9
        self._stepped_ns = now_ns
        reach = self._slew * min(max(dt_s, 0.0), _LONGEST_STEP_S)
        self.command = np.clip(wanted, self.command - reach, self.command + reach)
        return self.command

    def restart(self) -> None:
        """Rise from zero again: whoever walks next begins from standing."""
        self.command = np.zeros(3)
