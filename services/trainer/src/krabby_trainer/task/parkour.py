"""The environment behind Isaac Lab's interface.

A control step is three recordings with the physics between them: `act`, `judge`, `renew`. They
keep all state in the same memory, treat all robots alike and choose by masks, so that nothing
waits for the device. `krabby_trainer.task.isaac` calls them.
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
    """The steps of an episode: act, judge, reset, observe.

    Attributes that are called are recorded on CUDA: `act`, `push`, `judge_step`, `renew` and
    `take_log`.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.judge = Judge(self)
        self.observer = Observer(self, self.judge)
        self.collect_facts = False
        self.facts: StepFacts | None = None
        self._log_names: tuple[str, ...] = ()
        self._log_values = torch.zeros(0, device=self.device)

        def replayed(function: Callable[[], None]) -> Replayed:
            return Replayed(function, self.device, enabled=self.cfg.cuda_graphs)

        self.act = replayed(self._act)
        self.push = replayed(self._push)
        self.judge_step = replayed(self.judge)
        self.renew = replayed(self._renew)
        self.take_log = replayed(self._take_log)

    def after_physics(self) -> None:
        """Judge the step, reset the robots whose episode ended, and observe."""
        self.judge_step()
        if self.collect_facts:
            self.facts = self.judge.facts()
        self.renew()

    def _renew(self) -> None:
        self.advance_curriculum(self.judge.ended)
        self.reset(self.judge.ended)
        self.observe()

    def observe(self) -> None:
        self.observer.observe()
        if self.observer.vision is not None:
            self.observer.see()

    def reset(self, which: Tensor) -> None:
        """Put robots on the start of their tile, at rest, with a new commanded speed.

        Of those in `which`, (N,) bool.
        """
        cfg, n, device = self.cfg.randomisation, self.num_envs, self.device
        spread, turn, bend = (
            each if cfg.enabled else 0.0
            for each in (cfg.start_xy_m, cfg.start_yaw_rad, cfg.start_joint_rad)
        )
        if self.free.some:
            self.free.draw(which, self.level, self.tile_level)
        tile = self.tile
        pose = torch.zeros(n, 7, device=device)
        pose[:, :2] = self.ground.spawn[tile] + uniform((-spread, spread), (n, 2), device)
        pose[:, 2] = START_HEIGHT_M + self.ground.height_at(pose[:, :2])
        yaw = uniform((-turn, turn), (n,), device)
        if self.free.some:
            yaw = self.free.start(tile, pose, yaw, self.soles_xy, START_HEIGHT_M)
        pose[:, 5], pose[:, 6] = torch.sin(0.5 * yaw), torch.cos(0.5 * yaw)
        joints = self.default_joint_pos + uniform((-bend, bend), (n, NUM_JOINTS), device)
        joints = joints.clamp(self.target_lower, self.target_upper)
        self.robots.place(which, pose, joints)
        self.progress.reset(which)
        speed = (self.cfg.command.speed_low, self.cfg.command.speed_high)
        self.speed.copy_(torch.where(which, uniform(speed, (n,), device), self.speed))
        for values in (
            *(self.action, self.previous_action, self.previous_joint_vel, self.mean_square),
        ):
            values.masked_fill_(which[:, None], 0.0)
        for target in (self.target, self.applied_target):
            target.copy_(torch.where(which[:, None], joints, target))
        self.stops.reset(which)
        self.episode_steps.masked_fill_(which, 0)
        self.fresh |= which
        if self.observer.vision is not None:
            self.observer.vision.reset(which)

    def _act(self) -> None:
        """Turn actions into targets as the safety gate would, delayed by a share of a step."""
        self.previous_action.copy_(self.action)
        self.action.copy_(self.asked)
        before = self.target
        target = observations.joint_pos_target(
            self.stops.act(self.asked, before),
            before,
            default_joint_pos=self.default_joint_pos,
            lower=self.target_lower,
            upper=self.target_upper,
            max_step=self.max_step,
        )
        # Within one step the drives see the old target first: on average, a blend of both.
        self.applied_target.copy_(target + self.bodies.command_delay * (before - target))
        self.target.copy_(target)
        self.robots.drive(self.applied_target)

    def _push(self) -> None:
        """Push the robots whose push is due; called every `PUSH_EVERY` steps."""
        cfg, n = self.cfg.randomisation, self.num_envs
        if not cfg.enabled or cfg.push_speed <= 0.0:
            return
        self.push_in_s -= PUSH_EVERY * CONTROL_STEP_S
        due = self.push_in_s <= 0.0
        change = uniform((-cfg.push_speed, cfg.push_speed), (n, 2), self.device)
        interval = uniform(cfg.push_interval_s, (n,), self.device)
        self.push_in_s.copy_(torch.where(due, interval, self.push_in_s))
        self.robots.push(due, change)

    def advance_curriculum(self, ended: Tensor) -> None:
        """Choose the next tile of robots whose episode ended, (N,) bool."""
        if not self.cfg.curriculum.enabled:
            return
        walked_s = self.episode_steps * CONTROL_STEP_S
        level = self.level
        all_goals = self.ground.waypoints.shape[1]
        moved = next_level(
            level,
            goals=torch.where(self.judge.completed, all_goals, self.progress.index),
            fell=self.judge.failed,
            distance_m=self.progress.distance_m,
            asked_m=self.speed * walked_s,
            levels=self.terrain.levels,
            cfg=self.cfg.curriculum,
        )
        judged = ended & (walked_s > 0.0) & (self.tile_level == level) & ~self.free.mask
        level.copy_(torch.where(judged, moved, level))
        tile = tile_level(level, self.cfg.curriculum.revisit)
        self.tile_level.copy_(torch.where(ended, tile, self.tile_level))

    def log(self) -> dict[str, Tensor]:
        """Means since the last call, and the present levels."""
        self.take_log()
        return dict(zip(self._log_names, self._log_values.clone().unbind(), strict=True))

    def _take_log(self) -> None:
        log = self.judge.statistics.take() | {"Level/mean": self.level.float().mean()}
        kind = self.ground.type_id[self.tile]
        for i, name in enumerate(self.terrain.types):
            chosen = (kind == i).float()
            log[f"Level/{name}"] = (self.level * chosen).sum() / chosen.sum().clamp(min=1.0)
        if self.free.some:
            log |= self.free.tracking.log()
        if tuple(log) != self._log_names:
            self._log_names = tuple(log)
            with torch.inference_mode(False):  # written in place from now on
                self._log_values = torch.zeros(len(log), device=self.device)
        torch.stack(list(log.values()), out=self._log_values)
