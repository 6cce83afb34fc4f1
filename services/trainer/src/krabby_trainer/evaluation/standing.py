"""Whether a policy stands still when no motion is asked for: measured, since training may fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from krabby_trainer.evaluation.physics import CONTROL_S
from krabby_trainer.evaluation.walkers import Walkers
from krabby_trainer.task.config import CommandCfg, evaluation_env
from krabby_trainer.task.terrain import Terrain

if TYPE_CHECKING:
    from krabby_trainer.learn.policies import Policy

__all__ = ["STILL_M_S", "speed_at_rest"]

STILL_M_S: Final = 0.01
"""Who is slower than this stands; a robot that creeps would be out of place within minutes."""

_ROBOTS: Final = 4
_SECONDS: Final = 4.0


def speed_at_rest(policy: Policy) -> float:
    """Speed [m/s] of robots on flat ground on a zero command: the median over four of them.

    In MuJoCo, over the last half of four seconds; infinity for a robot that falls.
    """
    cfg = evaluation_env(num_envs=_ROBOTS, types=["flat"], difficulty=(0.0, 0.0))
    cfg.command = CommandCfg(speed_low=0.0, speed_high=0.0)
    cfg.randomisation.enabled = False
    cfg.camera.enabled = policy.sees
    terrain = Terrain(cfg.terrain)
    steps = round(_SECONDS / CONTROL_S)
    fell = np.zeros(_ROBOTS, bool)
    halfway = torch.zeros(_ROBOTS, 2)
    with Walkers(cfg, terrain, np.arange(_ROBOTS) % terrain.tiles, seed=0, processes=1) as walkers:
        for step in range(steps):
            fell |= walkers.step(policy(walkers.look()).float()).terminated
            if step == steps // 2:
                halfway = walkers.get("base_pos_w")[:, :2].clone()
        moved = (walkers.get("base_pos_w")[:, :2] - halfway).norm(dim=-1).numpy()
    return float(np.median(np.where(fell, np.inf, moved / (0.5 * _SECONDS))))
