"""Judges every control step: contacts, terminations, rewards, statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from krabby.robot.kinematics import torque_envelope

from krabby_trainer.task import observations, terminations
from krabby_trainer.task.observations import NUM_FEET, NUM_JOINTS
from krabby_trainer.task.rewards import (
    CONTACT_N,
    REWARDS,
    SLOPE_REACH_M,
    Step,
    enough,
    ground_direction,
)
from krabby_trainer.task.state import CONTROL_STEP_S, State
from krabby_trainer.task.statistics import Statistics
from krabby_trainer.task.swings import Swings
from krabby_trainer.task.terminations import TERMINATIONS

__all__ = ["Judge", "StepFacts"]

Tensor = torch.Tensor

_EFFORT_WINDOW_S: Final = 3.0
"""Shorter than the safety gate's 30 s, so that the cause is near its effect."""


_MEASURED: Final = (
    *("base_pos_w", "base_lin_vel_w", "base_lin_vel_b", "base_ang_vel_b", "joint_pos", "joint_vel"),
    *("torque", "foot_force_w", "leg_force_w", "base_force_w", "weight_n"),
)
_KEPT: Final = (
    *("previous_joint_vel", "action", "previous_action", "mean_square", "command"),
    *("default_joint_pos", "target_lower", "target_upper", "rated_torque", "free_height_m"),
    "stand_height_m",
)
"""What a `Step` has of the robots and of the state."""


@dataclass
class StepFacts:
    """What happened in one step, before the robots whose episode ended were reset.

    N robots; metres, newton metres, world frame.
    """

    goal_index: Tensor
    foot_contact: Tensor
    feet_on_edge: Tensor
    terminated: Tensor
    timed_out: Tensor
    completed: Tensor
    course_seed: Tensor
    torque: Tensor
    saturated: Tensor
    base_contact: Tensor
    distance_m: Tensor


