"""The interpreter that runs sim-hal on Isaac Lab: that of the trainer's environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from krabby_cli.errors import UsageError

__all__ = ["ISAAC_PYTHON_ENV", "isaac_python"]

ISAAC_PYTHON_ENV: Final = "KRABBY_ISAAC_PYTHON"
"""Names another interpreter than `.venv-train/bin/python`."""

_NEEDS: Final = ("isaaclab", "torch", "krabby_sim_hal")
_TRY_S: Final = 60.0
_TRY: Final = f"""
import sys, importlib.util
missing = [name for name in {_NEEDS!r} if importlib.util.find_spec(name) is None]
sys.exit(", ".join(missing) if missing else 0)
"""


def isaac_python() -> str:
    """Path of the interpreter, tried out.

    Raises:
        UsageError: There is none, or something is missing in it; says how to get it.
    """
    named = os.environ.get(ISAAC_PYTHON_ENV)
    python = Path(named) if named else Path(sys.prefix).parent / ".venv-train/bin/python"
    remedy = "run make train-setup (Python 3.12, torch, Isaac Lab; about 8 GB)"
    if not os.access(python, os.X_OK):
        where = f"{ISAAC_PYTHON_ENV}={named}" if named else str(python)
        raise UsageError(
            f"--backend isaaclab needs the trainer's environment, and there is no {where}; {remedy}"
            + ("" if named else f", or name its Python in {ISAAC_PYTHON_ENV}")
        )
    try:
        command = (str(python), "-P", "-c", _TRY)
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRY_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--backend isaaclab: {python} does not run ({error}); {remedy}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise UsageError(f"--backend isaaclab: {python} lacks {said[-1]}; {remedy}")
    return str(python)
