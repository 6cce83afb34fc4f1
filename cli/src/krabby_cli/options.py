"""How commands declare their options, and the options that several commands share.

One dialect for all: the help of an option is a noun phrase with its unit, its default is shown
behind it, and metavars are S for seconds, N for counts, FILE, DIR, NAME and STREAM=ENDPOINT.

Every command loads this module: what only some need is imported in the functions they call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from krabby_cli.text import LINES, printable

__all__ = [
    "BLIND_COURSE",
    "DEFAULT_COURSE",
    "POLICY_HELP",
    "HelpFormatter",
    "add_command",
    "add_course_options",
    "flag",
    "option",
    "print_json",
    "print_line",
]

POLICY_HELP: Final = "policy: name under assets/policies, or a folder"
DEFAULT_COURSE: Final = "mixed"
"""Course of `krabby up` and `krabby film`; a policy without a camera gets `BLIND_COURSE`."""
BLIND_COURSE: Final = "flat"


_UNITS: Final = {"S": "s", "M/S": "m/s", "RAD/S": "rad/s", "PX": "pixels"}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's own imports `shutil` for the width of the terminal whenever an option is added."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """As `shutil.get_terminal_size` finds it."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str | None = None,
    epilog: str | None = None,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add a subcommand; `run` returns its exit status, `summary` is its line in the list."""
    parser = commands.add_parser(
        name,
        aliases=aliases,
        help=summary,
        description=description or summary,
        epilog=epilog,
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(handler=run)
    return parser


def option(
    parser: Any, name: str, metavar: str | None, default: Any, text: str, **settings: Any
) -> None:
    """Add an option with a value.

    The metavar gives the unit that is shown; a default other than None and "" is shown too and
    gives the type.
    """
    if metavar in _UNITS:
        text = f"{text} [{_UNITS[metavar]}]"
    if default not in (None, ""):
        settings.setdefault("type", type(default))
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        text = f"{text} (default {shown})"
    parser.add_argument(name, metavar=metavar, default=default, help=text, **settings)


def flag(parser: Any, name: str, text: str) -> None:
    parser.add_argument(name, action="store_true", help=text)


def add_course_options(
    parser: Any, seed: str = "seed of the course's layout", *, of_policy: bool = False
) -> None:
    """Course, difficulty and seed; with `of_policy` the default course is the policy's."""
    from krabby.course.courses import COURSES

    text = f"course: {', '.join(COURSES)}"
    if of_policy:
        text += f" (default {DEFAULT_COURSE}; {BLIND_COURSE} with a policy without a camera)"
    option(parser, "--course", "NAME", None if of_policy else DEFAULT_COURSE, text)
    add_difficulty_options(parser, seed)


def add_difficulty_options(parser: Any, seed: str = "seed of the course's layout") -> None:
    """The options of a course that is named otherwise."""
    from krabby.course.courses import MAX_DIFFICULTY

    option(parser, "--difficulty", "D", 0.5, f"difficulty of the course, 0 to {MAX_DIFFICULTY}")
    option(parser, "--seed", "N", 0, seed)


def print_line(text: str) -> None:
    sys.stdout.write(f"{printable(text, keep=LINES)}\n")
    sys.stdout.flush()


def print_json(facts: Mapping[str, object]) -> None:
    print_line(json.dumps(facts))
