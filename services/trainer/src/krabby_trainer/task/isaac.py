"""The environment in Isaac Lab: its registration, managers and interface.

The terms of the managers name what is computed; all of it is computed together in `Parkour`, which
`ParkourEnv.step` calls in place of the managers.
"""

from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING, Any

import gymnasium
import torch
from krabby.isaac import scene as shared
from krabby.isaac.environment import require_isaaclab
from krabby.robot.description import RobotDescription

from krabby_trainer import snapshot
from krabby_trainer.errors import MissingDependency
from krabby_trainer.task.config import EnvCfg, play_env, student_env, teacher_env
from krabby_trainer.task.judge import StepFacts
from krabby_trainer.task.levels import taken_over
from krabby_trainer.task.observations import GROUP_SIZES, NUM_JOINTS
from krabby_trainer.task.parkour import PUSH_EVERY, START_HEIGHT_M, Parkour
from krabby_trainer.task.randomisation import Bodies
from krabby_trainer.task.state import CONTROL_STEP_S
from krabby_trainer.task.terminations import TERMINATIONS
from krabby_trainer.task.terrain import Terrain, column_types
from krabby_trainer.vision.cameras import Cameras

require_isaaclab("training", MissingDependency)

from isaaclab.envs import ManagerBasedRLEnv, ManagerBasedRLEnvCfg  # noqa: E402
from isaaclab.managers import (  # noqa: E402
    ActionTerm,
    ActionTermCfg,
    ObservationGroupCfg,
    ObservationTermCfg,
    RewardTermCfg,
    TerminationTermCfg,
)
from isaaclab.utils import configclass  # noqa: E402

if TYPE_CHECKING:
    from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper

__all__ = ["CONTROL_STEP_S", "ENV_IDS", "ParkourEnv", "make_env"]

Tensor = torch.Tensor

ENV_IDS = {
    "teacher": "Krabby-Parkour-Teacher-v0",
    "student": "Krabby-Parkour-Student-v0",
    "play": "Krabby-Parkour-Play-v0",
}

_LOG_EVERY = 24
_NO_STATE = (
    *("env", "cfg", "_cfg", "desc", "gate", "terrain", "ground", "_ground", "camera"),
    *("robots", "broken", "facts", "groups", "history", "_log_values"),
)
"""Attributes of `Parkour` and its parts that do not change, or that `rollout_state` has already."""


