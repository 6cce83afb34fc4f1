"""Unique numbers of drives, and those by which emulated drives are known.

A drive that says that it is emulated needs no operator who saw it move: no motor has such a number.
"""

from typing import Final

__all__ = ["emulated_identities", "emulated_identity", "is_emulated"]

_PREFIX: Final = "4b7262"
"""`Krb` in ASCII: the first three bytes of an emulated drive's number."""


def emulated_identity(joint: int, digits: int = 16) -> str:
    """Number of the emulated drive of a joint, counted from 0; `digits` hexadecimal ones."""
    return f"{_PREFIX}{joint + 1:0{digits - len(_PREFIX)}x}"


def emulated_identities(count: int, digits: int = 16) -> tuple[str, ...]:
    """Those of all joints, in joint order."""
    return tuple(emulated_identity(joint, digits) for joint in range(count))


def is_emulated(identity: str) -> bool:
    """Whether a drive says that it is emulated."""
    return identity.startswith(_PREFIX)
