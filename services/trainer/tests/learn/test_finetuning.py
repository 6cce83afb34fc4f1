"""Fine-tuning of the whole student: encoder, warm-up, imitation, in a tiny world."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from krabby_trainer.errors import CheckpointError, ConfigError
from krabby_trainer.learn.config import EncoderCfg, FinetuningCfg
from krabby_trainer.learn.networks import (
    CRITIC_GROUPS,
    OBS_GROUPS,
    TeacherActor,
    TeacherCritic,
    example_observations,
)
from krabby_trainer.learn.rollout import Footage
from krabby_trainer.learn.student import (
    STUDENT_GROUPS,
    DepthEncoder,
    Pictures,
    Sight,
    StudentActor,
    teach,
)
from krabby_trainer.run import checkpoints
from krabby_trainer.run.config import RunCfg, TrainCfg, compose, rsl_rl_config, to_dict
from krabby_trainer.run.runner import ParkourRunner, seed_everything
from krabby_trainer.run.training import resolve
from krabby_trainer.task.config import CameraCfg, EnvCfg
from tensordict import TensorDict

SMALL = EncoderCfg(channels=[2, 2, 2], picture=4, memory=5)
SIZE = {"hidden_dims": [16]}
STEPS = 12


@pytest.fixture(autouse=True)
def _seed():
    seed_everything(0)


def distilled(**parts):
    """What a distilled student's checkpoint holds, a random one."""
    teacher = TeacherActor(example_observations(), OBS_GROUPS, "actor", 18, **SIZE)
    critic = TeacherCritic(example_observations(), OBS_GROUPS, "critic", 1, **SIZE)
    groups = {"actor": list(STUDENT_GROUPS)}
    actor = StudentActor(example_observations(), groups, "actor", 18, **SIZE)
    encoder = DepthEncoder(SMALL)
    teach(encoder, actor, teacher)
    with torch.no_grad():  # codes matter to the actor
        actor.mlp[-1].weight *= 30.0
    algorithm = {
        "actor_state_dict": actor.state_dict(),
        "actor_architecture": actor.architecture,
        "encoder_state_dict": encoder.state_dict(),
        "encoder_architecture": dataclasses.asdict(SMALL),
        "teacher": {
            "actor_state_dict": teacher.state_dict(),
            "actor_architecture": teacher.architecture,
            "critic_state_dict": critic.state_dict(),
        },
    }
    return {"algorithm": algorithm | parts}


def config(*, steps=STEPS, rate=1e-3, **finetuning):
    cfg = TrainCfg(task="student", device="cpu", env=EnvCfg(camera=CameraCfg(enabled=True)))
    cfg.agent.num_steps_per_env = steps
    cfg.agent.actor.hidden_dims = cfg.agent.critic.hidden_dims = [16]
    cfg.agent.actor.init_std = cfg.agent.actor.max_std = 0.2
    cfg.agent.algorithm.num_learning_epochs = 2
    cfg.agent.algorithm.num_mini_batches = 2
    cfg.agent.algorithm.learning_rate = rate
    cfg.agent.encoder = SMALL
    cfg.agent.finetuning = FinetuningCfg(**finetuning)
    return cfg


def make_runner(env, folder=None, cfg=None, **finetuning):
    cfg = cfg or config(**finetuning)
    runner = ParkourRunner(
        env, rsl_rl_config(cfg), folder, "cpu", run=RunCfg(), config=to_dict(cfg)
    )
    runner.alg.begin_with(distilled(), "student.pt")
    return runner


def collect(runner):
    runner._collect(runner.env.get_observations())
    return runner.alg


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, module):
    return [name for name, value in module.state_dict().items() if (value != before[name]).any()]


# The encoder.


def test_the_encoder_learns_from_the_policys_loss_and_only_if_asked(fake_env):
    for learns in (True, False):
        alg = collect(make_runner(fake_env(5), learn_encoder=learns))
        before = weights(alg._encoder)
        losses = alg.update()
        found = set(changed(before, alg._encoder))
        assert all(value == value for value in losses.values())
        if learns:
            assert {"picture.0.weight", "memory.weight_hh", "head.0.weight"} <= found
        else:
            assert not found


