"""The learning loop in a tiny world: what it saves, when it ends, that it resumes exactly."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from krabby_trainer.errors import CheckpointError
from krabby_trainer.run import checkpoints
from krabby_trainer.run.config import RunCfg, TrainCfg, rsl_rl_config, to_dict
from krabby_trainer.run.runner import NotFinite, ParkourRunner, seed_everything


@pytest.fixture
def make_runner(fake_env, tmp_path):
    def make(folder="run", sinks=(), env=None, num_steps=4, **run):
        cfg = TrainCfg(device="cpu", run=RunCfg(**run))
        cfg.agent.num_steps_per_env = num_steps
        cfg.agent.actor.hidden_dims = cfg.agent.critic.hidden_dims = [16]
        cfg.agent.algorithm.num_learning_epochs = 1
        cfg.agent.algorithm.num_mini_batches = 2
        cfg.agent.algorithm.adaptation_interval = 3
        env = fake_env() if env is None else env
        return ParkourRunner(
            env,
            rsl_rl_config(cfg),
            tmp_path / folder,
            "cpu",
            run=cfg.run,
            sinks=sinks,
            config=to_dict(cfg),
        )

    return make


class Recorder:
    def __init__(self, then=None):
        self.iterations = []
        self.then = then

    def write(self, iteration):
        self.iterations.append(iteration)
        if self.then:
            self.then(iteration)

    def close(self): ...


def weights(runner):
    saved = runner.alg.save()
    return {
        f"{part}.{name}": value
        for part in ("actor_state_dict", "critic_state_dict")
        for name, value in saved[part].items()
    }


def test_resumed_run_is_the_run_that_never_stopped(make_runner):
    seed_everything(5)
    whole = make_runner("whole", checkpoint_minutes=60)
    whole.learn(5, init_at_random_ep_len=True)

    seed_everything(5)
    begun = make_runner("parts", checkpoint_minutes=60)
    begun.learn(2, init_at_random_ep_len=True)
    seed_everything(99)  # another process, in another state
    resumed = make_runner("parts", checkpoint_minutes=60)
    resumed.load(begun.last_checkpoint)
    resumed.learn(3, init_at_random_ep_len=True)

    assert resumed.current_learning_iteration == whole.current_learning_iteration == 5
    assert resumed.env_steps == whole.env_steps == 5 * 4 * 4
    assert resumed.alg.learning_rate == whole.alg.learning_rate
    expected = weights(whole)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    for name, value in whole.env.checkpoint_state().items():
        assert torch.equal(value, resumed.env.checkpoint_state()[name]), name
    for ours, theirs in zip(_optimizer_tensors(resumed), _optimizer_tensors(whole), strict=True):
        assert torch.equal(ours, theirs)


def _optimizer_tensors(runner):
    saved = runner.alg.save()
    return [
        value
        for name, part in saved.items()
        if "optimizer" in name
        for state in part["state"].values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]


def test_every_iteration_is_told(make_runner):
    seen = Recorder()
    make_runner(sinks=[seen]).learn(3)
    assert [each.number for each in seen.iterations] == [1, 2, 3]
    last = seen.iterations[-1]
    assert last.total == 3
    assert last.env_steps == 3 * 4 * 4
    assert last.scalars["Level/mean"] > 0
    assert last.scalars["Train/mean_episode_steps"] == 7
    for name in (
        "Loss/value",
        "Loss/estimator",
        "Policy/kl",
        "Policy/action_std",
        "Perf/collect_s",
    ):
        assert name in last.scalars


def test_ends_on_the_clock_with_a_checkpoint(make_runner):
    runner = make_runner(max_minutes=1e-9)
    runner.learn(50)
    assert runner.stopped_by == "max_minutes"
    assert runner.current_learning_iteration == 1
    assert runner.last_checkpoint == checkpoints.newest_intact(runner.folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_first_signal_finishes_the_iteration_and_saves(make_runner, number):
    at_two = Recorder(lambda it: os.kill(os.getpid(), number) if it.number == 2 else None)
    # These tests may themselves run under nohup, which ignores SIGHUP.
    inherited = signal.signal(number, signal.default_int_handler)
    try:
        runner = make_runner(sinks=[at_two])
        runner.learn(50)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, inherited)
    assert runner.stopped_by == signal.Signals(number).name
    assert checkpoints.load(runner.last_checkpoint)["iteration"] == 2


def test_keeps_the_newest_and_the_milestones(make_runner):
    runner = make_runner(checkpoint_minutes=0, keep=2, keep_every=3)
    runner.learn(7)
    names = [path.name for path in checkpoints.find_checkpoints(runner.folder)]
    assert names == [checkpoints.checkpoint_name(n) for n in (3, 6, 7)]


def test_saves_by_the_clock(make_runner, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def tick(_):
        now[0] += 25.0

    runner = make_runner(sinks=[Recorder(tick)], checkpoint_minutes=1.0, keep=9)
    runner.learn(7)
    names = [path.name for path in checkpoints.find_checkpoints(runner.folder)]
    assert names == [checkpoints.checkpoint_name(n) for n in (3, 6, 7)]


@pytest.mark.parametrize("what", ["scan", "reward"])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(make_runner, fake_env, what):
    runner = make_runner(env=fake_env(poison=(6, what)), checkpoint_minutes=0)
    with pytest.raises(NotFinite, match=what):
        runner.learn(5)
    assert [path.name for path in checkpoints.find_checkpoints(runner.folder)] == [
        checkpoints.checkpoint_name(1)
    ]


def test_loss_that_is_not_finite_names_where_to_go_on(make_runner, monkeypatch):
    runner = make_runner(checkpoint_minutes=0)
    runner.learn(1)
    monkeypatch.setattr(runner.alg, "update", lambda: {"value": float("nan")})
    with pytest.raises(NotFinite, match=r"Loss/value is not finite.*iteration_000001\.pt"):
        runner.learn(1)


def test_checkpoint_of_another_shape_is_refused(make_runner, fake_env):
    runner = make_runner()
    runner.learn(1)
    other = make_runner("other", env=fake_env(num_envs=8))
    with pytest.raises(CheckpointError, match="4 robots, not 8"):
        other.load(runner.last_checkpoint)


class Failing(Recorder):
    """A log on a disk that is full in the second and third iteration."""

    def write(self, iteration):
        if iteration.number in (2, 3):
            raise OSError(28, "No space left on device")
        super().write(iteration)


def test_a_log_that_cannot_be_written_is_reported_once_and_training_goes_on(make_runner, caplog):
    log, other = Failing(), Recorder()
    runner = make_runner(sinks=[log, other])
    runner.learn(5)
    assert [each.number for each in log.iterations] == [1, 4, 5]
    assert [each.number for each in other.iterations] == [1, 2, 3, 4, 5]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("Failing cannot be written in iteration 2 (")
    assert "No space left" in said


def test_an_interim_checkpoint_that_cannot_be_written_is_tried_again(
    make_runner, caplog, monkeypatch
):
    save, tried = checkpoints.save, []

    def full(path, payload):
        tried.append(path.name)
        if len(tried) == 2:
            raise CheckpointError(f"cannot write the checkpoint {path} (No space left)")
        save(path, payload)

    monkeypatch.setattr(checkpoints, "save", full)
    runner = make_runner(checkpoint_minutes=0, keep=9)
    runner.learn(4)
    names = [path.name for path in checkpoints.find_checkpoints(runner.folder)]
    assert names == [checkpoints.checkpoint_name(n) for n in (1, 3, 4)]
    assert "training continues without this checkpoint" in caplog.text


def test_the_last_checkpoint_has_to_be_written(make_runner, monkeypatch):
    def full(path, payload):
        raise CheckpointError("cannot write")

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(CheckpointError, match="cannot write"):
        make_runner().learn(1)


def test_a_hangup_that_nohup_ignores_stays_ignored(make_runner):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = Recorder(lambda it: os.kill(os.getpid(), signal.SIGHUP))
        runner = make_runner(sinks=[hang_up])
        runner.learn(2)
        assert runner.stopped_by == "max_iterations"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_broken_robots_are_counted_and_dumped(make_runner, fake_env, caplog):
    class Breaks(fake_env):
        def take_broken(self):
            if self.steps != 8:  # in the second iteration of four steps
                return None
            return {"robot": torch.tensor([2]), "before.joint_pos": torch.zeros(1, 18)}

    seen = Recorder()
    runner = make_runner(env=Breaks(), sinks=[seen])
    runner.learn(3)
    assert [each.scalars["Robots/replaced"] for each in seen.iterations] == [0.0, 1.0, 0.0]
    (dump,) = (runner.folder / "replaced").iterdir()
    assert dump.name == "iteration_000002.pt"
    assert torch.load(dump, weights_only=True)["robot"].tolist() == [2]
    assert "1 robots whose state was not finite were replaced" in caplog.text
