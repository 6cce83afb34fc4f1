"""`python -m krabby_trainer demo`: a teacher from scratch, and the minutes until it walks.

Training runs with the defaults in a separate process, with a checkpoint every 15 s. The newest
checkpoint walks the published suite in MuJoCo meanwhile, on processor cores that training leaves
free. Once one reaches the wanted MXD, training stops, and older checkpoints are searched for the
first that does. A checkpoint's minutes count from the start of the training process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final

from krabby_trainer.errors import TrainerError
from krabby_trainer.evaluation import evaluate
from krabby_trainer.run import checkpoints
from krabby_trainer.run.output import aside
from krabby_trainer.run.policies import load_subject

__all__ = ["demo", "first_good"]

_SUITE: Final = "paper"
_CHECKPOINT_MINUTES: Final = 0.25
_CORES_OF_TRAINING: Final = 4
_POLL_S: Final = 1.0


def demo(
    out: Path, *, seed: int, num_envs: int, mxd: float, max_minutes: float, robots: int, device: str
) -> dict[str, Any]:
    """Train a teacher and find the first checkpoint with an MXD of at least `mxd`.

    Args:
        out: Folder of the run and its evaluations.
        seed: Of training.
        num_envs: Robots in training.
        mxd: Mean share of a course's waypoints, over the suite.
        max_minutes: Training ends then.
        robots: Of an evaluation; 0 for the suite's own number.
        device: Of training.

    Returns:
        Whether it was reached; the checkpoint, its MXD, and its minutes since the start, with and
        without the simulator's preparation.

    Raises:
        TrainerError: Training failed, or ended without a checkpoint.
    """
    folder = out / "checkpoints"
    found: dict[Path, float] = {}

    def measure(path: Path) -> float:
        if path not in found:
            policy, about = load_subject(path, "mujoco", "cpu")
            with aside(None):
                report = evaluate(
                    policy=policy,
                    about=about,
                    suite=_SUITE,
                    backend="mujoco",
                    robots=robots,
                    out=out / "evaluation" / path.stem,
                    processes=max(len(os.sched_getaffinity(0)) - _CORES_OF_TRAINING, 1),
                )
            found[path] = float(report["total"]["mxd"])
            minutes = (path.stat().st_mtime - started) / 60.0
            sys.stderr.write(f"{path.stem}, {minutes:.1f} minutes: MXD {found[path]:.3f}\n")
        return found[path]

    typed = [
        *(f"run.dir={out}", f"seed={seed}", f"env.num_envs={num_envs}", f"device={device}"),
        *(f"run.checkpoint_minutes={_CHECKPOINT_MINUTES}", "run.keep=10000"),
        *(f"run.max_minutes={max_minutes}", "agent.max_iterations=1000000"),
    ]
    started = time.time()
    with _training(typed) as process:
        while True:
            ended = process.poll()
            newest = checkpoints.newest_intact(folder)
            if newest is not None and newest not in found:
                if measure(newest) >= mxd:
                    break
            elif ended is not None:
                break
            else:
                time.sleep(_POLL_S)
    if process.returncode not in (0, -signal.SIGTERM):
        raise TrainerError(f"training ended with status {process.returncode}; see {out}")
    made = checkpoints.find_checkpoints(folder)
    if not made:
        raise TrainerError(f"training ended without a checkpoint; see {out}")
    if max(found.values(), default=0.0) < mxd:
        best = max(found, key=lambda path: found[path])
        return {"reached": False, "checkpoint": str(best), "mxd": found[best]}
    reached = next(path for path in made if found.get(path, 0.0) >= mxd)
    failed = [path for path in made if path < reached and path in found]
    between = [path for path in made if path <= reached and (not failed or path > failed[-1])]
    path = first_good(between, lambda path: measure(path) >= mxd)
    payload = checkpoints.load(path)
    return {
        "reached": True,
        "minutes": round((path.stat().st_mtime - started) / 60.0, 2),
        "minutes_of_training": round(payload["wall_s"] / 60.0, 2),
        "env_steps": payload["env_steps"],
        "checkpoint": str(path),
        "mxd": measure(path),
        "seed": seed,
    }


def first_good(paths: Sequence[Path], is_good: Callable[[Path], bool]) -> Path:
    """The first good one of `paths`, whose last is good, if all after a good one are."""
    low, high = 0, len(paths) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_good(paths[middle]) else (middle + 1, high)
    return paths[high]


@contextlib.contextmanager
def _training(typed: Sequence[str]) -> Generator[subprocess.Popen[bytes]]:
    """A training process; it is stopped, with a checkpoint, at the end of the block."""
    argv = [sys.executable, "-m", "krabby_trainer", "train", *typed]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()
