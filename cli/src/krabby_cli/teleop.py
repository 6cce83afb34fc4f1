"""`krabby teleop`: drive the robot with a keyboard or a gamepad.

Deadman: without an input event for 2 s the robot is commanded to stand until the next one. Commands
carry the operator flag and go out at 20 Hz, zeros too, so they outrank a mission for as long as
this process runs. When it ends or is cut off, the game loop stops the robot after 0.3 s and follows
a mission again after 1 s.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import select
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from krabby_proto import FLAG_OPERATOR, NAV, ControlClient, HalClient, ProtoError, Publisher

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import CliError, UsageError
from krabby_cli.keys import JS_EVENT, Drive, JoystickEvent, Nav, NavLimits, Request, parse_js_events
from krabby_cli.operate import operator_name
from krabby_cli.options import add_command, option
from krabby_cli.signals import Signals
from krabby_cli.terminal import Keyboard, StatusLine

__all__ = ["GamepadDevice", "Operator", "add_parser", "describe"]

_PERIOD_S: Final = 0.05
_ANSWER_S: Final = 1.0
_WATCH_S: Final = 0.5
_HINT: Final = "1 stand, 2 sit, x e-stop"
_MEET_S: Final = 5.0
_FAREWELLS: Final = 3
"""Zero commands at the end: a closed socket drops what it has not sent yet."""
_DEADMAN_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Counts while the computer sleeps, unlike CLOCK_MONOTONIC: the deadman expires meanwhile."""

_EPILOG: Final = """\
keys
  w s, up down      faster forward, backward     a d      to the left, to the right
  q e, left right   turn left, turn right        space    stop
  1 stand up        2 sit down                   3 arm
  h                 continue at this speed
  x                 e-stop, latched until `krabby reset`; the only e-stop key
  Ctrl-C            leave; the robot stops
Without a key for 2 s the robot stops: hold one (it repeats) or press h.
Of delayed keys (a link was down, the process was stopped, more than 15 at once) only x, 2, space
and leaving count, of pasted text only x.

gamepad (--gamepad, /dev/input/js0 in the numbering of an Xbox-style pad)
  hold button 4 (left shoulder) to move
  axis 1 forward and backward, axis 0 to the sides, axis 3 turns
  button 0 (A) stand, 2 (X) sit, 3 (Y) arm, 1 (B) e-stop
Without an event for 2 s the robot stops until the next one: over a dead radio link a held button
still reads as held. A stick in a hand sends events all the time; one at its stop has to be moved.
"""


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "teleop", run, "drive by keyboard or gamepad", __doc__, _EPILOG)
    parser.add_argument(
        "--gamepad",
        nargs="?",
        type=Path,
        const=Path("/dev/input/js0"),
        metavar="DEVICE",
        help="use a gamepad besides the keyboard (DEVICE default /dev/input/js0)",
    )
    limits = NavLimits()
    option(parser, "--max-speed", "M/S", limits.speed, "largest speed along x and y")
    option(parser, "--max-yaw-rate", "RAD/S", limits.yaw_rate, "largest yaw rate")
    option(parser, "--step", "M/S", limits.step, "change of speed per key press; yaw rate twice")
    add_endpoint_options(parser)


def run(args: argparse.Namespace) -> int:
    limits = NavLimits(speed=args.max_speed, yaw_rate=args.max_yaw_rate, step=args.step)
    if min(limits.speed, limits.yaw_rate, limits.step) <= 0:
        raise UsageError("--max-speed, --max-yaw-rate and --step have to be greater than 0")
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals().caught())
        pad = None
        if args.gamepad is not None:
            pad = stack.enter_context(GamepadDevice(args.gamepad))
        keyboard = stack.enter_context(Keyboard(sys.stdin.fileno())) if sys.stdin.isatty() else None
        if pad is None and keyboard is None:
            raise UsageError("standard input is not a terminal; run it in one, or give --gamepad")
        line = None
        if sys.stdout.isatty():
            line = stack.enter_context(StatusLine(sys.stdout.fileno()))
        operator = stack.enter_context(Operator(endpoints_of(args)))
        try:
            _drive(operator, keyboard, pad, limits, signals, line)
        finally:
            operator.leave()
            if line is not None:
                line.show(_text(Nav(), operator.said, "left\n"))
    return 0


