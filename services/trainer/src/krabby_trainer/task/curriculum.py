"""The curriculum: when a robot moves to a harder or an easier tile.

The rule, at the end of an episode:

* up by `promote_levels`, if it reached at least `promote_goals` waypoints;
* down by one, if it fell before `demote_goals` of them, or if time ran out and it had come less
  than `demote_speed` of the commanded distance;
* a robot that goes up from the hardest level is sent to a random one, so that none is forgotten.

A share `revisit` of the episodes takes place on a random easier tile and leaves the level as it is.
The column (obstacle type and layout) of a robot never changes.
"""

from __future__ import annotations

import torch

from krabby_trainer.task.config import CurriculumCfg

__all__ = ["next_level", "tile_level"]

Tensor = torch.Tensor


def next_level(
    level: Tensor,
    *,
    goals: Tensor,
    fell: Tensor,
    distance_m: Tensor,
    asked_m: Tensor,
    levels: int,
    cfg: CurriculumCfg,
) -> Tensor:
    """The next level of robots whose episode ended, (n,).

    Args:
        level: Present level, (n,).
        goals: Waypoints reached, (n,).
        fell: Whether the episode ended in a failure, (n,).
        distance_m: How far along the lane it came, (n,).
        asked_m: Commanded speed times the length of the episode, (n,).
        levels: How many levels there are.
        cfg: The rule's numbers.
    """
    up = goals >= cfg.promote_goals
    slow = ~fell & (distance_m < cfg.demote_speed * asked_m)
    down = ~up & ((fell & (goals < cfg.demote_goals)) | slow)
    moved = level + cfg.promote_levels * up.long() - down.long()
    anywhere = torch.randint_like(level, levels)
    return torch.where(moved >= levels, anywhere, moved.clamp(min=0))


def tile_level(level: Tensor, revisit: float) -> Tensor:
    """Level of the tiles that robots of this level go to, (n,): mostly their own."""
    easier = (torch.rand(level.shape, device=level.device) * level).long()
    again = torch.rand(level.shape, device=level.device) < revisit
    return torch.where(again, easier, level)