def test_codes_that_are_learned_from_are_those_that_were_acted_on(fake_env):
    """Before the first step of an update the policy is the one that acted: no divergence."""
    runner = make_runner(fake_env(6), learn_encoder=True)
    for _ in range(2):  # the second rollout begins with memories and ends episodes
        alg = collect(runner)
        alg._footage.finish()
        order = alg._shuffled()
        assert sorted(order.tolist()) == list(range(6 * STEPS))
        for part in order.split(len(alg._index)):
            alg._index.copy_(part)
            again = alg._batch()["sight"]
            torch.testing.assert_close(again, alg._rows("sight"), atol=1e-5, rtol=0.0)
        alg.storage.clear()
        alg._footage.step = 0


def test_a_minibatch_holds_robots_with_all_their_steps(fake_env):
    alg = make_runner(fake_env(5), learn_encoder=True).alg
    parts = alg._shuffled().split(len(alg._index))
    assert [len(part) for part in parts] == [2 * STEPS, 2 * STEPS]
    for part in parts:  # row = step * 5 + robot
        step, robot = part // 5, part % 5
        assert step.tolist() == [i for i in range(STEPS) for _ in range(2)]
        assert robot.tolist() == robot[:2].tolist() * STEPS
    assert len({int(each) % 5 for part in parts for each in part}) == 4  # one waits its turn


def footage(window, steps=12):
    """Two robots: one sees in steps 0, 3, 6 and 9, the other in steps 4 and 11."""
    seed_everything(3)
    encoder = DepthEncoder(SMALL)
    kept, sight = Footage(steps, 2, 5, "cpu", window=window), Sight(encoder, 2, "cpu")
    sight.seen.fill_(True)
    sight.memory.normal_()
    kept.begin(sight)
    for step in range(steps):
        seeing = [r for r, when in enumerate(((0, 3, 6, 9), (4, 11))) if step in when]
        who = torch.tensor(seeing, dtype=torch.long)
        size = len(who)
        first = torch.zeros(size, dtype=torch.bool)
        kept.add_pictures(Pictures(who, torch.randn(size, 58, 87), torch.randn(size, 48), first))
        kept.add_sight(sight)
    kept.finish()
    return encoder, kept


def gradients(window, of_step=-1):
    """Which of each robot's first four images a step's codes depend on; gradient by weights."""
    encoder, kept = footage(window)
    kept.image.requires_grad_()
    code, _ = kept.at_steps(encoder, torch.arange(2), torch.zeros(2, dtype=torch.long))
    code[of_step].square().sum().backward()
    by_weight = torch.cat([each.grad.flatten() for each in encoder.parameters()])
    return kept.image.grad[:4, :2].abs().amax(dim=(-2, -1)) > 0.0, by_weight


def test_a_window_as_long_as_the_rollout_cuts_nothing():
    whole = gradients(0)
    for window in (12, 100):
        reached, by_weight = gradients(window)
        assert torch.equal(reached, whole[0])
        assert torch.equal(by_weight, whole[1])
    assert whole[0].tolist() == [[True, True], [True, True], [True, False], [True, False]]


def test_gradients_end_at_the_memory_before_the_window():
    # Windows 0 to 5 and 6 to 11: the code of step 11 reaches images of steps 6, 9 and 11.
    reached, by_weight = gradients(6)
    assert reached.tolist() == [[False, False], [False, True], [True, False], [True, False]]
    assert not torch.equal(by_weight, gradients(0)[1])
    # Windows of four: 9 and 11 alone are in the last one.
    assert gradients(4)[0].tolist() == [
        [False, False],
        [False, True],
        [False, False],
        [True, False],
    ]
    # In step 5 of the first window nothing is cut.
    assert torch.equal(gradients(6, 5)[0], gradients(0, 5)[0])


# The critic first, and the teacher less and less.


def test_a_warm_up_leaves_actor_and_encoder_untouched(fake_env):
    runner = make_runner(fake_env(5), learn_encoder=True, critic_iterations=2, imitation_coef=0.1)
    alg = runner.alg
    actor, encoder, critic = (weights(each) for each in (alg.actor, alg._encoder, alg.critic))
    for _ in range(2):
        losses = collect(runner).update()
        assert losses["value"] > 0.0
        assert losses["surrogate"] == losses["mirror"] == 0.0
        assert "imitation" not in losses
        assert not changed(actor, alg.actor)
        assert not changed(encoder, alg._encoder)
    assert changed(critic, alg.critic)
    losses = collect(runner).update()
    assert losses["imitation"] > 0.0
    assert "mlp.0.weight" in changed(actor, alg.actor)
    assert changed(encoder, alg._encoder)


