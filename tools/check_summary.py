"""Reads the JSON summary of one run on stdin and fails, naming each figure that is off.

The bounds here are those of correctness; timing is measured by `make bench`, where a busy machine
fails nothing. So the loop's rate is compared with the one that a thread here keeps meanwhile.
"""

from __future__ import annotations

import json
import sys

from krabby.runtime.testing import kept_rate

BOUNDS = {"falls": (0, 0), "distance_m": (4.0, 100.0)}
RATE_HZ = 100.0
LATE = 3
"""Processes that a tick passes, each of which may lose as many as the thread here."""


def main() -> int:
    """Check the summary; returns the exit code."""
    with kept_rate(1.0 / RATE_HZ) as kept_hz:
        summary = json.loads(sys.stdin.read())
        lost_hz = max(RATE_HZ - kept_hz(), 0.0)
    bounds = BOUNDS | {"loop_hz": (0.99 * RATE_HZ - LATE * lost_hz, 1.01 * RATE_HZ)}
    faults = [
        f"{name} is {summary.get(name)!r}, expected {low} to {high}"
        for name, (low, high) in bounds.items()
        if not (isinstance(summary.get(name), int | float) and low <= summary[name] <= high)
    ]
    sys.stderr.write("".join(f"summary: {fault}\n" for fault in faults) or "summary: as expected\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
