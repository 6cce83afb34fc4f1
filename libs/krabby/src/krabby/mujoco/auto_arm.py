"""Arming without a person, for simulations that run unattended."""

from krabby_proto import SafetyState

__all__ = ["AutoArm"]

_STEADY_NS = 200_000_000
"""Commands must have come steadily for this long: a probe that sends a few does not arm."""
_GAP_NS = 50_000_000
"""Longest pause between two commands that still counts as steady."""
_RETRY_NS = 500_000_000
"""Between two attempts."""


class AutoArm:
    """Decides when to ask the gate to arm. Pure; the clock is passed in.

    An operator has the last word: after a person's disarm or e-stop only a person's arm that the
    gate granted brings it back. A refused one does not, or `reset` would arm by itself.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._steady_since_ns: int | None = None
        self._command_ns = 0
        self._tried_ns: int | None = None
        self._held_by_operator = False

    def command(self, now_ns: int) -> None:
        """A valid command arrived."""
        if self._steady_since_ns is None or now_ns - self._command_ns > _GAP_NS:
            self._steady_since_ns = now_ns
        self._command_ns = now_ns

    def operator(self, op: str, *, granted: bool) -> None:
        """A person asked for `op`, and the gate granted it or not."""
        if op in ("disarm", "estop"):
            self._held_by_operator = True
        elif op == "arm" and granted:
            self._held_by_operator = False

    def reset(self) -> None:
        """The robot was put down anew: wait for steady commands again."""
        self._steady_since_ns = None
        self._tried_ns = None

    def due(self, now_ns: int, state: SafetyState) -> bool:
        """Whether to ask the gate now; counts as an attempt when it says yes."""
        if not self._enabled or self._held_by_operator or self._steady_since_ns is None:
            return False
        if state not in (SafetyState.DISARMED, SafetyState.DAMP):
            return False
        fresh = now_ns - self._command_ns <= _GAP_NS
        steady = now_ns - self._steady_since_ns >= _STEADY_NS
        waited = self._tried_ns is None or now_ns - self._tried_ns >= _RETRY_NS
        if not (fresh and steady and waited):
            return False
        self._tried_ns = now_ns
        return True