def _drive(
    operator: Operator,
    keyboard: Keyboard | None,
    pad: GamepadDevice | None,
    limits: NavLimits,
    signals: Signals,
    line: StatusLine | None,
) -> None:
    """Act on input as it comes, publish at 20 Hz; nothing in here blocks."""
    sources = [source for source in (keyboard, pad) if source is not None]
    drive = Drive(limits)
    due_s = time.monotonic()
    while not signals.count:
        select.select(sources, (), (), max(0.0, due_s - time.monotonic()))
        keys = keyboard.read() if keyboard is not None else []
        events = pad.read() if pad is not None else []
        input_s = time.clock_gettime(_DEADMAN_CLOCK)
        command, requests = drive.turn(keys, events, input_s)
        for request in requests:
            if request == "quit":
                return
            operator.request(request)
        now_s = time.monotonic()
        if now_s >= due_s:
            due_s = max(due_s + _PERIOD_S, now_s)
            operator.publish(command)
            if line is not None:
                operator.watch(now_s)
                said = drive.countdown(input_s), operator.said or _HINT
                line.show(_text(command, *said, describe(operator.loop)))


def _text(nav: Nav, *said: str) -> str:
    motion = f"vx {nav.vx:+.2f} m/s  vy {nav.vy:+.2f} m/s  yaw {nav.yaw_rate:+.2f} rad/s"
    return "   ".join(each for each in (motion, *said) if each)


_SIGHTS: Final = {
    "memory": "NO PICTURE: walks on memory",
    "lost": "NO PICTURE: stands",
}
_INABILITIES: Final = {
    "stands": "cannot stand",
    "reverses": "cannot reverse",
    "side_steps": "cannot side-step",
    "turns_in_place": "cannot turn in place",
}


def describe(loop: Mapping[str, Any]) -> str:
    """What the game loop's status says about driving: what is clamped, sight, the policy's range.

    Empty before the first answer; keys that an older loop does not send are left out.
    """
    asked = dict(zip(Nav._fields, loop.get("nav_asked", ()), strict=False))
    said = [f"CLAMPED {axis} {asked.get(axis, 0):+.2f}" for axis in loop.get("nav_clamped", ())]
    said.append("walks blind" if loop.get("blind") else _SIGHTS.get(loop.get("sight", ""), ""))
    if "walking" in loop:
        limits = loop.get("command_range") or {}
        ranges = [f"{axis} {low:g}..{high:g}" for axis, (low, high) in limits.items()]
        abilities = loop.get("abilities", {})
        cannot = [text for name, text in _INABILITIES.items() if abilities.get(name) is False]
        said.append(", ".join((str(loop["walking"]), *ranges, *cannot)))
    return "   ".join(filter(None, said))


_UNCONFIRMED: Final = "E-STOP NOT CONFIRMED, use the switch on the robot: "