class Judge:
    """What happened to N robots in a step; all results are written in place."""

    def __init__(self, state: State) -> None:
        self.state = state
        n, device = state.num_envs, state.device

        def flags(*size: int) -> Tensor:
            return torch.zeros(n, *size, dtype=torch.bool, device=device)

        self.foot_contact, self.on_edge, self.feet_in_pit = (flags(NUM_FEET) for _ in range(3))
        self.saturated = flags(NUM_JOINTS)
        self.base_contact, self.fallen, self.sunk, self.left_lane = (flags() for _ in range(4))
        self.grounded, self.crossed = flags(), flags()
        self.failed, self.completed, self.time_out = (flags() for _ in range(3))
        self._grounded_s = torch.zeros(n, device=device)
        self.swings = Swings(n, device, CONTROL_STEP_S)
        self.terminated, self.truncated, self.ended = (flags() for _ in range(3))
        """Whose episode ended in a failure, as after a time-out, or at all."""
        self._terms = torch.zeros(len(REWARDS), n, device=device)
        self.reward_terms = {
            reward.name: row for reward, row in zip(REWARDS, self._terms, strict=True)
        }
        weights = [getattr(state.cfg.reward, reward.name) for reward in REWARDS]
        self._weights = CONTROL_STEP_S * torch.tensor(weights, device=device)[:, None]
        self.reward = torch.zeros(n, device=device)
        self.statistics = Statistics(vars(state.cfg.reward), state.terrain.types, device)

    def __call__(self) -> None:
        """Judge a step; can be recorded."""
        state, dt = self.state, CONTROL_STEP_S
        state.episode_steps += 1
        state.robots.mend(state.broken, state.action)
        state.robots.read()
        robots, ground, tile = state.robots, state.ground, state.tile
        waypoints = ground.waypoints[tile]
        state.progress.update(robots.base_pos_w[:, :2], waypoints, ground.spawn[tile], dt)
        arrived = (state.progress.index >= waypoints.shape[1]) & ~state.free.mask
        gravity_b = observations.projected_gravity(robots.base_quat_w)
        soles_w = robots.soles_w
        square = robots.torque.square() - state.mean_square
        state.mean_square += square * min(1.0, dt / _EFFORT_WINDOW_S)
        self._terminate(arrived, gravity_b, soles_w)
        step = self._step(gravity_b, soles_w, waypoints)
        torch.stack([reward.of(step) for reward in REWARDS], out=self._terms)
        torch.sum(self._weights * self._terms, dim=0, out=self.reward)
        state.previous_joint_vel.copy_(robots.joint_vel)
        low, high = torque_envelope(
            robots.joint_vel / state.no_load_speed,
            state.robots.peak_torque * state.bodies.motor_strength,
            lambda share: share.clamp(0.0, 1.0),
        )
        self.saturated.copy_((robots.torque >= 0.99 * high) | (robots.torque <= 0.99 * low))
        self.statistics.add(
            step,
            self.reward_terms,
            saturated=self.saturated,
            index=state.progress.index,
            completed=self.completed,
            time_out=self.time_out,
            kind=state.ground.type_id[state.tile],
        )
        if state.free.some:
            planar = (robots.base_lin_vel_b[:, :2], robots.base_ang_vel_b[:, 2:])
            state.free.step(torch.cat(planar, dim=-1), step.command, self.failed, dt)
        state.stops.step(arrived)

    def _terminate(self, arrived: Tensor, gravity_b: Tensor, soles_w: Tensor) -> None:
        """Contacts, and whose episode ends in which way."""
        robots, ground, tile = self.state.robots, self.state.ground, self.state.tile
        base, free = robots.base_pos_w, self.state.free.mask
        self.foot_contact.copy_(robots.foot_force_w.norm(dim=-1) > CONTACT_N)
        self.on_edge.copy_(ground.feet_on_edge(tile, soles_w) & self.foot_contact)
        self.base_contact.copy_(robots.base_force_w[:, 0].norm(dim=-1) > CONTACT_N)
        fallen = terminations.fallen(gravity_b, self.state.gate.tilt_limit_rad)
        self.fallen.copy_(fallen | self.state.broken.mask)
        in_pit = ground.in_pit(tile, torch.cat((base[:, None], soles_w), dim=1))
        self.sunk.copy_(in_pit[:, 0])
        self.feet_in_pit.copy_(in_pit[:, 1:])
        left = terminations.left_lane(base, ground.lane_y[tile], ground.half_width[tile])
        self.left_lane.copy_(left & ~free)
        least_s, goals = self.state.cfg.grounded_s, ground.goals[tile]
        self._grounded_s.copy_(
            torch.where(self.base_contact, self._grounded_s + CONTROL_STEP_S, 0.0)
        )
        self.grounded.copy_((self._grounded_s > least_s) & (least_s > 0.0))
        self.crossed.copy_((self.state.progress.index > goals) & ~free)
        self.failed.copy_(self.fallen | self.sunk | self.left_lane | self.grounded | self.crossed)
        self.swings.step(self.foot_contact, soles_w[..., 2])
        self.completed.copy_(self.state.stops.rested(arrived, self.state.barred))
        late = self.state.episode_steps >= self.state.env.max_episode_length
        self.time_out.copy_(late | self.state.free.away(base, tile, self.state.tile_level))
        flags = [(getattr(self, name), timeout) for name, timeout in TERMINATIONS.values()]
        for ended, kind in ((self.terminated, False), (self.truncated, True)):
            some = torch.stack([flag for flag, timeout in flags if timeout is kind])
            torch.any(some, dim=0, out=ended)
        torch.logical_or(self.terminated, self.truncated, out=self.ended)

    def _step(self, gravity_b: Tensor, soles_w: Tensor, waypoints: Tensor) -> Step:
        state = self.state
        robots, command, speed = state.robots, state.cfg.command, state.sensible_speed
        yaw = observations.yaw_of(robots.base_quat_w)
        approaches, onward = state.approaches, state.commanded_speed
        asked = torch.where(approaches, onward, speed)
        hurried = (asked + command.hurry_margin).clamp(min=command.hurry_speed)
        measured = {name: getattr(robots, name) for name in _MEASURED}
        kept = {name: getattr(state, name) for name in _KEPT}
        return Step(
            **measured,
            **kept,
            dt=CONTROL_STEP_S,
            gravity_b=gravity_b,
            soles_w=soles_w,
            foot_contact=self.foot_contact,
            landed=self.swings.landed,
            rise_m=self.swings.rise_m,
            air_s=self.swings.air_s,
            foot_ground_w=state.ground.height_at(soles_w[..., :2]),
            on_edge=self.on_edge,
            in_pit=self.feet_in_pit,
            failed=self.failed,
            free=state.free.mask,
            goal=state.progress.goal(robots.base_pos_w[:, :2], yaw, waypoints),
            speed=enough(speed, command.slack),
            approaches=approaches,
            onward_speed=enough(onward, command.slack),
            allowed_speed=torch.where(asked > 0.0, hurried, 0.0),
            ground_b=self._ground_b(yaw),
            fold_start=state.gate.fold_start,
        )

    def _ground_b(self, yaw: Tensor) -> Tensor:
        """`Step.ground_b`: by the ground before, behind, left and right of the base.

        0 before something impassable, where no lean is due to the ground.
        """
        state = self.state
        base_xy = state.robots.base_pos_w[:, :2]
        ahead = SLOPE_REACH_M * torch.stack((torch.cos(yaw), torch.sin(yaw)), dim=-1)
        left = torch.stack((-ahead[:, 1], ahead[:, 0]), dim=-1)
        offsets = torch.stack((ahead, -ahead, left, -left, torch.zeros_like(left)), dim=1)
        height = state.ground.height_at(base_xy[:, None] + offsets)
        height = height[:, :4] - height[:, 4:]
        slopes = [ground_direction(*height[:, i : i + 2].unbind(-1)) for i in (0, 2)]
        return torch.where(state.barred[:, None], 0.0, torch.stack(slopes, dim=-1))

    def facts(self) -> StepFacts:
        """What happened in the step just judged."""
        state = self.state
        return StepFacts(
            goal_index=state.progress.index.clone(),
            foot_contact=self.foot_contact.clone(),
            feet_on_edge=self.on_edge.clone(),
            terminated=self.failed.clone(),
            timed_out=self.time_out.clone(),
            completed=self.completed.clone(),
            course_seed=state.ground.seed[state.tile],
            torque=state.robots.torque.clone(),
            saturated=self.saturated.clone(),
            base_contact=self.base_contact.clone(),
            distance_m=state.progress.distance_m.clone(),
        )
