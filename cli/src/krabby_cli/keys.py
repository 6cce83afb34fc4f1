"""What keys, sticks and their absence mean: no terminal, no device, no clock."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AXIS_MAX",
    "DEADMAN_S",
    "JS_EVENT",
    "Deadman",
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
    "1": "stand",
    "2": "sit",
    "3": "arm",
    "ctrl-c": "quit",
    "ctrl-d": "quit",
}
_KEEPS: Final = "h"
_SAFE_WHEN_LATE: Final = frozenset({"estop", "sit", "quit"})
_AT_ONCE: Final = 15
"""Most keys that one turn takes as pressed just now: half a second of a held key, 30 a second. More
are the backlog of a link that was down, or a paste."""


def apply_key(key: str, nav: Nav, limits: NavLimits) -> tuple[Nav, Request | None]:
    """The command after a key, and what the key asks for besides.

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
    return replace(nav, **{name: min(max(value, -limit), limit)}), None


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


class Deadman:
    """Whether a person is there: an input event proves it for `DEADMAN_S`, nothing else does."""

    def __init__(self) -> None:
        self._event_s: float | None = None

    def event(self, now_s: float) -> None:
        self._event_s = now_s

    def left_s(self, now_s: float) -> float:
        """Time until motion ends; 0 when it has, and before the first event [s]."""
        if self._event_s is None:
            return 0.0
        return max(0.0, self._event_s + DEADMAN_S - now_s)


class Drive:
    """The walking command of a person with a keyboard and, possibly, a gamepad.

    Each of the two has its own deadman: neither proves that the other's link is alive. A
    keyboard command ends with its deadman, the next key begins from zero. A gamepad's sticks count
    again from its next event. What the kernel repeats when it opens the device is no event, and a
    button that is held is none: over a dead radio link it stays held for ever.

    Times are on a clock that counts while the computer sleeps [s].
    """

    def __init__(self, limits: NavLimits) -> None:
        self._limits = limits
        self._nav = Nav()
        self._pad = Gamepad(limits)
        self._key_deadman = Deadman()
        self._pad_deadman = Deadman()
        self._ended = False
        """Whether a deadman ended motion and nothing came since."""
        self._keys_late = False
        """Whether keys are part of a backlog."""
        self._turn_s: float | None = None

    def turn(
        self, keys: Iterable[str], events: Iterable[JoystickEvent], now_s: float
    ) -> tuple[Nav, list[Request]]:
        """The command now, given what came since the last turn, and what is asked for besides.

        Input that may have waited longer than the deadman moves and arms nothing, and proves no
        person: what is there after this process stood still, and keys too many to have been
        pressed just now. A backlog of keys ends with the first turn without any.
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
        deadman = self._pad_deadman if self._nav == Nav() else self._key_deadman
        return f"stops in {deadman.left_s(now_s):.1f} s"

    def _expire(self, now_s: float) -> None:
        if self._nav != Nav() and not self._key_deadman.left_s(now_s):
            self._nav = Nav()
            self._ended = True
        if self._pad.nav != Nav() and not self._pad_deadman.left_s(now_s):
            self._ended = True

    def _press(self, key: str, now_s: float, late: bool) -> list[Request]:
        nav, request = apply_key(key, self._nav, self._limits)
        if nav == self._nav and request is None and key.lower() not in {*_MOVES, _KEEPS, " "}:
            return []
        if late:
            if nav == Nav():
                self._nav = nav
            return [request] if request in _SAFE_WHEN_LATE else []
        self._key_deadman.event(now_s)
        self._ended = False
        self._nav = nav
        return [request] if request else []

    def _move(self, event: JoystickEvent, now_s: float, late: bool) -> list[Request]:
        request = self._pad.apply(event)
        if event.is_initial:
            return []
        if not late:
            self._pad_deadman.event(now_s)
            self._ended = False
        return [request] if request and (request in _SAFE_WHEN_LATE or not late) else []

    def _command(self, now_s: float) -> Nav:
        if self._nav != Nav():
            return self._nav
        return self._pad.nav if self._pad_deadman.left_s(now_s) else Nav()
