"""Fills the tables in docs/ that a module prints, between `from MODULE` and `end` comments.

`python tools/fill_docs.py` writes; with `--check` it fails when a page differs from what its module
prints.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- from (?P<module>[\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Fill or check every page; returns the exit status."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    for page in sorted((_ROOT / "docs").glob("*.md")):
        text = page.read_text()
        filled = _BLOCK.sub(lambda found: found[1] + _printed(found["module"]) + found[3], text)
        if filled != text:
            stale.append(page.name)
            if not check:
                page.write_text(filled)
    if stale and check:
        sys.stderr.write(f"docs: {', '.join(stale)} differ; run: python tools/fill_docs.py\n")
        return 1
    return 0


def _printed(module: str) -> str:
    command = [sys.executable, "-m", module]
    printed = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout
    return f"\n{printed.strip()}\n\n"


if __name__ == "__main__":
    sys.exit(main())
