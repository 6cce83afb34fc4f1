"""What keys and sticks mean: pure functions, no terminal and no device."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

__all__ = [
    "AXIS_MAX",
    "JS_EVENT",
    "Gamepad",
    "JoystickEvent",
    "Nav",
    "NavLimits",
    "Request",
    "apply_key",
    "parse_js_events",
    "split_keys",
]

Request = Literal["estop", "stand", "sit", "arm", "quit"]


@dataclass(frozen=True, kw_only=True)
class Nav:
    """A walking command, base frame [m/s, m/s, rad/s]."""

    vx: float = 0.0
    vy: float = 0.0
    yaw_rate: float = 0.0

    @property
    def values(self) -> tuple[float, float, float]:
        """In the order of the `nav` stream."""
        return self.vx, self.vy, self.yaw_rate


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
    "w": ("vx", 1.0),
    "up": ("vx", 1.0),
    "s": ("vx", -1.0),
    "down": ("vx", -1.0),
    "a": ("vy", 1.0),
    "d": ("vy", -1.0),
    "q": ("yaw_rate", 2.0),
    "left": ("yaw_rate", 2.0),
    "e": ("yaw_rate", -2.0),
    "right": ("yaw_rate", -2.0),
}
_REQUESTS: Final[dict[str, Request]] = {
    "x": "estop",
    "esc": "estop",
    "1": "stand",
    "2": "sit",
    "3": "arm",
    "ctrl-c": "quit",
    "ctrl-d": "quit",
}
_ESCAPES: Final = {b"[A": "up", b"[B": "down", b"[C": "right", b"[D": "left"}
_CONTROL_KEYS: Final = {0x03: "ctrl-c", 0x04: "ctrl-d"}


def apply_key(key: str, nav: Nav, limits: NavLimits) -> tuple[Nav, Request | None]:
    """The command after a key, and what the key asks for besides.

    Space stops, and so does whatever ends motion; a key without a meaning changes nothing.
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
    return replace(nav, **{name: min(max(value, -limit), limit)}), None


def split_keys(data: bytes) -> list[str]:
    """Key names in what a terminal sent at once.

    An escape byte that starts no arrow key is the Esc key itself, so Esc always stops; other
    sequences that start with it, function keys and such, are dropped.
    """
    keys: list[str] = []
    at = 0
    while at < len(data):
        byte = data[at]
        at += 1
        if byte == 0x1B:
            sequence = data[at : at + 2]
            if sequence in _ESCAPES:
                keys.append(_ESCAPES[sequence])
                at += 2
            elif sequence[:1] in (b"[", b"O"):
                at += 1
                while at < len(data) and not 0x40 <= data[at] <= 0x7E:
                    at += 1
                at += 1
            else:
                keys.append("esc")
        elif byte in _CONTROL_KEYS:
            keys.append(_CONTROL_KEYS[byte])
        elif 0x20 <= byte < 0x7F:
            keys.append(chr(byte))
    return keys


JS_EVENT: Final = struct.Struct("<IhBB")
"""struct js_event of linux/joystick.h: time [ms], value, type, number."""
AXIS_MAX: Final = 32767
_JS_BUTTON: Final = 0x01
_JS_AXIS: Final = 0x02
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
    """Events in what was read, and the rest that is no whole event yet; unknown types dropped."""
    whole = len(data) - len(data) % JS_EVENT.size
    events: list[JoystickEvent] = []
    for _, value, kind, number in JS_EVENT.iter_unpack(data[:whole]):
        initial, plain = bool(kind & _JS_INIT), kind & ~_JS_INIT
        if plain == _JS_AXIS:
            events.append(JoystickEvent("axis", number, value, initial))
        elif plain == _JS_BUTTON:
            events.append(JoystickEvent("button", number, value, initial))
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
        """Take an event in; what it asks for besides moving."""
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
