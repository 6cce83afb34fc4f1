"""What the command says in one line instead of a traceback.

::

    CliError                    exit status 1
    ├── UsageError              exit status 2: what was asked cannot be done, nothing was started
    ├── ServiceDied             a process ended although nobody had asked it to
    ├── StartTimeout            a process did not come up
    └── NoAnswer                nobody is at an endpoint
"""

from __future__ import annotations

__all__ = ["CliError", "NoAnswer", "ServiceDied", "StartTimeout", "UsageError"]


class CliError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(CliError):
    """What was asked cannot be done; nothing was started."""


class ServiceDied(CliError):  # noqa: N818 - named for what happened
    """A process ended although nobody had asked it to."""


class StartTimeout(CliError):  # noqa: N818
    """A process did not come up."""


class NoAnswer(CliError):  # noqa: N818
    """Nobody is at an endpoint."""
