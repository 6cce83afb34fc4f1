"""Memory and rate of training by number of robots: one JSON line each, about 25 s of a GPU.

`python bench/trainer_sizes.py [--tasks teacher distill] [--robots 1024 ...] [--init TEACHER]`

Each row is a process. Its memory is the growth of the device's use, by nvidia-smi, while it holds
all that it has reserved: torch's and Warp's pools, and the CUDA context. The last line names the
largest number of robots of each task that fits a GPU of 15 GiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

TEACHER: Final = Path(__file__).parents[1] / "assets/policies/teacher/training/checkpoint.pt"
FITS_GIB: Final = 15.0
ROW: Final = """
import json, sys
from krabby_trainer.run.profiling import profile
report = profile(sys.argv[1:], iterations=2, parts=False)
sys.stdout.write("\\n" + json.dumps(report) + "\\n")
sys.stdout.flush()
sys.stdin.readline()
"""


def used_gib() -> float:
    """Memory of the first visible GPU that is in use [GiB]."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.check_output(query, text=True).split()[0]) / 1024


def measure(task: str, robots: int, init: Path) -> dict[str, Any]:
    overrides = [f"task={task}", f"env.num_envs={robots}"]
    if task != "teacher":
        overrides.append(f"run.init={init}")
    before = used_gib()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", ROW, *overrides],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        report = None
        for line in process.stdout:
            if line.startswith('{"task"'):
                report = json.loads(line)
                break
        used = used_gib() - before
        process.communicate("done\n")
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if report is None:
        last = said[-1] if said else f"exit status {process.returncode}"
        return {"task": task, "num_envs": robots, "error": last}
    return {**report, "memory_gib": round(used, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["teacher", "distill"])
    sizes = [1024, 2048, 4096, 8192, 12288, 16384, 32768]
    parser.add_argument("--robots", nargs="+", type=int, default=sizes)
    parser.add_argument("--init", type=Path, default=TEACHER)
    args = parser.parse_args()
    largest: dict[str, int] = {}
    for task in args.tasks:
        for robots in args.robots:
            row = measure(task, robots, args.init)
            print(json.dumps(row), flush=True)
            if row.get("memory_gib", FITS_GIB + 1) <= FITS_GIB:
                largest[task] = max(largest.get(task, 0), robots)
    print(json.dumps({"largest_within_gib": FITS_GIB, **largest}))


if __name__ == "__main__":
    main()
