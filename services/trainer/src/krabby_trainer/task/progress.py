"""Waypoints that each robot has reached, and the walking command towards the next: batched, torch.

The rules are those of `krabby.course`: a waypoint counts once the base has been near it for a
moment, or (if `pass_width_m` is not 0) when the robot walked past it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from krabby.course.mission import steer
from krabby.course.progress import on_leg, reached

__all__ = ["Goal", "Progress", "nav_command", "wrap_angle"]

Tensor = torch.Tensor


@dataclass
class Goal:
    """The waypoint a robot walks to; all (N,) but `direction_w` (N, 2)."""

    direction_w: Tensor
    """Unit vector from the base to it."""
    distance_m: Tensor
    heading_error: Tensor
    """Its bearing minus the robot's yaw [rad], wrapped."""
    next_heading_error: Tensor
    """The same for the waypoint after it."""


class Progress:
    """Waypoints reached by N robots.

    Args:
        num_envs: N.
        device: Where the tensors live.
        reach_m: A waypoint counts within this distance ...
        dwell_s: ... after this time.
        pass_width_m: One passed this close to its side counts at once; 0 switches that off.
    """

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device,
        *,
        reach_m: float,
        dwell_s: float,
        pass_width_m: float,
    ) -> None:
        self._reach_m, self._dwell_s, self._pass_width_m = reach_m, dwell_s, pass_width_m
        self.index = torch.zeros(num_envs, dtype=torch.long, device=device)
        """Waypoints reached; also the index of the next one."""
        self.distance_m = torch.zeros(num_envs, device=device)
        """Furthest along the way through the waypoints, since the start of the episode [m]."""
        self._near_s = torch.zeros(num_envs, device=device)

    def reset(self, which: Tensor) -> None:
        """Start over for the robots in `which`, (N,) bool."""
        for state in (self.index, self.distance_m, self._near_s):
            state.masked_fill_(which, 0)

    def update(self, pos_xy: Tensor, waypoints: Tensor, start_xy: Tensor, dt: float) -> None:
        """Take in where the bases are; state stays in the same memory.

        Args:
            pos_xy: (N, 2) [m], world frame.
            waypoints: (N, G, 3) [m], world frame.
            start_xy: (N, 2) [m]: where the course starts.
            dt: Time since the last call [s].
        """
        count = waypoints.shape[1]
        goal = _pick(waypoints, self.index)
        before = torch.where((self.index > 0)[:, None], _pick(waypoints, self.index - 1), start_xy)
        offset = goal - pos_xy
        near = offset.norm(dim=-1) < self._reach_m
        near_s = torch.where(near, self._near_s + dt, 0.0)
        leg = goal - before
        leg = leg / leg.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        to_go, aside = on_leg(*offset.T, *leg.T)
        passed = reached(to_go, aside, -1.0, pass_width_m=self._pass_width_m)
        counts = ((near_s > self._dwell_s - 0.5 * dt) | passed) & (self.index < count)
        ends = torch.cat((start_xy[:, None], waypoints[..., :2]), dim=1)
        way = (ends[:, 1:] - ends[:, :-1]).norm(dim=-1).cumsum(dim=-1)
        along = way.gather(1, self.index.clamp(max=count - 1)[:, None])[:, 0] - to_go
        torch.maximum(self.distance_m, along, out=self.distance_m)
        self.index += counts
        self._near_s.copy_(torch.where(counts, 0.0, near_s))

    def goal(self, pos_xy: Tensor, yaw: Tensor, waypoints: Tensor) -> Goal:
        """The next waypoint; the last one stays the goal once it is reached."""
        offset = _pick(waypoints, self.index) - pos_xy
        distance = offset.norm(dim=-1)
        after = _pick(waypoints, self.index + 1) - pos_xy
        return Goal(
            direction_w=offset / distance.clamp(min=1e-6)[:, None],
            distance_m=distance,
            heading_error=wrap_angle(torch.atan2(offset[:, 1], offset[:, 0]) - yaw),
            next_heading_error=wrap_angle(torch.atan2(after[:, 1], after[:, 0]) - yaw),
        )


def nav_command(heading_error: Tensor, speed: Tensor) -> Tensor:
    """vx, vy [m/s] and yaw rate [rad/s] of the mission's operator, (N, 3)."""
    vx, yaw_rate = steer(heading_error, speed, torch)
    return torch.stack((vx, torch.zeros_like(vx), yaw_rate), dim=-1)


def wrap_angle(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi) [rad]."""
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi


def _pick(waypoints: Tensor, index: Tensor) -> Tensor:
    """Waypoint `index` of every robot, (N, 2), the last one beyond the end."""
    index = index.clamp(0, waypoints.shape[1] - 1)
    return waypoints[torch.arange(len(index), device=index.device), index, :2]
