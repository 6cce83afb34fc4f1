"""Errors of the HAL loop, with any back end.

Every message names the value and the remedy; the command line prints it as it is.

    HalError
    ├── BackendUnusable   the loop cannot run this back end
    └── LoopSilent        lock-step: the game loop did not answer a state in time
"""

__all__ = ["BackendUnusable", "HalError", "LoopSilent"]


class HalError(Exception):
    """Base of every error the loop raises on purpose."""


class BackendUnusable(HalError):  # noqa: N818 - the name says what happened
    """The loop cannot run this back end as it is."""


class LoopSilent(HalError):  # noqa: N818 - the name says what happened
    """Lock-step waits for one command per control period, and none came."""