class Operator(contextlib.AbstractContextManager["Operator"]):
    """The operator's sockets: walking commands and requests to the game loop, safety to the HAL.

    A request waits for its answer up to a second, walking commands do not wait for it. An e-stop
    has its own thread and socket, so that it is never behind another request; so have the
    questions for the loop's status.
    """

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        self.name = f"{operator_name()} (teleop)"
        self.said = ""
        """Result of the last request; empty before the first answer."""
        self.loop: Mapping[str, Any] = {}
        """Newest status of the game loop; empty before the first answer and after none came."""
        self._nav = Publisher(endpoints["nav"], NAV, bind=False)
        self._stop = HalClient({"safety": endpoints["safety"]})
        self._hal = HalClient({"safety": endpoints["safety"]})
        self._loop = ControlClient(endpoints["control"])
        self._watched = ControlClient(endpoints["control"])
        self._watcher = ThreadPoolExecutor(1, "status")
        self._watch: Future[None] | None = None
        self._watch_due_s = 0.0
        self._stopper = ThreadPoolExecutor(1, "estop")
        self._asker = ThreadPoolExecutor(1, "requests")
        self._asked: dict[Request, Future[None]] = {}
        self._stops = 0
        self._meet_due_s = -math.inf

    def publish(self, nav: Nav) -> None:
        """Send a walking command that outranks any mission."""
        now_s = time.monotonic()
        if now_s >= self._meet_due_s:  # for the clock of a loop on another host
            self._meet_due_s = now_s + _MEET_S
            self._asker.submit(self._meet)
        stamp_ns = self._loop.clock.earliest(time.monotonic_ns())
        self._nav.publish(nav, capture_ns=stamp_ns, publish_ns=stamp_ns, flags=FLAG_OPERATOR)

    def _meet(self) -> None:
        with contextlib.suppress(ProtoError):
            self._loop.hello(_ANSWER_S)

    def leave(self) -> None:
        """Command zero, give it time to go out, and wait for a pending e-stop."""
        for _ in range(_FAREWELLS):
            self.publish(Nav())
            time.sleep(_PERIOD_S / 2)
        self._stopper.shutdown()

    def request(self, request: Request) -> None:
        """Carry a request out in another thread; the result appears in `said`.

        A request that is pending is not sent twice: a held key repeats.
        """
        under_way = self._asked.get(request)
        if under_way is None or under_way.done():
            self._stops += request == "estop"
            executor = self._stopper if request == "estop" else self._asker
            self._asked[request] = executor.submit(self._carry_out, request, self._stops)

    def watch(self, now_s: float) -> None:
        """Ask for the loop's status every half second; the answer appears in `loop`."""
        if now_s >= self._watch_due_s and (self._watch is None or self._watch.done()):
            self._watch_due_s = now_s + _WATCH_S
            self._watch = self._watcher.submit(self._ask_status)

    def _ask_status(self) -> None:
        try:
            self.loop = self._watched.request("status", timeout_s=_WATCH_S)
        except ProtoError:
            self.loop = {}

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return all(asked.done() for asked in self._asked.values())

    def _carry_out(self, request: Request, stops: int) -> None:
        said = self.ask(request)
        if stops != self._stops:
            return  # what was asked before an e-stop must not hide its answer
        if request == "estop" or not self.said.startswith(_UNCONFIRMED):
            self.said = said

    def ask(self, request: Request) -> str:
        """Carry a request out within a second; returns the result in a few words."""
        try:
            if request in ("estop", "arm"):
                client = self._stop if request == "estop" else self._hal
                answer = client.safety(request, self.name, timeout_s=_ANSWER_S)
            else:
                answer = self._loop.request(request, timeout_s=_ANSWER_S, by=self.name)
        except ProtoError as error:
            return f"{_UNCONFIRMED if request == 'estop' else ''}{error}"
        if not answer.get("ok"):
            return f"{request} refused: {answer.get('reason', '')}"
        return f"{request}: {answer.get('state', 'done')}"

    def close(self) -> None:
        """Close the sockets; waits for pending requests, a second at most."""
        self._stopper.shutdown()
        for executor in (self._asker, self._watcher):
            executor.shutdown(cancel_futures=True)
        for each in (self._nav, self._stop, self._hal, self._loop, self._watched):
            each.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class GamepadDevice(contextlib.AbstractContextManager["GamepadDevice"]):
    """A /dev/input/js device, read without waiting."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise UsageError(
                f"gamepad {path} cannot be opened: {error.strerror}; plug it in, name another "
                "device, or add yourself to the group that owns it (often `input`)"
            ) from error
        self._path = path
        self._rest = b""

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[JoystickEvent]:
        """What happened since the last call.

        Raises:
            CliError: The device is gone.
        """
        try:
            data = os.read(self._fd, 64 * JS_EVENT.size)
        except BlockingIOError:
            return []
        except OSError as error:
            raise CliError(
                f"gamepad {self._path} is gone ({error.strerror}); the robot was told to stop"
            ) from error
        if not data:
            raise CliError(f"gamepad {self._path} is gone; the robot was told to stop")
        events, self._rest = parse_js_events(self._rest + data)
        return events

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
