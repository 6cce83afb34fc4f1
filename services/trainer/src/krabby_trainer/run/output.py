"""Redirects the output of libraries: of file descriptors, since C code and kernels print too."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from krabby_trainer.run.telemetry import Iteration

__all__ = ["Aside", "aside"]

_LARGEST: Final = 1_000_000
"""Bytes of such output that are kept; then the file is truncated."""


class Aside:
    """The file that output goes to; a sink, which limits its size once per iteration."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, iteration: Iteration) -> None:
        if self.path is not None and self.path.stat().st_size > _LARGEST:
            os.truncate(self.path, 0)

    def close(self) -> None:
        """No resources are held."""


@contextlib.contextmanager
def aside(path: Path | None, *, errors: bool = False) -> Generator[Aside]:
    """Append standard output, and with `errors` standard error, to a file; None drops it.

    A new file is removed if it stays empty.
    """
    new = path is not None and not path.exists()
    numbers = (1, 2) if errors else (1,)
    _flush()
    saved = [os.dup(number) for number in numbers]
    target = os.open(path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for number in numbers:
            os.dup2(target, number)
        yield Aside(path)
    finally:
        _flush()
        for number, was in zip(numbers, saved, strict=True):
            os.dup2(was, number)
            os.close(was)
        os.close(target)
        if path is not None and new and not path.stat().st_size:
            path.unlink()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
