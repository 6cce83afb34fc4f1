"""Replaces a folder by a finished one in a single step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Generator
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class _Turn:
    """A lock on a folder, held while this object lives: no interrupt can leave it behind."""

    def __init__(self, folder: Path) -> None:
        self.handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self.handle, fcntl.LOCK_EX)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it could not be opened
            os.close(self.handle)


@contextlib.contextmanager
def staging(path: Path) -> Generator[Path]:
    """A folder beside `path` for what is to replace it; one writer at a time.

    What a killed writer left there is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.staging")
    turn = _Turn(path.parent)
    if folder.exists():
        old = folder / "old"
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        yield folder
        os.fsync(turn.handle)
    finally:
        shutil.rmtree(folder)


def carry_over(source: Path, target: Path, *, without: set[str]) -> None:
    """Give `target` all other files of `source` as well, as hard links where possible."""
    for other in source.iterdir():
        if other.name in without:
            continue
        if other.is_dir() and not other.is_symlink():
            shutil.copytree(other, target / other.name, symlinks=True, copy_function=_link)
        else:
            _link(str(other), str(target / other.name))


def put(fresh: Path, path: Path) -> None:
    """Move the folder `fresh` to `path`; an older folder there takes the place of `fresh`.

    A reader finds the old folder or the new one at any time, a kill leaves one of the two. On file
    systems that cannot exchange names there is none for a moment, and a kill in that moment leaves
    the old one for the next `staging` to put back.
    """
    if not path.exists():
        fresh.rename(path)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(fresh), os.fsencode(path))
    if not libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        return
    code = ctypes.get_errno()
    if code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code), str(path))
    old = fresh.with_name("old")
    path.rename(old)
    try:
        fresh.rename(path)
    except BaseException:
        if not path.exists():
            old.rename(path)
        raise


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)
    return target
