"""Memory and rate of training by number of robots: one JSON line each.

`python bench/trainer_sizes.py [--tasks teacher distill] [--robots 1024 ...] [--minutes 4] [--bf16]`

Each row is a process on one GPU; all visible GPUs work side by side, largest sizes first. Preparing
takes most of a row's time and hardly uses the GPU, so several rows of a GPU prepare at once, up to
`--load` robots; their measured iterations take turns. A row's memory is what its process holds of
the device, by nvidia-smi: torch's and Warp's pools, and the CUDA context; `memory_of` is "pools"
where nvidia-smi does not tell processes apart, and the context is missing. After `--minutes` no row
is started. With `--bf16` every size of the teacher is measured a second time with the update's
losses in bfloat16, with `--parts` every row of the teacher has the device's busy share and its time
for a robot-step. The last line names the largest number of robots of each task that fits a GPU of
15 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

TEACHER: Final = Path(__file__).parents[1] / "assets/policies/teacher/training/checkpoint.pt"
FITS_GIB: Final = 15.0
SIZES: Final = [1024, 2048, 4096, 8192, 12288, 16384, 32768]
WEIGHTS: Final = {"distill": 2}
"""Memory of a robot in a task, in that of one in the teacher's."""
ITERATIONS: Final = 4
ROW: Final = """
import json, sys
from krabby_trainer.run.profiling import profile
turns, bf16, parts, iterations, *typed = sys.argv[1:]
report = profile(
    typed, iterations=int(iterations), parts=parts == "True", bf16=bf16 == "True", turns=turns
)
sys.stdout.write("\\n" + json.dumps(report) + "\\n")
sys.stdout.flush()
sys.stdin.readline()
"""


class Row(NamedTuple):
    """What one process measures."""

    task: str
    robots: int
    bf16: bool
    parts: bool

    @property
    def load(self) -> int:
        """Memory, in robots of the teacher's task."""
        return self.robots * WEIGHTS.get(self.task, 1)


def visible_gpus() -> list[str]:
    """Indices, as `CUDA_VISIBLE_DEVICES` names them."""
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else subprocess.check_output(query, text=True).split()


def used_gib(gpu: str, pid: int) -> float | None:
    """Memory of a GPU that a process uses [GiB]; None where nvidia-smi does not know it."""
    query = ["nvidia-smi", f"--id={gpu}", "--query-compute-apps=pid,used_memory"]
    said = subprocess.check_output([*query, "--format=csv,noheader,nounits"], text=True)
    for line in said.splitlines():
        process, _, used = line.partition(",")
        if process.strip() == str(pid) and used.strip().isdecimal():
            return float(used) / 1024
    return None


def measure(
    row: Row, init: Path, gpu: str, turns: Path, iterations: int, more: list[str]
) -> dict[str, Any]:
    """A row's report, or its error."""
    overrides = [f"task={row.task}", f"env.num_envs={row.robots}", *more]
    if row.task != "teacher":
        overrides.append(f"run.init={init}")
    options = [str(turns), str(row.bf16), str(row.parts), str(iterations)]
    began_s = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", ROW, *options, *overrides],
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
        used = used_gib(gpu, process.pid) if gpu else None
        process.communicate("done\n")
        errors.seek(0)
        said = errors.read().strip().splitlines()
    facts = {"bf16": row.bf16, "took_s": round(time.monotonic() - began_s, 1)}
    if report is None:
        last = said[-1] if said else f"exit status {process.returncode}"
        return {"task": row.task, "num_envs": row.robots, **facts, "error": last}
    if used is not None:
        facts |= {"memory_of": "process", "memory_gib": round(used, 2)}
    elif gpu:
        pools = report["torch_memory_gib"] + report["warp_memory_gib"]
        facts |= {"memory_of": "pools", "memory_gib": round(pools, 2)}
    return {**report, **facts}


class Bench:
    """Rows on GPUs: each takes the largest waiting row that its load leaves room for."""

    def __init__(self, args: argparse.Namespace, rows: list[Row], turns: Path) -> None:
        self.waiting = rows
        self.largest: dict[str, int] = {}
        self._args = args
        self._turns = turns
        self._ends = time.monotonic() + 60.0 * args.minutes
        self._changed = threading.Condition()

    def run(self, gpus: list[str]) -> None:
        """Measures until no row waits, or the time is over."""
        workers = [
            threading.Thread(target=self._serve, args=(gpu, load))
            for gpu in gpus
            for load in [[0]]
            for _ in range(self._args.jobs)
        ]
        for each in workers:
            each.start()
        for each in workers:
            each.join()

    def _serve(self, gpu: str, load: list[int]) -> None:
        """One of the workers of a GPU, which share `load`."""
        turns = self._turns / f"gpu{gpu}"
        while (row := self._next(load)) is not None:
            args = self._args
            found = measure(row, args.init, gpu, turns, args.iterations, args.typed)
            with self._changed:
                load[0] -= row.load
                print(json.dumps(found), flush=True)
                if found.get("memory_gib", FITS_GIB + 1.0) <= FITS_GIB and not row.bf16:
                    self.largest[row.task] = max(self.largest.get(row.task, 0), row.robots)
                self._changed.notify_all()

    def _next(self, load: list[int]) -> Row | None:
        with self._changed:
            while self.waiting and time.monotonic() < self._ends:
                for row in self.waiting:
                    if not load[0] or load[0] + row.load <= self._args.load:
                        self.waiting.remove(row)
                        load[0] += row.load
                        return row
                self._changed.wait(timeout=max(self._ends - time.monotonic(), 0.0))
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["teacher", "distill"])
    parser.add_argument("--robots", nargs="+", type=int, default=SIZES)
    parser.add_argument("--init", type=Path, default=TEACHER)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--jobs", type=int, default=4, help="rows of a GPU at once")
    parser.add_argument("--load", type=int, default=65536, help="robots of a GPU at once")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="measured of a row")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="try the bench without a GPU")
    parser.add_argument("typed", nargs="*", help="further KEY=VALUE of training")
    args = parser.parse_args()
    rows = [
        Row(task, robots, bf16, args.parts and task == "teacher" and not bf16)
        for robots in sorted(args.robots, reverse=True)
        for task in args.tasks
        for bf16 in (False, True)[: 1 + (args.bf16 and task == "teacher")]
    ]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, rows, Path(folder))
        bench.run([""] if args.cpu else visible_gpus())
    summary = {"fits_gib": FITS_GIB, "largest": bench.largest, "not_run": len(bench.waiting)}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