def test_a_warm_up_brings_the_values_nearer_to_the_returns(fake_env):
    alg = collect(make_runner(fake_env(16), critic_iterations=50))
    alg.critic.eval()  # its statistics of the observations stay
    groups = TensorDict({name: alg._rollout[name] for name in CRITIC_GROUPS}, [16 * STEPS])

    def error():
        with torch.no_grad():
            return float((alg.critic(groups)[:, 0] - alg._rollout["returns"]).square().mean())

    before = error()
    for _ in range(3):
        alg.update()
    assert error() < before


def test_the_weight_of_imitation_falls_to_zero(fake_env):
    cfg = FinetuningCfg(critic_iterations=10, imitation_coef=0.2, imitation_iterations=40)
    found = [cfg.imitation(iteration) for iteration in (10, 20, 30, 49, 50, 500)]
    assert found == pytest.approx([0.2, 0.15, 0.1, 0.005, 0.0, 0.0])
    alg = make_runner(
        fake_env(4), critic_iterations=1, imitation_coef=0.2, imitation_iterations=2
    ).alg
    weight = []
    for alg.iteration in range(4):
        weight.append(alg.imitation)
    assert weight == pytest.approx([0.0, 0.2, 0.1, 0.0])


def test_imitation_is_the_divergence_from_the_teachers_actions(fake_env):
    runner = make_runner(fake_env(4), imitation_coef=0.3)
    alg = collect(runner)
    alg._imitation.fill_(0.3)
    alg._ask_teacher()
    groups = {name: alg._rollout[name] for name in ("proprio", "scan", "history")}
    with torch.no_grad():
        wanted = alg._teacher.mlp(alg._teacher.get_latent(groups))
    torch.testing.assert_close(alg._wanted, wanted)
    alg._index.copy_(torch.arange(len(alg._index)))
    std = torch.full((18,), 0.2)
    mean = wanted[: len(alg._index)].clone()
    assert alg._imitation_loss(mean, std) == 0.0
    mean[:, 4] += 0.1  # half a deviation: 0.5² / 2 = 0.125
    assert float(alg._imitation_loss(mean, std)) == pytest.approx(0.3 * 0.125, rel=1e-4)


def test_imitation_moves_the_student_towards_its_teacher(fake_env):
    alg = collect(make_runner(fake_env(8), imitation_coef=100.0))
    alg.storage.advantages.zero_()  # nothing else pulls at it
    alg._raw_actor.eval()
    alg._ask_teacher()
    alg._encode()
    history, sight = alg._rollout["history"], alg._rollout["sight"]

    def distance():
        groups = {"proprio": alg._rollout["proprio"], "history": history, "sight": sight}
        with torch.no_grad():
            mean = alg._raw_actor.mlp(alg._raw_actor.get_latent(groups))
        return float((mean - alg._wanted).square().mean())

    before = distance()
    for _ in range(3):
        alg._imitation.fill_(100.0)
        for part in alg._shuffled().split(len(alg._index)):
            alg._index.copy_(part)
            alg._policy_step.descend("test")
    assert distance() < 0.9 * before


# A run.


class TwoPictures:
    """Rewards robots for telling which of two pictures they saw at the start of an episode."""

    def __init__(self, env):
        self._env, self.side = env, torch.ones(env.num_envs)
        self._begin(torch.ones(env.num_envs, dtype=torch.bool))

    def __getattr__(self, name):
        return getattr(self._env, name)

    def _begin(self, which):
        drawn = torch.rand(len(which)).round() * 2.0 - 1.0
        self.side = torch.where(which, drawn, self.side)
        vision = self._env.vision
        vision.arrived, vision.eye = which, torch.zeros(len(which), 48)
        vision.image = self.side[:, None, None].repeat(1, 58, 87)

    def step(self, actions):
        reward = 1.0 - (actions[:, 0] - 0.5 * self.side).square()
        obs, _, dones, extras = self._env.step(actions)
        self._begin(dones.bool())
        extras["time_outs"] = torch.zeros_like(dones)
        return obs, reward, dones, extras


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_encoder_learns_to_tell_apart_what_earns(fake_env):
    cfg = config(steps=7, rate=5e-3, learn_encoder=True)
    algorithm = cfg.agent.algorithm
    algorithm.learning_rate_max, algorithm.schedule = 1e-2, "fixed"
    algorithm.num_learning_epochs = 4
    algorithm.symmetry.use_mirror_loss = False
    alg = (runner := make_runner(TwoPictures(fake_env(32)), cfg=cfg)).alg
    encoder, last = alg._encoder, alg._raw_actor.mlp[-1]
    with torch.no_grad():  # codes that hardly differ, actions near 0
        encoder.memory.weight_ih *= 0.05
        last.weight /= 30.0
        last.bias.zero_()

    def difference():
        sides = torch.tensor([1.0, -1.0])[:, None, None].repeat(1, 58, 87)
        with torch.no_grad():
            one, other = encoder(sides, torch.zeros(2, 48), torch.zeros(2, 5))[0]
        return float((one - other).norm())

    before, earned = difference(), []
    for _ in range(25):
        earned.append(float(collect(runner).storage.rewards.mean()))
        alg.update()
    # What does not depend on the picture earns 1 - 0.5² - 0.2² = 0.71 at best; the best is 0.96.
    assert sum(earned[-5:]) / 5.0 > 0.76
    assert difference() > 2.0 * before


