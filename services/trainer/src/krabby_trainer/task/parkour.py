"""The environment behind Isaac Lab's managers.

`Parkour` reads the simulated robots once a step; `Judge` computes terminations and rewards from
that, `Observer` the observations. `krabby_trainer.task.isaac` hands the results to the managers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from krabby_trainer.graphs import Replayed
from krabby_trainer.sampling import uniform
from krabby_trainer.task import observations
from krabby_trainer.task.curriculum import next_level, tile_level
from krabby_trainer.task.judge import Judge, StepFacts
from krabby_trainer.task.observations import NUM_JOINTS
from krabby_trainer.task.observer import Observer
from krabby_trainer.task.state import CONTROL_STEP_S, State

__all__ = ["PUSH_EVERY", "START_HEIGHT_M", "Parkour"]

Tensor = torch.Tensor

START_HEIGHT_M: Final = 0.46
"""Of the base above the ground at the start: a drop of a few centimetres."""
PUSH_EVERY: Final = 10
"""Steps between two checks of whose push is due."""


class Parkour(State):
    """The steps of an episode: act, judge, observe, reset, advance the curriculum."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.judge = Judge(self)
        self.observer = Observer(self, self.judge)
        self.collect_facts = False
        self.facts: StepFacts | None = None

        def replayed(function: Callable[[], None]) -> Replayed:
            return Replayed(function, self.device, enabled=self.cfg.cuda_graphs)

        self.judge_replayed = replayed(self.judge)
        self.observe_replayed = replayed(self.observer.observe)
        self.see_replayed = replayed(self.observer.see)

    def after_physics(self) -> None:
        """Measure, judge whose episode ends, and account for the step."""
        self.read()
        self.judge_replayed()
        if self.collect_facts:
            self.facts = self.judge.facts()

    def observe(self) -> dict[str, Tensor]:
        self.read()
        self.observe_replayed()
        if self.observer.vision is not None:
            self.see_replayed()
        return self.observer.groups

    def reset(self, env_ids: Tensor) -> None:
        """Put robots on the start of their tile, at rest, with a new commanded speed."""
        cfg, draw, device = self.cfg.randomisation, len(env_ids), self.device
        spread, turn, bend = (
            each if cfg.enabled else 0.0
            for each in (cfg.start_xy_m, cfg.start_yaw_rad, cfg.start_joint_rad)
        )
        if self.free.some:
            self.free.draw(env_ids, self.level, self.tile_level)
        tile = self.tile[env_ids]
        pose = torch.zeros(draw, 7, device=device)
        pose[:, :2] = self.ground.spawn[tile] + uniform((-spread, spread), (draw, 2), device)
        pose[:, 2] = START_HEIGHT_M + self.ground.height_at(pose[:, :2])
        yaw = uniform((-turn, turn), (draw,), device)
        if self.free.some:
            yaw = self.free.start(env_ids, tile, pose, yaw, self.soles_xy, START_HEIGHT_M)
        pose[:, 5], pose[:, 6] = torch.sin(0.5 * yaw), torch.cos(0.5 * yaw)
        joints = self.default_joint_pos + uniform((-bend, bend), (draw, NUM_JOINTS), device)
        joints = joints.clamp(self.target_lower, self.target_upper)
        self.robots.place(env_ids, pose, joints)
        self.progress.reset(env_ids)
        speed = (self.cfg.command.speed_low, self.cfg.command.speed_high)
        self.speed[env_ids] = uniform(speed, (draw,), device)
        for values in (
            *(self.action, self.previous_action, self.previous_joint_vel, self.mean_square),
        ):
            values[env_ids] = 0.0
        self.target[env_ids] = joints
        self.applied_target[env_ids] = joints
        self.stops.reset(env_ids)
        self.fresh[env_ids] = True
        if self.observer.vision is not None:
            self.observer.vision.reset(env_ids)

    def act(self, action: Tensor) -> None:
        """Turn actions into targets as the safety gate would, delayed by a share of a step."""
        self.previous_action.copy_(self.action)
        self.action.copy_(action)
        before = self.target
        target = observations.joint_pos_target(
            self.stops.act(action, before),
            before,
            default_joint_pos=self.default_joint_pos,
            lower=self.target_lower,
            upper=self.target_upper,
            max_step=self.max_step,
        )
        # Within one step the drives see the old target first: on average, a blend of both.
        self.applied_target.copy_(target + self.bodies.command_delay * (before - target))
        self.target.copy_(target)

    def push(self) -> None:
        cfg, n = self.cfg.randomisation, self.num_envs
        if not cfg.enabled or cfg.push_speed <= 0.0:
            return
        self.push_in_s -= PUSH_EVERY * CONTROL_STEP_S
        due = self.push_in_s <= 0.0
        change = uniform((-cfg.push_speed, cfg.push_speed), (n, 2), self.device)
        interval = uniform(cfg.push_interval_s, (n,), self.device)
        self.push_in_s.copy_(torch.where(due, interval, self.push_in_s))
        self.robots.push(torch.where(due[:, None], change, 0.0))

    def advance_curriculum(self, env_ids: Tensor) -> None:
        """Choose the next tile of robots whose episode ended."""
        if not self.cfg.curriculum.enabled or self.env.common_step_counter == 0:
            return
        walked_s = self.env.episode_length_buf[env_ids] * CONTROL_STEP_S
        level = self.level[env_ids]
        all_goals = self.ground.waypoints.shape[1]
        moved = next_level(
            level,
            goals=torch.where(self.judge.completed, all_goals, self.progress.index)[env_ids],
            fell=self.judge.failed[env_ids],
            distance_m=self.progress.distance_m[env_ids],
            asked_m=self.speed[env_ids] * walked_s,
            levels=self.terrain.levels,
            cfg=self.cfg.curriculum,
        )
        own = self.tile_level[env_ids] == level
        judged = (walked_s > 0.0) & own & ~self.free.mask[env_ids]
        level = torch.where(judged, moved, level)
        self.level[env_ids] = level
        self.tile_level[env_ids] = tile_level(level, self.cfg.curriculum.revisit)

    def log(self) -> dict[str, Tensor]:
        """Means since the last call, and the present levels."""
        log = self.judge.statistics.take() | {"Level/mean": self.level.float().mean()}
        kind = self.ground.type_id[self.tile]
        for i, name in enumerate(self.terrain.types):
            chosen = (kind == i).float()
            log[f"Level/{name}"] = (self.level * chosen).sum() / chosen.sum().clamp(min=1.0)
        return log | self.free.tracking.log() if self.free.some else log
