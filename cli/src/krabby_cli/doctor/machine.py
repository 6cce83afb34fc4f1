"""The machine under examination, as a seam: a folder for its files, a function for its programs.

Everything that `krabby doctor` knows comes through `Machine`, so a test is a folder with a few
files and a table of what programs print, and a check cannot tell it from a robot.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

__all__ = ["Finding", "Machine", "Status", "fail", "ok", "skip", "warn"]

Status = Literal["ok", "warn", "fail", "skip"]
"""`warn`: it will run, and not as well as it should; `fail`: it will not run, or not safely."""

_PROGRAM_TIMEOUT_S: Final = 10.0


class Finding(NamedTuple):
    """One row of the report."""

    name: str
    """What was looked at."""
    status: Status
    value: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty when there is nothing to do."""


def ok(name: str, value: str) -> Finding:
    return Finding(name, "ok", value)


def warn(name: str, value: str, remedy: str) -> Finding:
    return Finding(name, "warn", value, remedy)


def fail(name: str, value: str, remedy: str) -> Finding:
    return Finding(name, "fail", value, remedy)


def skip(name: str, value: str) -> Finding:
    return Finding(name, "skip", value)


def _run(command: Sequence[str]) -> str | None:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROGRAM_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if result.returncode else result.stdout


def _free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Files below `root`, programs through `run`."""

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str | None] = _run
    """What a program prints, or None when it is missing, fails or hangs."""
    free_bytes: Callable[[Path], int] = _free_bytes
    """Space left on the file system of a folder."""
    as_robot: bool | None = None
    """Whether to judge it as the robot's computer; None: as one when it is a Jetson."""
    calibration: Path | None = None
    """The robot's calibration file; None: look where it usually is."""
    buses: Mapping[str, int] = field(default_factory=dict)
    """CAN interfaces that hardware.toml names, and what each is to run at [bit/s]."""
    ports: dict[int, str] = field(default_factory=dict)
    """TCP ports the stack listens on, and what for."""

    def read(self, path: str | Path) -> str | None:
        """A file's text without the white space around it; None when it cannot be read."""
        try:
            text = (self.root / str(path).lstrip("/")).read_text(errors="replace")
        except OSError:
            return None
        return text.strip("\0 \t\n")

    def glob(self, pattern: str) -> list[Path]:
        """Files and folders that match, sorted."""
        return sorted(self.root.glob(pattern.lstrip("/")))

    @property
    def model(self) -> str:
        """The board's own name; empty where no device tree names one."""
        return self.read("/proc/device-tree/model") or ""

    @property
    def is_jetson(self) -> bool:
        return self.read("/etc/nv_tegra_release") is not None or "Jetson" in self.model

    @property
    def is_robot(self) -> bool:
        return self.is_jetson if self.as_robot is None else self.as_robot

    def package(self, name: str) -> str | None:
        """Version of an installed Debian package."""
        for paragraph in (self.read("/var/lib/dpkg/status") or "").split("\n\n"):
            lines = paragraph.split("\n")
            if f"Package: {name}" in lines and "Status: install ok installed" in lines:
                return next((ln[9:] for ln in lines if ln.startswith("Version: ")), None)
        return None
