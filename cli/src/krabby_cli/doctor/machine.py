"""The machine under examination: a folder for its files, a function for its programs.

`krabby doctor` reads through `Machine` only, so that a test is a folder of files and a table of
program outputs.
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
"""`warn`: it runs with reduced performance; `fail`: it does not run, or not safely."""

_PROGRAM_TIMEOUT_S: Final = 10.0


class Finding(NamedTuple):
    name: str
    """What was checked."""
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
    root: Path = Path("/")
    run: Callable[[Sequence[str]], str | None] = _run
    """Output of a program; None when it is missing, fails or hangs."""
    free_bytes: Callable[[Path], int] = _free_bytes
    """Space left on the file system of a folder."""
    as_robot: bool | None = None
    """Whether to check it as the robot's computer; None: if it is a Jetson."""
    calibration: Path | None = None
    """The robot's calibration file; None: one of the usual places."""
    buses: Mapping[str, int] = field(default_factory=dict)
    """CAN interfaces of hardware.toml, and their bit rates [bit/s]."""
    ports: dict[int, str] = field(default_factory=dict)
    """TCP ports of the stack, and their purpose."""

    def read(self, path: str | Path) -> str | None:
        """A file's text without the white space around it; None when it cannot be read."""
        try:
            text = (self.root / str(path).lstrip("/")).read_text(errors="replace")
        except OSError:
            return None
        return text.strip("\0 \t\n")

    def glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern.lstrip("/")))

    @property
    def model(self) -> str:
        """The board's name in the device tree; empty without one."""
        return self.read("/proc/device-tree/model") or ""

    @property
    def is_jetson(self) -> bool:
        return self.read("/etc/nv_tegra_release") is not None or "Jetson" in self.model

    @property
    def is_robot(self) -> bool:
        return self.is_jetson if self.as_robot is None else self.as_robot

    def absent(self, name: str, value: str, remedy: str) -> Finding:
        """Something only the robot needs is not there."""
        return fail(name, value, remedy) if self.is_robot else skip(name, value)

    def package(self, name: str) -> str | None:
        for paragraph in (self.read("/var/lib/dpkg/status") or "").split("\n\n"):
            lines = paragraph.split("\n")
            if f"Package: {name}" in lines and "Status: install ok installed" in lines:
                return next((ln[9:] for ln in lines if ln.startswith("Version: ")), None)
        return None
