"""Many robots walking courses in MuJoCo: what the training environment keeps, on a `RobotPool`.

Observations, waypoints, walking commands and terminations are the training environment's own
functions, fed from MuJoCo's state. What differs is contacts and solver, steps of 2.5 instead of
5 ms, the safety gate itself instead of its limits, its folding of the torque limit included, a true
delay of 7.5 ms instead of a blend, and exact ground instead of a raster of 5 cm. There are no
neighbours: beside the tile the ground is level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch
from krabby.isaac.rotations import rotate_inverse
from krabby.robot.description import RobotDescription
from krabby.safety.gate import GateCfg
from krabby_proto import Fault
from tensordict import TensorDict

from krabby_trainer.evaluation.physics import CONTROL_S, FIELDS, Conditions, RobotSpec
from krabby_trainer.evaluation.pool import RobotPool
from krabby_trainer.task import observations, terminations
from krabby_trainer.task.observations import EYE_INDEX, HISTORY, NUM_JOINTS, PROPRIO_SIZE
from krabby_trainer.task.progress import Progress, nav_command
from krabby_trainer.task.randomisation import NOMINAL_DELAY, SensorErrors
from krabby_trainer.vision.cameras import Cameras, seen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from krabby_trainer.task.config import EnvCfg
    from krabby_trainer.task.terrain import Terrain

__all__ = ["REASONS", "Ended", "Walkers"]

Tensor = torch.Tensor

REASONS: Final = ("tilted", "in a pit", "left the lane", "safety gate", "diverged")
"""Why a robot fell."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Whose episode ended with a step, and how; all (N,) bool but `reasons`."""

    terminated: NDArray[np.bool_]
    timed_out: NDArray[np.bool_]
    completed: NDArray[np.bool_]
    reasons: NDArray[np.bool_]
    """Which of `REASONS`, (5, N)."""

    @property
    def any(self) -> NDArray[np.bool_]:
        """In any way."""
        return self.terminated | self.timed_out | self.completed


