"""Keys and sticks to walking commands, with the deadman; without terminal, device or clock."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

__all__ = [
    "AXIS_MAX",
    "DEADMAN_S",
    "JS_EVENT",
    "Drive",
    "Gamepad",
    "JoystickEvent",
    "Nav",
    "NavLimits",
    "Request",
    "apply_key",
    "parse_js_events",
]

Request = Literal["estop", "stand", "sit", "arm", "quit"]

DEADMAN_S: Final = 2.0
"""Without an input event for this long the robot is told to stand still [s]."""


class Nav(NamedTuple):
    """A walking command in the base frame, in the order of the `nav` stream."""

    vx: float = 0.0
    """[m/s]"""
    vy: float = 0.0
    """[m/s]"""
    yaw_rate: float = 0.0
    """[rad/s]"""


@dataclass(frozen=True, kw_only=True)
class NavLimits:
    """Largest command and size of one key press."""

    speed: float = 0.5
    """Along x and y [m/s]."""
    yaw_rate: float = 0.6
    """[rad/s]."""
    step: float = 0.05
    """Per key press [m/s]; turning steps are twice as large in number [rad/s]."""


_MOVES: Final[dict[str, tuple[str, float]]] = {
    **dict.fromkeys(("w", "up"), ("vx", 1.0)),
    **dict.fromkeys(("s", "down"), ("vx", -1.0)),
    "a": ("vy", 1.0),
    "d": ("vy", -1.0),
    **dict.fromkeys(("q", "left"), ("yaw_rate", 2.0)),
    **dict.fromkeys(("e", "right"), ("yaw_rate", -2.0)),
}
_REQUESTS: Final[dict[str, Request]] = {
    **{"x": "estop", "1": "stand", "2": "sit", "3": "arm"},
    **dict.fromkeys(("ctrl-c", "ctrl-d"), "quit"),
}
_KEEPS: Final = "h"
_SAFE_WHEN_LATE: Final = frozenset({"estop", "sit", "quit"})
_AT_ONCE: Final = 15
"""Most keys of one turn that count as pressed just now: half a second of a held key at 30 Hz. More
are the backlog of a link that was down, or a paste."""


def apply_key(key: str, nav: Nav, limits: NavLimits) -> tuple[Nav, Request | None]:
    """The command after a key, and the request of the key.

    Space stops, and so does each request but arm; a key without a meaning changes nothing.
    """
    request = _REQUESTS.get(key.lower())
    if request is not None:
        return (nav if request == "arm" else Nav()), request
    if key == " ":
        return Nav(), None
    move = _MOVES.get(key.lower())
    if move is None:
        return nav, None
    name, direction = move
    limit = limits.yaw_rate if name == "yaw_rate" else limits.speed
    value = round(getattr(nav, name) + direction * limits.step, 6)
    return nav._replace(**{name: min(max(value, -limit), limit)}), None


JS_EVENT: Final = struct.Struct("<IhBB")
"""struct js_event of linux/joystick.h: time [ms], value, type, number."""
AXIS_MAX: Final = 32767
_JS_KINDS: Final[dict[int, Literal["button", "axis"]]] = {0x01: "button", 0x02: "axis"}
_JS_INIT: Final = 0x80


class JoystickEvent(NamedTuple):
    """One event of a /dev/input/js device."""

    kind: Literal["button", "axis"]
    number: int
    value: int
    """-32767 to 32767 for an axis, 0 or 1 for a button."""
    is_initial: bool
    """Sent for every control when the device is opened: where it is, not that it moved."""


def parse_js_events(data: bytes) -> tuple[list[JoystickEvent], bytes]:
    """Events in `data` and the bytes of an incomplete one; unknown types are dropped."""
    whole = len(data) - len(data) % JS_EVENT.size
    events: list[JoystickEvent] = []
    for _, value, kind, number in JS_EVENT.iter_unpack(data[:whole]):
        name = _JS_KINDS.get(kind & ~_JS_INIT)
        if name is not None:
            events.append(JoystickEvent(name, number, value, bool(kind & _JS_INIT)))
    return events, data[whole:]


class Gamepad:
    """Sticks and buttons to a command, in the kernel's numbering of an Xbox-style pad.

    Axis 1 (left stick, up) is vx, axis 0 (left stick, left) vy, axis 3 (right stick, left) turns.
    Button 4 (left shoulder) has to be held for any of it. Button 0 (A) stands, 2 (X) sits, 3 (Y)
    arms, 1 (B) is the e-stop.
    """

    VX_AXIS: Final = 1
    VY_AXIS: Final = 0
    YAW_AXIS: Final = 3
    HOLD_BUTTON: Final = 4
    DEAD_ZONE: Final = 0.12
    """Share of an axis around its middle that counts as none."""

    _BUTTONS: Final[dict[int, Request]] = {0: "stand", 1: "estop", 2: "sit", 3: "arm"}

    def __init__(self, limits: NavLimits) -> None:
        self._limits = limits
        self._axes: dict[int, float] = {}
        self._held = False

    def apply(self, event: JoystickEvent) -> Request | None:
        """Take an event in; returns its request, if it has one."""
        if event.kind == "axis":
            self._axes[event.number] = max(-1.0, event.value / AXIS_MAX)
        elif event.number == self.HOLD_BUTTON:
            self._held = event.value == 1
        elif event.value == 1 and not event.is_initial:
            return self._BUTTONS.get(event.number)
        return None

    @property
    def nav(self) -> Nav:
        """The command of the sticks as they are; zero unless the shoulder button is held."""
        if not self._held:
            return Nav()
        # Axes grow downwards and to the right; the base frame forwards and to the left.
        return Nav(
            vx=-self._axis(self.VX_AXIS) * self._limits.speed,
            vy=-self._axis(self.VY_AXIS) * self._limits.speed,
            yaw_rate=-self._axis(self.YAW_AXIS) * self._limits.yaw_rate,
        )

    def _axis(self, number: int) -> float:
        """From -1 to 1, continuous at the edge of the dead zone."""
        value = self._axes.get(number, 0.0)
        beyond = max(0.0, abs(value) - self.DEAD_ZONE) / (1.0 - self.DEAD_ZONE)
        return beyond if value > 0 else -beyond


class Drive:
    """The walking command of a keyboard and, possibly, a gamepad.

    Each has a deadman, since the link of one may be dead while the other's is alive. A keyboard
    command ends with its deadman, the next key begins from zero; a gamepad's sticks count again
    from its next event. Neither the kernel's initial events nor a held button feed a deadman: over
    a dead radio link it stays held.

    Times are on a clock that counts while the computer sleeps [s].
    """

    def __init__(self, limits: NavLimits) -> None:
        self._limits = limits
        self._nav = Nav()
        self._pad = Gamepad(limits)
        self._keys_until_s = self._pad_until_s = 0.0
        """When the deadman of the keyboard and that of the gamepad end motion [s]."""
        self._ended = False
        """Whether a deadman ended motion and no input came since."""
        self._keys_late = False
        """Whether keys are part of a backlog."""
        self._turn_s: float | None = None

    def turn(
        self, keys: Iterable[str], events: Iterable[JoystickEvent], now_s: float
    ) -> tuple[Nav, list[Request]]:
        """The command now, given the input since the last turn, and the requests in that input.

        Input that may have waited longer than the deadman neither moves, arms nor resets the
        deadman: what is there after this process was stopped, and more keys than can have been
        pressed just now. A backlog of keys ends with the first turn without a key.
        """
        late = self._turn_s is not None and now_s - self._turn_s > DEADMAN_S
        self._turn_s = now_s
        self._expire(now_s)
        pressed = list(keys)
        begins = late or len(pressed) > _AT_ONCE
        self._keys_late = bool(pressed) and (self._keys_late or begins)
        requests: list[Request] = []
        for key in pressed:
            requests += self._press(key, now_s, self._keys_late)
        for event in events:
            requests += self._move(event, now_s, late)
        return self._command(now_s), requests

    def countdown(self, now_s: float) -> str:
        """How long motion lasts without another event; empty when nothing moves."""
        if self._command(now_s) == Nav():
            return f"STOPPED: no input for {DEADMAN_S:g} s" if self._ended else ""
        until_s = self._pad_until_s if self._nav == Nav() else self._keys_until_s
        return f"stops in {until_s - now_s:.1f} s"

    def _expire(self, now_s: float) -> None:
        if self._nav != Nav() and now_s >= self._keys_until_s:
            self._nav = Nav()
            self._ended = True
        if self._pad.nav != Nav() and now_s >= self._pad_until_s:
            self._ended = True

    def _press(self, key: str, now_s: float, late: bool) -> list[Request]:
        nav, request = apply_key(key, self._nav, self._limits)
        if nav == self._nav and request is None and key.lower() not in {*_MOVES, _KEEPS, " "}:
            return []
        if late:
            if nav == Nav():
                self._nav = nav
            return [request] if request in _SAFE_WHEN_LATE else []
        self._keys_until_s = now_s + DEADMAN_S
        self._ended = False
        self._nav = nav
        return [request] if request else []

    def _move(self, event: JoystickEvent, now_s: float, late: bool) -> list[Request]:
        request = self._pad.apply(event)
        if event.is_initial:
            return []
        if not late:
            self._pad_until_s = now_s + DEADMAN_S
            self._ended = False
        return [request] if request and (request in _SAFE_WHEN_LATE or not late) else []

    def _command(self, now_s: float) -> Nav:
        if self._nav != Nav():
            return self._nav
        return self._pad.nav if now_s < self._pad_until_s else Nav()
