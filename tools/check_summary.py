"""Reads the JSON summary of one run on stdin and fails, naming each figure that is off.

The bounds here are those of correctness; timing is measured by `make bench`, where a busy machine
fails nothing.
"""

from __future__ import annotations

import json
import sys

BOUNDS = {"falls": (0, 0), "distance_m": (4.0, 100.0), "loop_hz": (99.0, 101.0)}


def main() -> int:
    """Check the summary; returns the exit code."""
    summary = json.loads(sys.stdin.read())
    faults = [
        f"{name} is {summary.get(name)!r}, expected {low} to {high}"
        for name, (low, high) in BOUNDS.items()
        if not (isinstance(summary.get(name), int | float) and low <= summary[name] <= high)
    ]
    sys.stderr.write("".join(f"summary: {fault}\n" for fault in faults) or "summary: as expected\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
