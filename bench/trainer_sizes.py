"""Memory and rate of training by number of robots: one JSON line each, about 20 s of a GPU.

`python bench/trainer_sizes.py [--tasks teacher distill] [--robots 1024 ...] [--minutes 4] [--bf16]`

Each row is a process on a separate GPU; all visible GPUs work side by side, largest sizes first,
so that no GPU waits for the other at the end. A row's memory is the growth of its device's use, by
nvidia-smi, while it holds all that it has reserved: torch's and Warp's pools, and the CUDA context.
After `--minutes` no row is started. With `--bf16` every size of the teacher is measured a second
time with the update's losses in bfloat16. The last line names the largest number of robots of each
task that fits a GPU of 15 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

TEACHER: Final = Path(__file__).parents[1] / "assets/policies/teacher/training/checkpoint.pt"
FITS_GIB: Final = 15.0
SIZES: Final = [1024, 2048, 4096, 8192, 12288, 16384, 32768]
ROW: Final = """
import json, sys
from krabby_trainer.run.profiling import profile
bf16, *typed = sys.argv[1:]
report = profile(typed, iterations=2, parts=False, bf16=bf16 == "True")
sys.stdout.write("\\n" + json.dumps(report) + "\\n")
sys.stdout.flush()
sys.stdin.readline()
"""

Row = tuple[str, int, bool]
"""Task, robots, and whether losses are computed in bfloat16."""


def visible_gpus() -> list[str]:
    """Indices, as `CUDA_VISIBLE_DEVICES` names them."""
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else subprocess.check_output(query, text=True).split()


def used_gib(gpu: str) -> float:
    """Memory of a GPU that is in use [GiB]."""
    query = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used"]
    said = subprocess.check_output([*query, "--format=csv,noheader,nounits"], text=True)
    return float(said.split()[0]) / 1024


def measure(row: Row, init: Path, gpu: str, more: list[str]) -> dict[str, Any]:
    task, robots, bf16 = row
    overrides = [f"task={task}", f"env.num_envs={robots}", *more]
    if task != "teacher":
        overrides.append(f"run.init={init}")
    before = used_gib(gpu) if gpu else 0.0
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", ROW, str(bf16), *overrides],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu},
        ) as process,
    ):
        assert process.stdout is not None
        report = None
        for line in process.stdout:
            if line.startswith('{"task"'):
                report = json.loads(line)
                break
        used = used_gib(gpu) - before if gpu else 0.0
        process.communicate("done\n")
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if report is None:
        last = said[-1] if said else f"exit status {process.returncode}"
        return {"task": task, "num_envs": robots, "bf16": bf16, "error": last}
    return {**report, "bf16": bf16, "memory_gib": round(used, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["teacher", "distill"])
    parser.add_argument("--robots", nargs="+", type=int, default=SIZES)
    parser.add_argument("--init", type=Path, default=TEACHER)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="try the bench without a GPU")
    parser.add_argument("typed", nargs="*", help="further KEY=VALUE of training")
    args = parser.parse_args()
    rows: queue.SimpleQueue[Row] = queue.SimpleQueue()
    for robots in sorted(args.robots, reverse=True):
        for task in args.tasks:
            for bf16 in (False, True)[: 1 + (args.bf16 and task == "teacher")]:
                rows.put((task, robots, bf16))
    ends = time.monotonic() + 60.0 * args.minutes
    largest: dict[str, int] = {}
    lock = threading.Lock()

    def work(gpu: str) -> None:
        while not rows.empty() and time.monotonic() < ends:
            try:
                row = rows.get_nowait()
            except queue.Empty:
                return
            found = measure(row, args.init, gpu, args.typed)
            with lock:
                print(json.dumps(found), flush=True)
                if found.get("memory_gib", FITS_GIB + 1.0) <= FITS_GIB and not row[2]:
                    largest[row[0]] = max(largest.get(row[0], 0), row[1])

    workers = [
        threading.Thread(target=work, args=(gpu,)) for gpu in [""] * args.cpu or visible_gpus()
    ]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    print(json.dumps({"fits_gib": FITS_GIB, "largest": largest, "not_run": rows.qsize()}))


if __name__ == "__main__":
    main()
