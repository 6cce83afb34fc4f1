"""The `krabby` command: the parser, and errors as one line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Final

from krabby_cli.errors import WHERE, CliError, UsageError
from krabby_cli.options import HelpFormatter, Parser, did_you_mean
from krabby_cli.text import LINES, printable

__all__ = ["main"]

_MODULES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "up": ("sim", "up"),
        "evaluate": ("evaluate",),
        "teleop": ("teleop",),
        "view": ("view",),
        "dump": ("dump",),
        "record": ("record",),
        "verify": ("verify",),
        "film": ("film",),
        "replay": ("replay",),
        "incidents": ("incidents",),
        "diagnose": ("diagnose",),
        "report": ("report",),
        "bundle": ("bundle",),
        "identify": ("identify",),
        "export_lerobot": ("export-lerobot",),
        "check_hal": ("check-hal",),
        "course": ("course",),
        "robot": ("robot",),
        "import_policy": ("import-policy",),
        "doctor": ("doctor",),
        "drives": ("drives",),
        "relay": ("relay",),
        "key_files": ("keys",),
        "operate": ("arm", "disarm", "estop", "reset", "stand", "sit", "policy", "mark", "status"),
    }
)
"""Commands by the module that adds them; one that is named is the only module that is loaded, since
an e-stop must not wait for the import of a simulator."""


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    command = words[0] if words else ""
    try:
        _known(command)
        with _interrupt_ends():
            parser = _parser(command)
        if not words:
            parser.print_help(sys.stderr)
            return 2
        args = parser.parse_args(words)
        return args.handler(args)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # The reader of stdout has ended, as in `| head`; keep the interpreter's exit quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, *_bad_facts()) as error:
        return _complain(command, error, 2)
    except (CliError, *_bad_wire()) as error:
        return _complain(command, error, 1)


def _known(command: str) -> None:
    names = [name for each in _MODULES.values() for name in each]
    if command and not command.startswith("-") and command not in names:
        hint = did_you_mean(command, names) or ";"
        raise UsageError(f"no such command{hint} krabby --help lists all of them")


@contextlib.contextmanager
def _interrupt_ends() -> Generator[None, None, None]:
    """Let Ctrl-C end the process at once: an interrupted import complains at length."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of one command; of all when it is none of them."""
    parser = Parser(
        prog="krabby",
        description="Run the robot in simulation, drive it, inspect its streams, check a HAL.",
        epilog="krabby COMMAND --help has the options and examples of each.",
        formatter_class=HelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = [name for name, names in _MODULES.items() if command in names] or list(_MODULES)
    for name in modules:
        add = import_module(f"krabby_cli.{name}").add_parser
        add(commands, *([command] if name == "operate" and len(modules) == 1 else ()))
    return parser


def _bad_facts() -> tuple[type[Exception], ...]:
    """Errors of configuration, robot and policy; imported once there is an error."""
    from krabby.config import ConfigError
    from krabby.robot.errors import RobotError

    return ConfigError, RobotError


def _bad_wire() -> tuple[type[Exception], ...]:
    from krabby_proto.errors import ProtoError

    return (ProtoError,)


def _complain(command: str, error: Exception, status: int) -> int:
    with contextlib.suppress(OSError):  # the terminal may be gone
        said = f"{printable(str(error), keep=LINES)}{_remedy(error)}"
        sys.stderr.write(f"krabby {command}: {said}\n")
    return status


def _remedy(error: Exception) -> str:
    """What the wire, which knows no command, cannot tell a person whom no process answers."""
    from krabby_proto.errors import AccessRefused, RequestTimeout

    if isinstance(error, RequestTimeout) and not isinstance(error, AccessRefused):
        return f" {WHERE[0].upper()}{WHERE[1:]}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