class ParkourEnv(ManagerBasedRLEnv):
    """Isaac Lab's environment, whose step is `Parkour`'s."""

    parkour: Parkour

    def load_managers(self) -> None:
        if not self.cfg.parkour.physics.warn:
            shared.silence_solver()
        shared.spread_terrain_queries()
        self.parkour = Parkour(self)
        super().load_managers()
        self.parkour.robots.write_bodies()

    @property
    def episode_length_buf(self) -> Tensor:
        """Control steps since each episode began, (N,), always in the same memory."""
        return self._episode_length

    @episode_length_buf.setter
    def episode_length_buf(self, steps: Tensor) -> None:
        if hasattr(self, "_episode_length"):
            self._episode_length.copy_(steps)
        else:
            self._episode_length = steps

    def step(self, action: Tensor) -> Any:
        """A control step, without waiting for the device; the log every `_LOG_EVERY` steps.

        Returns:
            Observations, rewards, who failed, whose time was up, and extras, as Isaac Lab does.
        """
        parkour, judge = self.parkour, self.parkour.judge
        parkour.asked.copy_(action)
        if self.common_step_counter % PUSH_EVERY == 0:
            parkour.push()
        parkour.act()
        self.sim.step(render=False)
        if self.sim.is_rendering:
            self.sim.render()
        self.scene.update(dt=self.step_dt)
        self._sim_step_counter += self.cfg.decimation
        self.common_step_counter += 1
        parkour.after_physics()
        self.reset_terminated, self.reset_time_outs = (
            judge.terminated.clone(),
            judge.truncated.clone(),
        )
        self.reset_buf, self.reward_buf = judge.ended.clone(), judge.reward.clone()
        self.obs_buf = parkour.observer.copy()
        due = self.common_step_counter % _LOG_EVERY == 0
        self.extras["log"] = parkour.log() if due else {}
        return (
            self.obs_buf,
            self.reward_buf,
            self.reset_terminated,
            self.reset_time_outs,
            self.extras,
        )

    def _reset_idx(self, env_ids: Tensor | slice) -> None:
        """What Isaac Lab's `reset` calls."""
        which = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        which[env_ids] = True
        if self.common_step_counter > 0:
            self.parkour.advance_curriculum(which)
        self.parkour.reset(which)
        self.extras["log"] = {}

    @property
    def facts(self) -> StepFacts:
        """What happened in the last step; set `parkour.collect_facts` first."""
        assert self.parkour.facts is not None
        return self.parkour.facts

    @property
    def vision(self) -> Cameras | None:
        return self.parkour.observer.vision

    def take_broken(self) -> dict[str, Tensor] | None:
        """Robots whose state was not finite since the last call, see `BrokenRobots.take`."""
        return self.parkour.broken.take()

    def checkpoint_state(self) -> dict[str, Any]:
        """What a resumed run needs of the environment: the curriculum and every robot's body."""
        state: dict[str, Any] = {
            "level": self.parkour.level.cpu(),
            "types": column_types(self.cfg.parkour.terrain),
            "steps": torch.tensor(self.common_step_counter),
        }
        state |= {f"body.{key}": value.cpu() for key, value in vars(self.parkour.bodies).items()}
        return state

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Takes the levels over, those of each obstacle type for themselves."""
        parkour = self.parkour
        level = state["level"].to(self.device)
        ours = column_types(self.cfg.parkour.terrain)
        taken = taken_over(level, state["types"], parkour.level, ours, parkour.terrain.levels)
        parkour.level.copy_(taken)
        parkour.tile_level.copy_(parkour.level)
        self.common_step_counter = int(state["steps"])
        if len(level) == self.num_envs:
            # An older checkpoint may lack what has been added since.
            bodies = vars(parkour.bodies) | {
                key.removeprefix("body."): value.to(self.device)
                for key, value in state.items()
                if key.startswith("body.")
            }
            parkour.bodies.copy_(Bodies(**bodies))
            parkour.observer.privileged.copy_(parkour.bodies.privileged(parkour.desc.masses.total))
            parkour.robots.write_bodies()
        # New episodes: what robots did before says nothing about the levels taken over.
        self.episode_length_buf.zero_()
        self.reset()

    def rollout_state(self) -> dict[str, Tensor]:
        """The episodes that robots are in, in the memory that they live in.

        With `checkpoint_state` and the random generators that is all that the next step depends on.
        """
        state = snapshot.tensors(self.parkour, without=_NO_STATE)
        return state | {
            f"simulation.{name}": value
            for name, value in self.parkour.robots.simulation_state().items()
        }

    def load_rollout_state(self, state: dict[str, Tensor]) -> bool:
        """Take over what `rollout_state` gave; whether it fits, else new episodes continue."""
        if not snapshot.restore(self.rollout_state(), state):
            return False
        observer = self.parkour.observer
        observer.history.copy_(observer.groups["history"].view_as(observer.history))
        self.obs_buf = observer.copy()
        return True


# The terms of the managers: what was computed last.


def _termination(env: ParkourEnv, name: str) -> Tensor:
    return getattr(env.parkour.judge, TERMINATIONS[name][0])


def _reward(env: ParkourEnv, name: str) -> Tensor:
    return env.parkour.judge.reward_terms[name]


def _observation(env: ParkourEnv, group: str) -> Tensor:
    """The first group observes for all of them; called by Isaac Lab's `reset`."""
    if group == next(iter(GROUP_SIZES)):
        env.parkour.observe()
    return env.parkour.observer.groups[group]


