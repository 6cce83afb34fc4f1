"""Errors that the command reports in one line; exit status 1, or 2 for a `UsageError`."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Final

__all__ = ["WHERE", "CliError", "NoAnswer", "ServiceDied", "StartTimeout", "UsageError", "writing"]

WHERE: Final = (
    "start it (`krabby up`), or say where it is with --host, --base-port, --transport, --run or "
    "--endpoint"
)
"""What a person can do when no process answers."""


class CliError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(CliError):
    """The request cannot be carried out; nothing was started."""


class ServiceDied(CliError):  # noqa: N818 - named for what happened
    """A process ended that was not asked to."""


class StartTimeout(CliError):  # noqa: N818
    """A process was not ready in time."""


class NoAnswer(CliError):  # noqa: N818
    """No process answers at an endpoint."""


@contextlib.contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn a failure to write `path` in the block into a `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; choose a writable place"
        ) from error
