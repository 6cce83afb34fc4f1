"""The student: its networks, what it remembers, imitation and fine-tuning in a tiny world."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from krabby.policy.bundle import Abilities, OnnxEncoder, OnnxPolicy
from krabby_trainer.errors import CheckpointError, ConfigError, ExportError
from krabby_trainer.host_reads import HostReads
from krabby_trainer.learn.config import EncoderCfg
from krabby_trainer.learn.networks import (
    OBS_GROUPS,
    DeployedActor,
    TeacherActor,
    TeacherCritic,
    example_observations,
)
from krabby_trainer.learn.student import (
    STUDENT_GROUPS,
    STUDENT_OBSERVATION,
    DeployedEncoder,
    DepthEncoder,
    Sight,
    StudentActor,
    mirrored_too,
    teach,
)
from krabby_trainer.learn.symmetry import reflections
from krabby_trainer.run import checkpoints
from krabby_trainer.run.config import RunCfg, TrainCfg, rsl_rl_config, to_dict
from krabby_trainer.run.export import export_bundle
from krabby_trainer.run.policies import load_policy
from krabby_trainer.run.runner import ParkourRunner, seed_everything
from krabby_trainer.task.config import CameraCfg, EnvCfg
from krabby_trainer.task.observations import EYE, EYE_INDEX, PROPRIO
from krabby_trainer.vision.cameras import Vision
from tensordict import TensorDict

SMALL = EncoderCfg(channels=[2, 2, 2], picture=4, memory=5)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_teacher():
    teacher = TeacherActor(example_observations(), OBS_GROUPS, "actor", 18, hidden_dims=[16])
    for name, value in teacher.named_buffers():
        if name.endswith("_mean"):
            value.normal_()
    with torch.no_grad():
        teacher.mlp[-1].weight *= 30.0
    return teacher


def make_student():
    return StudentActor(
        example_observations(), {"actor": list(STUDENT_GROUPS)}, "actor", 18, hidden_dims=[16]
    )


def test_the_encoder_is_small_enough_for_the_robot():
    encoder = DepthEncoder(EncoderCfg())
    assert sum(each.numel() for each in encoder.parameters()) < 500_000
    code, memory = encoder(torch.zeros(3, 58, 87), torch.zeros(3, 48), torch.zeros(3, 160))
    assert code.shape == (3, 32)
    assert memory.shape == (3, 160)
    assert code.abs().max() <= 1.0


def test_an_eye_knows_what_a_camera_service_can_measure():
    frame = torch.arange(69.0)
    assert [term.name for term in EYE.terms] == [
        *("base_ang_vel", "projected_gravity", "joint_pos_rel", "joint_vel", "foot_contact")
    ]
    for term in EYE.terms:
        theirs = frame[EYE_INDEX][EYE.slices[term.name]]
        assert torch.equal(theirs, frame[PROPRIO.slices[term.name]])


def test_what_an_encoder_remembers_changes_its_code_and_without_memory_nothing_does():
    image, eye = torch.rand(1, 58, 87), torch.randn(1, 48)
    for remember in (True, False):
        encoder = DepthEncoder(dataclasses.replace(SMALL, remember=remember))
        fresh, _ = encoder(image, eye, torch.zeros(1, 5))
        later, _ = encoder(image, eye, torch.ones(1, 5))
        assert torch.equal(fresh, later) is not remember


def test_a_student_begins_as_its_teacher():
    teacher, student, encoder = make_teacher(), make_student(), DepthEncoder(SMALL)
    teach(encoder, student, teacher)
    teacher.latent_source = "history"
    obs = TensorDict(
        {name: torch.randn_like(value) for name, value in example_observations(6).items()}, [6]
    )
    # Given the teacher's own code of the terrain, it does the same, at any age.
    obs["sight"][:, :32] = teacher.sight(obs)
    assert torch.allclose(student(obs), teacher(obs), atol=1e-6)
    eye = obs["proprio"][:, EYE_INDEX]
    expected = teacher.proprio_normalizer(obs["proprio"])[:, EYE_INDEX]
    assert torch.allclose((eye - encoder.eye_mean) / encoder.eye_std, expected, atol=1e-6)


def test_the_student_reads_code_and_age_of_its_own_stream_alone():
    student = make_student()
    obs = example_observations(1)
    before = student(obs)
    for where, changes in ((0, True), (31, True), (32, False), (63, False), (64, True)):
        other = obs.clone()
        other["sight"][0, where] += 1.0
        assert (not torch.equal(student(other), before)) is changes
    for name in ("scan", "privileged", "velocity", "critic"):
        other = obs.clone()
        other[name] = other[name] + 1.0
        assert torch.equal(student(other), before), name


def test_on_an_image_that_is_too_old_the_student_reads_zeros_of_the_oldest_age():
    actor = make_student()
    age = torch.tensor([[0.05], [0.99], [1.0], [60.0]])
    group = torch.cat((torch.full((4, 64), 0.5), age), dim=1)
    old = actor.sight({"sight": group})
    assert old[:, -1].tolist() == pytest.approx([0.5, 9.9, 10.0, 600.0])
    assert (old[:, :-1] == 0.5).all()
    actor.tolerate(1.0)
    seen = actor.sight({"sight": group})
    assert seen[:, -1].tolist() == pytest.approx([0.5, 9.9, 10.0, 10.0])
    assert seen[:, 0].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert actor.architecture["oldest_s"] == 1.0


def test_before_the_first_image_the_student_reads_the_token(fake_env):
    env = fake_env(3)
    env.vision.oldest_s = 1.0
    sight = Sight.of(env, DepthEncoder(SMALL), "cpu")
    sight.seen[1] = True
    assert sight.group(torch.tensor([60.0, 0.05, 60.0]))[:, -1].tolist() == pytest.approx(
        [1.0, 0.05, 1.0]
    )


@pytest.mark.parametrize("task", ["distill", "student"])
def test_both_stages_of_a_student_take_the_oldest_age_from_the_cameras(
    fake_env, teacher_file, tmp_path, task
):
    env = fake_env(3)
    env.vision.oldest_s = 1.0
    runner = make_runner(env, "distill", tmp_path / "first")
    runner.begin_with(teacher_file)
    runner.learn(1)
    if task == "student":
        distilled = runner.last_checkpoint
        runner = make_runner(env, "student", tmp_path / "second")
        runner.begin_with(distilled)
        runner.learn(1)
    policy = load_policy(runner.last_checkpoint)
    assert policy.actor.oldest_s == runner.alg.sight.unseen_s == 1.0


def test_the_streams_change_places_in_the_mirror():
    sight = torch.arange(65.0)[None]
    other = reflections()["sight"](sight)
    assert other[0].tolist() == [*range(32, 64), *range(32), 64]
    image, eye = torch.rand(2, 58, 87), torch.randn(2, 48)
    images, eyes = mirrored_too(image, eye)
    assert torch.equal(images[2:], image.flip(-1))
    again = mirrored_too(images[2:], eyes[2:])
    assert torch.equal(again[0][2:], image)
    assert torch.equal(again[1][2:], eye)


def test_sight_follows_each_robots_pictures_and_forgets_with_its_episode(fake_env):
    encoder = DepthEncoder(SMALL).eval()
    env = fake_env(3)
    sight = Sight(encoder, 3, "cpu")
    vision = env.vision
    vision.arrived = torch.tensor([True, False, True])
    sight.look(vision)
    assert sight.seen.tolist() == [True, False, True]
    code, memory = encoder(vision.image[:1], vision.eye[:1], torch.zeros(1, 5))
    assert torch.allclose(sight.code[0, 0], code[0], atol=1e-6)
    flipped, _ = encoder(
        *(each[1:] for each in mirrored_too(vision.image[:1], vision.eye[:1])), torch.zeros(1, 5)
    )
    assert torch.allclose(sight.code[1, 0], flipped[0], atol=1e-6)
    sight.look(vision)
    code, _ = encoder(vision.image[:1], vision.eye[:1], memory)
    assert torch.allclose(sight.code[0, 0], code[0], atol=1e-6)
    group = sight.group(torch.tensor([0.05, 60.0, 0.07]))
    assert group.shape == (3, 65)
    assert group[:, -1].tolist() == pytest.approx([0.05, 0.0, 0.07])
    assert group[1].abs().sum() == 0.0
    sight.forget(torch.tensor([True, False, False]))
    assert sight.seen.tolist() == [False, False, True]
    assert sight.memory[:, 0].abs().sum() == 0.0
    assert sight.memory[:, 2].abs().sum() > 0.0


# Imitation.


@pytest.fixture
def teacher_file(tmp_path):
    teacher = make_teacher()
    critic = TeacherCritic(example_observations(), OBS_GROUPS, "critic", 1, hidden_dims=[16])
    algorithm = {
        "actor_state_dict": teacher.state_dict(),
        "actor_architecture": teacher.architecture,
        "critic_state_dict": critic.state_dict(),
    }
    path = tmp_path / "teacher.pt"
    checkpoints.save(path, payload(algorithm))
    return path


def payload(algorithm):
    return {
        "iteration": 1,
        "env_steps": 1,
        "wall_s": 0.0,
        "algorithm": algorithm,
        "environment": None,
        "random": None,
        "config": {},
        "provenance": {},
    }


def config(task, **run):
    cameras = CameraCfg(enabled=True)
    cfg = TrainCfg(task=task, device="cpu", run=RunCfg(**run), env=EnvCfg(camera=cameras))
    cfg.agent.num_steps_per_env = 12
    cfg.agent.actor.hidden_dims = cfg.agent.critic.hidden_dims = [16]
    cfg.agent.algorithm.num_learning_epochs = 1
    cfg.agent.algorithm.num_mini_batches = 2
    cfg.agent.encoder = SMALL
    cfg.agent.distillation.num_mini_batches = 2
    return cfg


def make_runner(env, task, folder=None, **run):
    cfg = config(task, **run)
    return ParkourRunner(env, rsl_rl_config(cfg), folder, "cpu", run=cfg.run, config=to_dict(cfg))


def collected(runner):
    """A rollout, and the codes that were acted on, (T, 2, N, 32)."""
    codes = []
    group = runner.alg.sight.group

    def noted(age):
        codes.append(runner.alg.sight.code.clone())
        return group(age)

    runner.alg.sight.group = noted
    runner._collect(runner.env.get_observations())
    return torch.stack(codes)


@pytest.mark.parametrize("capacity", [None, 5, 2])
def test_learning_retraces_what_was_seen_in_the_rollout(fake_env, teacher_file, capacity):
    """Over two rollouts, with episodes that end in between: the same codes, in both streams."""
    runner = make_runner(fake_env(5), "distill")
    runner.begin_with(teacher_file)
    alg = runner.alg
    alg.sight.capacity = capacity
    for _ in range(2):
        alg._rollout.step = 0
        codes = collected(runner)
        rollout = alg._rollout
        assert rollout.begins.any()
        robots = torch.tensor([3, 0, 4, 1])
        stream = torch.tensor([0, 1, 1, 0])
        with torch.no_grad():
            learned, _ = rollout.encoded(alg.encoder, robots, stream)
        used = learned[rollout.newest[:, robots], torch.arange(4)]
        used = torch.where(rollout.blind[:, robots, None], 0.0, used)
        acted = torch.stack(
            [codes[:, s, n] for s, n in zip(stream.tolist(), robots.tolist(), strict=True)], dim=1
        )
        assert torch.allclose(used, acted, atol=1e-5)
        assert (used.abs().sum(-1) == 0.0).any()


def test_images_beyond_the_capacity_are_encoded_in_the_next_step():
    encoder = DepthEncoder(SMALL).eval()
    exact, limited = (Sight(encoder, 4, "cpu") for _ in range(2))
    limited.capacity = 2
    image, eye, none = torch.rand(4, 58, 87), torch.randn(4, 48), torch.zeros(4, dtype=torch.bool)
    three = torch.tensor([True, False, True, True])
    exact.look(Vision(three, image, eye, torch.zeros(4)))
    assert limited.look(Vision(three, image, eye, torch.zeros(4))).robots.tolist() == [0, 2]
    assert limited.seen.tolist() == [True, False, True, False]
    late = limited.look(Vision(none, image, eye, torch.zeros(4)))
    assert late.robots.tolist() == [3, 4]  # 4 stands for no robot
    assert late.first[0]
    torch.testing.assert_close(limited.code, exact.code)
    torch.testing.assert_close(limited.memory, exact.memory)
    limited.look(Vision(three, image, eye, torch.zeros(4)))
    limited.forget(torch.tensor([False, False, False, True]))  # an image that waits is dropped
    assert limited.look(Vision(none, image, eye, torch.zeros(4))).robots.tolist() == [4, 4]


@pytest.mark.parametrize("task", ["distill", "student"])
def test_the_host_waits_for_nothing_while_a_student_acts(fake_env, teacher_file, tmp_path, task):
    runner = make_runner(fake_env(5), "distill", tmp_path)
    runner.begin_with(teacher_file)
    runner.learn(1)
    if task == "student":
        source = runner.last_checkpoint
        runner = make_runner(fake_env(5), "student")
        runner.begin_with(source)
    alg, env = runner.alg, runner.env
    alg.sight.capacity = 3
    with torch.inference_mode():
        obs = env.get_observations()
        for _ in range(3):
            with HostReads() as reads:
                actions = alg.act(obs)
            assert not reads.places
            obs, rewards, dones, extras = env.step(actions)
            with HostReads() as reads:
                alg.process_env_step(obs, rewards, dones, extras)
            assert not reads.places


def test_an_update_of_a_student_waits_twice(fake_env, teacher_file):
    """For the number of images and for the losses; on CUDA also for the capacity."""
    runner = make_runner(fake_env(5), "distill")
    runner.begin_with(teacher_file)
    for _ in range(2):
        collected(runner)
        with HostReads() as reads:
            runner.alg.update()
        assert reads.total == 2, reads.places


def test_a_student_learns_to_act_as_its_teacher(fake_env, teacher_file):
    seed_everything(0)
    runner = make_runner(fake_env(8), "distill")
    runner.begin_with(teacher_file)
    losses = []
    for _ in range(15):
        runner._collect(runner.env.get_observations())
        losses.append(runner.alg.update())
    assert losses[-1]["action"] < 0.5 * losses[0]["action"]
    assert losses[-1]["scan"] < losses[0]["scan"]
    assert losses[0]["led_share"] > losses[-1]["led_share"] == 0.0


def test_codes_of_images_that_are_too_old_are_not_learned(fake_env, teacher_file):
    env = fake_env(6)
    env.vision.oldest_s = 0.1
    runner = make_runner(env, "distill")
    runner.begin_with(teacher_file)
    runner._collect(runner.env.get_observations())
    alg = runner.alg
    rollout, robots = alg._rollout, torch.arange(6)
    rollout.finish()
    old = rollout.age >= 0.1
    assert old.any()
    assert not old.all()

    def losses():
        torch.manual_seed(1)
        return alg._losses(rollout, robots)

    before = losses()
    rollout.scan[old] += 1.0
    after = losses()
    assert all(torch.equal(before[name], after[name]) for name in ("code", "scan"))
    rollout.scan[~old] += 1.0
    assert losses()["scan"] > after["scan"]


def test_older_rollouts_are_learned_from_again(fake_env, teacher_file):
    seed_everything(0)
    runner = make_runner(fake_env(6), "distill")
    runner.begin_with(teacher_file)
    alg = runner.alg
    alg.cfg.replay_epochs, alg.cfg.replay_rollouts = 3, 2
    used = []
    losses = alg._losses

    def noted(rollout, robots):
        used.append(rollout)
        return losses(rollout, robots)

    alg._losses = noted
    rollouts = []
    for _ in range(5):
        rollouts.append(alg._rollout)
        runner._collect(runner.env.get_observations())
        alg.update()
    # 2 minibatches a pass: two passes over the first, then three over older ones besides.
    assert len(used) == 4 + 4 * 10
    first, second, third, fourth, fifth = (used[: 4 + 10 * i][-10:] for i in range(5))
    assert first == [rollouts[0]] * 4
    assert second.count(rollouts[1]) == 4
    assert second.count(rollouts[0]) == 6
    # Two are kept: the memory of the oldest is that of the next but two.
    assert rollouts[3] is rollouts[0]
    assert rollouts[4] is rollouts[1]
    assert {id(each) for each in fifth} <= {id(each) for each in rollouts[2:]}
    assert third.count(rollouts[2]) == fourth.count(rollouts[3]) == 4


def test_minibatches_need_not_divide_the_robots(fake_env, teacher_file):
    runner = make_runner(fake_env(5), "distill")
    runner.begin_with(teacher_file)
    alg = runner.alg
    alg.cfg.num_mini_batches, alg.cfg.num_learning_epochs = 4, 2
    parts = [robots.tolist() for _, robots in alg._mini_batches()]
    assert [len(each) for each in parts] == [2, 1, 1, 1] * 2
    for some in (parts[:4], parts[4:]):
        assert sorted(robot for part in some for robot in part) == [0, 1, 2, 3, 4]


def test_the_teacher_leads_fewer_and_fewer_robots(fake_env, teacher_file):
    runner = make_runner(fake_env(4), "distill")
    runner.begin_with(teacher_file)
    alg = runner.alg
    shares = []
    for alg.iteration in (0, 2, 4, 8, 20):
        shares.append(alg.led_share)
    assert shares == [1.0, 0.75, 0.5, 0.0, 0.0]
    alg.iteration = 0
    obs = runner.env.get_observations()
    with torch.inference_mode():
        assert torch.equal(alg.act(obs), alg.teacher(obs))


def test_imitation_resumes_exactly(fake_env, teacher_file, tmp_path):
    seed_everything(1)
    whole = make_runner(fake_env(4), "distill", tmp_path / "whole", checkpoint_minutes=0.0)
    whole.begin_with(teacher_file)
    whole.learn(2)
    again = make_runner(fake_env(4), "distill", tmp_path / "again")
    again.load(whole.last_checkpoint)
    assert again.alg.iteration == 2
    for name, value in whole.alg.encoder.state_dict().items():
        assert torch.equal(again.alg.encoder.state_dict()[name], value)
    assert again.alg.learning_rate == whole.alg.learning_rate
    again.learn(1)


def test_a_student_goes_on_by_itself_with_the_encoder_as_it_is(fake_env, teacher_file, tmp_path):
    first = make_runner(fake_env(4), "distill", tmp_path / "first")
    first.begin_with(teacher_file)
    first.learn(1)
    second = make_runner(fake_env(4), "student", tmp_path / "second")
    second.begin_with(first.last_checkpoint)
    actor = second.alg.get_policy()
    assert torch.equal(actor.mlp[0].weight, first.alg.actor.mlp[0].weight)
    critic = torch.load(teacher_file, weights_only=True)["algorithm"]["critic_state_dict"]
    for name, value in critic.items():
        assert torch.equal(second.alg.save()["critic_state_dict"][name], value)
    encoder = {name: value.clone() for name, value in second.alg._encoder.state_dict().items()}
    body = actor.mlp[0].weight.clone()
    second.learn(2)
    assert not torch.equal(actor.mlp[0].weight, body)
    for name, value in second.alg._encoder.state_dict().items():
        assert torch.equal(value, encoder[name])
    third = make_runner(fake_env(4), "student", tmp_path / "third")
    third.load(second.last_checkpoint)
    assert third.alg.iteration == 2
    third.learn(1)


def test_a_student_without_teacher_or_with_the_wrong_file_is_refused(
    fake_env, teacher_file, tmp_path
):
    runner = make_runner(fake_env(2), "distill")
    with pytest.raises(ConfigError, match=r"run\.init: give the teacher's checkpoint"):
        runner._collect(runner.env.get_observations())
    student = make_runner(fake_env(2), "student")
    with pytest.raises(CheckpointError, match="holds no student to go on from"):
        student.begin_with(teacher_file)
    distilled = make_runner(fake_env(2), "distill", tmp_path)
    distilled.begin_with(teacher_file)
    teacher = make_runner(fake_env(2), "teacher")
    with pytest.raises(CheckpointError, match="holds no teacher of this shape"):
        teacher.begin_with(distilled.checkpoint())


def test_a_teacher_begins_with_the_networks_of_another_and_with_nothing_else(
    fake_env, teacher_file, tmp_path
):
    first = make_runner(fake_env(2), "teacher")
    first.begin_with(teacher_file)
    given = torch.load(teacher_file, weights_only=True)["algorithm"]
    for part in ("actor_state_dict", "critic_state_dict"):
        for name, value in first.alg.save()[part].items():
            assert torch.equal(value, given[part][name]), name
    assert first.alg.iteration == first.current_learning_iteration == 0
    assert first.alg.save()["optimizer_state_dict"]["state"] == {}


# Back from a checkpoint, and as a bundle runs it.


def test_a_checkpoint_acts_as_the_runner_did(fake_env, teacher_file, tmp_path):
    runner = make_runner(fake_env(3), "distill", tmp_path / "run")
    runner.begin_with(teacher_file)
    runner.learn(1)
    policy = load_policy(runner.last_checkpoint)
    env = fake_env(3)
    sight = Sight(runner.alg.encoder, 3, "cpu")
    begins = torch.ones(3, 1, dtype=torch.bool)
    for _ in range(10):
        obs, vision = env.get_observations(), env.vision
        seen = {
            "image": vision.image,
            "eye": vision.eye,
            "arrived": vision.arrived[:, None],
            "age": vision.age[:, None],
            "begins": begins,
        }
        acted = policy(TensorDict(dict(obs.items()) | seen, [3]))
        with torch.no_grad():
            sight.forget(begins[:, 0])
            sight.look(vision)
            groups = dict(obs.items()) | {"sight": sight.group(vision.age)}
            expected = runner.alg.actor.mlp(runner.alg.actor.get_latent(groups))
        assert torch.allclose(acted, expected, atol=1e-6)
        begins = env.step(acted)[2].bool()[:, None]


def test_the_deployed_networks_say_what_the_student_says():
    actor, encoder = make_student().eval(), DepthEncoder(SMALL).eval()
    image, eye, memory = torch.rand(1, 58, 87), torch.randn(1, 48), torch.randn(1, 5)
    code, after = DeployedEncoder(encoder)(image[:, None], eye, memory)
    expected = encoder(image, eye, memory)
    assert torch.allclose(code, expected[0])
    assert torch.allclose(after, expected[1])
    obs = {name: torch.randn_like(value) for name, value in example_observations().items()}
    obs["proprio"] = obs["history"][:, -69:]
    frames = obs["history"].view(1, 10, 69)
    terms = [frames[:, :, where].flatten(1) for where in PROPRIO.slices.values()]
    row = torch.cat((*terms, obs["sight"][:, :32], 10.0 * obs["sight"][:, -1:]), dim=1)
    assert row.shape[1] == STUDENT_OBSERVATION.size
    wanted = actor.mlp(actor.get_latent(obs))
    assert torch.allclose(DeployedActor(actor)(row), wanted, atol=1e-6)


def test_a_students_bundle_runs_as_on_the_robot(fake_env, teacher_file, tmp_path):
    runner = make_runner(fake_env(3), "distill", tmp_path / "run")
    runner.begin_with(teacher_file)
    runner.learn(1)
    bundle = export_bundle(runner.last_checkpoint, tmp_path / "student", name="student")
    assert bundle.needs_features == "latent"
    assert bundle.provenance["parity"]["largest_difference"] < 1e-5
    assert [term.name for term in bundle.observation.terms][-2:] == ["features", "features_age"]
    encoder, policy = OnnxEncoder(bundle), OnnxPolicy(bundle)
    image, eye = np.zeros((58, 87), np.float32), np.zeros((1, 48), np.float32)
    first, second = encoder.step(image, eye), encoder.step(image, eye)
    assert not np.array_equal(first, second)  # it remembers
    encoder.reset()
    assert np.array_equal(encoder.step(image, eye), first)
    assert policy.step(np.zeros((1, bundle.observation.size), np.float32)).shape == (18,)


@pytest.mark.parametrize(
    ("rates", "pause_share", "able", "rate_hz", "stands"),
    [
        ([10.0, 15.0], 0.0, True, 15.0, False),  # it never had to stand
        ([10.0, 60.0], 0.08, True, 30.0, True),
        ([10.0, 60.0], 0.08, False, 30.0, False),  # it creeps, or walks on
    ],
)
def test_a_bundle_says_how_it_was_trained_to_look_and_whether_it_stands(
    fake_env, teacher_file, tmp_path, monkeypatch, rates, pause_share, able, rate_hz, stands
):
    def measure(folder, desc, names):
        return {name: (able, 0.003 if able else math.inf) for name in names}

    monkeypatch.setattr("krabby_trainer.run.export.measure", measure)
    cfg = config("distill")
    cfg.env.camera.errors.rate_hz, cfg.env.command.pause_share = rates, pause_share
    runner = ParkourRunner(
        fake_env(3), rsl_rl_config(cfg), tmp_path / "run", "cpu", run=cfg.run, config=to_dict(cfg)
    )
    runner.begin_with(teacher_file)
    runner.learn(1)
    bundle = export_bundle(runner.last_checkpoint, tmp_path / "student", name="student")
    # The robot's camera gives 30 pictures a second.
    assert bundle.encoder.rate_hz == rate_hz
    assert bundle.abilities.stands is stands
    assert bundle.command_range.tolist() == [[0.0, 0.0, -0.5], [1.0, 0.0, 0.5]]
    assert (bundle.features_age_s, bundle.memory_s) == (0.15, None)
    figure = 0.003 if able else None
    assert bundle.provenance["abilities"] == ({"stands": figure} if pause_share else {})
    assert load_policy(runner.last_checkpoint).rate_hz == rate_hz


def test_a_bundle_declares_the_commands_it_was_trained_with_as_far_as_it_can_follow(
    fake_env, teacher_file, tmp_path, monkeypatch
):
    def measure(folder, desc, names):
        assert list(names) == ["stands", "reverses", "side_steps", "turns_in_place"]
        return {name: (name != "side_steps", 0.2) for name in names}

    monkeypatch.setattr("krabby_trainer.run.export.measure", measure)
    cfg = config("distill")
    cfg.env.command.free_share, cfg.env.command.free_vx = 0.3, [-0.5, 1.2]
    cfg.env.camera.errors.oldest_s, cfg.env.camera.errors.outage_s = 1.0, [0.1, 2.0]
    env = fake_env(3)
    env.vision.oldest_s = 1.0
    runner = ParkourRunner(
        env, rsl_rl_config(cfg), tmp_path / "run", "cpu", run=cfg.run, config=to_dict(cfg)
    )
    runner.begin_with(teacher_file)
    runner.learn(1)
    bundle = export_bundle(runner.last_checkpoint, tmp_path / "student", name="student")
    # It does not step sideways, so -0.4 to 0.4 m/s are cut to 0.
    assert bundle.command_range.tolist() == [[-0.5, 0.0, -0.8], [1.2, 0.0, 0.8]]
    assert bundle.abilities == Abilities(
        stands=True, reverses=True, side_steps=False, turns_in_place=True
    )
    assert (bundle.features_age_s, bundle.memory_s) == (1.0, 2.0)


def test_a_student_that_does_not_act_as_in_torch_is_not_exported(
    fake_env, teacher_file, tmp_path, monkeypatch
):
    runner = make_runner(fake_env(3), "distill", tmp_path / "run")
    runner.begin_with(teacher_file)
    runner.learn(1)
    step = OnnxEncoder.step
    monkeypatch.setattr(OnnxEncoder, "step", lambda *args: step(*args) + np.float32(1e-3))
    with pytest.raises(ExportError, match="the exported encoder acts"):
        export_bundle(runner.last_checkpoint, tmp_path / "student", name="student")
    assert not (tmp_path / "student").exists()
