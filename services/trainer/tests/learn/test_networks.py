"""Teacher networks: shapes, who reads what, where gradients go, and back from a checkpoint."""

import pytest
import torch
from krabby_trainer.errors import CheckpointDamaged, CheckpointError, ConfigError
from krabby_trainer.learn.networks import (
    ACTOR_GROUPS,
    GROUP_SIZES,
    OBS_GROUPS,
    HistoryEncoder,
    TeacherActor,
    TeacherCritic,
    example_observations,
)
from krabby_trainer.run import checkpoints
from krabby_trainer.run.policies import load_policy
from tensordict import TensorDict


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_groups(count=4):
    return TensorDict(
        {name: torch.randn(count, size) for name, size in GROUP_SIZES.items()}, batch_size=[count]
    )


def make_actor(**changes):
    return TeacherActor(example_observations(), OBS_GROUPS, "actor", 18, **changes)


def make_critic(**changes):
    return TeacherCritic(example_observations(), OBS_GROUPS, "critic", 1, **changes)


def reads(model, obs):
    """Groups that the model's output depends on."""
    before = model(obs)
    found = set()
    for name in GROUP_SIZES:
        other = obs.clone()
        other[name] = other[name] + 1.0
        if not torch.equal(model(other), before):
            found.add(name)
    return found


def trained(model):
    """Names of the parts that got a gradient."""
    return {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0.0
    }


def test_actor_and_critic_give_actions_and_values():
    obs = random_groups(5)
    assert make_actor()(obs).shape == (5, 18)
    assert make_critic()(obs).shape == (5, 1)
    # 69 proprioception + 32 terrain + 3 velocity + 20 unsensed
    assert make_actor().get_latent(obs).shape == (5, 124)
    # 69 + 32 + 3 velocity + 42 privileged + 14 extra
    assert make_critic().get_latent(obs).shape == (5, 160)


def test_the_codes_are_bounded_like_their_activations():
    obs = random_groups(50)
    latent = make_actor().get_latent(obs)
    assert latent[:, 69:101].abs().max() < 1.0  # tanh
    assert latent[:, 104:].min() >= -1.0  # ELU


def test_an_untrained_robot_hardly_moves():
    assert make_actor()(random_groups(100)).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("privileged", {"proprio", "scan", "privileged", "history"}),
        ("history", {"proprio", "scan", "history"}),
    ],
)
def test_the_actor_never_reads_the_true_velocity_and_needs_no_privilege(source, expected):
    actor = make_actor()
    actor.latent_source = source
    assert reads(actor, random_groups()) == expected


def test_with_privilege_the_history_tells_the_actor_the_velocity_alone():
    actor, obs = make_actor(), random_groups()
    other = obs.clone()
    other["history"] = torch.randn_like(other["history"])
    before, after = actor.get_latent(obs), actor.get_latent(other)
    changed = (before != after).any(dim=0).nonzero().flatten().tolist()
    assert changed == [101, 102, 103]


def test_the_critic_reads_all_that_is_true_and_no_history():
    assert reads(make_critic(), random_groups()) == set(GROUP_SIZES) - {"history"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("privileged", {"mlp", "scan_encoder", "privileged_encoder"}),
        ("history", {"mlp", "scan_encoder"}),
    ],
)
def test_the_policy_loss_trains_neither_estimator_nor_history_encoder(source, expected):
    actor = make_actor()
    actor.latent_source = source
    actor(random_groups()).square().sum().backward()
    assert trained(actor) == expected


def test_the_estimator_is_trained_by_its_own_target_alone():
    actor, obs = make_actor(), random_groups()
    actor.velocity(actor.frames(obs)).sub(obs["velocity"]).square().mean().backward()
    assert trained(actor) == {"estimator"}


def test_frames_are_history_oldest_first_in_the_statistics_of_proprioception():
    actor, obs = make_actor().train(), random_groups(2)
    obs["proprio"] = torch.stack((torch.zeros(69), torch.full((69,), 2.0)))
    actor.update_normalization(obs)
    # mean 1, deviation 1, and 0.1 is added to it: 3 becomes (3 - 1) / 1.1
    obs["history"] = torch.full((2, 690), 1.0)
    obs["history"][:, -69:] = 3.0
    frames = actor.frames(obs)
    assert frames.shape == (2, 10, 69)
    torch.testing.assert_close(frames[:, -1], torch.full((2, 69), 2.0 / 1.1))
    torch.testing.assert_close(frames[:, 0], torch.zeros(2, 69))


