"""Whether this interpreter has what Isaac Lab needs; imports none of it."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import TYPE_CHECKING, Final

from krabby.isaac.errors import IsaacUnavailable

if TYPE_CHECKING:
    from krabby.isaac.config import Physics

__all__ = ["DISTRIBUTIONS", "ISAACLAB_VERSION", "require_isaaclab", "require_physics"]

ISAACLAB_VERSION: Final = "3.0.0"
DISTRIBUTIONS: Final = {"newton": "newton", "physx": "ovphysx", "isaacsim": "isaacsim"}
"""Whose version tells which physics it is; all are imported by these names."""
_GET: Final = {
    "physx": "run `.venv/bin/python tools/install.py .venv-train --project services/trainer "
    "--extra physx` (200 MB)",
    "isaacsim": "install Isaac Sim 6.2 as Isaac Lab 3.0 describes it",
}


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


def require_physics(physics: Physics) -> None:
    """Refuse physics that is not installed.

    Raises:
        IsaacUnavailable: with what is missing and how to get it.
    """
    if importlib.util.find_spec(DISTRIBUTIONS[physics]) is None:
        raise IsaacUnavailable(
            f"isaac.physics={physics} needs {DISTRIBUTIONS[physics]}, which is not installed: "
            f"{_GET[physics]}; or give isaac.physics=newton"
        )
