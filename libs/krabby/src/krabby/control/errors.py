"""What can go wrong in control, apart from a policy or a robot that does not fit.

ControlError
└── TapeError             a tick record cannot be read or replayed
"""

__all__ = ["ControlError", "TapeError"]


class ControlError(Exception):
    """Base of every error this package raises on purpose."""


class TapeError(ControlError):
    """A tick record cannot be read or replayed."""
