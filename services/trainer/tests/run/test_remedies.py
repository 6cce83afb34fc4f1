"""Every remedy that a message prints works as printed: the message is read, and followed."""

from __future__ import annotations

import fcntl
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
from krabby_trainer.run import checkpoints
from krabby_trainer.run.cli import main

SMALL = [
    *("agent.num_steps_per_env=4", "agent.actor.hidden_dims=[16]", "device=cpu"),
    *("agent.critic.hidden_dims=[16]", "agent.algorithm.num_learning_epochs=1"),
    *("env.num_envs=4", "run.checkpoint_minutes=0"),
]


@pytest.fixture
def world(fake_env, monkeypatch, tmp_path):
    """The tiny world; `poison` and `losses` break the next run."""
    wish = types.SimpleNamespace(poison=None, update=None)

    def make_env(cfg, *, device, seed):
        return fake_env(cfg.num_envs, poison=wish.poison)

    monkeypatch.setitem(
        sys.modules, "krabby_trainer.task.isaac", types.SimpleNamespace(make_env=make_env)
    )
    monkeypatch.chdir(tmp_path)
    return wish


@pytest.fixture
def said(capfd):
    """Runs a command that has to fail; its complaint."""

    def fail(*argv, status=2):
        capfd.readouterr()
        assert main(argv) == status
        complaint = capfd.readouterr().err.splitlines()[-1]
        assert complaint.startswith(f"trainer {argv[0]}: ")
        return complaint

    return fail


def overrides(text):
    """What a message prints as `key=value`, typed in a shell."""
    return [word.rstrip(",;.") for word in shlex.split(text) if re.match(r"[a-z_.]+=\S", word)]


def train(*typed):
    return main(["train", *SMALL, *typed])


def test_a_value_that_is_not_finite(world, said):
    world.poison = (6, "scan")
    text = said("train", *SMALL, "agent.max_iterations=3", "run.dir=r", status=1)
    world.poison = None
    (resume,) = overrides(text.partition("continue with ")[2])
    assert resume == "run.resume=r/checkpoints/iteration_000001.pt"
    assert main(["train", resume]) == 0


@pytest.mark.parametrize("largest", ["1e-3", "1e-5"])
def test_a_loss_that_is_not_finite(world, said, monkeypatch, largest):
    rates = (
        f"agent.algorithm.learning_rate_max={largest}",
        f"agent.algorithm.learning_rate={largest}",
    )
    from krabby_trainer.learn.ppo import ParkourPPO

    update = ParkourPPO.update

    def broken(self):
        losses = update(self)
        return losses | {"value": float("nan")} if self.iteration == 2 else losses

    with monkeypatch.context() as patched:
        patched.setattr(ParkourPPO, "update", broken)
        text = said("train", *SMALL, *rates, "agent.max_iterations=3", "run.dir=r", status=1)
    followed = overrides(text.partition("continue with ")[2])
    assert [word.partition("=")[0] for word in followed] == [
        "run.resume",
        "agent.algorithm.learning_rate_max",
        "agent.algorithm.learning_rate",
    ]
    assert main(["train", *followed]) == 0


def test_a_folder_that_holds_a_run(world, said):
    assert train("agent.max_iterations=1", "run.dir=r") == 0
    text = said("train", *SMALL, "run.dir=r", "agent.max_iterations=2")
    assert main(["train", *SMALL, "run.dir=r", "agent.max_iterations=2", *overrides(text)[1:]]) == 0
    assert checkpoints.newest_intact(Path("r")).name == checkpoints.checkpoint_name(2)


def test_a_run_that_is_done(world, said):
    train("agent.max_iterations=1", "run.dir=r")
    text = said("train", "run.resume=r")
    assert main(["train", "run.resume=r", overrides(text)[-1]]) == 0


def test_weights_alone(world, said):
    train("agent.max_iterations=1", "run.dir=r")
    assert main(["weights", "checkpoint=r", "out=slim.pt"]) == 0
    text = said("train", "run.resume=slim.pt", status=1)
    assert train(overrides(text)[-1], "agent.max_iterations=1", "run.dir=s") == 0


def test_networks_of_another_shape(world, said):
    train("agent.max_iterations=1", "run.dir=r")
    begin = ("agent.num_steps_per_env=4", "run.init=r", "run.dir=s", "env.num_envs=4")
    text = said("train", *begin)
    follow = overrides(text.partition("; give ")[2])
    assert follow == ["agent.actor.hidden_dims=[16]", "agent.critic.hidden_dims=[16]"]
    assert main(["train", *begin, *follow, "agent.max_iterations=1"]) == 0
    text = said("config", "run.resume=r", "agent.actor.activation=relu")
    assert main(["config", "run.resume=r", *overrides(text.partition("; give ")[2])]) == 0


