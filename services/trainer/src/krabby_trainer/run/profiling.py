"""Time of the parts of an iteration: `python -m krabby_trainer.run.profiling [key=value ...]`.

Runs the same iterations as training twice: undisturbed, for the rate, and with the device
synchronised around every part, for the shares. One JSON line at the end.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from krabby_trainer.run.config import compose, rsl_rl_config, to_dict
from krabby_trainer.run.training import resolve_device

__all__ = ["profile"]

_WARM_UP: Final = 3
_ITERATIONS: Final = 8


class _Clock:
    """Adds up the time of wrapped functions, without that of nested ones."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.on = False
        self._synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        self._inner = [0.0]

    def around(self, owner: Any, name: str, part: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return original(*args, **kwargs)
            self._synchronise()
            begin = time.perf_counter()
            self._inner.append(0.0)
            result = original(*args, **kwargs)
            self._synchronise()
            elapsed = time.perf_counter() - begin
            self.seconds[part] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed
            return result

        setattr(owner, name, timed)


def profile(overrides: Sequence[str]) -> dict[str, Any]:
    from krabby_trainer.run.runner import ParkourRunner
    from krabby_trainer.task.isaac import make_env

    cfg = compose(overrides)
    device = resolve_device(cfg.device)
    torch.set_float32_matmul_precision("high")
    begin = time.perf_counter()
    env = make_env(cfg.env, device=device, seed=cfg.seed)
    created_s = time.perf_counter() - begin
    runner = ParkourRunner(
        env, rsl_rl_config(cfg), None, device, run=cfg.run, config=to_dict(cfg), provenance={}
    )
    if cfg.run.init:
        runner.begin_with(Path(cfg.run.init))
    algorithm, parkour = runner.alg, env.unwrapped.parkour
    clock = _Clock(device)
    clock.around(env.unwrapped.sim, "step", "physics")
    clock.around(env.unwrapped.scene, "update", "sensors")
    clock.around(parkour, "after_physics", "measure")
    clock.around(parkour, "observe", "observations")
    if parkour.observer.vision is not None:
        clock.around(parkour, "see_replayed", "cameras")
        clock.around(algorithm.sight, "look", "encoder")
    clock.around(env.unwrapped.reward_manager, "compute", "rewards")
    clock.around(env.unwrapped, "_reset_idx", "resets")
    clock.around(env, "step", "managers")
    clock.around(algorithm, "act", "act")
    clock.around(algorithm, "process_env_step", "store")
    clock.around(algorithm, "compute_returns", "returns")
    clock.around(algorithm, "update", "learning")

    def iterate() -> float:
        start = time.perf_counter()
        obs = env.get_observations().to(device)
        with torch.inference_mode():
            for _ in range(cfg.agent.num_steps_per_env):
                obs, reward, done, extras = env.step(algorithm.act(obs))
                algorithm.process_env_step(obs, reward, done, extras)
            algorithm.compute_returns(obs)
        algorithm.update()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    algorithm.train_mode()
    for _ in range(_WARM_UP):
        iterate()
    undisturbed = [iterate() for _ in range(_ITERATIONS)]
    clock.on = True
    disturbed = [iterate() for _ in range(_ITERATIONS)]
    steps = cfg.agent.num_steps_per_env * cfg.env.num_envs
    median = statistics.median(undisturbed)
    bill = {part: 1e3 * total / _ITERATIONS for part, total in clock.seconds.items()}
    report = {
        "num_envs": cfg.env.num_envs,
        "created_s": round(created_s, 1),
        "iteration_ms": round(1e3 * median, 1),
        "env_steps_per_s": round(steps / median),
        "iteration_ms_measured": round(1e3 * statistics.median(disturbed), 1),
        "bill_ms": {k: round(v, 1) for k, v in sorted(bill.items(), key=lambda kv: -kv[1])},
    }
    if device.startswith("cuda"):
        report["gpu"] = torch.cuda.get_device_name()
        report["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    return report


if __name__ == "__main__":
    sys.stdout.write(json.dumps(profile(sys.argv[1:])) + "\n")
