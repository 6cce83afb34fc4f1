"""`krabby view`: see and drive a robot, a simulation or a recording in a browser.

Prints the address of a page that shows the robot, the course, where the feet stand, the depth
image, velocities, gate, faults, ages and torques, and drives by keyboard, on-screen stick or
gamepad. The part behind # in the address is the secret of this start: with it one drives. The
second address shows and may stop, no more.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from krabby.course.courses import make_course
from krabby.robot.assets import choose_robot

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import UsageError
from krabby_cli.options import add_command, flag, option, print_line
from krabby_cli.signals import Signals
from krabby_cli.view.access import TOKEN_ENV, Tokens, url

__all__ = ["DEFAULT_PORT", "add_parser", "view_command"]

DEFAULT_PORT: Final = 8088
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_NICENESS: Final = 5

_EPILOG: Final = """\
examples:
  krabby view                       the robot or simulation of this machine
  krabby view run.mcap
  krabby view --host 192.168.55.1   a robot elsewhere, through its relay and with a key
  ssh -L 8088:127.0.0.1:8088 ROBOT  then open the address that `krabby view` printed there

keys in the page
  w s, up down      forward, backward      a d    to the left, to the right
  q e, left right   turn left, turn right  space  stop
  1 stand   2 sit   3 arm   x e-stop       f      camera follows the robot or not
Hold a key to walk; it stops within half a second when the key is let go, the page is hidden or
closed, or the link is lost, and after 2 s without any input.
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "view",
        run,
        "see and drive the robot in a browser; play a recording",
        __doc__,
        _EPILOG,
    )
    parser.add_argument(
        "recording", nargs="?", type=Path, metavar="FILE", help="MCAP file to show (default: live)"
    )
    text = "port of the page; 0: a free one; if it is taken, a free one too"
    option(parser, "--port", "N", DEFAULT_PORT, text)
    text = (
        "address to listen on; another than loopback is open to everybody who has the secret, and "
        "what is sent can be read on the way"
    )
    option(parser, "--address", "HOST", "127.0.0.1", text)
    parser.add_argument(
        "--host-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name of this machine under which the page may be opened; repeatable",
    )
    flag(parser, "--read-only", "let no page drive; the e-stop stays")
    text = "course, where the robot does not say (an emulated robot, a recording); default: none"
    option(parser, "--course", "NAME", None, text)
    option(parser, "--difficulty", "D", None, "difficulty of that course", type=float)
    option(parser, "--seed", "N", None, "seed of that course's layout", type=int)
    text = "robot, where a recording does not say: a folder of the assets folder"
    option(parser, "--robot", "NAME", None, text)
    text = "largest speed along x and y"
    option(parser, "--max-speed", "M/S", 0.5, text)
    option(parser, "--max-yaw-rate", "RAD/S", 0.6, "largest yaw rate")
    add_endpoint_options(parser)


def run(args: argparse.Namespace) -> int:
    # The server loads what other commands, and images without it, do not need.
    from krabby.robot.description import RobotDescription
    from krabby.runtime.logging import configure_logging
    from krabby_proto.recording import Recording

    from krabby_cli.film import recorded_course
    from krabby_cli.keys import NavLimits
    from krabby_cli.operator import Operator
    from krabby_cli.view.hub import Hub
    from krabby_cli.view.live import LiveSource
    from krabby_cli.view.replay import ReplaySource
    from krabby_cli.view.scene import CourseName
    from krabby_cli.view.server import PageServer, application

    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port {args.port} is out of range; give 0 to 65535")
    if min(args.max_speed, args.max_yaw_rate) <= 0:
        raise UsageError("--max-speed and --max-yaw-rate have to be greater than 0")
    course = None
    if args.course is not None and args.recording is None:
        difficulty = 0.5 if args.difficulty is None else args.difficulty
        course = CourseName(args.course, difficulty, args.seed or 0)
        make_course(*course)
    limits = NavLimits(speed=args.max_speed, yaw_rate=args.max_yaw_rate)
    tokens, supervised = Tokens.make(), bool(os.environ.get(TOKEN_ENV))
    run_id = os.environ.get("KRABBY_RUN_ID") or secrets.token_hex(4)
    configure_logging("view", run_id, level="info" if supervised else "warning")
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals().caught())
        if args.recording is None:
            endpoints = endpoints_of(args)
            source: Any = LiveSource(endpoints, course)
            operator = stack.enter_context(Operator(endpoints, "view"))
        else:
            print_line(f"reading {args.recording}")
            facts = Recording(args.recording).run
            if (facts.course or args.course) is None:  # flat ground without end
                choose_robot(facts.robot or args.robot or "")
                ground = None
            else:
                ground = recorded_course(args, facts)
            source, operator = ReplaySource(args.recording, ground, RobotDescription.load()), None
        listener = stack.enter_context(_listener(args.address, args.port))
        port = listener.getsockname()[1]
        _tell(args, tokens, port, supervised=supervised)
        os.nice(_NICENESS)  # the loops go first
        hub = Hub(source, operator, limits, read_only=args.read_only)
        failures: list[bool] = []
        app = application(
            hub,
            tokens,
            loopback=args.address in _LOOPBACK,
            names=frozenset(args.host_name),
            failed=lambda: failures.append(True),
        )
        server = PageServer(app, lambda: bool(failures) or signals.count > 0)
        server.run(sockets=[listener])
        if operator is not None and hub.driving.engaged:
            operator.leave()
    return 1 if failures else 0


def view_command(port: int, endpoints: Mapping[str, str]) -> tuple[str, ...]:
    """Command that shows a run of `krabby up`; the secret is in the environment."""
    return (
        *(sys.executable, "-P", "-m", "krabby_cli", "view", f"--port={port}"),
        *(f"--endpoint={name}={endpoint}" for name, endpoint in endpoints.items()),
    )


def _listener(address: str, port: int) -> socket.socket:
    """A listening socket; on a free port, with a line about it, if that one is taken."""
    from krabby_cli.view.server import listening

    try:
        try:
            return listening(address, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            sys.stderr.write(f"krabby view: port {port} is taken, another one is used\n")
            return listening(address, 0)
    except OSError as error:
        raise UsageError(
            f"--address {address} --port {port}: {error.strerror}; give an address of this machine "
            "and a port from 1024 on"
        ) from error


def _tell(args: argparse.Namespace, tokens: Tokens, port: int, *, supervised: bool) -> None:
    """Print the addresses; under `krabby up` only the port, since logs are kept."""
    if args.address not in _LOOPBACK:
        sys.stderr.write(
            f"krabby view: {args.address} is open to other hosts, without encryption: anybody "
            "who reads the traffic can drive. Prefer ssh -L and the loopback address\n"
        )
    if supervised:
        structlog.get_logger(__name__).info("running", port=port)
    elif args.recording is not None:
        print_line(f"recording: {url(args.address, port, tokens.see)}")
    else:
        if not args.read_only:
            print_line(f"drive: {url(args.address, port, tokens.operate)}")
        print_line(f"see:   {url(args.address, port, tokens.see)}")
