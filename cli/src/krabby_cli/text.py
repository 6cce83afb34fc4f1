"""Text of other processes, for a terminal."""

from __future__ import annotations

from typing import Final

__all__ = ["LINES", "printable"]

LINES: Final = "\n\t"
"""Control characters of a text of several lines, for `printable`."""


def printable(text: str, keep: str = "") -> str:
    """Text of another process for a terminal: control characters are shown, not obeyed.

    `keep` are those that stay as they are; without a line feed in it nothing can forge a line.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else ascii(each)[1:-1] for each in text
    )
