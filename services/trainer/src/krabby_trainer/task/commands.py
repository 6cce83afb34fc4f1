"""Velocity commands of free robots, redrawn at random times.

N robots; a command is vx, vy [m/s] and yaw rate [rad/s] in the base frame.
"""

from __future__ import annotations

from typing import Final

import torch

from krabby_trainer.sampling import uniform
from krabby_trainer.task.config import CommandCfg

__all__ = ["AXES", "Tracking", "VelocityCommands"]

Tensor = torch.Tensor

AXES: Final = ("vx", "vy", "yaw")
_SINGLE: Final = 0.6
"""Share of the commands along one axis alone."""
_BACK: Final = 0.4
"""Share of the speeds forward that are backward, where the range has both."""
_SLOW: Final = 0.25
"""Share of the commands that are scaled down ..."""
_SLOWER: Final = (0.1, 0.5)
"""... by a factor of this range."""
_LONG: Final = 4.0
_SETTLED_S: Final = 1.5
_MEAN_S: Final = 0.5


class VelocityCommands:
    """Present command of each robot and its remaining time; written in place."""

    def __init__(self, cfg: CommandCfg, num_envs: int, device: str) -> None:
        self._cfg, self._device = cfg, device
        self._axes = torch.arange(3, device=device)
        self.value = torch.zeros(num_envs, 3, device=device)
        self.left_s = torch.zeros(num_envs, device=device)
        self.since_s = torch.zeros(num_envs, device=device)
        """Since when each command holds [s]."""

    def draw(self, count: int) -> Tensor:
        """Commands, (count, 3): some along one axis, some slow, some zero."""
        cfg, device = self._cfg, self._device
        ranges = (cfg.free_vx, cfg.free_vy, cfg.free_yaw_rate)
        command = torch.stack([uniform(bounds, (count,), device) for bounds in ranges], dim=-1)
        drawn = torch.rand(5, count, 1, device=device)
        low, high = cfg.free_vx
        if low < 0.0 < high:
            share = (command[:, 0] - low) / (high - low)
            back = drawn[4, :, 0] < _BACK
            command[:, 0] = share * torch.where(back, low, high)
        other = (3.0 * drawn[0]).long() != self._axes
        command = torch.where((drawn[1] < _SINGLE) & other, 0.0, command)
        slower = uniform(_SLOWER, (count, 1), device)
        command = torch.where(drawn[2] < _SLOW, slower * command, command)
        return torch.where(drawn[3] < cfg.free_still, 0.0, command)

    def draw_hold(self, count: int) -> Tensor:
        """How long commands hold, (count,) [s]; some four times as long, which shows creeping."""
        hold = uniform(self._cfg.redraw_s, (count,), self._device)
        long = torch.rand(count, device=self._device) < self._cfg.long_share
        return torch.where(long, _LONG * hold, hold)

    def reset(self, which: Tensor) -> None:
        """Give the robots in `which` (N,), bool, another command."""
        count = len(self.left_s)
        self.left_s.copy_(torch.where(which, self.draw_hold(count), self.left_s))
        self.since_s.masked_fill_(which, 0.0)
        self.value.copy_(torch.where(which[:, None], self.draw(count), self.value))

    def step(self, dt: float) -> None:
        """Time passes; those whose command has held long enough get another."""
        self.left_s -= dt
        self.since_s += dt
        self.reset(self.left_s <= 0.0)


class Tracking:
    """How well free robots follow their commands, for the log.

    Velocities are means over about half a second, and count from 1.5 s after a new command on.
    """

    def __init__(self, num_envs: int, device: str) -> None:
        self._mean = torch.zeros(num_envs, 3, device=device)
        self._sums = torch.zeros(18, device=device)

    def reset(self, which: Tensor) -> None:
        self._mean.masked_fill_(which[:, None], 0.0)

    def add(
        self,
        velocity: Tensor,
        asked: Tensor,
        since_s: Tensor,
        free: Tensor,
        fell: Tensor,
        dt: float,
    ) -> None:
        """Take in a step.

        Args:
            velocity: vx, vy and yaw rate, (N, 3).
            asked: The command, (N, 3); 0 where a robot is to stand.
            since_s: Since when, (N,).
            free: Which robots follow commands, (N,).
            fell: Whose episode ended in a failure, (N,).
            dt: Time since the last step [s].
        """
        self._mean.add_((velocity - self._mean) * (dt / _MEAN_S))
        still = asked.abs().sum(-1) == 0.0
        settled = free & (since_s > _SETTLED_S)
        moving, standing = (settled & ~still)[:, None], settled & still
        mean = self._mean
        # Backing up and turning in place are learned late, if at all.
        backs = settled & (asked[:, 0] < 0.0) & (asked[:, 1:] == 0.0).all(-1)
        turns = settled & (asked[:, :2] == 0.0).all(-1) & ~still
        self._sums += torch.cat(
            (
                (moving * (mean - asked).abs()).sum(0),
                (moving * mean * asked).sum(0),
                (moving * asked.square()).sum(0),
                torch.stack(
                    (
                        moving.sum(),
                        standing.sum(),
                        (standing * mean[:, :2].norm(dim=-1)).sum(),
                        free.sum() * dt,
                        (free & fell).sum(),
                        (backs * mean[:, 0] * asked[:, 0]).sum(),
                        (backs * asked[:, 0].square()).sum(),
                        (turns * mean[:, 2] * asked[:, 2]).sum(),
                        (turns * asked[:, 2].square()).sum(),
                    )
                ),
            )
        )

    def log(self) -> dict[str, Tensor]:
        """Errors and gains by axis, speed on zero commands, falls, since the last call.

        A gain is 1 where the mean velocity equals the command, 0 where the robot does not move.
        `gain_back` is of those that are to walk straight back, `gain_turn` to turn in place.
        Values without samples are NaN.
        """
        s = self._sums.clone()
        self._sums.zero_()
        moving, standing, drift, free_s, falls, backs, backs_asked, turns, turns_asked = s[9:]
        log = {
            "Free/still_speed": drift / standing,
            "Free/falls_per_min": 60.0 * falls / free_s,
            "Free/gain_back": backs / backs_asked,
            "Free/gain_turn": turns / turns_asked,
        }
        for i, axis in enumerate(AXES):
            log[f"Free/error_{axis}"] = s[i] / moving
            log[f"Free/gain_{axis}"] = s[3 + i] / s[6 + i]
        return log
