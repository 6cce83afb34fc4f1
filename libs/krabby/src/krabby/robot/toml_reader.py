"""Strict reading of TOML tables: every key used, every value of the expected kind and range.

A value that is wrong in `robot.toml` or `hardware.toml` ends up as torque on a joint, so nothing is
guessed: the first problem stops the reading, with the key's full name, the value found and what was
expected.
"""

import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krabby.robot.errors import DescriptionError

__all__ = ["Table", "read_toml"]


def read_toml(
    path: Path,
    *,
    unreadable: type[Exception],
    malformed: type[Exception],
    check: str = "check the path",
    mend: str = "mend that line",
) -> dict[str, Any]:
    """The tables of a file, unchecked.

    Args:
        path: The file.
        unreadable: What to raise when it cannot be read.
        malformed: What to raise when it is not TOML.
        check: What to do about the one ...
        mend: ... and about the other.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(f"cannot read {path}: {error.strerror}; {check}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise malformed(f"{path} is not TOML: {error}; {mend}") from error


class Table:
    """One TOML table being read; `finish()` refuses whatever was not asked for."""

    def __init__(
        self,
        values: Mapping[str, Any],
        name: str,
        source: str,
        error: type[Exception] = DescriptionError,
    ) -> None:
        """Args: the parsed table, its dotted name ("" at the top), the file, what to raise."""
        self._values = values
        self._name = name
        self._source = source
        self._error = error
        self._known: list[str] = []

    def table(self, key: str) -> "Table":
        """Sub-table `key`."""
        value = self._take(key)
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "a table")
        return Table(value, self._dotted(key), self._source, self._error)

    def tables(self, key: str) -> dict[str, "Table"]:
        """Sub-table `key`, every entry of which is a table, by name in the file's order."""
        inner = self.table(key)
        if not inner._values:
            raise self.error(key, "is empty; expected at least one table in it")
        return {name: inner.table(name) for name in inner._values}

    def text(self, key: str) -> str:
        """Non-empty string `key`."""
        value = self._take(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, value, "a non-empty string")
        return value

    def texts(self, key: str, length: int) -> tuple[str, ...]:
        """List of `length` different strings."""
        value = self._take(key)
        expected = f"a list of {length} different names"
        if not isinstance(value, list):
            raise self._wrong(key, value, expected)
        names = tuple(value)
        if not all(isinstance(name, str) and name for name in names):
            raise self._wrong(key, value, expected)
        if len(names) != length:
            raise self._wrong(key, f"{len(names)} of them", expected)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise self._wrong(key, f"{repeated[0]!r} twice", expected)
        return names

    def number(
        self, key: str, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf
    ) -> float:
        """Finite number with `low <= value <= high` and `value > above`."""
        return self._check_number(key, self._take(key), low=low, high=high, above=above)

    def positive(self, key: str) -> float:
        """Finite number greater than zero."""
        return self.number(key, above=0.0)

    def integer(self, key: str, *, low: int) -> int:
        """Whole number, at least `low`."""
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self._wrong(key, value, f"a whole number of at least {low}")
        return value

    def vector(self, key: str, length: int, *, above: float = -math.inf) -> tuple[float, ...]:
        """List of `length` finite numbers, each greater than `above`."""
        value = self._take(key)
        if not isinstance(value, list):
            raise self._wrong(key, value, f"a list of {length} numbers")
        if len(value) != length:
            raise self._wrong(key, f"{len(value)} of them", f"a list of {length} numbers")
        return tuple(
            self._check_number(f"{key}[{i}]", v, low=-math.inf, high=math.inf, above=above)
            for i, v in enumerate(value)
        )

    def finish(self) -> None:
        """Refuse keys that nobody asked for, naming the nearest one that exists."""
        for key in self._values:
            if key not in self._known:
                nearest = difflib.get_close_matches(key, self._known, n=1, cutoff=0.0)[0]
                raise self._error(
                    f"{self._source}: unknown key {self._dotted(key)}; "
                    f"did you mean {self._dotted(nearest)}?"
                )

    def error(self, key: str, problem: str) -> Exception:
        """An error about `key` that this class cannot know of."""
        return self._error(f"{self._source}: {self._dotted(key)} {problem}")

    def _take(self, key: str) -> Any:
        self._known.append(key)
        if key not in self._values:
            raise self._error(f"{self._source}: {self._dotted(key)} is missing; add it")
        return self._values[key]

    def _check_number(
        self, key: str, value: object, *, low: float, high: float, above: float
    ) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        if not math.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        if value <= above:
            raise self._wrong(key, value, f"a number above {above:g}")
        if not low <= value <= high:
            raise self._wrong(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def _wrong(self, key: str, value: object, expected: str) -> Exception:
        shown = value if isinstance(value, str) and " " in value else repr(value)
        return self.error(key, f"is {shown}; expected {expected}")

    def _dotted(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key
