"""The environment for Isaac Lab's own scripts: `Isaac-Parkour-Krabby-v0`.

Importing this module registers the id as Isaac Lab's tasks are: `env_cfg_entry_point` and agents
for rsl-rl, skrl and Stable-Baselines3. Those know one observation, `policy`; here it is
proprioception and the scan of the ground. Our own trainer makes it another way (`make_env`).

    import krabby_trainer.task.registry
    env_cfg = parse_env_cfg("Isaac-Parkour-Krabby-v0", device="cuda:0", num_envs=4096)
    env = gymnasium.make("Isaac-Parkour-Krabby-v0", cfg=env_cfg)
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import gymnasium
import torch

from krabby_trainer.task.config import EnvCfg, TerrainCfg, teacher_env
from krabby_trainer.task.isaac import ParkourEnv, _quiet, isaac_cfg
from krabby_trainer.task.observations import GROUP_SIZES

from isaaclab.envs import ManagerBasedRLEnvCfg  # isort: skip
from isaaclab.scene import InteractiveSceneCfg  # isort: skip
from isaaclab.utils import configclass  # isort: skip
from isaaclab_rl.rsl_rl import (  # isort: skip
    RslRlMLPModelCfg,
    RslRlOnPolicyRunnerCfg,
    RslRlPpoAlgorithmCfg,
)

__all__ = ["POLICY_GROUPS", "TASK_ID", "IsaacParkourCfg", "IsaacParkourEnv", "PpoRunnerCfg"]

TASK_ID: Final = "Isaac-Parkour-Krabby-v0"
POLICY_GROUPS: Final = ("proprio", "scan")
"""What the observation `policy` consists of, in order."""
_POLICY_SIZE: Final = sum(GROUP_SIZES[name] for name in POLICY_GROUPS)


@configclass
class IsaacParkourCfg(ManagerBasedRLEnvCfg):
    """What Isaac Lab's scripts may set; terrain, robot and managers follow when it is made."""

    scene: Any = InteractiveSceneCfg(num_envs=1024, env_spacing=2.5)
    observations: Any = None
    actions: Any = None
    rewards: Any = None
    terminations: Any = None
    courses: list = ["flat", "steps", "gap", "hurdle", "ramps"]  # noqa: RUF012 - a configclass copies it
    """Courses of the terrain, in equal shares."""
    levels: int = 10
    """Difficulties of each, from easy to hard."""
    columns: int = 20
    """Courses side by side."""

    def __post_init__(self) -> None:
        """Take the time step of the trainer."""
        cfg = EnvCfg()
        self.sim.dt, self.decimation = cfg.physics.step_s, cfg.physics.decimation
        self.episode_length_s = cfg.episode_s


class IsaacParkourEnv(ParkourEnv):
    """`ParkourEnv` made of an `IsaacParkourCfg`, with the observation `policy`."""

    def __init__(self, cfg: IsaacParkourCfg, render_mode: str | None = None, **kwargs: Any) -> None:
        with _quiet():
            super().__init__(cfg=_complete(cfg), render_mode=render_mode)

    def _configure_gym_env_spaces(self) -> None:
        """Add the observation's space."""
        super()._configure_gym_env_spaces()
        assert self.single_observation_space is not None, "just made"
        box = gymnasium.spaces.Box(-torch.inf, torch.inf, (_POLICY_SIZE,))
        self.single_observation_space["policy"] = box
        self.observation_space = gymnasium.vector.utils.batch_space(
            self.single_observation_space, self.num_envs
        )

    @property
    def obs_buf(self) -> dict[str, torch.Tensor]:
        """Observations of all robots by group, `policy` among them."""
        return self._observed

    @obs_buf.setter
    def obs_buf(self, observed: dict[str, torch.Tensor]) -> None:
        self._observed = dict(observed)
        if observed:
            parts = [observed[name] for name in POLICY_GROUPS]
            self._observed["policy"] = torch.cat(parts, dim=-1)


@configclass
class PpoRunnerCfg(RslRlOnPolicyRunnerCfg):
    """For Isaac Lab's script of rsl-rl: plain PPO. Our own trainer does more."""

    num_steps_per_env = 24
    max_iterations = 1500
    save_interval = 50
    experiment_name = "krabby_parkour"
    obs_groups = {"actor": ["policy"], "critic": ["policy"]}  # noqa: RUF012
    actor = RslRlMLPModelCfg(
        hidden_dims=[512, 256, 128],
        activation="elu",
        obs_normalization=True,
        distribution_cfg=RslRlMLPModelCfg.GaussianDistributionCfg(init_std=1.0),
    )
    critic = RslRlMLPModelCfg(hidden_dims=[512, 256, 128], activation="elu", obs_normalization=True)
    algorithm = RslRlPpoAlgorithmCfg(
        value_loss_coef=1.0,
        use_clipped_value_loss=True,
        clip_param=0.2,
        entropy_coef=0.005,
        num_learning_epochs=5,
        num_mini_batches=4,
        learning_rate=1.0e-3,
        schedule="adaptive",
        gamma=0.99,
        lam=0.95,
        desired_kl=0.01,
        max_grad_norm=1.0,
    )


def _complete(cfg: IsaacParkourCfg) -> Any:
    terrain = TerrainCfg(
        types=list(cfg.courses),
        shares=[1.0] * len(cfg.courses),
        levels=cfg.levels,
        columns=cfg.columns,
    )
    own = dataclasses.replace(teacher_env(), num_envs=cfg.scene.num_envs, terrain=terrain)
    return isaac_cfg(own, device=cfg.sim.device, seed=0 if cfg.seed is None else cfg.seed)


if TASK_ID not in gymnasium.registry:
    gymnasium.register(
        id=TASK_ID,
        entry_point=f"{__name__}:IsaacParkourEnv",
        disable_env_checker=True,
        kwargs={
            "env_cfg_entry_point": f"{__name__}:IsaacParkourCfg",
            "default_agent": "rsl_rl",
            "rsl_rl_cfg_entry_point": f"{__name__}:PpoRunnerCfg",
            "skrl_cfg_entry_point": "krabby_trainer.task.agents:skrl_ppo.yaml",
            "sb3_cfg_entry_point": "krabby_trainer.task.agents:sb3_ppo.yaml",
        },
    )
