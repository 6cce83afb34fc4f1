"""Whether this interpreter has what Isaac Lab needs; imports none of it."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Final

__all__ = ["ISAACLAB_VERSION", "require_isaaclab"]

ISAACLAB_VERSION: Final = "3.0.0"


def require_isaaclab(what: str, error: type[Exception]) -> None:
    """Refuse to go on without the Python and the packages that Isaac Lab needs.

    Args:
        what: What needs them, for the message: "training".
        error: Raised with what is missing and how to get it.
    """
    if sys.version_info[:2] != (3, 12):
        raise error(
            f"{what} needs Python 3.12 and this is {sys.version.split()[0]}: run "
            "`make train-setup` and use .venv-train/bin/python"
        )
    if importlib.util.find_spec("isaaclab") is None:
        raise error(
            f"{what} needs Isaac Lab {ISAACLAB_VERSION}, which is not installed: run "
            "`make train-setup` (about 8 GB)"
        )
    warnings.filterwarnings("ignore", module=r"(isaaclab|warp|newton|pxr|mujoco).*")
