"""`krabby teleop`: drive the robot with a keyboard or a gamepad.

Deadman: without an input event for 2 s the robot is commanded to stand until the next one. Commands
carry the operator flag and go out at 20 Hz, zeros too, so they outrank a mission for as long as
this process runs. When it ends or is cut off, the game loop stops the robot after 0.3 s and follows
a mission again after 1 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time
from pathlib import Path
from typing import Any, Final

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import CliError, UsageError
from krabby_cli.keys import JS_EVENT, Drive, JoystickEvent, Nav, NavLimits, parse_js_events
from krabby_cli.operator import PERIOD_S, Operator, describe
from krabby_cli.options import add_command, option
from krabby_cli.signals import Signals
from krabby_cli.terminal import Keyboard, StatusLine

__all__ = ["GamepadDevice", "add_parser"]

_KEYS: Final = """\
hold w s a d to walk, q e to turn
space stop  h keep this speed  x e-stop
1 stand  2 sit  3 arm  Ctrl-C leave
"""
"""Above the line with the velocities, short enough for 44 columns."""
_HINT: Final = "x e-stop, 1 stand, 2 sit"
_LATCHED: Final = "E-STOP: krabby reset in another terminal, then 3 arm, 1 stand"
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
            above = _KEYS if keyboard is not None else ""
            line = stack.enter_context(StatusLine(sys.stdout.fileno(), above))
        operator = stack.enter_context(Operator(endpoints_of(args)))
        try:
            _drive(operator, keyboard, pad, limits, signals, line)
        finally:
            operator.leave()
            if line is not None:
                line.show(_text(Nav(), operator.said, "left") + "\n")
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
            due_s = max(due_s + PERIOD_S, now_s)
            operator.publish(command)
            if line is not None:
                operator.watch(now_s)
                said = drive.countdown(input_s), operator.said or _HINT
                latched = _LATCHED if operator.loop.get("safety") == "estop" else ""
                line.show(_text(command, *said, latched, describe(operator.loop)))


def _text(nav: Nav, *said: str) -> str:
    """The velocities, and below them what there is to say: a narrow terminal shows both."""
    motion = f"vx {nav.vx:+.2f} m/s  vy {nav.vy:+.2f} m/s  yaw {nav.yaw_rate:+.2f} rad/s"
    return f"{motion}\n{'   '.join(filter(None, said))}"


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