class _GateAction(ActionTerm):
    """Joint targets as the safety gate lets them through."""

    @property
    def action_dim(self) -> int:
        return NUM_JOINTS

    @property
    def raw_actions(self) -> Tensor:
        return self._env.parkour.action

    @property
    def processed_actions(self) -> Tensor:
        return self._env.parkour.applied_target

    def process_actions(self, actions: Tensor) -> None:
        self._env.parkour.asked.copy_(actions)
        self._env.parkour.act()

    def apply_actions(self) -> None:
        """`process_actions` has done it."""


@configclass
class _GateActionCfg(ActionTermCfg):
    class_type: type = _GateAction
    asset_name: str = "robot"


@configclass
class _ActionsCfg:
    joint_pos: Any = _GateActionCfg()


@configclass
class _IsaacEnvCfg(ManagerBasedRLEnvCfg):
    parkour: Any = None
    terrain: Any = None
    scene: Any = None
    observations: Any = None
    actions: Any = None
    rewards: Any = None
    terminations: Any = None
    events: Any = None


def isaac_cfg(cfg: EnvCfg, *, device: str, seed: int) -> _IsaacEnvCfg:
    desc = RobotDescription.load()
    terrain = Terrain(cfg.terrain)
    scene = shared.scene_cfg(
        desc,
        lambda: (terrain.mesh, terrain.origins),
        robots=cfg.num_envs,
        base_height_m=START_HEIGHT_M,
    )
    groups = {}
    for name in GROUP_SIZES:
        group = ObservationGroupCfg(concatenate_terms=True, enable_corruption=False)
        group.term = ObservationTermCfg(func=_observation, params={"group": name})
        groups[name] = group
    env = _IsaacEnvCfg()
    env.parkour, env.terrain, env.scene, env.observations = cfg, terrain, scene, groups
    env.actions = _ActionsCfg()
    env.rewards = {
        name: RewardTermCfg(func=_reward, weight=float(weight), params={"name": name})
        for name, weight in vars(cfg.reward).items()
        if weight != 0.0
    }
    env.terminations = {
        name: TerminationTermCfg(func=_termination, params={"name": name}, time_out=time_out)
        for name, (_, time_out) in TERMINATIONS.items()
    }
    env.events = {}  # Isaac Lab's default resets the scene
    env.sim.device = device
    env.sim.dt = cfg.physics.step_s
    env.sim.physics = shared.physics_cfg(cfg.physics)
    env.decimation = cfg.physics.decimation
    env.sim.render_interval = env.decimation
    env.episode_length_s = cfg.episode_s
    env.seed = seed
    return env


def make_env(cfg: EnvCfg, *, device: str, seed: int) -> RslRlVecEnvWrapper:
    """The environment as rsl-rl wants it."""
    from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper

    with _quiet():
        env = ParkourEnv(cfg=isaac_cfg(cfg, device=device, seed=seed))
        return RslRlVecEnvWrapper(env)


@contextlib.contextmanager
def _quiet():  # noqa: ANN202
    """Isaac Lab prints a table of every manager; the resolved config says it all."""
    logging.getLogger("isaaclab").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _register() -> None:
    for name, make_cfg in (("teacher", teacher_env), ("student", student_env), ("play", play_env)):
        if ENV_IDS[name] not in gymnasium.registry:
            gymnasium.register(
                id=ENV_IDS[name],
                entry_point=f"{__name__}:_make_registered",
                disable_env_checker=True,
                kwargs={"make_cfg": make_cfg},
            )


def _make_registered(make_cfg: Any, env_cfg: EnvCfg | None = None, **options: Any) -> ParkourEnv:
    """Behind `gymnasium.make`: `env_cfg`, `device` and `seed` may be given."""
    cfg = env_cfg or make_cfg()
    device = options.get("device", "cuda:0" if torch.cuda.is_available() else "cpu")
    with _quiet():
        return ParkourEnv(cfg=isaac_cfg(cfg, device=device, seed=int(options.get("seed", 0))))


_register()
