"""Free robots: they follow velocity commands instead of waypoints, and begin anywhere."""

from __future__ import annotations

import math
from typing import Final

import torch

from krabby_trainer.sampling import uniform
from krabby_trainer.task.commands import Tracking, VelocityCommands
from krabby_trainer.task.config import CommandCfg
from krabby_trainer.task.terminations import left_lane
from krabby_trainer.task.terrain import Terrain, TerrainTensors

__all__ = ["FreeRobots"]

Tensor = torch.Tensor

_FIELD_MARGIN_M: Final = 1.5
"""How near free robots may come to the end of the flat columns."""


class FreeRobots:
    """Which of N robots are free, their commands and their places."""

    def __init__(
        self,
        cfg: CommandCfg,
        terrain: Terrain,
        ground: TerrainTensors,
        column: Tensor,
        device: str,
    ) -> None:
        self._cfg, self._ground, self._device = cfg, ground, device
        self._tile_length_m = terrain.tile_length_m
        self.mask = torch.zeros(len(column), dtype=torch.bool, device=device)
        """Which robots are free in this episode, (N,)."""
        self.commands = VelocityCommands(cfg, len(column), device)
        self.tracking = Tracking(len(column), device)
        self.some = cfg.free_flat or cfg.free_share > 0.0
        """Whether any robot is ever free."""
        flat = list(terrain.types).index("flat") if cfg.free_flat else -1
        self._on_field = ground.type_id[column] == flat
        passable = ground.goals[column] == ground.waypoints.shape[1]
        self._share = cfg.free_share * passable
        """Probability of each robot's being free on a course, (N,); 0 on impassable ones."""
        own = [i for i in range(terrain.columns) if int(terrain.type_id[i]) == flat]
        margin = _FIELD_MARGIN_M
        self.field = (0.0, 0.0, 0.0, 0.0)
        """Flat columns, x0, x1, y0, y1 [m]; they lie beside each other."""
        if own:
            length = terrain.levels * terrain.tile_length_m
            self.field = (
                *(margin, length - margin),
                float(terrain.column_y[own[0]] + margin),
                float(terrain.column_y[own[-1] + 1] - margin),
            )

    def away(self, base_pos_w: Tensor, tile: Tensor, tile_level: Tensor) -> Tensor:
        """Which free robots have left their tile, or the flat columns, (N,)."""
        x, y = base_pos_w[:, 0], base_pos_w[:, 1]
        x0, x1, y0, y1 = self.field
        off_field = (x < x0) | (x > x1) | (y < y0) | (y > y1)
        begin = tile_level * self._tile_length_m
        ground = self._ground
        off_lane = left_lane(base_pos_w, ground.lane_y[tile], ground.half_width[tile])
        off_tile = (x < begin) | (x > begin + self._tile_length_m) | off_lane
        return self.mask & torch.where(self._on_field, off_field, off_tile)

    def draw(self, which: Tensor, level: Tensor, tile_level: Tensor) -> None:
        """Draw which robots are free in the next episode, and their levels, in place.

        Of the robots in `which` (N,), bool, whose episode begins.
        """
        drawn = torch.rand(2, len(which), device=self._device)
        free = self._on_field | (drawn[0] < self._share)
        anywhere = (drawn[1] * (level + 1)).long()
        self.mask.copy_(torch.where(which, free, self.mask))
        tile_level.copy_(torch.where(which & free, anywhere, tile_level))
        self.commands.reset(which)
        self.tracking.reset(which)

    def start(
        self,
        tile: Tensor,
        pose: Tensor,
        yaw: Tensor,
        soles_xy: Tensor,
        height_m: float,
    ) -> Tensor:
        """Start free robots anywhere, with any heading.

        Args:
            tile: Tiles of all robots, (N,).
            pose: Position and orientation of all of them, (N, 7); positions are changed.
            yaw: Headings of the others, (N,) [rad].
            soles_xy: Of the default pose, base frame, (6, 2) [m].
            height_m: Of the base above the ground.

        Returns:
            The headings of all of them, (N,).
        """
        draw, device = len(tile), self._device
        free, ground = self.mask, self._ground
        waypoints = ground.waypoints[tile]
        which = torch.randint(waypoints.shape[1], (draw,), device=device)
        start = waypoints[torch.arange(draw, device=device), which, :2]
        x0, x1, y0, y1 = self.field
        field = torch.stack(
            (uniform((x0, x1), (draw,), device), uniform((y0, y1), (draw,), device)), dim=-1
        )
        start = torch.where(self._on_field[:, None], field, start)
        yaw = torch.where(free, uniform((-math.pi, math.pi), (draw,), device), yaw)
        # Above the highest ground under the body and the feet, so that nothing penetrates.
        cos, sin = torch.cos(yaw)[:, None], torch.sin(yaw)[:, None]
        x, y = soles_xy.T
        under = torch.stack((cos * x - sin * y, sin * x + cos * y), dim=-1)
        under = start[:, None] + torch.cat((torch.zeros_like(under[:, :1]), under), dim=1)
        height = height_m + ground.height_at(under).amax(dim=1)
        pose[:, :2] = torch.where(free[:, None], start, pose[:, :2])
        pose[:, 2] = torch.where(free, height, pose[:, 2])
        return yaw

    def step(self, velocity_b: Tensor, command: Tensor, failed: Tensor, dt: float) -> None:
        """Account for a step and let time pass: velocities and commands (N, 3), failures (N,)."""
        self.tracking.add(velocity_b, command, self.commands.since_s, self.mask, failed, dt)
        self.commands.step(dt)