class Walkers:
    """N robots on tiles of a terrain; use it as a context manager.

    Then in turns: `observe` or `look`, `step`, and `restart` of those that `step` says have ended.

    Args:
        cfg: Courses, commands, disturbances, cameras.
        terrain: Of `cfg`, laid out.
        tile: Where each robot begins, (N,): level * columns + column.
        seed: Of everything that is drawn but the courses.
        processes: That share the physics; 0 for all cores.
    """

    def __init__(
        self,
        cfg: EnvCfg,
        terrain: Terrain,
        tile: NDArray[np.int64],
        *,
        seed: int,
        processes: int = 0,
    ) -> None:
        count = len(tile)
        self._cfg, self._count, self._seed = cfg, count, seed
        self._processes = processes
        self._desc = RobotDescription.load()
        self._tilt_limit_rad = GateCfg.from_description(self._desc).tilt_limit_rad
        self._default = _tensor(self._desc.default_joint_pos)
        self._courses = [course for row in terrain.courses for course in row]
        columns = terrain.columns
        corners = [terrain.corner(*divmod(t, columns)) for t in range(terrain.tiles)]
        self._corners = _tensor(np.stack(corners))
        self._waypoints = _tensor(np.stack([course.waypoints for course in self._courses]))
        self._half_widths = _tensor(np.array([course.half_width_m for course in self._courses]))
        self._spawns = _tensor(np.stack([course.spawn[:2] for course in self._courses]))
        self.tile = torch.from_numpy(tile.copy())
        """Where each robot is, (N,)."""
        self.episode_steps = round(cfg.episode_s / CONTROL_S)
        """The longest that an episode lasts."""
        # Each robot's speeds have a separate stream, so that one's falls do not change the others.
        self._speed_rngs = [
            np.random.Generator(np.random.PCG64((seed, i, 1))) for i in range(count)
        ]
        self.progress = Progress(
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
        self._fresh = torch.ones(count, dtype=torch.bool)
        self.age = np.zeros(count, np.int64)
        """Control steps since each episode began."""
        self.cameras: Cameras | None = None
        if cfg.camera.enabled:
            self.cameras = Cameras(self._desc, terrain, cfg.camera.errors, count, "cpu", EYE_INDEX)

    def __enter__(self) -> Self:
        points = observations.SCAN_POINTS_B.double().numpy()
        specs = [self.spec(i, int(tile)) for i, tile in enumerate(self.tile)]
        conditions = _conditions(self._cfg, self._desc)
        self._pool = RobotPool(specs, conditions, points, processes=self._processes)
        self._state = torch.from_numpy(self._pool.rows)
        self._start(np.ones(self._count, bool))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def spec(self, robot: int, tile: int, *draw: int) -> RobotSpec:
        """Robot number `robot` on a tile; `draw` gives another body after the first."""
        course = self._courses[tile]
        return RobotSpec(
            course=course.name,
            difficulty=course.difficulty,
            course_seed=course.seed,
            seed=(self._seed, robot, *draw),
        )

    def get(self, name: str) -> Tensor:
        """What robots reported last, one of `krabby_trainer.evaluation.physics.FIELDS`; (N, k)."""
        return self._state[:, FIELDS[name]]

    def observe(self) -> TensorDict:
        """Every observation group a policy reads; adds a frame to the history.

        `begins` (N, 1) says whose episode begins, for policies with a memory.
        """
        quat, pos, sensors = self.get("base_quat_w"), self.get("base_pos_w"), self._sensors
        waypoints = self._waypoints[self.tile]
        goal = self.progress.goal(pos[:, :2], observations.yaw_of(quat), waypoints)
        frame = observations.proprio(
            base_quat_w=quat,
            base_ang_vel_b=sensors.gyro(self.get("base_ang_vel_b")),
            joint_pos=sensors.joint_pos(self.get("joint_pos")),
            joint_vel=sensors.joint_vel(self.get("joint_vel")),
            foot_contact=self.get("foot_contact"),
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
        if self.cameras is not None:
            self.cameras.step(frame, self.tile, pos + self._corners[self.tile], quat)
        # The processes looked the ground up at these very points.
        scan = observations.scan(self.get("heights"), pos)
        return TensorDict(
            {
                "proprio": frame,
                "scan": scan,
                "velocity": rotate_inverse(quat, self.get("base_lin_vel_w")),
                "privileged": self._privileged(),
                "history": self._history.flatten(1),
                "begins": begins[:, None],
            },
            batch_size=[self._count],
        )

    def look(self) -> TensorDict:
        """As `observe`, with what the cameras saw where there are any."""
        obs = self.observe()
        return obs if self.cameras is None else seen(obs, self.cameras, obs["begins"][:, 0])

    def step(self, action: Tensor) -> Ended:
        """Carry out actions (N, 18); whose episode ended with that."""
        self._action = action
        self._act(action)
        self.age += 1
        waypoints = self._waypoints[self.tile]
        pos = self.get("base_pos_w")
        self.progress.update(pos[:, :2], waypoints, self._spawns[self.tile], CONTROL_S)
        completed = (self.progress.index >= waypoints.shape[1]).numpy()
        reasons = self._why_fallen()
        terminated = reasons.any(axis=0) & ~completed
        return Ended(
            terminated=terminated,
            timed_out=(self.age >= self.episode_steps) & ~terminated & ~completed,
            completed=completed,
            reasons=reasons,
        )

    def restart(
        self, chosen: NDArray[np.bool_], elsewhere: Mapping[int, RobotSpec] | None = None
    ) -> None:
        """Begin new episodes of the robots in `chosen` (N,).

        Those in `elsewhere` get other bodies there; set their `tile` before.
        """
        self._pool.reset(chosen, elsewhere)
        self._start(chosen)

    def repeat(
        self,
        actions: Tensor,
        steps: NDArray[np.int64],
        episodes: NDArray[np.int64],
        *,
        drawn: NDArray[np.int64],
    ) -> None:
        """Put the physics of every robot where it was after its last actions.

        Args:
            actions: Of the episodes that robots are in, (T, N, 18), each from its beginning.
            steps: How many each robot has taken, (N,).
            episodes: Which episode of each robot that is, (N,).
            drawn: Which one each robot is in now, (N,): commanded speeds are drawn on from there.
        """
        for robot in range(self._count):
            for _ in range(int(episodes[robot] - drawn[robot])):
                command = self._cfg.command
                self._speed_rngs[robot].uniform(command.speed_low, command.speed_high)
        for left in range(int(steps.max(initial=0)), -1, -1):
            begin = steps == left
            if begin.any():
                specs = {
                    robot: self.spec(robot, int(self.tile[robot]), *_draw(int(episodes[robot])))
                    for robot in np.flatnonzero(begin).tolist()
                }
                self._pool.reset(begin, specs)
            if left:
                taken = torch.from_numpy((steps - left).clip(min=0))
                self._act(actions[taken, torch.arange(self._count)])

    def _act(self, action: Tensor) -> None:
        limit = observations.ACTION_CLIP
        wanted = self._default + observations.ACTION_SCALE * action.clamp(-limit, limit)
        self._pool.step(wanted.double().numpy())

    def _start(self, chosen: NDArray[np.bool_]) -> None:
        command = self._cfg.command
        which = torch.from_numpy(chosen)
        self.progress.reset(which)
        for robot in np.flatnonzero(chosen):
            self._speed[robot] = self._speed_rngs[robot].uniform(
                command.speed_low, command.speed_high
            )
        self._action = torch.where(which[:, None], 0.0, self._action)
        self._fresh |= which
        if self.cameras is not None:
            self.cameras.reset(which)
        self.age[chosen] = 0

    def _privileged(self) -> Tensor:
        count = self._count
        return observations.privileged(
            friction=self.get("friction"),
            added_mass_kg=self.get("added_mass_kg"),
            com_offset_m=torch.zeros(count, 3),
            kp_factor=torch.ones(count, NUM_JOINTS),
            kd_factor=torch.ones(count, NUM_JOINTS),
            command_delay=torch.full((count, 1), NOMINAL_DELAY),
        )

    def _why_fallen(self) -> NDArray[np.bool_]:
        """Which robots fell for which of `REASONS`, (5, N)."""
        gravity = observations.projected_gravity(self.get("base_quat_w"))
        faults = self.get("faults").numpy()[:, 0].astype(np.int64)
        tilted = terminations.fallen(gravity, self._tilt_limit_rad).numpy() | (
            faults & Fault.TILT > 0
        )
        away = terminations.left_lane(
            self.get("base_pos_w"), torch.zeros(self._count), self._half_widths[self.tile]
        )
        return np.stack(
            [
                tilted,
                self.get("in_pit").numpy()[:, 0] > 0.5,
                away.numpy(),
                faults > 0,
                self.get("diverged").numpy()[:, 0] > 0.5,
            ]
        )


def _draw(episode: int) -> tuple[int, ...]:
    """What makes a robot of its episode another one than the first."""
    return (episode,) if episode else ()


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
        mass_factor=_pair(r.mass_factor),
    )


def _pair(bounds: list[float]) -> tuple[float, float]:
    low, high = bounds
    return low, high


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)
