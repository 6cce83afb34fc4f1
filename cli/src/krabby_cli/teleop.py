"""`krabby teleop`: drive the robot with a keyboard or a gamepad.

A person outranks a mission: commands carry the operator flag, at 20 Hz. When this process ends or
is cut off the game loop stops walking within half a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from krabby_proto import FLAG_OPERATOR, NAV, ControlClient, HalClient, ProtoError, Publisher

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import CliError, UsageError
from krabby_cli.keys import (
    JS_EVENT,
    Gamepad,
    Nav,
    NavLimits,
    Request,
    apply_key,
    parse_js_events,
    split_keys,
)
from krabby_cli.operate import operator_name

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import FrameType

__all__ = ["GamepadDevice", "Keyboard", "Operator", "add_parser"]

_PERIOD_S: Final = 0.05
_ANSWER_S: Final = 1.0

_EPILOG: Final = """\
keys
  w s, up down      faster forward, backward     a d      to the left, to the right
  q e, left right   turn left, turn right        space    stop
  1 stand up        2 sit down                   3 arm
  x or Esc          e-stop, latched until `krabby reset`
  Ctrl-C            leave; the robot stops

gamepad (--gamepad, /dev/input/js0 in the numbering of an Xbox-style pad)
  hold button 4 (left shoulder) to move
  axis 1 forward and backward, axis 0 to the sides, axis 3 turns
  button 0 (A) stand, 2 (X) sit, 3 (Y) arm, 1 (B) e-stop
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "teleop",
        help="drive with keyboard or gamepad",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--gamepad",
        nargs="?",
        type=Path,
        const=Path("/dev/input/js0"),
        metavar="DEVICE",
        help="use a gamepad (default device /dev/input/js0); the keyboard stays in use",
    )
    defaults = NavLimits()
    parser.add_argument("--max-speed", type=float, default=defaults.speed, metavar="M/S")
    parser.add_argument("--max-yaw-rate", type=float, default=defaults.yaw_rate, metavar="RAD/S")
    parser.add_argument("--step", type=float, default=defaults.step, metavar="M/S")
    add_endpoint_options(parser)
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Drive until Ctrl-C."""
    limits = NavLimits(speed=args.max_speed, yaw_rate=args.max_yaw_rate, step=args.step)
    if min(limits.speed, limits.yaw_rate, limits.step) <= 0:
        raise UsageError("--max-speed, --max-yaw-rate and --step have to be greater than 0")
    with contextlib.ExitStack() as stack:
        pad = None
        if args.gamepad is not None:
            pad = stack.enter_context(GamepadDevice(args.gamepad, limits))
        keyboard = stack.enter_context(Keyboard(sys.stdin.fileno())) if sys.stdin.isatty() else None
        if pad is None and keyboard is None:
            raise UsageError("standard input is no terminal; run it in one, or give --gamepad")
        operator = stack.enter_context(Operator(endpoints_of(args)))
        stack.enter_context(_signals_interrupt())
        try:
            _drive(operator, keyboard, pad, limits)
        except KeyboardInterrupt:
            pass
        finally:
            operator.publish(Nav())
            _show(Nav(), "left\n")
    return 0


def _drive(
    operator: Operator, keyboard: Keyboard | None, pad: GamepadDevice | None, limits: NavLimits
) -> None:
    """Act on input as it comes, publish on the grid of 20 Hz."""
    sources = [source for source in (keyboard, pad) if source is not None]
    nav = Nav()
    said = "1 stand, 2 sit, x e-stop"
    due = time.monotonic()
    while True:
        select.select(sources, (), (), max(0.0, due - time.monotonic()))
        requests: list[Request] = []
        for key in keyboard.read() if keyboard else ():
            nav, request = apply_key(key, nav, limits)
            if request is not None:
                requests.append(request)
        requests += pad.read() if pad else []
        # An e-stop is never behind anything else.
        for request in sorted(requests, key=lambda each: each != "estop"):
            if request == "quit":
                return
            said = operator.ask(request)
        now = time.monotonic()
        if now >= due:
            due = max(due + _PERIOD_S, now)
            command = pad.nav if pad is not None and nav == Nav() else nav
            operator.publish(command)
            _show(command, said)


def _show(nav: Nav, said: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(
            f"\r\x1b[Kvx {nav.vx:+.2f} m/s  vy {nav.vy:+.2f} m/s  "
            f"yaw {nav.yaw_rate:+.2f} rad/s   {said}"
        )
        sys.stdout.flush()


class Operator:
    """A person's three sockets: nav to the game loop, requests to it, and safety to the HAL."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        self.name = f"{operator_name()} (teleop)"
        self._nav = Publisher(endpoints["nav"], NAV, bind=False)
        self._hal = HalClient({"safety": endpoints["safety"]})
        self._loop = ControlClient(endpoints["control"])

    def publish(self, nav: Nav) -> None:
        """Send a walking command that outranks any mission."""
        self._nav.publish(nav.values, capture_ns=time.monotonic_ns(), flags=FLAG_OPERATOR)

    def ask(self, request: Request) -> str:
        """Carry a request out; what came of it, in a few words. Takes a second at the most."""
        try:
            if request in ("estop", "arm"):
                answer = self._hal.safety(request, self.name, timeout_s=_ANSWER_S)
            else:
                answer = self._loop.request(request, timeout_s=_ANSWER_S, by=self.name)
        except ProtoError as error:
            shout = (
                "E-STOP NOT CONFIRMED, use the switch on the robot: " if request == "estop" else ""
            )
            return f"{shout}{error}"
        if not answer.get("ok"):
            return f"{request} refused: {answer.get('reason', '')}"
        return f"{request}: {answer.get('state', 'done')}"

    def close(self) -> None:
        """Close the sockets."""
        for each in (self._nav, self._hal, self._loop):
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Keyboard:
    """A terminal that gives every key at once and shows none; as it was when closed.

    Ctrl-C still interrupts, so that whatever happens here a person gets out.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before = termios.tcgetattr(fd)
        tty.setcbreak(fd)

    def fileno(self) -> int:
        """For select."""
        return self._fd

    def read(self) -> list[str]:
        """Keys pressed since the last call; never waits."""
        if not select.select([self._fd], (), (), 0)[0]:
            return []
        data = os.read(self._fd, 1024)
        if not data:
            return ["ctrl-d"]  # the terminal is gone
        return split_keys(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(termios.error):  # a terminal that is gone needs no settings
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)


class GamepadDevice:
    """A /dev/input/js device, read without waiting."""

    def __init__(self, path: Path, limits: NavLimits) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise UsageError(
                f"gamepad {path} cannot be opened: {error.strerror}; plug it in, name another "
                "device, or add yourself to the group that owns it (often `input`)"
            ) from error
        self._path = path
        self._rest = b""
        self._gamepad = Gamepad(limits)

    def fileno(self) -> int:
        """For select."""
        return self._fd

    @property
    def nav(self) -> Nav:
        """The command of the sticks as they are."""
        return self._gamepad.nav

    def read(self) -> list[Request]:
        """Take in what happened since the last call; what it asks for besides moving."""
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
        asked: list[Request] = []
        for event in events:
            if (request := self._gamepad.apply(event)) is not None:
                asked.append(request)  # noqa: PERF401 - a comprehension loses the literal type
        return asked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def _signals_interrupt() -> Generator[None, None, None]:
    """SIGTERM leaves like Ctrl-C does: the robot is told to stop, the terminal is given back.

    SIGINT is set too: a shell that starts a command in the background lets it ignore that one.
    """

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
