"""`python -m krabby_trainer train` from the command line to the summary, in a tiny world."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from krabby_trainer.errors import ConfigError
from krabby_trainer.run import checkpoints
from krabby_trainer.run.cli import main
from krabby_trainer.run.config import compose
from krabby_trainer.run.training import plan_run, resolve_device

SMALL = [
    "agent.num_steps_per_env=4",
    "agent.actor.hidden_dims=[16]",
    "agent.critic.hidden_dims=[16]",
    "agent.algorithm.num_learning_epochs=1",
    "device=cpu",
]


@pytest.fixture
def world(fake_env, monkeypatch, tmp_path):
    """Puts the tiny world in the simulator's place; returns what was asked of it."""
    made = []

    def make_env(cfg, *, device, seed):
        os.write(1, b"a table of forty lines\n")
        os.write(2, b"a warning from a library\n")
        made.append((cfg, device, seed, fake_env()))
        return made[-1][-1]

    monkeypatch.setitem(
        sys.modules, "krabby_trainer.task.isaac", types.SimpleNamespace(make_env=make_env)
    )
    monkeypatch.setattr("krabby_trainer.run.training._LINGER_S", 0.0)
    monkeypatch.chdir(tmp_path)
    return made


def train(*overrides):
    return main(["train", *SMALL, *overrides])


def last_line(capfd):
    out, err = capfd.readouterr()
    return json.loads(out.splitlines()[-1]), out, err


