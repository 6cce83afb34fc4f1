"""`python -m krabby_trainer profile`: where the time of an iteration goes.

The same iterations as in training run three times: undisturbed, for the rate; with a mark between
parts, for the bill; and under torch's profiler, for the share of time in which the device is busy.
Marks are events on the device, so nothing waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from krabby_trainer.run.config import compose, rsl_rl_config, to_dict
from krabby_trainer.run.training import resolve_device

__all__ = ["Marks", "busy_s", "profile"]

_WARM_UP: Final = 2
"""Iterations in which kernels are recorded."""
_TRACED: Final = 2


class Marks:
    """Attributes time to the innermost of the wrapped functions that runs.

    On CUDA it is the device's time, from the end of the work before a mark to the next mark.
    """

    def __init__(self, device: str) -> None:
        self.on = False
        self._cuda = device.startswith("cuda")
        self._stack = ["other"]
        self._marks: list[tuple[str, Any]] = []

    def around(self, owner: Any, name: str, part: str) -> None:
        """Count calls of the attribute `name` as `part`."""
        original: Callable[..., Any] = getattr(owner, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return original(*args, **kwargs)
            self._stack.append(part)
            self._mark()
            try:
                return original(*args, **kwargs)
            finally:
                self._stack.pop()
                self._mark()

        if hasattr(original, "__name__"):
            functools.update_wrapper(marked, original)
        setattr(owner, name, marked)

    def start(self) -> None:
        self.on = True
        self._mark()

    def stop(self) -> dict[str, float]:
        """Time of each part since `start` [s]."""
        self._mark()
        self.on = False
        if self._cuda:
            torch.cuda.synchronize()
        parts: dict[str, float] = defaultdict(float)
        for (part, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            parts[part] += 1e-3 * begin.elapsed_time(end) if self._cuda else end - begin
        self._marks.clear()
        return dict(parts)

    def _mark(self) -> None:
        """From here on the innermost part is that on top of the stack."""
        if self._cuda:
            moment: Any = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._marks.append((self._stack[-1], moment))


def busy_s(intervals: Iterable[tuple[int, int]]) -> float:
    """Length of the union of intervals, (begin, end) [ns] each, in seconds."""
    total, reached = 0, -1
    for begin, end in sorted(intervals):
        total += max(end - max(begin, reached), 0)
        reached = max(reached, end)
    return 1e-9 * total


def profile(
    overrides: Sequence[str],
    *,
    iterations: int = 8,
    parts: bool = True,
    bf16: bool = False,
    turns: str | Path | None = None,
) -> dict[str, Any]:
    """Measure iterations of `train` with these overrides.

    Args:
        overrides: As of `train`.
        iterations: That are measured, each time.
        parts: Not only rate and memory, but the bill and the device-busy share.
        bf16: Compute the policy's losses in bfloat16, which training does not.
        turns: A file that processes on the same device share: they warm up together, and each
            measures while no other does either.
    """
    from krabby_trainer.run.runner import ParkourRunner, seed_everything
    from krabby_trainer.task.isaac import make_env

    cfg = compose(overrides)
    device = resolve_device(cfg.device)
    torch.set_float32_matmul_precision("high")
    begin = time.perf_counter()
    seed = seed_everything(cfg.seed)
    env = make_env(cfg.env, device=device, seed=seed)
    created_s = time.perf_counter() - begin
    runner = ParkourRunner(
        env, rsl_rl_config(cfg), None, device, run=cfg.run, config=to_dict(cfg), provenance={}
    )
    if cfg.run.init:
        runner.begin_with(Path(cfg.run.init))
    if bf16:
        _compute_in_bfloat16(runner.alg, device)
    marks = Marks(device)
    _mark_parts(marks, runner)
    on_gpu = device.startswith("cuda")
    obs = env.get_observations().to(device)
    env.episode_length_buf = torch.randint_like(
        env.episode_length_buf, high=int(env.max_episode_length)
    )

    def iterate() -> float:
        nonlocal obs
        start = time.perf_counter()
        obs = runner._collect(obs)
        runner.alg.update()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    runner.alg.train_mode()
    with _turn(turns, fcntl.LOCK_SH):
        for _ in range(_WARM_UP):
            iterate()
    steps = cfg.agent.num_steps_per_env * cfg.env.num_envs
    with _turn(turns, fcntl.LOCK_EX):
        median_s = statistics.median(iterate() for _ in range(iterations))
        report: dict[str, Any] = {
            "task": cfg.task,
            "num_envs": cfg.env.num_envs,
            "created_s": round(created_s, 1),
            "iteration_ms": round(1e3 * median_s, 1),
            "env_steps_per_s": round(steps / median_s),
        }
        if parts:
            marks.start()
            for _ in range(iterations):
                iterate()
            bill = sorted(marks.stop().items(), key=lambda item: -item[1])
            report["bill_ms"] = {part: round(1e3 * s / iterations, 1) for part, s in bill}
        if on_gpu and parts:
            report |= _device_share(lambda: [iterate() for _ in range(_TRACED)], steps, median_s)
    if on_gpu:
        report |= {"gpu": torch.cuda.get_device_name(), **_memory(device)}
    return report


@contextlib.contextmanager
def _turn(turns: str | Path | None, kind: int) -> Generator[None]:
    """Holds the lock of that file, shared or alone; without a file nothing."""
    if turns is None:
        yield
        return
    with Path(turns).open("a") as file:
        fcntl.flock(file, kind)
        yield


def _compute_in_bfloat16(algorithm: Any, device: str) -> None:
    """Losses of a minibatch where that is safe; weights stay what they are."""
    step = getattr(algorithm, "_policy_step", None) or algorithm._step
    loss, kind = step._loss, torch.device(device).type

    def rounded() -> torch.Tensor:
        # Weights that were cast while recording would be those of the recording for ever.
        with torch.autocast(kind, torch.bfloat16, cache_enabled=False):
            return loss()

    step._loss = rounded


def _memory(device: str) -> dict[str, float]:
    """Memory of the device [GiB]: what all its processes use now; most of torch's and Warp's."""
    import warp

    free, total = torch.cuda.mem_get_info()
    return {
        "memory_gib": round((total - free) / 2**30, 2),
        "torch_memory_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "warp_memory_gib": round(warp.get_mempool_used_mem_high(device) / 2**30, 2),
    }


def _mark_parts(marks: Marks, runner: Any) -> None:
    algorithm, env = runner.alg, runner.env
    parkour = env.unwrapped.parkour
    parts = [
        (env, "step", "step"),
        (env.unwrapped.sim, "step", "physics"),
        (env.unwrapped.scene, "update", "sensors"),
        (parkour, "push", "push"),
        (parkour, "act", "gate"),
        (parkour, "judge_step", "judge"),
        (parkour, "renew", "reset and observe"),
        (parkour, "take_log", "log"),
        (runner, "_collect", "collect"),
        (runner._meter, "step", "meter"),
        (algorithm, "act", "act"),
        (algorithm, "process_env_step", "store"),
        (algorithm, "compute_returns", "returns"),
        (algorithm, "update", "update"),
    ]
    if hasattr(algorithm, "sight"):
        parts.append((algorithm.sight, "look", "depth encoder"))
    steps = {
        "_policy_step": "update: policy",
        "_estimator_step": "update: estimator",
        "_history_step": "update: history encoder",
        "_step": "update: student",
    }
    for name, part in steps.items():
        if hasattr(algorithm, name):
            parts.append((getattr(algorithm, name), "descend", part))
    for owner, name, part in parts:
        marks.around(owner, name, part)


def _device_share(run: Callable[[], Any], steps: int, median_s: float) -> dict[str, float]:
    """How busy the device is: its kernels and copies, recorded while `run` does `_TRACED`."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
    events: Any = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    work = [
        (event.start_ns(), event.end_ns())
        for event in events
        if event.device_type().name == "CUDA" and not event.is_user_annotation()
    ]
    busy = busy_s(work) / _TRACED
    return {
        "device_busy_ms": round(1e3 * busy, 1),
        "device_busy_share": round(busy / median_s, 3),
        "device_ns_per_step": round(1e9 * busy / steps, 1),
        "kernels": round(len(work) / _TRACED),
    }
