"""What the terms of the environment share: where robots are, what they are asked, what they sensed.

`Parkour` reads the simulated robots once a step and computes everything from that: rewards, who
fails, observations, the curriculum's next tiles. What it computes with lies in `mdp`,
`observations`, `progress`, `curriculum` and `randomisation`; `task` hands it to Isaac Lab.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from krabby.course.lanes import TILE_HALF_WIDTH_M
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions
from krabby.safety.gate import GateCfg
from krabby.safety.trajectories import HALT_S, min_jerk

from krabby_trainer.errors import TrainerError
from krabby_trainer.graphs import Replayed
from krabby_trainer.task import adapter, mdp, observations, progress
from krabby_trainer.task.commands import Tracking, VelocityCommands
from krabby_trainer.task.curriculum import next_level, tile_level
from krabby_trainer.task.observations import (
    GROUP_SIZES,
    HISTORY,
    NUM_FEET,
    NUM_JOINTS,
    PROPRIO_SIZE,
)
from krabby_trainer.task.randomisation import Bodies, SensorErrors, uniform
from krabby_trainer.vision.cameras import Cameras

if TYPE_CHECKING:
    from krabby_trainer.task.config import EnvCfg
    from krabby_trainer.task.isaac import ParkourEnv

__all__ = [
    "CONTROL_STEP_S",
    "FEET_HIGH_M",
    "LIMIT_MARGIN_RAD",
    "PUSH_EVERY",
    "START_HEIGHT_M",
    "STATURE_M",
    "Parkour",
    "StepFacts",
]

Tensor = torch.Tensor

CONTROL_STEP_S = 0.01

START_HEIGHT_M = 0.46
"""Of the base above the ground at the start: a drop of a few centimetres."""
STATURE_M = 0.06
"""How far above the default stand a robot may walk before `reward.stature` counts."""
FEET_HIGH_M = 0.05
"""How far above the base a foot may be before `reward.feet_high` counts."""
LIMIT_MARGIN_RAD = 0.05
"""How near a joint may come to the limits of its target before `reward.joint_limits` counts."""
_FIELD_MARGIN_M = 1.5
"""How near free robots may come to the end of the flat columns."""
_CONTACT_N = 1.0
_GRAVITY_M_S2 = 9.81
_EFFORT_WINDOW_S = 3.0
"""Shorter than the safety gate's 30 s, so that the cause is near its effect."""
PUSH_EVERY = 10
"""Steps between looks at whose push is due."""


@dataclass
class StepFacts:
    """What happened in one step, before the robots whose episode ended were put back.

    N robots; metres, newton metres, world frame.
    """

    goal_index: Tensor
    goals: Tensor
    foot_contact: Tensor
    feet_on_edge: Tensor
    terminated: Tensor
    timed_out: Tensor
    completed: Tensor
    type_id: Tensor
    difficulty: Tensor
    course_seed: Tensor
    torque: Tensor
    saturated: Tensor
    base_contact: Tensor
    base_pos_w: Tensor
    distance_m: Tensor