def test_run_leaves_all_that_is_promised(world, capfd):
    assert train("agent.max_iterations=3", "run.name=first", "seed=5") == 0
    summary, out, err = last_line(capfd)
    folder = Path(summary["run"])
    assert folder.parent == Path("runs/train")
    assert folder.name.endswith("-first")
    there = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "provenance.json", "log.jsonl", "checkpoints", "output.log"} <= there
    assert any(name.startswith("events.out.tfevents") for name in there)
    assert {path.name for path in Path().iterdir()} == {"runs"}

    assert summary["stopped_by"] == "max_iterations"
    assert summary["iterations"] == 3
    assert summary["env_steps"] == 3 * 4 * 4
    read = checkpoints.load(Path(summary["checkpoint"]))
    assert read["config"]["seed"] == 5
    facts = json.loads((folder / "provenance.json").read_text())
    assert {"revision", "dirty", "python", "packages", "gpu", "device"} <= facts.keys()
    assert facts["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert read["provenance"] == facts
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert "Loss/value" in lines[0]
    assert out.count("\n") == 1
    assert "forty lines" not in err
    assert "warning from a library" not in err
    assert "forty lines" in (folder / "output.log").read_text()
    ((_, device, seed, env),) = world
    assert (device, seed) == ("cpu", 5)
    assert env.closed


def test_auto_goes_on_in_the_same_folder_with_the_same_configuration(world, capfd):
    train("agent.max_iterations=2", "seed=5", "run.checkpoint_minutes=0")
    first, _, _ = last_line(capfd)
    assert main(["train", "run.resume=auto", "agent.max_iterations=4"]) == 0
    second, _, err = last_line(capfd)
    assert second["run"] == first["run"]
    assert second["iterations"] == 4
    assert "going on from" in err
    assert world[1][2] == 5
    lines = (Path(first["run"]) / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3, 4]


def test_auto_skips_a_damaged_checkpoint(world, capfd):
    train("agent.max_iterations=2", "run.checkpoint_minutes=0")
    first, _, _ = last_line(capfd)
    Path(first["checkpoint"]).write_bytes(b"half a file")
    assert main(["train", "run.resume=auto", "agent.max_iterations=3"]) == 0
    second, _, err = last_line(capfd)
    assert "iteration_000001.pt" in err
    assert second["iterations"] == 3


def test_weights_begin_a_run_and_no_run_goes_on_from_them(world, capfd):
    train("agent.max_iterations=2", "run.dir=r")
    assert main(["weights", "checkpoint=r"]) == 2
    assert "out: give the file to write" in capfd.readouterr().err
    assert main(["weights", "checkpoint=r", "out=slim.pt"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["bytes"] < told["bytes_of_checkpoint"]
    assert main(["train", "run.resume=slim.pt", "agent.max_iterations=4"]) == 1
    assert "begin a new run with them: run.init=slim.pt" in capfd.readouterr().err
    assert len(world) == 1  # no simulator was started for that
    assert train("run.init=slim.pt", "agent.max_iterations=1", "run.dir=s") == 0
    assert last_line(capfd)[0]["iterations"] == 1


def test_auto_without_a_run_begins_one(world, capfd):
    assert train("run.resume=auto", "run.dir=here", "agent.max_iterations=1") == 0
    assert last_line(capfd)[0]["run"] == "here"


def test_earlier_checkpoint_goes_on_and_later_ones_are_set_aside(world, capfd):
    train("agent.max_iterations=4", "run.checkpoint_minutes=0", "run.keep=9", "run.dir=r")
    capfd.readouterr()
    path = f"r/checkpoints/{checkpoints.checkpoint_name(2)}"
    assert main(["train", f"run.resume={path}", "agent.max_iterations=3"]) == 0
    names = [each.name for each in checkpoints.find_checkpoints(Path("r"))]
    assert names == [checkpoints.checkpoint_name(n) for n in (1, 2, 3)]
    assert (Path("r/checkpoints/set-aside") / checkpoints.checkpoint_name(4)).exists()


@pytest.mark.parametrize(
    ("typed", "status", "says"),
    [
        (["env.num_env=4"], 2, "did you mean env.num_envs?"),
        (["run.resume=nowhere.pt"], 1, "no checkpoint nowhere.pt"),
        (["device=cuda:7"], 2, "device=cuda:7, but torch sees"),
        (["run.root=/proc/nowhere"], 2, "cannot write into"),
    ],
)
def test_what_cannot_be_done_is_one_line(world, capfd, typed, status, says):
    assert train(*typed) == status
    out, err = capfd.readouterr()
    assert says in err
    assert err.startswith("trainer train: ")
    assert err.count("\n") == 1
    assert not out


def test_folder_of_another_run_is_not_written_into(world, capfd):
    train("agent.max_iterations=1", "run.dir=r")
    assert train("agent.max_iterations=1", "run.dir=r") == 2
    assert "add run.resume=auto" in capfd.readouterr().err


def test_finished_run_says_what_would_go_on(world, capfd):
    train("agent.max_iterations=1", "run.dir=r")
    assert main(["train", "run.resume=r"]) == 2
    assert "give more, for example agent.max_iterations=2" in capfd.readouterr().err
    assert main(["train", "run.resume=auto", "run.dir=r"]) == 0
    out, err = capfd.readouterr()
    assert "nothing left to do" in err
    assert not out
    assert len(world) == 1


def test_two_trainers_do_not_share_a_folder(world, capfd, monkeypatch):
    from krabby_trainer.run.training import _own

    with (
        _own(Path("r")),
        pytest.raises(ConfigError, match="another trainer is at work"),
        _own(Path("r")),
    ):
        pass


def test_damaged_checkpoint_asked_for_by_name_is_refused(world, capfd):
    train("agent.max_iterations=2", "run.checkpoint_minutes=0", "run.dir=r")
    path = Path("r/checkpoints") / checkpoints.checkpoint_name(2)
    path.write_bytes(path.read_bytes()[:-9])
    capfd.readouterr()
    assert main(["train", f"run.resume={path}"]) == 1
    assert checkpoints.checkpoint_name(1) in capfd.readouterr().err


def test_ctrl_c_ends_with_a_checkpoint_and_130(world, capfd, monkeypatch):
    from krabby_trainer.run.telemetry import JsonLines

    write = JsonLines.write

    def interrupt(self, iteration):
        write(self, iteration)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JsonLines, "write", interrupt)
    assert train("agent.max_iterations=50") == 130
    summary, _, _ = last_line(capfd)
    assert summary["stopped_by"] == "SIGINT"
    assert summary["iterations"] == 1
    assert Path(summary["checkpoint"]).exists()


def test_metrics_are_served_while_it_trains(world, capfd, monkeypatch):
    from krabby_trainer.run import metrics

    pages = []
    write = metrics.Exposition.write

    def look(self, iteration):
        write(self, iteration)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            pages.append(answer.read().decode())

    monkeypatch.setattr(metrics.Exposition, "write", look)
    assert train("agent.max_iterations=2", f"run.metrics_port={free_port()}") == 0
    for line in (
        "krabby_training_iteration 2.0",
        "krabby_training_iterations 2.0",
        "krabby_training_env_steps_total 16.0",
        'krabby_training_level{type="mean"}',
        'krabby_training_loss{term="value"}',
        "krabby_training_kl ",
        "krabby_training_not_finite 0.0",
    ):
        assert line in pages[-1]


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_devices():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="torch sees"):
        resolve_device("cuda:63")


def test_plan_names_the_folder_after_date_and_name(tmp_path):
    from datetime import datetime

    plan = plan_run([f"run.root={tmp_path}", "run.name=x"], now=datetime(2026, 5, 4, 3, 2, 1))
    assert plan.folder == tmp_path / "20260504-030201-x"
    assert plan.checkpoint is None
    assert compose([]).run.dir == ""
