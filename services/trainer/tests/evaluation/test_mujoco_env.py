"""The environment to imitate in without a GPU."""

import numpy as np
import pytest
import torch
from krabby_trainer.errors import ConfigError
from krabby_trainer.evaluation.mujoco_env import MujocoEnv
from krabby_trainer.run import checkpoints
from krabby_trainer.run.config import compose
from krabby_trainer.task.observations import GROUP_SIZES

pytestmark = pytest.mark.slow


def small(*overrides):
    return compose(
        [
            "task=distill",
            "env.physics={backend: mujoco, processes: 2}",
            "env.num_envs=4",
            "env.terrain.types=[steps,gap]",
            "env.terrain.shares=[0.5,0.5]",
            "env.terrain.levels=2",
            "env.terrain.columns=4",
            "env.episode_s=0.3",
            *overrides,
        ]
    ).env


@pytest.fixture
def env():
    env = MujocoEnv(small(), seed=1)
    yield env
    env.close()


def stand(env, steps):
    """Observations, whose episode ended, and what was logged, step by step."""
    for _ in range(steps):
        obs, rewards, dones, extras = env.step(torch.zeros(4, 18))
        assert not rewards.any()
        yield obs, dones, extras


def test_it_gives_what_imitation_reads(env):
    first = env.get_observations()
    assert env.get_observations() is first
    for name, size in GROUP_SIZES.items():
        if name != "critic":  # imitation has none
            assert first[name].shape == (4, size), name
    seen = torch.zeros(4, dtype=torch.bool)
    for _, _, _ in stand(env, 25):
        seen |= env.vision.arrived
        assert env.vision.image.shape == (4, 58, 87)
    assert seen.all()  # 10 Hz and 120 ms late at the worst


def test_every_episode_is_another_robot_on_another_tile(env):
    assert env.max_episode_length == 30
    before = env._walkers.tile.clone()
    friction = env.get_observations()["privileged"][:, 0].clone()
    ended = [dones.clone() for _, dones, _ in stand(env, 30)]
    assert not torch.stack(ended[:-1]).any()
    assert ended[-1].all()
    assert not torch.equal(env._walkers.tile, before)
    obs = env.get_observations()
    assert not torch.isclose(obs["privileged"][:, 0], friction).any()
    assert env.episode_length_buf.tolist() == [0, 0, 0, 0]
    # The history begins anew, and so does the camera.
    frames = obs["history"].view(4, 10, 69)
    assert torch.equal(frames, frames[:, -1:].expand_as(frames))
    assert not env.vision.arrived.any()


def test_each_robot_stands_on_the_course_of_its_tile(env):
    """Where the scan and the camera look is where the physics is, after new tiles too."""
    env.episode_length_buf = torch.tensor([29, 0, 10, 20])
    for _ in stand(env, 35):
        pass
    walkers = env._walkers
    for robot, tile in enumerate(walkers.tile.tolist()):
        x, y, z = walkers.get("base_pos_w")[robot].tolist()
        assert z == pytest.approx(0.42, abs=0.06)
        course = walkers._courses[tile]
        assert abs(x - course.spawn[0]) < 0.4
        assert abs(y - course.spawn[1]) < 0.4
        heights = walkers.get("heights")[robot].numpy()
        assert np.isfinite(heights).all()


def test_it_says_now_and_then_how_robots_do(env):
    logs = [extras["log"] for _, _, extras in stand(env, 48)]
    told = [log for log in logs if log]
    assert [bool(log) for log in logs].index(True) == 23
    assert len(told) == 2
    assert 1.0 < told[0]["Torque/rms_nm"] < 60.0
    assert "Episode/mxd" not in told[0]  # no robot had finished yet
    assert told[1]["Episode/mxd"] == 0.0
    assert told[1]["Episode/fall_rate"] == 0.0


def test_the_same_seed_walks_the_same_way_with_any_number_of_processes():
    def final(processes):
        torch.manual_seed(3)
        env = MujocoEnv(small(f"env.physics.processes={processes}"), seed=5)
        try:
            for _, _, _ in stand(env, 40):
                pass
            return env.get_observations()["proprio"]
        finally:
            env.close()

    assert torch.equal(final(1), final(3))


def test_only_imitation_can_do_without_rewards():
    with pytest.raises(ConfigError, match="isaac for the task student, whose rewards"):
        compose(["task=student", "env.physics.backend=mujoco"])
    with pytest.raises(ConfigError, match="expected isaac, mujoco"):
        compose(["task=distill", "env.physics.backend=newton"])


def walk(env, steps):
    """Everything that a learner sees, and the random actions in between."""
    seen = []
    for _ in range(steps):
        obs, _, dones, _ = env.step(0.5 * torch.randn(4, 18))
        vision = (env.vision.image, env.vision.age, env.vision.arrived, env.vision.eye)
        seen += [value.clone() for value in (*obs.values(), dones, *vision)]
    return seen


def test_a_resumed_run_goes_on_bit_for_bit(env):
    torch.manual_seed(4)
    walk(env, 47)  # robots are in their second or third episode, at different ages
    state = {name: value.clone() for name, value in env.rollout_state().items()}
    random = checkpoints.random_state()
    expected = walk(env, 40)
    other = MujocoEnv(small(), seed=1)
    try:
        torch.manual_seed(5)
        walk(other, 12)
        assert other.load_rollout_state(state)
        checkpoints.restore_random_state(random)
        assert torch.equal(other.get_observations()["scan"], state["obs.scan"])
        found = walk(other, 40)
    finally:
        other.close()
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_episodes_of_another_seed_begin_anew(env):
    walk(env, 20)
    state = {name: value.clone() for name, value in env.rollout_state().items()}
    other = MujocoEnv(small(), seed=2)
    try:
        assert not other.load_rollout_state(state)
        assert (other.episode_length_buf == 0).all()
        walk(other, 3)
    finally:
        other.close()