def test_a_gpu_that_is_not_there(world, said):
    text = said("train", *SMALL, "device=cuda:99", "run.dir=r")
    wanted = overrides(text.partition("; use ")[2])
    assert wanted == ["device=cpu", "device=auto"]
    for n, device in enumerate(wanted):
        assert train(device, f"run.dir=r{n}", "agent.max_iterations=1") == 0


@pytest.mark.parametrize("command", ["config", "train"])
@pytest.mark.parametrize(
    ("typed", "value"), [("env.num_env", "3"), ("agent.gama", "0.9"), ("task_", "teacher")]
)
def test_a_mistyped_key(said, command, typed, value):
    text = said(command, f"{typed}={value}")
    (key,) = re.findall(r"did you mean ([a-z_.]+)\?", text)
    assert main(["config", f"{key}={value}"]) == 0


def test_a_preset_that_there_is_not(said):
    names = said("config", "size=huge").partition("there are ")[2].split(", ")
    for name in names:
        assert main(["config", f"size={name}"]) == 0


def test_a_word_that_is_not_one_of_several(said):
    names = said("config", "agent.algorithm.schedule=linear").partition("expected ")[2].split(", ")
    for name in names:
        assert main(["config", f"agent.algorithm.schedule={name}"]) == 0


def test_a_value_that_has_to_be_quoted(said, capfd):
    text = said("config", "run.name=a=b")
    (example,) = re.findall(r"key=('.*')$", text)
    assert main(["config", f"run.name={shlex.split(example)[0]}"]) == 0
    assert "name: a=b" in capfd.readouterr().out


def test_several_values(said, monkeypatch):
    text = said("config", "seed=1,2")
    (command,) = re.findall(r"`python -m krabby_trainer (.*?)`", text)
    swept = []
    stand_in = types.SimpleNamespace(sweep=lambda typed: swept.append(list(typed)) or 0)
    monkeypatch.setitem(sys.modules, "krabby_trainer.run.sweep", stand_in)
    assert main(shlex.split(command)) == 0
    assert swept == [["seed=1,2"]]


def test_a_damaged_checkpoint(world, said):
    train("agent.max_iterations=2", "run.dir=r")
    (first, second) = checkpoints.find_checkpoints(Path("r"))
    second.write_bytes(second.read_bytes()[:-500])
    text = said("train", f"run.resume={second}", status=1)
    named = text.partition("the newest intact one is ")[2]
    assert named == str(first)
    assert main(["train", f"run.resume={named}"]) == 0


def test_another_task_than_the_checkpoints(world, said):
    train("agent.max_iterations=1", "run.dir=r")
    text = said("train", "run.resume=r", "task=student")
    assert "leave out run.resume for a new run" in text
    text = said("train", "task=student")  # the next message asks for what is still missing
    assert "give run.init=PATH" in text
    text = said("train", "task=student", "run.init=r", *SMALL, status=1)
    assert "needs a distilled student or a fine-tuned student's" in text


def test_a_folder_in_which_another_trainer_works(world, said):
    Path("r").mkdir()
    with Path("r/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = said("train", *SMALL, "run.dir=r", "agent.max_iterations=1")
        assert "choose another run.dir" in text
        assert train("run.dir=s", "agent.max_iterations=1") == 0
    assert train("run.dir=r", "agent.max_iterations=1") == 0


@pytest.mark.parametrize(
    ("typed", "follow"),
    [
        ("agent.algorithm.learning_rate_max=5e-4", "agent.algorithm.learning_rate=5e-4"),
        ("agent.algorithm.learning_rate=2e-3", "agent.algorithm.learning_rate_max=2e-3"),
        ("env.physics.step_s=0.0025", "env.physics.decimation=4"),
        ("env.num_envs=1", "agent.algorithm.num_mini_batches=1"),
    ],
)
def test_keys_that_go_together(said, typed, follow):
    more = ["agent.num_steps_per_env=2"] if "num_envs" in typed else []
    text = said("config", typed, *more)
    assert follow.partition("=")[0].rpartition(".")[2] in text
    assert main(["config", typed, *more, follow]) == 0


def test_memory_that_ran_out(said, monkeypatch):
    """What is to be lowered is a key of a run."""
    from krabby_trainer.run import cli

    def run(_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 5 bytes")

    with monkeypatch.context() as patched:
        patched.setitem(cli._COMMANDS, "info", (run, None, "", ""))
        text = said("info", status=1)
    (key,) = re.findall(r"lower ([a-z_.]+)", text)
    assert main(["config", f"{key}=64"]) == 0


def test_environment_that_is_missing_names_a_target_of_the_makefile(said, monkeypatch):
    from krabby_trainer.run import cli

    with monkeypatch.context() as patched:
        patched.setattr(cli.importlib.util, "find_spec", lambda name: None)
        text = said("train")
    makefile = (Path(__file__).parents[4] / "Makefile").read_text()
    targets = re.findall(r"`make ([a-z-]+)", text)
    assert targets
    for target in targets:
        assert f"\n{target}:" in makefile