def test_fine_tuning_of_all_resumes_with_its_teacher_and_optimiser(fake_env, tmp_path):
    tuning = {"learn_encoder": True, "critic_iterations": 1, "imitation_coef": 0.1}
    whole = make_runner(fake_env(4), tmp_path / "whole", **tuning)
    whole.learn(2)
    again = make_runner(fake_env(4), tmp_path / "again", **tuning)
    again.load(whole.last_checkpoint)
    assert again.alg.iteration == 2
    assert not changed(weights(whole.alg._encoder), again.alg._encoder)
    ours, theirs = (each.alg.optimizer.state_dict()["state"] for each in (again, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k]["exp_avg"], theirs[k]["exp_avg"]) for k in ours)
    again.learn(1)
    # A fine-tuned student begins another run with its own critic.
    payload = checkpoints.load(again.last_checkpoint, "cpu")
    third = make_runner(fake_env(4))
    third.alg.begin_with(payload, "again.pt")
    assert not changed(weights(again.alg.critic), third.alg.critic)


def test_a_student_without_a_teacher_to_imitate_is_refused(fake_env):
    runner = make_runner(fake_env(4), imitation_coef=0.1)
    alone = distilled(critic_state_dict=runner.alg.critic.state_dict())
    del alone["algorithm"]["teacher"]
    with pytest.raises(CheckpointError, match=r"alone\.pt, of its teacher,"):
        runner.alg.begin_with(alone, "alone.pt")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["agent.finetuning.window=24"], "window=24 is out of range, expected 0, since learn_enc"),
        (
            ["finetuning=whole", "env.num_envs=4"],
            r"num_mini_batches=8 is out of range, expected at most env\.num_envs=4",
        ),
        (
            ["finetuning=whole", "agent.max_iterations=15"],
            r"critic_iterations=15 is out of range, expected less than agent\.max_iterations=15",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_its_key(typed, message):
    with pytest.raises(ConfigError, match=message):
        compose(["task=student", *typed])
    compose(["task=student", "finetuning=whole", "agent.finetuning.window=24"])


def saved(path, fake_env, **finetuning):
    runner = make_runner(fake_env(4), path, **finetuning)
    runner.learn(1)
    return runner.last_checkpoint


def test_checkpoints_that_do_not_fit_are_refused_before_the_simulator_starts(fake_env, tmp_path):
    shape = [
        "agent.actor.hidden_dims=[16]",
        "agent.critic.hidden_dims=[16]",
        "agent.encoder.channels=[2,2,2]",
        "agent.encoder.picture=4",
        "agent.encoder.memory=5",
    ]
    plain = saved(tmp_path / "plain", fake_env)
    message = r"imitation_coef=0\.05, but .* keeps no teacher; .* give .*imitation_coef=0$"
    with pytest.raises(ConfigError, match=message):
        resolve(["task=student", "finetuning=whole", f"run.init={plain}", *shape])
    resolve(["task=student", f"run.init={plain}", *shape])
    message = r"learn_encoder=true, but the optimiser of .* is one of learn_encoder=false"
    with pytest.raises(ConfigError, match=message):
        resolve([f"run.resume={plain}", "agent.finetuning.learn_encoder=true"])
    whole = saved(tmp_path / "whole", fake_env, learn_encoder=True)
    with pytest.raises(ConfigError, match="learn_encoder=false, but"):
        resolve([f"run.resume={whole}", "agent.finetuning.learn_encoder=false"])
    resolve([f"run.resume={whole}"])
