"""Which revision of the checkout runs."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

__all__ = ["revision"]


@functools.cache
def revision() -> str:
    """Short hash of the checkout, with ``-dirty`` when it has changes; empty outside of one.

    An image has no checkout: it is told by $KRABBY_REVISION.
    """
    if not _git("ls-files", "--error-unmatch", Path(__file__).name):
        return os.environ.get("KRABBY_REVISION", "")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def _git(*words: str) -> str:
    """Output of git in the folder of this file; empty when it fails."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
