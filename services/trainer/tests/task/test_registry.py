"""Isaac Lab's own loading of the registered task, and one step of training by rsl-rl's runner."""

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
    after = runner.alg.actor.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
