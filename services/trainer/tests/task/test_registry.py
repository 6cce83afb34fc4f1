"""Isaac Lab's own loading of the registered task, and one step of training by three libraries."""

from __future__ import annotations

import importlib.metadata

import gymnasium
import pytest
import torch
from krabby_trainer.task.observations import GROUP_SIZES

pytestmark = pytest.mark.isaac


@pytest.fixture(scope="module")
def env():
    from isaaclab_tasks.utils.parse_cfg import parse_env_cfg
    from krabby_trainer.task.registry import TASK_ID

    cfg = parse_env_cfg(TASK_ID, device="cpu", num_envs=4)
    cfg.courses, cfg.levels, cfg.columns = ["flat"], 1, 1
    env = gymnasium.make(TASK_ID, cfg=cfg)
    yield env
    env.close()


def assert_learned(before, parameters):
    after = [each.detach() for each in parameters]
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(each.isfinite().all() for each in after)


def test_agents_of_three_libraries_are_found_by_isaac_lab():
    from isaaclab_rl.rsl_rl import RslRlOnPolicyRunnerCfg
    from isaaclab_tasks.utils.parse_cfg import load_cfg_from_registry
    from krabby_trainer.task.registry import TASK_ID

    agent = load_cfg_from_registry(TASK_ID, "rsl_rl_cfg_entry_point")
    assert isinstance(agent, RslRlOnPolicyRunnerCfg)
    assert load_cfg_from_registry(TASK_ID, "skrl_cfg_entry_point")["agent"]["class"] == "PPO"
    assert load_cfg_from_registry(TASK_ID, "sb3_cfg_entry_point")["policy"] == "MlpPolicy"


def test_the_policy_observes_proprioception_and_scan(env):
    observed, _ = env.reset()
    size = GROUP_SIZES["proprio"] + GROUP_SIZES["scan"]
    assert observed["policy"].shape == (4, size)
    assert env.unwrapped.single_observation_space["policy"].shape == (size,)
    parts = torch.cat([observed["proprio"], observed["scan"]], dim=-1)
    assert torch.equal(observed["policy"], parts)
    observed, reward, *_ = env.step(torch.zeros(4, 18))
    assert observed["policy"].shape == (4, size)
    assert torch.isfinite(reward).all()


def test_rsl_rl_s_runner_learns_from_it(env):
    from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper, handle_deprecated_rsl_rl_cfg
    from krabby_trainer.task.registry import PpoRunnerCfg
    from rsl_rl.runners import OnPolicyRunner

    agent = PpoRunnerCfg(num_steps_per_env=4, max_iterations=1, device="cpu")
    agent = handle_deprecated_rsl_rl_cfg(agent, importlib.metadata.version("rsl-rl-lib"))
    runner = OnPolicyRunner(RslRlVecEnvWrapper(env), agent.to_dict(), log_dir=None, device="cpu")
    before = [each.detach().clone() for each in runner.alg.actor.parameters()]
    runner.learn(1)
    assert_learned(before, runner.alg.actor.parameters())


def test_stable_baselines3_learns_from_it(env):
    from isaaclab_rl.sb3 import Sb3VecEnvWrapper, process_sb3_cfg
    from isaaclab_tasks.utils.parse_cfg import load_cfg_from_registry
    from krabby_trainer.task.registry import TASK_ID
    from stable_baselines3 import PPO

    cfg = load_cfg_from_registry(TASK_ID, "sb3_cfg_entry_point")
    cfg |= {"n_steps": 4, "n_epochs": 1}
    cfg = process_sb3_cfg(cfg, env.unwrapped.num_envs)
    # What Isaac Lab's script takes out before it builds the agent.
    for key in ("n_timesteps", "normalize_input", "normalize_value", "clip_obs"):
        cfg.pop(key)
    agent = PPO(cfg.pop("policy"), Sb3VecEnvWrapper(env), device="cpu", **cfg)
    before = [each.detach().clone() for each in agent.policy.parameters()]
    agent.learn(16)
    assert agent.num_timesteps == 16
    assert_learned(before, agent.policy.parameters())


def test_skrl_learns_from_it(env, tmp_path):
    from isaaclab_rl.skrl import SkrlVecEnvWrapper, import_skrl_runner
    from isaaclab_tasks.utils.parse_cfg import load_cfg_from_registry
    from krabby_trainer.task.registry import TASK_ID

    cfg = load_cfg_from_registry(TASK_ID, "skrl_cfg_entry_point")
    cfg["agent"] |= {"rollouts": 4, "learning_epochs": 1}
    cfg["agent"]["experiment"]["directory"] = str(tmp_path)
    cfg["trainer"] |= {"timesteps": 4, "close_environment_at_exit": False}
    runner = import_skrl_runner("torch")(SkrlVecEnvWrapper(env, ml_framework="torch"), cfg)
    policy = runner.agent.policy
    before = [each.detach().clone() for each in policy.parameters()]
    runner.run("train")
    assert_learned(before, policy.parameters())
