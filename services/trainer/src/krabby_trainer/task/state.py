"""What the parts of the environment share: terrain, robots, commands, actions."""

from __future__ import annotations

from typing import Any, Final

import torch
from krabby.isaac.robots import Robots
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions
from krabby.safety.gate import GateCfg

from krabby_trainer.sampling import uniform
from krabby_trainer.task.broken import BrokenRobots
from krabby_trainer.task.config import CONTROL_STEP_S, EnvCfg
from krabby_trainer.task.free import FreeRobots
from krabby_trainer.task.levels import column_of
from krabby_trainer.task.observations import NUM_JOINTS
from krabby_trainer.task.progress import Progress
from krabby_trainer.task.randomisation import Bodies, SensorErrors
from krabby_trainer.task.stops import Stops

__all__ = ["CONTROL_STEP_S", "State"]

Tensor = torch.Tensor

STATURE_M: Final = 0.06
"""How far above the default stand the base may be before `reward.stature` counts."""


class State:
    """N robots on their courses, and what is commanded; written in place, for CUDA recordings.

    Args:
        env: Isaac Lab's environment, whose configuration has `parkour` and `terrain`.
    """

    def __init__(self, env: Any) -> None:
        cfg: EnvCfg = env.cfg.parkour
        self.cfg, self.env, self.desc = cfg, env, RobotDescription.load()
        device, n = env.device, env.num_envs
        self.device, self.num_envs = device, n
        self.terrain = env.cfg.terrain
        self.ground = self.terrain.to(device)

        def constant(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.gate = GateCfg.from_description(self.desc)
        self.default_joint_pos = constant(self.desc.default_joint_pos)
        self.target_lower = constant(self.gate.target_lower)
        self.target_upper = constant(self.gate.target_upper)
        self.rated_torque = constant(self.desc.rated_torque)
        self.no_load_speed = constant(self.desc.no_load_speed)
        self.max_step = constant(self.gate.max_rate) * CONTROL_STEP_S
        soles = foot_positions(self.desc, self.desc.default_joint_pos)
        soles[:, 2] -= self.desc.geometry.foot_radius
        self.soles_xy = constant(soles[:, :2])
        """Of the default pose, base frame, (6, 2) [m]."""
        self.stand_height_m = -float(soles[:, 2].mean())
        self.free_height_m = STATURE_M + self.stand_height_m

        r = cfg.randomisation
        self.bodies = Bodies.draw(r, n, device, friction=self.desc.contact.foot_friction)
        self.sensors = SensorErrors(r, n, device)
        self.robots = Robots(env.scene, self.desc, self.bodies, device)
        self.broken = BrokenRobots(n, ("joint_q", "joint_qd", "action"), device)

        columns = self.terrain.columns
        self.column = column_of(n, columns, device)
        if cfg.curriculum.enabled:
            high = min(cfg.curriculum.start_level, self.terrain.levels - 1)
            self.level = torch.randint(0, high + 1, (n,), device=device)
        else:
            self.level = torch.arange(n, device=device) % self.terrain.levels
        self.tile_level = self.level.clone()
        """Level of the robot's tile: its own, or an easier one that it revisits."""
        command = cfg.command
        self.progress = Progress(
            n,
            device,
            reach_m=command.reach_m,
            dwell_s=command.dwell_s,
            pass_width_m=command.pass_width_m,
        )
        self.speed = torch.full((n,), command.speed_low, device=device)
        self.free = FreeRobots(command, self.terrain, self.ground, self.column, device)
        self.stops = Stops(command, self.default_joint_pos, n, device, CONTROL_STEP_S)
        self.push_in_s = uniform(r.push_interval_s, (n,), device)

        self.action, self.previous_action, self.previous_joint_vel, self.mean_square = (
            torch.zeros(n, NUM_JOINTS, device=device) for _ in range(4)
        )
        self.target = self.default_joint_pos.repeat(n, 1)
        self.applied_target = self.target.clone()
        self.fresh = torch.ones(n, dtype=torch.bool, device=device)
        """Which robots begin an episode, (N,)."""
        self.asked = torch.zeros_like(self.action)
        """Actions of the policy for the next step."""
        self.episode_steps: Tensor = env.episode_length_buf

    @property
    def tile(self) -> Tensor:
        return self.tile_level * self.terrain.columns + self.column

    @property
    def commanded_speed(self) -> Tensor:
        """Speed towards the waypoint [m/s], (N,): 0 in a pause."""
        return torch.where(self.stops.paused, 0.0, self.speed)

    @property
    def barred(self) -> Tensor:
        """Which robots stand before something impassable that they are commanded to cross, (N,)."""
        goals, index = self.ground.goals[self.tile], self.progress.index
        return (goals < self.ground.waypoints.shape[1]) & (index >= goals) & ~self.free.mask

    @property
    def approaches(self) -> Tensor:
        """Which of the barred robots are farther than `stand_off_m` from what bars them, (N,)."""
        near_m, commanded = self.cfg.command.stand_off_m, ~self.stops.paused
        left_m = self.ground.barrier_x[self.tile] - self.robots.base_pos_w[:, 0]
        return self.barred & commanded & (left_m > near_m) & (near_m > 0.0)

    @property
    def sensible_speed(self) -> Tensor:
        """What a robot earns for [m/s], (N,): 0 in a pause, and before something impassable."""
        return torch.where(self.barred, 0.0, self.commanded_speed)

    @property
    def command(self) -> Tensor:
        """Velocity command of free robots, (N, 3): 0 in a pause."""
        return torch.where(self.stops.paused[:, None], 0.0, self.free.commands.value)
