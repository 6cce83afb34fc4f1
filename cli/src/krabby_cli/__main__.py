"""The `krabby` command: the parser, and errors as one line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from krabby.config import ConfigError
from krabby.robot.errors import RobotError
from krabby_proto import ProtoError

from krabby_cli import (
    check_hal,
    course,
    doctor,
    drives,
    dump,
    evaluate,
    film,
    key_files,
    operate,
    record,
    relay,
    teleop,
    up,
)  # fmt: skip
from krabby_cli.errors import CliError, UsageError
from krabby_cli.terminal import LINES, printable

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return args.handler(args)
    except (UsageError, RobotError, ConfigError) as error:
        return _complain(args.command, error, 2)
    except (CliError, ProtoError) as error:
        return _complain(args.command, error, 1)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # The reader of stdout has ended, as in `| head`; keep the interpreter's exit quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="krabby",
        description="Run the robot in simulation, drive it, inspect its streams, check a HAL.",
        epilog="krabby COMMAND --help has the options and examples of each.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (
        *(up, evaluate, teleop, dump, record, film, check_hal, course, doctor, drives),
        *(relay, key_files),
    ):
        module.add_parser(commands)
    operate.add_parsers(commands)
    return parser


def _complain(command: str, error: Exception, status: int) -> int:
    with contextlib.suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"krabby {command}: {printable(str(error), keep=LINES)}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
