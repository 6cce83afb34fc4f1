"""Make a virtual environment hold exactly what a lock says.

    tools/install.py VENV [--python PYTHON] [--project DIR] [option of `uv export`...]

    tools/install.py .venv --all-packages                       all of the workspace, and the tools
    tools/install.py .venv-train --project services/trainer     the trainer's own
    tools/install.py /opt/venv --no-editable --no-dev --package krabby-gameloop       an image's

Runs on the Python of an environment with pip, into which it puts uv as uv.lock pins it, by hash.
Asks the package index that pip is configured for, unless UV_DEFAULT_INDEX names another. Says on
stderr what it does.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.prefix) / "bin" / "uv"


def main() -> int:
    """Make or renew the environment; the exit status."""
    parser = argparse.ArgumentParser(description="Make an environment hold what a lock says.")
    parser.add_argument("venv", type=Path)
    parser.add_argument("--python", default=sys.executable, help="for an environment to be made")
    parser.add_argument("--project", type=Path, default=Path(), help="folder of the lock")
    args, export = parser.parse_known_args()
    os.environ.update(as_pip_does())
    try:
        put_uv()
        if not (args.venv / "bin" / "python").exists():
            say(f"creating {args.venv}")
            run([UV, "venv", "--quiet", "--no-project", "--python", args.python, args.venv])
        sync(args.venv, args.project, export)
    except KeyboardInterrupt:
        say("\r\033[Kinstall: interrupted; the same command continues")
        return 130
    except subprocess.CalledProcessError as error:
        say(f"install: {' '.join(map(str, error.cmd))} failed with status {error.returncode}")
        say("install: the lines above say why; without the package index nothing can be installed")
        return 1
    return 0


def put_uv() -> None:
    """Have the uv that uv.lock pins beside this Python."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    (uv,) = [package for package in lock["package"] if package["name"] == "uv"]
    if UV.exists():
        found = subprocess.run([UV, "--version"], capture_output=True, text=True, check=False)
        if found.stdout.split()[1:2] == [uv["version"]]:
            return
    say(f"installing uv {uv['version']}")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        hashes = " ".join(f"--hash={wheel['hash']}" for wheel in uv["wheels"])
        wanted.write(f"uv=={uv['version']} {hashes}\n")
        wanted.flush()
        pip = [sys.executable, "-m", "pip", "-qq", "--no-input"]
        run([*pip, "install", "--require-hashes", "-r", wanted.name])


def sync(venv: Path, project: Path, export: list[str]) -> None:
    """Install what is missing and remove what the lock has not."""
    exporting = [UV, "export", "--frozen", "--quiet", "--no-header", "--no-annotate", "--project"]
    with tempfile.TemporaryDirectory() as folder:
        wanted, build = Path(folder, "wanted.txt"), Path(folder, "build.txt")
        run([*exporting, project, *export, "--output-file", wanted])
        run([*exporting, ROOT, "--only-group", "build", "--output-file", build])
        say(f"installing {len(re.findall(r'(?m)^[^ #]', wanted.read_text()))} packages into {venv}")
        syncing = [UV, "pip", "sync", "--python", venv.resolve(), "--build-constraints", build]
        # In the project's folder: what a lock says of this repository's packages is relative to it.
        _watch([*syncing, wanted], project)


def _watch(command: list[Any], folder: Path) -> None:
    """Run uv; on a terminal one line that moves, elsewhere a line for each step."""
    began, told, loading, loaded = time.monotonic(), [], {}, 0.0
    moving, done = sys.stderr.isatty(), threading.Event()

    def status() -> str:
        elapsed_s, total = time.monotonic() - began, sum(loading.values())
        at = told[-1].strip().partition(" @ ")[0] if told else ""
        load = f", {loaded:.0f} of {total:.0f} MB loaded" if total else ""
        return f"  {elapsed_s:.0f} s{load}  {at}"

    def clock() -> None:
        while not done.wait(0.2):
            width = shutil.get_terminal_size((80, 24)).columns - 1
            say(f"\r\033[K{status()[:width]}", end="")
        say("\r\033[K", end="")

    thread = threading.Thread(target=clock, daemon=True)
    process = subprocess.Popen(
        list(map(str, command)), cwd=folder, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        with process:
            if moving:
                thread.start()
            assert process.stderr is not None
            for line in process.stderr:
                told.append(line.rstrip())
                if found := re.match(r"Downloading (\S+) \(([\d.]+)(Ki|Mi|Gi)B\)", line):
                    mb = float(found[2]) * {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[found[3]] / 1e6
                    loading[found[1]] = mb
                elif found := re.match(r" Downloaded (\S+)", line):
                    loaded += loading.get(found[1], 0.0)
                elif not moving and re.match(r"(Prepared|Installed|Uninstalled) ", line):
                    say(status())
    finally:
        done.set()
    if moving:
        thread.join()
    if process.returncode:
        say("\n".join(told))
        raise subprocess.CalledProcessError(process.returncode, command)
    say(f"installed: {status().strip().partition('  ')[0]}")


def as_pip_does() -> dict[str, str]:
    """Settings for uv: the index and the certificates that pip uses, unless uv is told others."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=False).stdout
    # The environment's come first and win.
    found = dict(reversed(re.findall(r"(?m)^\S*\.([a-z-]+)='(.*)'$", listed)))
    names = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
    settings = {ours: found[theirs] for theirs, ours in names.items() if theirs in found}
    # Certificates of the system, not those that uv brings: behind a company's proxy only they do.
    return {"UV_SYSTEM_CERTS": "true"} | settings | dict(os.environ)


def run(command: list[Any]) -> None:
    """Run a program; its failure is an exception."""
    subprocess.run(list(map(str, command)), check=True)


def say(text: str, end: str = "\n") -> None:
    """Write to stderr."""
    sys.stderr.write(text + end)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
