"""Evaluation in MuJoCo: the physics of the runtime's simulation, the courses of Isaac Lab.

Observations, waypoints, walking commands and terminations are the training environment's own
functions, fed from MuJoCo's state. What differs is what the comparison is about: contacts and
solver, steps of 2.5 instead of 5 ms, the safety gate itself instead of its limits, its folding of
the torque limit included, a true delay of 7.5 ms instead of a blend, and exact ground instead of a
raster of 5 cm. There are no neighbours: beside the tile the ground is level.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from krabby_robot.description import RobotDescription
from krabby_robot.gate import Fault, GateCfg
from krabby_robot.lanes import TILE_HALF_WIDTH_M
from tensordict import TensorDict

from trainer import mdp, observations
from trainer.errors import EvaluationError
from trainer.evaluation.metrics import EpisodeRecorder, StepFacts
from trainer.evaluation.outcome import Outcome, Poses, ProgressLine
from trainer.evaluation.physics import CONTROL_S, FIELDS, Conditions, RobotSpec
from trainer.evaluation.pool import RobotPool
from trainer.evaluation.suite import assign, tiles
from trainer.observations import HISTORY, NUM_JOINTS, PROPRIO_SIZE
from trainer.progress import Progress, nav_command
from trainer.randomisation import SensorErrors
from trainer.terrain import Terrain
from trainer.vision import Cameras, seen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from krabby_robot.courses import Course
    from numpy.typing import NDArray

    from trainer.env_cfg import EnvCfg
    from trainer.evaluation.metrics import Robots

__all__ = ["evaluate_mujoco"]

Tensor = torch.Tensor

_POSE_EVERY = 10
"""Control steps between recorded poses."""
_NOMINAL_DELAY = 0.8
"""Of commands [control steps], as the training environment states it: 7.5 ms."""
_REASONS = ("tilted", "in a pit", "left the lane", "safety gate", "diverged")


def evaluate_mujoco(
    policy: Callable[[TensorDict], Tensor],
    cfg: EnvCfg,
    *,
    seconds: float,
    seed: int,
    device: str = "cpu",
    processes: int = 0,
) -> Outcome:
    """Let `policy` walk every robot of `cfg` for `seconds` of simulated time.

    Args:
        policy: deterministic actions (N, 18) from observation groups.
        cfg: courses, commands, disturbances.
        seconds: for each robot; episodes follow one another.
        seed: of everything that is drawn but the courses.
        device: where the policy's observations go.
        processes: that share the physics; 0 for all cores.
    """
    torch.manual_seed(seed)
    terrain = Terrain(cfg.terrain)
    robots, courses = assign(terrain, cfg.num_envs)
    walk = _Walk(cfg, robots, courses, seed)
    if cfg.camera.enabled:
        walk.give_cameras(terrain)
    steps = max(1, round(seconds / CONTROL_S))
    begin_s = time.monotonic()
    points = observations.SCAN_POINTS_B.double().numpy()
    with (
        RobotPool(walk.specs, walk.conditions, points, processes=processes) as pool,
        ProgressLine("evaluating in MuJoCo", steps, CONTROL_S) as line,
    ):
        walk.begin(pool)
        for step in range(steps):
            action = policy(walk.observe().to(device)).to("cpu", torch.float32)
            if not torch.isfinite(action).all():
                raise EvaluationError(
                    "the policy's actions are not finite; the checkpoint is of a run that "
                    "diverged, take an earlier one"
                )
            walk.step(action)
            line.update(step + 1, f"{walk.recorder.finished} episodes")
    return Outcome(
        run=walk.recorder.finish(),
        wall_s=time.monotonic() - begin_s,
        falls=walk.falls,
        poses=walk.poses(),
    )


class _Walk:
    """All robots' walks: what the training environment keeps, on top of a `RobotPool`."""

    def __init__(self, cfg: EnvCfg, robots: Robots, courses: Sequence[Course], seed: int) -> None:
        count = len(robots)
        self._cfg, self._robots, self._count = cfg, robots, count
        self._desc = RobotDescription.load()
        self._tilt_limit_rad = GateCfg.from_description(self._desc).tilt_limit_rad
        self._default = _tensor(self._desc.default_joint_pos)
        self._waypoints = _tensor(np.stack([course.waypoints for course in courses]))
        self._start_xy = _tensor(np.stack([course.spawn[:2] for course in courses]))
        self._episode_steps = round(cfg.episode_s / CONTROL_S)
        # A stream of its own for each robot's speeds, so that one's falls leave the others alone.
        self._luck = [np.random.Generator(np.random.PCG64((seed, i, 1))) for i in range(count)]
        self._progress = Progress(
            count,
            "cpu",
            reach_m=cfg.command.reach_m,
            dwell_s=cfg.command.dwell_s,
            pass_width_m=cfg.command.pass_width_m,
        )
        self._speed = torch.zeros(count)
        self._action = torch.zeros(count, NUM_JOINTS)
        self._history = torch.zeros(count, HISTORY, PROPRIO_SIZE)
        self._sensors = SensorErrors(cfg.randomisation, count, "cpu")
        self._cameras: Cameras | None = None
        self._fresh = torch.ones(count, dtype=torch.bool)
        self._age = np.zeros(count, np.int64)
        self._episode = np.zeros(count, np.int64)
        self._poses: list[tuple[NDArray[Any], ...]] = []
        self._steps = 0
        self.recorder = EpisodeRecorder(robots, step_s=CONTROL_S)
        self.falls: dict[str, dict[str, int]] = {}
        self.conditions = _conditions(cfg, self._desc)
        self.specs = [
            RobotSpec(
                course=course.name,
                difficulty=course.difficulty,
                course_seed=course.seed,
                luck=(seed, i),
            )
            for i, course in enumerate(courses)
        ]

    def give_cameras(self, terrain: Terrain) -> None:
        """For policies that see."""
        level, column = tiles(terrain, self._count)
        self._tile = torch.from_numpy(level * terrain.columns + column)
        corners = [terrain.corner(*at) for at in zip(level, column, strict=True)]
        self._corner = _tensor(np.stack(corners))
        self._cameras = Cameras(self._desc, terrain, self._cfg.camera.errors, self._count, "cpu")

    def begin(self, pool: RobotPool) -> None:
        """Take over the robots, which stand at their starts."""
        self._pool = pool
        self._state = torch.from_numpy(pool.rows)
        self._privileged = observations.privileged(
            friction=_tensor(pool.friction)[:, None],
            added_mass_kg=torch.zeros(self._count, 1),
            com_offset_m=torch.zeros(self._count, 3),
            kp_factor=torch.ones(self._count, NUM_JOINTS),
            kd_factor=torch.ones(self._count, NUM_JOINTS),
            command_delay=torch.full((self._count, 1), _NOMINAL_DELAY),
        )
        self._start(np.ones(self._count, bool))

    def observe(self) -> TensorDict:
        """Every observation group a policy reads; adds a frame to the history.

        `begins` (N, 1) says whose episode begins, for policies with a memory.
        """
        quat, pos, sensors = self._get("base_quat_w"), self._get("base_pos_w"), self._sensors
        goal = self._progress.goal(pos[:, :2], observations.yaw_of(quat), self._waypoints)
        frame = observations.proprio(
            base_quat_w=quat,
            base_ang_vel_b=sensors.gyro(self._get("base_ang_vel_b")),
            joint_pos=sensors.joint_pos(self._get("joint_pos")),
            joint_vel=sensors.joint_vel(self._get("joint_vel")),
            foot_contact=self._get("foot_contact"),
            nav_command=nav_command(goal.heading_error, self._speed),
            last_action=self._action,
            default_joint_pos=self._default,
            gravity_b=sensors.gravity(observations.projected_gravity(quat)),
        )
        shifted = torch.cat((self._history[:, 1:], frame[:, None]), dim=1)
        begins, self._fresh = self._fresh, torch.zeros_like(self._fresh)
        self._history = torch.where(
            begins[:, None, None], frame[:, None].expand_as(shifted), shifted
        )
        # The processes looked the ground up at these very points.
        scan = observations.scan(lambda _: self._get("heights"), pos, quat)
        groups = TensorDict(
            {
                "proprio": frame,
                "scan": scan,
                "velocity": observations.rotate_inverse(quat, self._get("base_lin_vel_w")),
                "privileged": self._privileged,
                "history": self._history.flatten(1),
                "begins": begins[:, None],
            },
            batch_size=[self._count],
        )
        if self._cameras is None:
            return groups
        self._cameras.step(frame, self._tile, pos + self._corner, quat)
        return seen(groups, self._cameras, begins)

    def step(self, action: Tensor) -> None:
        """Carry out actions, count what came of them, put back whose episode ended."""
        self._action = action
        wanted = self._default + observations.ACTION_SCALE * action.clamp(
            -observations.ACTION_CLIP, observations.ACTION_CLIP
        )
        self._pool.step(wanted.double().numpy())
        self._age += 1
        self._steps += 1
        pos = self._get("base_pos_w")
        self._progress.update(pos[:, :2], self._waypoints, self._start_xy, CONTROL_S)
        if self._steps % _POSE_EVERY == 0:
            names = ("base_pos_w", "base_quat_w", "joint_pos")
            self._poses.append((*(self._get(n).numpy().copy() for n in names), self._episode + 0))
        ended = self._count_step()
        if ended.any():
            self._pool.reset(ended)
            self._start(ended)
            self._episode += ended

    def poses(self) -> Poses | None:
        """What was recorded on the way."""
        if not self._poses:
            return None
        pos, quat, joints, episode = (np.stack(part) for part in zip(*self._poses, strict=True))
        return Poses(
            period_s=_POSE_EVERY * CONTROL_S,
            base_pos_w=pos,
            base_quat_w=quat,
            joint_pos=joints,
            episode=episode,
        )

    def _count_step(self) -> NDArray[np.bool_]:
        """Tell the recorder; returns whose episode ended."""
        completed = (self._progress.index >= self._waypoints.shape[1]).numpy()
        reasons = self._why_fallen()
        terminated = reasons.any(axis=0) & ~completed
        facts = StepFacts(
            goal_index=self._progress.index.numpy(),
            foot_contact=self._get("foot_contact").numpy() > 0.5,
            feet_on_edge=self._get("feet_on_edge").numpy() > 0.5,
            terminated=terminated,
            timed_out=(self._age >= self._episode_steps) & ~terminated & ~completed,
            completed=completed,
            torque=self._get("torque").numpy(),
            saturated=self._get("saturated").numpy(),
            base_contact=self._get("base_contact").numpy()[:, 0] > 0.5,
            distance_m=self._progress.distance_m.numpy(),
        )
        self.recorder.add(facts)
        for robot in np.flatnonzero(terminated):
            reason = _REASONS[int(reasons[:, robot].argmax())]
            counts = self.falls.setdefault(str(self._robots.type[robot]), {})
            counts[reason] = counts.get(reason, 0) + 1
        return facts.ended

    def _why_fallen(self) -> NDArray[np.bool_]:
        """Which robots fell for which of `_REASONS`, (5, N)."""
        gravity = observations.projected_gravity(self._get("base_quat_w"))
        faults = self._get("faults").numpy()[:, 0].astype(np.int64)
        tilted = mdp.fallen(gravity, self._tilt_limit_rad).numpy() | (faults & Fault.TILT > 0)
        away = mdp.left_lane(self._get("base_pos_w"), torch.zeros(self._count), TILE_HALF_WIDTH_M)
        return np.stack(
            [
                tilted,
                self._get("in_pit").numpy()[:, 0] > 0.5,
                away.numpy(),
                faults > 0,
                self._get("diverged").numpy()[:, 0] > 0.5,
            ]
        )

    def _start(self, chosen: NDArray[np.bool_]) -> None:
        """Begin an episode of the robots in `chosen`."""
        command = self._cfg.command
        which = torch.from_numpy(chosen)
        self._progress.reset(which)
        for robot in np.flatnonzero(chosen):
            self._speed[robot] = self._luck[robot].uniform(command.speed_low, command.speed_high)
        self._action = torch.where(which[:, None], 0.0, self._action)
        self._fresh |= which
        if self._cameras is not None:
            self._cameras.reset(which.nonzero()[:, 0])
        self._age[chosen] = 0

    def _get(self, name: str) -> Tensor:
        return self._state[:, FIELDS[name]]


def _conditions(cfg: EnvCfg, desc: RobotDescription) -> Conditions:
    """What the training environment would vary, of what this simulation can."""
    r = cfg.randomisation
    own = desc.contact.foot_friction
    if not r.enabled:
        return Conditions(
            friction=(own, own),
            push_interval_s=(1.0, 1.0),
            push_speed=0.0,
            start_xy_m=0.0,
            start_yaw_rad=0.0,
            start_joint_rad=0.0,
        )
    return Conditions(
        friction=_pair(r.friction),
        push_interval_s=_pair(r.push_interval_s),
        push_speed=r.push_speed,
        start_xy_m=r.start_xy_m,
        start_yaw_rad=r.start_yaw_rad,
        start_joint_rad=r.start_joint_rad,
        payload_kg=_pair(r.added_mass_kg),
        motor_strength=_pair(r.motor_strength),
    )


def _pair(bounds: Sequence[float]) -> tuple[float, float]:
    low, high = bounds
    return low, high


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)
