"""Stops: pauses in which a robot is commanded to stand, and halts in which the runtime stops it."""

from __future__ import annotations

import torch
from krabby.safety.trajectories import HALT_S, min_jerk

from krabby_trainer.sampling import uniform
from krabby_trainer.task.config import CommandCfg
from krabby_trainer.task.observations import ACTION_SCALE

__all__ = ["Stops"]

Tensor = torch.Tensor


class Stops:
    """Timers of N robots; all state is written in place."""

    def __init__(
        self, cfg: CommandCfg, default_joint_pos: Tensor, num_envs: int, device: str, dt: float
    ) -> None:
        self._cfg, self._default, self._dt, self._device = cfg, default_joint_pos, dt, device
        self.pause_s, self.rest_s, self.halt_s, self.halted_s = (
            torch.zeros(num_envs, device=device) for _ in range(4)
        )
        """Time left of a pause; time since the last waypoint was reached; time left of a halt;
        time since it began; each (N,) [s]."""
        self._halt_from = default_joint_pos.repeat(num_envs, 1)

    @property
    def paused(self) -> Tensor:
        """Which robots are commanded to stand, (N,)."""
        return self.pause_s > 0.0

    def reset(self, which: Tensor) -> None:
        for timer in (self.pause_s, self.rest_s, self.halt_s, self.halted_s):
            timer.masked_fill_(which, 0.0)

    def rested(self, arrived: Tensor, barred: Tensor) -> Tensor:
        """Which robots have been for long enough where their way ends.

        Args:
            arrived: Which are at the last waypoint, (N,).
            barred: Which stand before something impassable, (N,).
        """
        ends = arrived | barred
        self.rest_s.copy_(torch.where(ends, self.rest_s + self._dt, 0.0))
        least_s = torch.where(barred, self._cfg.stand_off_s, self._cfg.rest_s)
        return ends & (self.rest_s > least_s)

    def step(self, arrived: Tensor) -> None:
        self._pause(arrived)
        self._halt(arrived)

    def _pause(self, arrived: Tensor) -> None:
        """Robots that have arrived pause until the end of the episode."""
        cfg, dt = self._cfg, self._dt
        if cfg.pause_share <= 0.0 and cfg.rest_s <= 0.0:
            return
        mean_s = 0.5 * sum(cfg.pause_s)
        begins = cfg.pause_share / (1.0 - cfg.pause_share) * dt / mean_s
        drawn = torch.rand_like(self.pause_s) < begins
        left = self.pause_s - dt
        length = uniform(cfg.pause_s, left.shape, self._device)
        left = torch.where(drawn & (left <= 0.0), length, left)
        self.pause_s.copy_(torch.where(arrived, 1.0, left))

    def _halt(self, arrived: Tensor) -> None:
        """Half of the robots that have just arrived are halted."""
        cfg, dt = self._cfg, self._dt
        if cfg.halt_every_s <= 0.0:
            return
        left = self.halt_s - dt
        chance = torch.where(arrived & (self.rest_s < 1.5 * dt), 0.5, dt / cfg.halt_every_s)
        begins = (torch.rand_like(left) < chance) & (left <= 0.0)
        length = HALT_S + uniform(cfg.halt_s, left.shape, self._device)
        self.halt_s.copy_(torch.where(begins, length, left))
        self.halted_s.copy_(torch.where(begins, 0.0, self.halted_s + dt))

    def act(self, action: Tensor, target: Tensor) -> Tensor:
        """Actions (N, 18); of halted robots those that move the joints to the default pose.

        `target` (N, 18) [rad] is the target before.
        """
        if self._cfg.halt_every_s <= 0.0:
            return action
        halted_s = self.halted_s[:, None]
        own = (target - self._default) / ACTION_SCALE
        self._halt_from.copy_(torch.where(halted_s == 0.0, own, self._halt_from))
        left = 1.0 - min_jerk(((halted_s + self._dt) / HALT_S).clamp(max=1.0))
        return torch.where(self.halt_s[:, None] > 0.0, left * self._halt_from, action)
