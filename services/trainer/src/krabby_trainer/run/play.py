"""`python -m krabby_trainer play`: a few robots of a checkpoint, to look at."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path
from typing import Any, Final

import torch

from krabby_trainer.errors import MissingDependency
from krabby_trainer.run.output import aside
from krabby_trainer.run.policies import load_policy
from krabby_trainer.run.telemetry import Progress
from krabby_trainer.task.config import play_env
from krabby_trainer.task.state import CONTROL_STEP_S
from krabby_trainer.vision.cameras import seen

__all__ = ["play"]

_SAY_EVERY: Final = 50
"""Control steps between two lines."""


def play(
    checkpoint: Path, *, robots: int, seconds: float, view: bool, seed: int, device: str
) -> dict[str, Any]:
    """Let robots walk until time is up, the window is closed or Ctrl-C.

    With a window the pace is real time, where the machine keeps up.

    Raises:
        TrainerError: No such checkpoint, or no window can be opened.
    """
    policy = load_policy(checkpoint, device)
    torch.manual_seed(seed)
    env = _make(robots, view=view, seed=seed, device=device, cameras=policy.sees)
    begins = torch.ones(robots, dtype=torch.bool, device=device)
    progress = Progress(period_s=1.0)
    falls = completed = 0
    steps = round(seconds / CONTROL_STEP_S)
    done = 0
    try:
        began = time.monotonic()
        for done in itertools.count(1) if not steps else range(1, steps + 1):
            obs = env.get_observations()
            vision = env.unwrapped.vision
            if vision is not None:
                obs = seen(obs, vision, begins)
            begins = env.step(policy(obs))[2].bool()
            facts = env.unwrapped.facts
            falls += int(facts.terminated.sum())
            completed += int(facts.completed.sum())
            if done % _SAY_EVERY == 0:
                walked = float(facts.distance_m.mean())
                progress.show(
                    f"{done * CONTROL_STEP_S:.1f} s  walked {walked:.1f} m  falls {falls}  "
                    f"courses {completed}"
                )
            if view:
                if not env.unwrapped.sim.is_running():
                    break
                time.sleep(max(0.0, began + done * CONTROL_STEP_S - time.monotonic()))
    except KeyboardInterrupt:
        pass
    finally:
        progress.close()
        with contextlib.suppress(Exception):
            env.close()
    return {
        "seconds": done * CONTROL_STEP_S,
        "robots": robots,
        "falls": falls,
        "completed": completed,
    }


def _make(robots: int, *, view: bool, seed: int, device: str, cameras: bool) -> Any:
    if view and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise MissingDependency(
            "no display to open a window on (DISPLAY is not set); add view=false"
        )
    cfg = play_env()
    cfg.num_envs = robots
    cfg.camera.enabled = cameras
    with aside(None, errors=True):
        from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper

        from krabby_trainer.task.isaac import ParkourEnv, isaac_cfg

        made = isaac_cfg(cfg, device=device, seed=seed)
        if view:
            from isaaclab_visualizers.newton import NewtonGLVisualizerCfg

            made.sim.visualizer_cfgs = [NewtonGLVisualizerCfg()]
        env = ParkourEnv(cfg=made)
        env.parkour.collect_facts = True
        wrapped = RslRlVecEnvWrapper(env)
        if view:
            x, y, z = env.parkour.robots.base_pos_w[0].tolist()
            env.sim.set_camera_view((x - 2.5, y - 4.0, z + 2.0), (x + 1.5, y, z - 0.3))
        return wrapped