def test_statistics_are_frozen_outside_training_and_saved():
    actor, obs = make_actor().eval(), random_groups()
    before = {key: value.clone() for key, value in actor.state_dict().items()}
    actor.update_normalization(obs)
    assert all(torch.equal(value, before[key]) for key, value in actor.state_dict().items())
    actor.train().update_normalization(obs)
    for group in ("proprio", "scan", "privileged"):
        assert actor.state_dict()[f"{group}_normalizer.count"] == 4


def test_normalisation_can_be_left_out():
    actor, obs = make_actor(obs_normalization=False), random_groups()
    actor.update_normalization(obs)
    torch.testing.assert_close(actor.get_latent(obs)[:, :69], obs["proprio"])


def test_the_history_encoder_is_a_convolution_over_time():
    encoder, frames = HistoryEncoder(), torch.randn(3, 10, 69)
    plain = torch.nn.Sequential(encoder.over_time, torch.nn.Flatten(), encoder.head)
    expected = plain(encoder.per_frame(frames).transpose(1, 2))
    torch.testing.assert_close(encoder(frames), expected)


def test_the_history_encoder_knows_the_order_of_frames():
    encoder, frames = HistoryEncoder(), torch.randn(3, 10, 69)
    assert encoder(frames).shape == (3, 20)
    assert not torch.allclose(encoder(frames), encoder(frames.flip(1)))


@pytest.mark.parametrize("std_type", ["log", "scalar"])
def test_the_deviation_comes_back_into_its_range(std_type):
    noise = {
        "class_name": "GaussianDistribution",
        "init_std": 0.8,
        "std_range": (0.2, 1.0),
        "std_type": std_type,
    }
    actor = make_actor(distribution_cfg=noise)
    parameter = getattr(actor.distribution, "log_std_param" if std_type == "log" else "std_param")
    for beyond, bound in ((-9.0, 0.2), (9.0, 1.0)):
        parameter.data.fill_(beyond)
        actor.clamp_std()
        actor(random_groups(), stochastic_output=True)
        torch.testing.assert_close(actor.output_std, torch.full((4, 18), bound))
        # and from the bound it can move again
        parameter.grad = None
        actor.output_entropy.sum().backward()
        assert (parameter.grad > 0.0).all()


def test_observations_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"obs_groups.actor is \['proprio'\]"):
        TeacherActor(example_observations(), {"actor": ["proprio"]}, "actor", 18)
    obs = example_observations()
    obs["scan"] = torch.zeros(1, 132)
    with pytest.raises(ConfigError, match=r"'scan' has shape \(1, 132\).*\(N, 325\)"):
        TeacherActor(obs, OBS_GROUPS, "actor", 18)
    with pytest.raises(ConfigError, match="no observation group 'velocity'"):
        TeacherActor(example_observations().exclude("velocity"), OBS_GROUPS, "actor", 18)
    with pytest.raises(ConfigError, match="critic has no distribution"):
        make_critic(distribution_cfg={})


def write_checkpoint(path, algorithm):
    payload = dict.fromkeys(checkpoints.KEYS, None) | {"format": 1, "algorithm": algorithm}
    checkpoints.save(path, payload)
    return path


@pytest.fixture
def actor_file(tmp_path):
    actor = make_actor(hidden_dims=(32, 16))
    actor.train().update_normalization(random_groups(50))
    state = {"actor_architecture": actor.architecture, "actor_state_dict": actor.state_dict()}
    return actor, write_checkpoint(tmp_path / "iteration_000001.pt", state)


def test_a_policy_comes_back_from_its_checkpoint_and_acts_on_the_history(actor_file):
    actor, path = actor_file
    policy = load_policy(path)
    actor.latent_source = "history"
    obs = random_groups()
    torch.testing.assert_close(
        policy(obs.select("proprio", "scan", "history")), actor(obs), rtol=0.0, atol=0.0
    )


def test_a_damaged_checkpoint_is_refused_as_such(actor_file):
    _, path = actor_file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointDamaged, match=path.name):
        load_policy(path)


@pytest.mark.parametrize(
    "algorithm",
    [
        None,
        {},
        {"actor_architecture": {"output_dim": 18, "hidden_dims": [8]}, "actor_state_dict": {}},
        {"actor_architecture": {"layers": 3}, "actor_state_dict": {}},
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, algorithm):
    path = write_checkpoint(tmp_path / "other.pt", algorithm)
    with pytest.raises(CheckpointError, match=r"other.pt holds no teacher.*trainer train"):
        load_policy(path)


def test_groups_and_sizes_are_those_of_the_environment():
    assert {name: GROUP_SIZES[name] for name in ACTOR_GROUPS} == {
        "proprio": 69,
        "scan": 325,
        "velocity": 3,
        "privileged": 42,
        "history": 690,
    }
    assert GROUP_SIZES["critic"] == 14
