"""The private folder of a robot's Unix sockets: where it is, and whether it is private."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from krabby_proto.errors import EndpointError

__all__ = ["private_folder", "runtime_folder"]


def runtime_folder(name: str = "krabby") -> Path:
    """Folder of this user's sockets: ``$XDG_RUNTIME_DIR/NAME``, else ``NAME-UID`` in ``/tmp``."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime, name)
    return Path(_temporary_folder(), f"{name}-{os.geteuid()}")


def _temporary_folder() -> str:
    """As `tempfile.gettempdir` finds it; that module takes longer to import than this package."""
    for name in ("TMPDIR", "TEMP", "TMP"):
        folder = os.environ.get(name, "")
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return os.path.abspath(folder)
    return "/tmp"


def private_folder(path: Path) -> None:
    """Make a folder that only this user can enter, or check one that exists.

    Checked: the folder is a directory of this user with mode 0700, and no other user but root can
    replace it or a folder above it.

    Raises:
        EndpointError: names the folder, its owner or mode, and the remedy.
    """
    path = Path(os.path.abspath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise EndpointError(f"folder {path} cannot be made: {error.strerror}") from error
    for above in _way(path):
        _check_above(above)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise EndpointError(f"{path} is not a folder; remove it")
    if found.st_uid != os.geteuid():
        raise EndpointError(
            f"folder {path} belongs to user {found.st_uid}, this process runs as user "
            f"{os.geteuid()}; remove the folder or set XDG_RUNTIME_DIR to a folder of this user"
        )
    if found.st_mode & 0o077:
        raise EndpointError(
            f"folder {path} has mode {stat.S_IMODE(found.st_mode):04o}, so other users can reach "
            f"the sockets in it; run chmod 700 {path}"
        )


def _way(path: Path) -> set[Path]:
    """Folders and links on the way to a path, also those of a link that leads to a link."""
    found: set[Path] = set()
    left = [path]
    while left:
        for above in set(left.pop().parents) - found:
            found.add(above)
            if above.is_symlink():
                left.append(Path(os.path.realpath(above.parent), above.readlink(), path.name))
    return found


def _check_above(folder: Path) -> None:
    """Refuse a folder in which another user can rename or replace what is in it."""
    found = folder.lstat()
    writable = found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode)
    if found.st_uid not in (0, os.geteuid()) or (writable and not found.st_mode & stat.S_ISVTX):
        raise EndpointError(
            f"folder {folder} belongs to user {found.st_uid} and has mode "
            f"{stat.S_IMODE(found.st_mode):04o}, so another user can replace the sockets below it; "
            "set XDG_RUNTIME_DIR to a folder of this user"
        )