class Parkour:
    """State that terms share: where robots are, what they are asked, what they sensed."""

    def __init__(self, env: ParkourEnv) -> None:
        cfg: EnvCfg = env.cfg.parkour
        self.cfg, self.env = cfg, env
        self.desc = RobotDescription.load()
        device, n = env.device, env.num_envs
        self.device, self.num_envs = device, n
        self.terrain = env.cfg.terrain
        self.ground = self.terrain.to(device)
        self.robot = env.scene["robot"]
        self.contacts = env.scene["contact_forces"]
        self._find_bodies()

        gate = GateCfg.from_description(self.desc)

        def constant(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.default_joint_pos = constant(self.desc.default_joint_pos)
        self.target_lower, self.target_upper = (
            constant(gate.target_lower),
            constant(gate.target_upper),
        )
        self.max_step = constant(gate.max_rate) * CONTROL_STEP_S
        self._rated_torque = constant(self.desc.rated_torque)
        self._peak_torque = constant(self.desc.peak_torque)
        self._no_load_speed = constant(self.desc.no_load_speed)
        self.tilt_limit_rad = gate.tilt_limit_rad
        self.fold_start = gate.fold_start

        self.bodies = Bodies.draw(
            cfg.randomisation, n, device, friction=self.desc.contact.foot_friction
        )
        self.sensors = SensorErrors(cfg.randomisation, n, device)
        self.privileged = self.bodies.privileged(self.desc.masses.total)
        self._weight_n = torch.zeros(n, device=device)

        columns = self.terrain.columns
        self.column = torch.arange(n, device=device) * columns // max(n, 1) % columns
        if cfg.curriculum.enabled:
            high = min(cfg.curriculum.start_level, self.terrain.levels - 1)
            self.level = torch.randint(0, high + 1, (n,), device=device)
        else:
            self.level = torch.arange(n, device=device) % self.terrain.levels
        self.tile_level = self.level.clone()
        """Where the robot is now: its level, or an easier one that it revisits."""
        self.progress = progress.Progress(
            n,
            device,
            reach_m=cfg.command.reach_m,
            dwell_s=cfg.command.dwell_s,
            pass_width_m=cfg.command.pass_width_m,
        )
        self.speed = torch.full((n,), cfg.command.speed_low, device=device)
        self._be_free()
        self._pause_s, self._rest_s = torch.zeros(n, device=device), torch.zeros(n, device=device)
        """How long a robot is to stand still yet; since when it is behind the last waypoint."""
        self._halt_s, self._halted_s = torch.zeros(n, device=device), torch.zeros(n, device=device)
        """How long a robot is stopped yet, and since when."""
        self.action = torch.zeros(n, NUM_JOINTS, device=device)
        self.previous_action = torch.zeros_like(self.action)
        self._previous_joint_vel = torch.zeros_like(self.action)
        self.target = self.default_joint_pos.repeat(n, 1)
        self.applied_target = self.target.clone()
        self._halt_from = self.target.clone()
        self.mean_square = torch.zeros_like(self.action)
        self.history = torch.zeros(n, HISTORY, PROPRIO_SIZE, device=device)
        self._fresh = torch.ones(n, dtype=torch.bool, device=device)
        self._episode_steps = torch.zeros(n, dtype=torch.long, device=device)
        self._sole_offset = constant([0.0, 0.0, self.desc.geometry.foot_radius])
        soles = foot_positions(self.desc, self.desc.default_joint_pos) - self._sole_offset.tolist()
        self._soles_xy = constant(soles[:, :2])
        self._free_height_m = STATURE_M - float(soles[:, 2].mean())
        self._push_in_s = uniform(cfg.randomisation.push_interval_s, (n,), device)
        self._sums = {key: torch.zeros((), device=device) for key in _SUMS}
        self.collect_facts = False
        self.facts: StepFacts | None = None

        # What `_judge` and `_observe` find. They write in place: on CUDA they are replayed.
        def flags(*size: int) -> Tensor:
            return torch.zeros(n, *size, dtype=torch.bool, device=device)

        self.foot_contact, self.on_edge = flags(NUM_FEET), flags(NUM_FEET)
        self.saturated = flags(NUM_JOINTS)
        self.base_contact, self.fallen, self.sunk, self.left_lane = (flags() for _ in range(4))
        self.failed, self.completed, self.time_out = flags(), flags(), flags()
        self.reward_terms = {name: torch.zeros(n, device=device) for name in vars(cfg.reward)}
        self.groups = {
            name: torch.zeros(n, size, device=device) for name, size in GROUP_SIZES.items()
        }
        self.vision: Cameras | None = None
        if cfg.camera.enabled:
            self.vision = Cameras(self.desc, self.terrain, cfg.camera.errors, n, device)
        self._see_replayed = Replayed(self._see, device, enabled=cfg.cuda_graphs)
        self._judge_replayed = Replayed(self._judge, device, enabled=cfg.cuda_graphs)
        self._observe_replayed = Replayed(self._observe, device, enabled=cfg.cuda_graphs)

    @property
    def tile(self) -> Tensor:
        """Tile of every robot, (N,)."""
        return self.tile_level * self.terrain.columns + self.column

    @property
    def asked(self) -> Tensor:
        """Speed asked for now [m/s], (N,): none in a pause."""
        return torch.where(self._pause_s > 0.0, 0.0, self.speed)

    @property
    def command(self) -> Tensor:
        """Velocity that free robots are asked for now, (N, 3): none in a pause."""
        return torch.where(self._pause_s[:, None] > 0.0, 0.0, self.commands.value)

    def _be_free(self) -> None:
        """Who may be free, and where."""
        command, n, device = self.cfg.command, self.num_envs, self.device
        self.free = torch.zeros(n, dtype=torch.bool, device=device)
        """Who follows `commands` in this episode, instead of waypoints."""
        self.commands = VelocityCommands(command, n, device)
        self.tracking = Tracking(n, device)
        self._some_free = command.free_flat or command.free_share > 0.0
        kinds = list(self.terrain.types)
        flat = kinds.index("flat") if command.free_flat else -1
        self._on_field = self.ground.type_id[self.column] == flat
        own = [i for i in range(self.terrain.columns) if int(self.terrain.type_id[i]) == flat]
        width, margin = 2.0 * TILE_HALF_WIDTH_M, _FIELD_MARGIN_M
        self._field = (0.0, 0.0, 0.0, 0.0)
        """Flat columns, x0, x1, y0, y1 [m]; they lie beside each other."""
        if own:
            length = self.terrain.levels * self.terrain.tile_length_m
            self._field = (
                *(margin, length - margin),
                *(own[0] * width + margin, (own[-1] + 1) * width - margin),
            )

    def _off_field(self) -> Tensor:
        """Which free robots have walked out of where they belong, (N,)."""
        x, y = self.base_pos_w[:, 0], self.base_pos_w[:, 1]
        x0, x1, y0, y1 = self._field
        away = (x < x0) | (x > x1) | (y < y0) | (y > y1)
        begin = self.tile_level * self.terrain.tile_length_m
        lane = mdp.left_lane(self.base_pos_w, self.ground.lane_y[self.tile], TILE_HALF_WIDTH_M)
        off_tile = (x < begin) | (x > begin + self.terrain.tile_length_m) | lane
        return self.free & torch.where(self._on_field, away, off_tile)

    def _find_bodies(self) -> None:
        feet = [f"{leg}_foot" for leg in self.desc.leg_names]
        names = list(self.robot.body_names)
        missing = [name for name in ["base", *feet] if name not in names]
        if missing:
            raise TrainerError(
                f"the robot's USD has no bodies {missing}, only {names}; run `make assets`"
            )
        index = {name: i for i, name in enumerate(names)}
        self._feet = torch.tensor([index[name] for name in feet], device=self.device)
        self._base = index["base"]
        sensed = [name.rsplit("/", 1)[-1] for name in self.contacts.sensor_names]
        where = {name: i for i, name in enumerate(sensed)}
        legs = [name for name in sensed if name.endswith(("_hip", "_femur", "_tibia"))]
        self._feet_sensed = torch.tensor([where[name] for name in feet], device=self.device)
        self._legs_sensed = torch.tensor([where[name] for name in legs], device=self.device)
        self._base_sensed = where["base"]
        # As described: what `randomise_bodies` starts from, however often it is called.
        data = self.robot.data
        self._nominal_mass = adapter.tensor(data.body_mass).clone()
        self._nominal_inertia = adapter.tensor(data.body_inertia).clone()
        self._nominal_com_b = adapter.tensor(data.body_com_pos_b)[:, [self._base]].clone()

    def randomise_bodies(self) -> None:
        """Give every simulated robot its own friction, mass, centre of mass and gains."""
        import warp
        from isaaclab.actuators.newton import write_group_parameter
        from isaaclab_newton.physics import NewtonManager
        from newton import ModelFlags

        bodies, robot = self.bodies, self.robot
        model = NewtonManager.get_model()
        friction = warp.to_torch(robot.root_view.get_attribute("shape_material_mu", model)[:, 0])
        nominal = friction.amax(dim=1, keepdim=True)
        friction *= bodies.friction / nominal
        NewtonManager.add_model_change(ModelFlags.SHAPE_PROPERTIES)

        mass = self._nominal_mass * bodies.mass_factor
        mass[:, self._base] += bodies.added_mass_kg[:, 0]
        robot.set_masses_index(masses=mass)
        ratio = mass / self._nominal_mass
        robot.set_inertias_index(inertias=self._nominal_inertia * ratio[..., None])
        com = self._nominal_com_b + bodies.com_offset_m[:, None]
        robot.set_coms_index(coms=com, body_ids=[self._base])
        self._weight_n.copy_(_GRAVITY_M_S2 * mass.sum(-1))

        kp = torch.tensor(self.desc.kp, dtype=torch.float32, device=self.device)
        kd = torch.tensor(self.desc.kd, dtype=torch.float32, device=self.device)
        for key, values in (("kp", kp * bodies.kp_factor), ("kd", kd * bodies.kd_factor)):
            write_group_parameter(robot.actuators, "drives", "controller", key, values=values)
        for key in ("saturation_effort", "max_motor_effort"):
            torque = self._peak_torque * bodies.motor_strength
            write_group_parameter(robot.actuators, "drives", "clamping", key, values=torque)

    def _read(self) -> None:
        """Let the simulator bring its derived quantities up to date; the views stay the same."""
        data = self.robot.data
        self.base_pos_w = adapter.tensor(data.root_link_pos_w)
        self.base_quat_w = adapter.tensor(data.root_link_quat_w)
        self.base_lin_vel_w = adapter.tensor(data.root_link_lin_vel_w)
        self.base_lin_vel_b = adapter.tensor(data.root_link_lin_vel_b)
        self.base_ang_vel_b = adapter.tensor(data.root_link_ang_vel_b)
        self.joint_pos = adapter.tensor(data.joint_pos)
        self.joint_vel = adapter.tensor(data.joint_vel)
        self._body_pos_w = adapter.tensor(data.body_link_pos_w)
        self.force_w = adapter.tensor(self.contacts.data.net_normal_forces_w)
        self.torque = adapter.tensor(self.robot.actuators.applied_effort)
        self._episode_steps.copy_(self.env.episode_length_buf)

    def _soles_w(self) -> Tensor:
        """Lowest points of the feet, (N, 6, 3) [m]."""
        return self._body_pos_w[:, self._feet] - self._sole_offset

    def after_physics(self) -> None:
        """Measure, judge whose episode ends, and account for the step."""
        self._read()
        self._judge_replayed()
        if self.collect_facts:
            self.facts = self._step_facts()

    def _judge(self) -> None:
        dt, tile, ground = CONTROL_STEP_S, self.tile, self.ground
        pos_xy, soles_w = self.base_pos_w[:, :2], self._soles_w()
        waypoints = ground.waypoints[tile]
        self.progress.update(pos_xy, waypoints, ground.spawn[tile], dt)
        gravity_b = observations.projected_gravity(self.base_quat_w)
        goal = self.progress.goal(pos_xy, observations.yaw_of(self.base_quat_w), waypoints)
        foot_force_w = self.force_w[:, self._feet_sensed]
        base_force_w = self.force_w[:, self._base_sensed, None]
        self.mean_square.copy_(
            mdp.mean_square_filter(self.mean_square, self.torque, dt, _EFFORT_WINDOW_S)
        )
        self.foot_contact.copy_(foot_force_w.norm(dim=-1) > _CONTACT_N)
        self.on_edge.copy_(ground.feet_on_edge(tile, soles_w) & self.foot_contact)
        self.base_contact.copy_(base_force_w[:, 0].norm(dim=-1) > _CONTACT_N)
        self.fallen.copy_(mdp.fallen(gravity_b, self.tilt_limit_rad))
        self.sunk.copy_(mdp.sunk(ground.in_pit(tile, self.base_pos_w[:, None])))
        left = mdp.left_lane(self.base_pos_w, ground.lane_y[tile], TILE_HALF_WIDTH_M)
        self.left_lane.copy_(left & ~self.free)
        self.failed.copy_(self.fallen | self.sunk | self.left_lane)
        arrived = (self.progress.index >= waypoints.shape[1]) & ~self.free
        self._rest_s.copy_(torch.where(arrived, self._rest_s + dt, 0.0))
        self.completed.copy_(arrived & (self._rest_s > self.cfg.command.rest_s))
        late = self._episode_steps >= self.env.max_episode_length
        self.time_out.copy_(late | self._off_field())
        velocity_w, speed = self.base_lin_vel_w, self.asked
        free, command = self.free, self.command
        velocity_b = torch.cat((self.base_lin_vel_b[:, :2], self.base_ang_vel_b[:, 2:]), dim=-1)
        standing = torch.where(free, command.abs().sum(-1) == 0.0, speed <= 0.0)
        # The wider, the more is asked for: precision is a share of it, and of turning meanwhile.
        width = 0.08 + 0.12 * command[:, :2].norm(dim=-1) + 0.1 * command[:, 2].abs()
        yaw_width = 0.12 + 0.2 * command.norm(dim=-1)
        hurried = (speed + self.cfg.command.hurry_margin).clamp(min=self.cfg.command.hurry_speed)
        allowed = torch.where(speed > 0.0, hurried, 0.0)
        deviation = mdp.joint_deviation(self.joint_pos, self.default_joint_pos)
        terms = {
            "goal_velocity": ~free * mdp.goal_velocity(velocity_w, goal.direction_w, speed),
            "overspeed": ~free * mdp.overspeed(velocity_w, allowed),
            "goal_heading": ~free
            * torch.where(speed > 0.0, mdp.goal_heading(goal.heading_error), 1.0),
            "track_velocity": free * mdp.track(velocity_b[:, :2], command[:, :2], width),
            "track_yaw": free * mdp.track(velocity_b[:, 2:], command[:, 2:], yaw_width),
            "vertical_velocity": mdp.vertical_velocity(velocity_w),
            "roll_pitch_rate": mdp.roll_pitch_rate(self.base_ang_vel_b),
            "orientation": mdp.orientation(gravity_b),
            "joint_deviation": deviation,
            "rest_pose": torch.where(standing, deviation, 0.0),
            "stature": mdp.stature(
                self.base_pos_w[:, 2], soles_w, self.foot_contact, self._free_height_m
            ),
            "feet_high": mdp.feet_high(self.base_pos_w[:, 2], soles_w, FEET_HIGH_M),
            "action_rate": mdp.action_rate(self.action, self.previous_action),
            "joint_acceleration": mdp.joint_acceleration(
                self.joint_vel, self._previous_joint_vel, dt
            ),
            "joint_limits": mdp.joint_limits(
                self.joint_pos, self.target_lower, self.target_upper, LIMIT_MARGIN_RAD
            ),
            "power": mdp.power(self.torque, self.joint_vel),
            "torque": mdp.torque(self.torque, self._rated_torque),
            "effort_budget": mdp.effort_budget(
                self.mean_square, self._rated_torque, self.fold_start
            ),
            "base_contact": mdp.bodies_touching(base_force_w, _CONTACT_N),
            "leg_contact": mdp.bodies_touching(self.force_w[:, self._legs_sensed], _CONTACT_N),
            "contact_force": mdp.contact_force(foot_force_w, self._weight_n),
            "stumble": mdp.stumble(foot_force_w),
            "edge": mdp.feet_on_edge(self.on_edge, self.foot_contact),
            "pit": mdp.feet_in_pit(ground.in_pit(tile, soles_w)),
            "fall": self.failed.float(),
        }
        for name, value in terms.items():
            self.reward_terms[name].copy_(value)
        self._previous_joint_vel.copy_(self.joint_vel)
        self._account()
        if self._some_free:
            since_s = self.commands.since_s
            self.tracking.add(velocity_b, command, since_s, free, self.failed, dt)
            self.commands.step(dt)
        self._pause(arrived, dt)
        self._halt(arrived, dt)

    def _pause(self, arrived: Tensor, dt: float) -> None:
        """Ask some robots to stand still for a while, and those that have arrived until the end."""
        cfg = self.cfg.command
        if cfg.pause_share <= 0.0 and cfg.rest_s <= 0.0:
            return
        mean_s = 0.5 * sum(cfg.pause_s)
        begins = cfg.pause_share / (1.0 - cfg.pause_share) * dt / mean_s
        luck = torch.rand_like(self._pause_s) < begins
        left = self._pause_s - dt
        length = uniform(cfg.pause_s, (self.num_envs,), self.device)
        left = torch.where(luck & (left <= 0.0), length, left)
        self._pause_s.copy_(torch.where(arrived, 1.0, left))

    def _halt(self, arrived: Tensor, dt: float) -> None:
        """Stop some robots, and half of those that have just arrived."""
        cfg = self.cfg.command
        if cfg.halt_every_s <= 0.0:
            return
        left = self._halt_s - dt
        chance = torch.where(arrived & (self._rest_s < 1.5 * dt), 0.5, dt / cfg.halt_every_s)
        begins = (torch.rand_like(left) < chance) & (left <= 0.0)
        length = HALT_S + uniform(cfg.halt_s, (self.num_envs,), self.device)
        self._halt_s.copy_(torch.where(begins, length, left))
        self._halted_s.copy_(torch.where(begins, 0.0, self._halted_s + dt))

    def _halting(self, action: Tensor) -> Tensor:
        """Actions (N, 18), where a robot is stopped those that take it to the default pose."""
        if self.cfg.command.halt_every_s <= 0.0:
            return action
        halted_s = self._halted_s[:, None]
        own = (self.target - self.default_joint_pos) / observations.ACTION_SCALE
        self._halt_from.copy_(torch.where(halted_s == 0.0, own, self._halt_from))
        share = ((halted_s + CONTROL_STEP_S) / HALT_S).clamp(max=1.0)
        left = 1.0 - min_jerk(share)
        return torch.where(self._halt_s[:, None] > 0.0, left * self._halt_from, action)

    def observe(self) -> dict[str, Tensor]:
        """Every observation group, after resets; adds a frame to the history."""
        self._read()
        self._observe_replayed()
        if self.vision is not None:
            self._see_replayed()
        return self.groups

    def _see(self) -> None:
        assert self.vision is not None
        self.vision.step(self.groups["proprio"], self.tile, self.base_pos_w, self.base_quat_w)

    def _observe(self) -> None:
        sensors, groups, height_at = self.sensors, self.groups, self.ground.height_at
        pos_xy = self.base_pos_w[:, :2]
        goal = self.progress.goal(
            pos_xy, observations.yaw_of(self.base_quat_w), self.ground.waypoints[self.tile]
        )
        frame = observations.proprio(
            base_quat_w=self.base_quat_w,
            base_ang_vel_b=sensors.gyro(self.base_ang_vel_b),
            joint_pos=sensors.joint_pos(self.joint_pos),
            joint_vel=sensors.joint_vel(self.joint_vel),
            foot_contact=self.foot_contact & ~self._fresh[:, None],
            nav_command=torch.where(
                self.free[:, None],
                self.command,
                torch.where(
                    self._pause_s[:, None] > 0.0,
                    0.0,
                    progress.nav_command(goal.heading_error, self.speed),
                ),
            ),
            last_action=self.action,
            default_joint_pos=self.default_joint_pos,
            gravity_b=sensors.gravity(observations.projected_gravity(self.base_quat_w)),
        )
        shifted = torch.cat((self.history[:, 1:], frame[:, None]), dim=1)
        first = frame[:, None].expand(-1, HISTORY, -1)
        self.history.copy_(torch.where(self._fresh[:, None, None], first, shifted))
        self._fresh.zero_()
        soles_w = self._soles_w()
        scan = observations.scan(height_at, self.base_pos_w, self.base_quat_w)
        critic = observations.critic_extra(
            heading_error=goal.heading_error,
            next_heading_error=goal.next_heading_error,
            goal_distance_m=goal.distance_m,
            base_height_m=self.base_pos_w[:, 2] - height_at(pos_xy),
            feet_height_m=soles_w[..., 2] - height_at(soles_w[..., :2]),
            speed=torch.where(self.free, self.command[:, :2].norm(dim=-1), self.asked),
            episode_progress=self._episode_steps / self.env.max_episode_length,
        )
        critic[:, :5] *= ~self.free[:, None]  # no goal lies ahead of a free robot
        groups["proprio"].copy_(frame)
        groups["scan"].copy_(sensors.scan(scan))
        groups["velocity"].copy_(self.base_lin_vel_b)
        groups["privileged"].copy_(self.privileged)
        groups["history"].copy_(self.history.flatten(1))
        groups["critic"].copy_(critic)

    def reset(self, env_ids: Tensor) -> None:
        """Put robots on the start of their tile, at rest, with a new speed to walk at."""
        cfg, draw = self.cfg.randomisation, len(env_ids)
        if self._some_free:
            self._set_free(env_ids)
        tile = self.tile[env_ids]
        spread = cfg.start_xy_m if cfg.enabled else 0.0
        pose = torch.zeros(draw, 7, device=self.device)
        pose[:, :2] = self.ground.spawn[tile] + uniform((-spread, spread), (draw, 2), self.device)
        pose[:, 2] = START_HEIGHT_M + self.ground.height_at(pose[:, :2])
        turn = cfg.start_yaw_rad if cfg.enabled else 0.0
        yaw = uniform((-turn, turn), (draw,), self.device)
        if self._some_free:
            yaw = self._start_free(env_ids, pose, yaw)
        pose[:, 5], pose[:, 6] = torch.sin(0.5 * yaw), torch.cos(0.5 * yaw)
        bend = cfg.start_joint_rad if cfg.enabled else 0.0
        joints = self.default_joint_pos + uniform((-bend, bend), (draw, NUM_JOINTS), self.device)
        joints = joints.clamp(self.target_lower, self.target_upper)
        at_rest = torch.zeros(draw, 6, device=self.device)
        self.robot.write_root_pose_to_sim_index(root_pose=pose, env_ids=env_ids)
        self.robot.write_root_velocity_to_sim_index(root_velocity=at_rest, env_ids=env_ids)
        self.robot.write_joint_state_to_sim_index(
            position=joints, velocity=torch.zeros_like(joints), env_ids=env_ids
        )
        self.progress.reset(env_ids)
        speed = (self.cfg.command.speed_low, self.cfg.command.speed_high)
        self.speed[env_ids] = uniform(speed, (draw,), self.device)
        self.action[env_ids] = 0.0
        self.previous_action[env_ids] = 0.0
        self._previous_joint_vel[env_ids] = 0.0
        self.target[env_ids] = joints
        self.applied_target[env_ids] = joints
        self.mean_square[env_ids] = 0.0
        for timer in (self._pause_s, self._rest_s, self._halt_s, self._halted_s):
            timer[env_ids] = 0.0
        self._fresh[env_ids] = True
        if self.vision is not None:
            self.vision.reset(env_ids)

    def _set_free(self, env_ids: Tensor) -> None:
        """Draw who is free in the next episode, and on which of the tiles up to its level."""
        draw = len(env_ids)
        share = torch.rand(draw, device=self.device) < self.cfg.command.free_share
        free = self._on_field[env_ids] | share
        level = self.level[env_ids]
        anywhere = (torch.rand(draw, device=self.device) * (level + 1)).long()
        self.free[env_ids] = free
        self.tile_level[env_ids] = torch.where(free, anywhere, self.tile_level[env_ids])
        self.commands.reset(env_ids)
        self.tracking.reset(env_ids)

    def _start_free(self, env_ids: Tensor, pose: Tensor, yaw: Tensor) -> Tensor:
        """Start free robots anywhere, looking anywhere: changes their `pose`, returns all yaws."""
        draw, device = len(env_ids), self.device
        free, ground = self.free[env_ids], self.ground
        waypoints = ground.waypoints[self.tile[env_ids]]
        which = torch.randint(waypoints.shape[1], (draw,), device=device)
        start = waypoints[torch.arange(draw, device=device), which, :2]
        x0, x1, y0, y1 = self._field
        field = torch.stack(
            (uniform((x0, x1), (draw,), device), uniform((y0, y1), (draw,), device)), dim=-1
        )
        start = torch.where(self._on_field[env_ids, None], field, start)
        yaw = torch.where(free, uniform((-math.pi, math.pi), (draw,), device), yaw)
        # As high as the highest ground under body and feet asks for: in no step, over no edge less.
        cos, sin = torch.cos(yaw)[:, None], torch.sin(yaw)[:, None]
        x, y = self._soles_xy.T
        under = torch.stack((cos * x - sin * y, sin * x + cos * y), dim=-1)
        under = start[:, None] + torch.cat((torch.zeros_like(under[:, :1]), under), dim=1)
        height = START_HEIGHT_M + ground.height_at(under).amax(dim=1)
        pose[:, :2] = torch.where(free[:, None], start, pose[:, :2])
        pose[:, 2] = torch.where(free, height, pose[:, 2])
        return yaw

    def act(self, action: Tensor) -> None:
        """Turn actions into targets as the safety gate would, delayed by a share of a step."""
        self.previous_action.copy_(self.action)
        self.action.copy_(action)
        before = self.target
        target = observations.joint_pos_target(
            self._halting(action),
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
        """Shove the robots whose time has come."""
        cfg = self.cfg.randomisation
        if not cfg.enabled or cfg.push_speed <= 0.0:
            return
        self._push_in_s -= PUSH_EVERY * CONTROL_STEP_S
        due = self._push_in_s <= 0.0
        velocity = adapter.tensor(self.robot.data.root_com_vel_w).clone()
        shove = uniform((-cfg.push_speed, cfg.push_speed), (self.num_envs, 2), self.device)
        velocity[:, :2] += torch.where(due[:, None], shove, 0.0)
        self._push_in_s.copy_(
            torch.where(
                due, uniform(cfg.push_interval_s, (self.num_envs,), self.device), self._push_in_s
            )
        )
        # All robots, most with the velocity they have: asking which are due would stop the device.
        self.robot.write_root_velocity_to_sim_index(root_velocity=velocity)

    def advance_curriculum(self, env_ids: Tensor) -> None:
        """Choose the next tile of robots whose episode ended."""
        if not self.cfg.curriculum.enabled or self.env.common_step_counter == 0:
            return
        walked_s = self.env.episode_length_buf[env_ids] * CONTROL_STEP_S
        level = self.level[env_ids]
        moved = next_level(
            level,
            goals=self.progress.index[env_ids],
            fell=self.failed[env_ids],
            distance_m=self.progress.distance_m[env_ids],
            asked_m=self.speed[env_ids] * walked_s,
            levels=self.terrain.levels,
            cfg=self.cfg.curriculum,
        )
        judged = (walked_s > 0.0) & (self.tile_level[env_ids] == level) & ~self.free[env_ids]
        level = torch.where(judged, moved, level)
        self.level[env_ids] = level
        self.tile_level[env_ids] = tile_level(level, self.cfg.curriculum.revisit)

    def _account(self) -> None:
        """Add one step to what is logged."""
        ended = (self.failed | self.completed | self.time_out) & ~self.free
        self.saturated.copy_(
            mdp.saturated(
                self.torque,
                self.joint_vel,
                self._peak_torque * self.bodies.motor_strength,
                self._no_load_speed,
            )
        )
        sums = self._sums
        sums["steps"] += 1.0
        sums["torque_sq"] += self.torque.square().mean()
        sums["saturation"] += self.saturated.float().mean()
        sums["edge"] += self.on_edge.float().sum(-1).mean()
        walks = (~self.free).float().mean().clamp(min=1e-6)
        sums["velocity"] += self.reward_terms["goal_velocity"].mean() / walks
        speed = self.base_lin_vel_w[:, :2].norm(dim=-1)
        sums["speed"] += speed.mean()
        sums["drag"] += (self._weight_n * speed).mean()
        for name in ("power", "feet_high", "contact_force"):
            sums[name] += self.reward_terms[name].mean()
        sums["episodes"] += ended.sum()
        sums["falls"] += (ended & self.failed).sum()
        sums["goals"] += torch.where(ended, self.progress.index.clamp(max=7), 0).sum()
        sums["completed"] += (ended & self.completed).sum()

    def log(self) -> dict[str, Tensor]:
        """What was accounted for since the last call, and the present levels."""
        s = self._sums
        steps, episodes = s["steps"].clamp(min=1.0), s["episodes"].clamp(min=1.0)
        log = {
            "Torque/rms_nm": (s["torque_sq"] / steps).sqrt(),
            "Torque/saturation": s["saturation"] / steps,
            "Episode/mev": s["edge"] / steps,
            "Episode/velocity_ratio": s["velocity"] / steps,
            "Episode/speed": s["speed"] / steps,
            "Gait/power_w": s["power"] / steps,
            "Gait/cost_of_transport": s["power"] / s["drag"].clamp(min=1e-6),
            "Gait/feet_high_m": s["feet_high"] / steps,
            "Gait/contact_force": s["contact_force"] / steps,
            "Episode/goals": s["goals"] / episodes,
            "Episode/mxd": s["goals"] / episodes / 7.0,
            "Episode/fall_rate": s["falls"] / episodes,
            "Episode/completed": s["completed"] / episodes,
            "Level/mean": self.level.float().mean(),
        }
        kind = self.ground.type_id[self.tile]
        for i, name in enumerate(self.terrain.types):
            chosen = (kind == i).float()
            log[f"Level/{name}"] = (self.level * chosen).sum() / chosen.sum().clamp(min=1.0)
        for total in s.values():
            total.zero_()
        return log | self.tracking.log() if self._some_free else log

    def _step_facts(self) -> StepFacts:
        """What the evaluation wants to know of this step."""
        tile = self.tile
        return StepFacts(
            goal_index=self.progress.index.clone(),
            goals=torch.full_like(self.progress.index, self.ground.waypoints.shape[1]),
            foot_contact=self.foot_contact.clone(),
            feet_on_edge=self.on_edge.clone(),
            terminated=self.failed.clone(),
            timed_out=self.time_out.clone(),
            completed=self.completed.clone(),
            type_id=self.ground.type_id[tile],
            difficulty=self.ground.difficulty[tile],
            course_seed=self.ground.seed[tile],
            torque=self.torque.clone(),
            saturated=self.saturated.clone(),
            base_contact=self.base_contact.clone(),
            base_pos_w=self.base_pos_w.clone(),
            distance_m=self.progress.distance_m.clone(),
        )


_SUMS = (
    *("steps", "torque_sq", "saturation", "edge", "velocity", "speed"),
    *("power", "drag", "feet_high", "contact_force"),
    *("episodes", "falls", "goals", "completed"),
)
