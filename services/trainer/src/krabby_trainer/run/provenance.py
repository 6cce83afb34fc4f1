"""Provenance of a run: revision, versions, machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["provenance"]

_PACKAGES = (
    "torch",
    "isaaclab",
    "newton",
    "warp-lang",
    "mujoco",
    "mujoco-warp",
    "rsl-rl-lib",
    "tensordict",
    "numpy",
    "hydra-core",
    "krabby-trainer",
    "krabby",
)


def provenance(device: str, world_size: int = 1) -> dict[str, Any]:
    """Revision, versions and hardware, as plain values.

    Args:
        device: torch's name of the device that trains.
        world_size: How many processes train together.
    """
    import torch

    folder = Path(__file__).resolve().parent
    revision = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    cuda = device.startswith("cuda")
    return {
        "revision": revision,
        "dirty": None if revision is None or changed is None else bool(changed),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": device,
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "world_size": world_size,
        "command": sys.argv[1:],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Git's answer about this file's working tree; None without one."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
