"""`krabby bundle`: what is needed to look into a problem, in one archive, without secrets.

Logs, configuration, summary and black box of a run, the versions of everything, and what
`krabby doctor` says. Keys, tokens, passwords and the environment are left out; names of host, user
and home folder are replaced. `MANIFEST.txt` in the archive lists what is in it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from krabby.robot.assets import assets_dir
from krabby.robot.errors import RobotError

from krabby_cli.errors import UsageError, writing
from krabby_cli.options import add_command, flag, option, print_line
from krabby_cli.revision import revision
from krabby_cli.scrub import Scrubber

__all__ = ["add_parser"]

_TEXTS: Final = (".log", ".json", ".toml", ".txt", ".yaml", ".md")
_RECORDINGS: Final = (".mcap",)
_LOG_BYTES: Final = 20_000_000
"""Of a text; of a longer one the end."""
_RECORDING_BYTES: Final = 200_000_000
_DOCTOR_S: Final = 120.0
_EPILOG: Final = """\
examples:
  krabby bundle                                  the newest run of runs/
  krabby bundle --run runs/20261130T065159Z-d80ef6f4 --recording run.mcap
  krabby bundle --out /tmp/problem.zip --no-recordings
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "bundle", run, "logs, black box, versions and doctor in one archive", __doc__,
        _EPILOG,
    )  # fmt: skip
    option(parser, "--run", "DIR", "", "folder of a run; default: the newest one of --runs-dir")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="folder of the runs (default runs)")  # fmt: skip
    parser.add_argument("--recording", type=Path, action="append", default=[], metavar="FILE",
                        help="a recording to add; may be given again")  # fmt: skip
    option(parser, "--out", "FILE", "", "archive to write; default: krabby-bundle-TIME.zip")
    flag(parser, "--no-recordings", "leave out black boxes and recordings")


def run(args: argparse.Namespace) -> int:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    out = Path(args.out or f"krabby-bundle-{stamp}.zip")
    if out.suffix.lower() != ".zip":
        raise UsageError(f"--out {out}: an archive's name ends in .zip")
    if out.exists():
        raise UsageError(f"{out} exists already; remove it or give another name")
    folder = _run_folder(args)
    for path in args.recording:
        if not path.is_file():
            raise UsageError(f"no recording at {path}; give the path of an .mcap file")
    scrubber = Scrubber()
    listed: list[str] = []
    with writing(out), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _texts(folder):
            _say(name)
            archive.writestr(name, scrubber.text(text))
            listed.append(name)
        if not args.no_recordings:
            for name, path in _recordings(folder, args.recording):
                _say(name)
                listed.append(_add_recording(archive, scrubber, name, path))
        found = f"{scrubber.removed} secrets and names were replaced.\n"
        archive.writestr("MANIFEST.txt", "\n".join([*listed, "", found]))
    size = out.stat().st_size / 1e6
    print_line(f"wrote {out}: {len(listed)} files, {size:.1f} MB, {found.strip()}")
    if folder is None:
        print_line(f"note: no run in {args.runs_dir}; give one with --run")
    return 0


def _run_folder(args: argparse.Namespace) -> Path | None:
    if args.run:
        folder = Path(args.run)
        if not folder.is_dir():
            raise UsageError(f"--run {folder}: no such folder; give one of {args.runs_dir}")
        return folder
    if not args.runs_dir.is_dir():
        return None
    runs = [each for each in args.runs_dir.iterdir() if each.is_dir()]
    return max(runs, key=lambda each: each.stat().st_mtime, default=None)


def _texts(folder: Path | None) -> Iterator[tuple[str, str]]:
    """Name in the archive and content."""
    yield "versions.json", json.dumps(_versions(), indent=2)
    yield "doctor.txt", _doctor()
    for path in _configuration():
        yield f"configuration/{path.parent.name}/{path.name}", _end_of(path)
    if folder is not None:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix in _TEXTS:
                yield f"run/{path.relative_to(folder)}", _end_of(path)


def _versions() -> dict[str, Any]:
    packages = {
        str(each.metadata["Name"]): each.version for each in importlib.metadata.distributions()
    }
    return {
        "revision": revision(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "packages": dict(sorted(packages.items(), key=lambda each: each[0].lower())),
    }


def _doctor() -> str:
    command = (sys.executable, "-m", "krabby_cli", "doctor")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOCTOR_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"krabby doctor did not end within {_DOCTOR_S:g} s\n"
    return done.stdout + done.stderr


def _configuration() -> list[Path]:
    """What describes the robot; policies by their manifests."""
    try:
        assets = assets_dir()
    except RobotError:
        return []
    return [*sorted(assets.glob("*/*.toml")), *sorted(assets.glob("policies/*/manifest.json"))]


def _recordings(folder: Path | None, given: list[Path]) -> Iterator[tuple[str, Path]]:
    names: set[str] = set()
    found = [] if folder is None else sorted(folder.rglob("*"))
    for path in [*found, *given]:
        if path.is_file() and not path.is_symlink() and path.suffix in _RECORDINGS:
            name = f"recordings/{path.name}"
            if name not in names:
                names.add(name)
                yield name, path


def _add_recording(archive: zipfile.ZipFile, scrubber: Scrubber, name: str, path: Path) -> str:
    """Add a recording without secrets; returns its line in the list."""
    size = path.stat().st_size
    if size > _RECORDING_BYTES:
        return f"{name}: left out, it has {size / 1e6:.0f} MB"
    with path.open("rb") as source, tempfile.TemporaryFile() as clean:
        scrubber.recording(source, clean)
        clean.seek(0)
        with archive.open(name, "w", force_zip64=True) as target:
            while block := clean.read(1 << 20):
                target.write(block)
    return f"{name}: copied without its signature, from {size / 1e6:.1f} MB"


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, io.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"cannot be read: {error.strerror}\n"


def _say(name: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"{name}\n")
