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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

from krabby_cli.text import LINES, printable

__all__ = [
    "BLIND_COURSE",
    "DEFAULT_COURSE",
    "POLICY_HELP",
    "HelpFormatter",
    "Parser",
    "add_command",
    "add_course_options",
    "did_you_mean",
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


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, without a summary of all options in front of it."""

    def parse_known_args(  # type: ignore[override] - one signature for its overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Refuse what is unknown here, under the command's name, with the nearest option."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"unknown {name}{did_you_mean(name, self._option_string_actions)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        said = printable(message.removeprefix("argument "))
        then = " " if said.endswith("?") else "; "
        self.exit(2, f"{self.prog}: {said}{then}{self.prog} --help shows how\n")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest of `names` as a question behind a semicolon; empty when none is near."""
    from difflib import get_close_matches

    words = {each.lstrip("-"): each for each in names}  # dashes are alike in all options
    near = get_close_matches(name.lstrip("-"), list(words), n=1)
    return f"; did you mean {words[near[0]]}?" if near else ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


_READERS: Final[Mapping[object, Callable[[str], object]]] = {float: _number, int: _whole_number}


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
    if (kind := settings.get("type")) in _READERS:
        settings["type"] = _READERS[kind]
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
