"""Observes: what the sensors of N robots say, as the groups that networks read."""

from __future__ import annotations

import torch

from krabby_trainer.task import observations
from krabby_trainer.task.judge import Judge
from krabby_trainer.task.observations import (
    EYE_INDEX,
    GROUP_SIZES,
    HISTORY,
    PROPRIO_SIZE,
    SCAN_SIZE,
)
from krabby_trainer.task.progress import nav_command
from krabby_trainer.task.state import State
from krabby_trainer.vision.cameras import Cameras

__all__ = ["Observer"]

Tensor = torch.Tensor


class Observer:
    """Observation groups, the history and the cameras of N robots; written in place."""

    def __init__(self, state: State, judge: Judge) -> None:
        self.state, self._judge = state, judge
        n, device = state.num_envs, state.device
        self.privileged = state.bodies.privileged(state.desc.masses.total)
        sizes = [n * size for size in GROUP_SIZES.values()]
        self._all = torch.zeros(sum(sizes), device=device)
        self.groups = self._divided(self._all)
        self.history = self.groups["history"].view(n, HISTORY, PROPRIO_SIZE)
        self.vision: Cameras | None = None
        if state.cfg.camera.enabled:
            errors = state.cfg.camera.errors
            self.vision = Cameras(state.desc, state.terrain, errors, n, device, EYE_INDEX)

    def _divided(self, values: Tensor) -> dict[str, Tensor]:
        sizes = [self.state.num_envs * size for size in GROUP_SIZES.values()]
        parts = zip(GROUP_SIZES.items(), values.split(sizes), strict=True)
        return {name: part.view(-1, size) for (name, size), part in parts}

    def copy(self) -> dict[str, Tensor]:
        """The groups in memory of the caller's."""
        return self._divided(self._all.clone())

    def see(self) -> None:
        """Advance the cameras by a step; can be recorded."""
        assert self.vision is not None
        robots = self.state.robots
        self.vision.step(
            self.groups["proprio"], self.state.tile, robots.base_pos_w, robots.base_quat_w
        )

    def observe(self) -> None:
        """Compute every group and add a frame to the history; can be recorded."""
        self.state.robots.read()
        robots, sensors, height_at = (
            self.state.robots,
            self.state.sensors,
            self.state.ground.height_at,
        )
        pos_w, quat_w, free = robots.base_pos_w, robots.base_quat_w, self.state.free.mask
        waypoints = self.state.ground.waypoints[self.state.tile]
        goal = self.state.progress.goal(pos_w[:, :2], observations.yaw_of(quat_w), waypoints)
        walking = nav_command(goal.heading_error, self.state.speed)
        walking = torch.where(self.state.stops.paused[:, None], 0.0, walking)
        frame = observations.proprio(
            base_quat_w=quat_w,
            base_ang_vel_b=sensors.gyro(robots.base_ang_vel_b),
            joint_pos=sensors.joint_pos(robots.joint_pos),
            joint_vel=sensors.joint_vel(robots.joint_vel),
            foot_contact=self._judge.foot_contact & ~self.state.fresh[:, None],
            nav_command=torch.where(free[:, None], self.state.command, walking),
            last_action=self.state.action,
            default_joint_pos=self.state.default_joint_pos,
            gravity_b=sensors.gravity(observations.projected_gravity(quat_w)),
        )
        shifted = torch.cat((self.history[:, 1:], frame[:, None]), dim=1)
        first = frame[:, None].expand(-1, HISTORY, -1)
        self.history.copy_(torch.where(self.state.fresh[:, None, None], first, shifted))
        self.state.fresh.zero_()
        soles_w = robots.soles_w
        # The ground under the scan's points, the base and the soles, looked up together.
        points = observations.scan_points(pos_w, quat_w)
        ground = height_at(torch.cat((points, pos_w[:, None, :2], soles_w[..., :2]), dim=1))
        scan = observations.scan(ground[:, :SCAN_SIZE], pos_w)
        critic = observations.critic_extra(
            heading_error=goal.heading_error,
            next_heading_error=goal.next_heading_error,
            goal_distance_m=goal.distance_m,
            base_height_m=pos_w[:, 2] - ground[:, SCAN_SIZE],
            feet_height_m=soles_w[..., 2] - ground[:, SCAN_SIZE + 1 :],
            speed=torch.where(
                free, self.state.command[:, :2].norm(dim=-1), self.state.sensible_speed
            ),
            episode_progress=self.state.episode_steps / self.state.env.max_episode_length,
        )
        critic[:, :5] *= ~free[:, None]  # free robots have no waypoint
        for name, values in (
            ("proprio", frame),
            ("scan", sensors.scan(scan)),
            ("velocity", robots.base_lin_vel_b),
            ("privileged", self.privileged),
            ("critic", critic),
        ):
            self.groups[name].copy_(values)
