"""Follows the log files of running services."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from krabby_cli.text import LINES, printable

__all__ = ["LogFollower", "LogLine"]

_ROUTINE: Final = frozenset(
    {"time", "level", "service", "event", "run_id", "mono_ns", "logger", "exception"}
)
_LOUD: Final = frozenset({"warning", "error", "critical"})


@dataclass(frozen=True)
class LogLine:
    """One line: structured when it is JSON, else plain text (of the interpreter)."""

    text: str
    facts: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> LogLine:
        """Read a line without its end."""
        try:
            facts = json.loads(text)
        except (ValueError, RecursionError):
            return LogLine(text)
        return LogLine(text, facts) if isinstance(facts, dict) else LogLine(text)

    @property
    def event(self) -> str:
        """Name of the event; empty for plain text."""
        return str(self.facts.get("event", ""))

    @property
    def is_loud(self) -> bool:
        """Whether it is shown: a warning, an error or plain text."""
        if not self.facts:
            return bool(self.text.strip())
        return self.facts.get("level") in _LOUD

    def readable(self) -> str:
        """For a terminal: what a peer sent is shown, and neither obeyed nor taken for a line."""
        if not self.facts:
            return printable(self.text, keep="\t")
        extra = " ".join(
            f"{key}={_short(value)}" for key, value in self.facts.items() if key not in _ROUTINE
        )
        trace = (
            printable(f"\n{self.facts['exception']}", keep=LINES)
            if self.facts.get("exception")
            else ""
        )
        return (
            printable(f"{self.facts.get('level', 'info')}: {self.event} {extra}".rstrip()) + trace
        )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


class LogFollower:
    """Reads the lines appended to a file; an incomplete line waits for its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self._rest = b""

    def read(self) -> list[LogLine]:
        """New complete lines, oldest first; none while the file does not exist."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return []
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return [LogLine.parse(line.decode(errors="replace")) for line in lines]

    def rest(self) -> list[LogLine]:
        """Like `read`, with the incomplete last line; for a writer that has ended."""
        lines = self.read()
        if self._rest:
            lines.append(LogLine.parse(self._rest.decode(errors="replace")))
            self._rest = b""
        return lines
