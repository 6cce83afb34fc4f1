"""What a process runs on, for the hello and so for every recording."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

__all__ = ["provenance"]

_CPUINFO = Path("/proc/cpuinfo")


def provenance(*packages: str) -> dict[str, object]:
    """`versions` of some packages, of Python and NumPy, and the `processor`.

    A command computed from the same numbers may differ in its last bits on another processor or
    with another version of what runs the network.
    """
    versions = {"python": platform.python_version()}
    for name in (*packages, "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"versions": versions, "processor": _processor()}


def _processor() -> str:
    """The model as the kernel names it, else the architecture."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return f"{value.strip()} ({platform.machine()})"
    return platform.machine()
