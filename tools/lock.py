"""Lock the versions of every package: uv.lock, and services/trainer/uv.lock for the trainer.

    tools/lock.py [option of `uv lock`...]     for example --upgrade-package numpy
    tools/lock.py --check                      whether they are those of the manifests; no network

uv writes into a lock the address of every file, which depends on the index of the person who locks.
What is committed holds names, versions and hashes: `uv export`, through which everything here is
installed (tools/install.py), needs no more. `uv sync` and `uv run` do, and refuse these locks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from urllib.parse import unquote

from install import ROOT, UV, as_pip_does, put_uv, say

TRAINER = ROOT / "services" / "trainer"


def without_addresses(text: str) -> str:
    """The same lock with the names of files in place of their addresses."""
    text = re.sub(r'registry = "[^"]+"', 'registry = "simple"', text)
    return re.sub(r'url = "[^"]*/([^"/]+)"', lambda url: f'filename = "{unquote(url[1])}"', text)


def main(options: list[str]) -> int:
    """Lock, or with `--check` compare; the exit status."""
    os.environ.update(as_pip_does())
    put_uv()
    check = "--check" in options
    for project in (ROOT, TRAINER):
        lock = project / "uv.lock"
        name = str(lock.relative_to(ROOT))
        if check and "://" in lock.read_text():
            say(f"{name} names a host; run: make lock")
            return 1
        python = sys.executable if project == ROOT else _python312()
        if not python:
            say(f"{name}: not compared with its manifest, which takes a Python 3.12")
            return 0 if check else 1
        command = [UV, "lock", "--quiet", "--project", project, "--python", python, *options]
        if subprocess.run([*command, *(["--offline"] * check)], check=False).returncode:
            say(f"{name} is not what the manifests ask for; run: make lock" if check else name)
            return 1
        if not check:
            lock.write_text(without_addresses(lock.read_text()))
    return 0


def _python312() -> str:
    found = subprocess.run([ROOT / "tools/find-python312"], stdout=subprocess.PIPE, text=True)
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
