"""The command line: one line for the person at the keyboard, and an exit status."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest
from krabby_trainer.run import checkpoints, cli
from krabby_trainer.run.config import compose, to_dict


def complaint(capsys, status, *argv):
    assert cli.main(argv) == status
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, krabby_trainer.run.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'isaaclab', 'hydra', 'numpy.linalg') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10.0
    assert "train a policy" in done.stdout
    assert "torch" not in done.stdout.splitlines()[-1]
    assert "isaaclab" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("command", ["train", "eval", "export", "play", "info", "config"])
def test_keys_are_listed_with_their_meaning(command, capsys):
    assert cli.main([command, "--keys"]) == 0
    out = capsys.readouterr().out
    assert {"train": "env.num_envs", "config": "env.num_envs"}.get(command, "checkpoint") in out
    assert ("Loaded feet on an edge." in out) == (command in ("train", "config"))


def test_other_python_is_told_how_to_get_this_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 11, 7, "final", 0))
    said = complaint(capsys, 2, "train")
    assert "Python 3.12 and this is 3.11" in said
    assert "make train-setup" in said


def test_missing_package_is_named(monkeypatch, capsys):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda name: None if name == "isaaclab" else find(name)
    )
    said = complaint(capsys, 2, "train")
    assert "isaaclab not installed here; `make train-setup`" in said


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["eval"], 2, "checkpoint=PATH"),
        (["eval", "checkpoint=x.pt", "sute=paper"], 2, "suite"),
        (["eval", "checkpoint=x.pt", "backend=bullet"], 2, "isaac or mujoco"),
        (["eval", "checkpoint=x.pt", "robots=-1"], 2, "robots"),
        (["eval", "checkpoint=x.pt", "suite=papr"], 1, "paper"),
        (["eval", "checkpoint=x.pt", "suite=wild"], 2, "mujoco for suite=wild"),
        (
            ["eval", "checkpoint=x.pt", "suite=wild", "backend=mujoco", "conditions=heavy"],
            2,
            "none of suite=wild",
        ),
        (["play", "checkpoint=x.pt", "robots=0"], 2, "at least 1"),
        (["info", "checkpoint=x.pt"], 1, "no checkpoint x.pt"),
        (["info", "checkpoint=."], 1, "no intact checkpoint in ."),
        (["export", "checkpoint=x.pt"], 1, "no checkpoint x.pt"),
        (["export", "checkpoint=x.pt", "evaluation=y.json"], 2, "not a report"),
        (["config", "env.num_env=1"], 2, "did you mean env.num_envs?"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, tmp_path, monkeypatch, argv, status, says):
    monkeypatch.chdir(tmp_path)
    said = complaint(capsys, status, *argv)
    assert says in said
    assert said.startswith(f"trainer {argv[0]}: ")


def test_config_shows_what_overrides_make(capsys):
    assert cli.main(["config", "env.num_envs=33"]) == 0
    assert "num_envs: 33" in capsys.readouterr().out


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run" / "checkpoints" / checkpoints.checkpoint_name(12)
    checkpoints.save(
        path,
        {
            "iteration": 12,
            "env_steps": 1152,
            "wall_s": 3.0,
            "algorithm": {},
            "environment": None,
            "random": checkpoints.random_state(),
            "config": to_dict(compose(["seed=7"])),
            "provenance": {"revision": "abc"},
        },
    )
    return path


def test_info_of_a_run(capsys, checkpoint):
    assert cli.main(["info", f"checkpoint={checkpoint.parent.parent}"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["checkpoint"] == str(checkpoint)
    assert facts["iteration"] == 12
    assert facts["config"]["seed"] == 7
    assert facts["provenance"] == {"revision": "abc"}


def test_info_of_this_machine(capsys):
    assert cli.main(["info"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["python"].startswith("3.12")
    assert facts["packages"]["rsl-rl-lib"]


def test_evaluation_gets_what_was_typed(capsys, checkpoint, monkeypatch):
    asked = {}

    def evaluate(**kwargs):
        asked.update(kwargs)
        return {"suite": "fixed", "total": {"mxd": 0.5}, "robot": list(range(9999))}

    def load(*given):
        asked["subject"] = given
        return None, {}

    monkeypatch.setattr("krabby_trainer.evaluation.evaluate", evaluate)
    monkeypatch.setattr("krabby_trainer.run.policies.load_subject", load)
    argv = [f"checkpoint={checkpoint.parent.parent}", "suite=fixed", "robots=8", "device=cpu"]
    assert cli.main(["eval", "backend=mujoco", *argv]) == 0
    assert asked["subject"] == (checkpoint, "mujoco", "cpu")
    assert asked["out"] == checkpoint.parent.parent / "evaluation" / "fixed-mujoco"
    assert (asked["robots"], asked["seconds"], asked["seed"], asked["backend"]) == (
        8,
        0.0,
        1,
        "mujoco",
    )
    out = capsys.readouterr().out
    assert json.loads(out)["total"] == {"mxd": 0.5}
    assert len(out) < 1000


def test_export_gets_what_was_typed(capsys, checkpoint, monkeypatch, tmp_path):
    asked = []
    stand_in = types.SimpleNamespace(
        export_bundle=lambda *args, **kwargs: asked.append((args, kwargs))
    )
    monkeypatch.setitem(sys.modules, "krabby_trainer.run.export", stand_in)
    report = tmp_path / "report.json"
    figures = {"suite": "paper", "backend": "isaac", "robots": 8, "seconds": 2.0}
    report.write_text(json.dumps({**figures, "total": {"mxd": 1}, "mean": {}, "robot": []}))
    argv = [f"checkpoint={checkpoint}", "name=first", f"evaluation={report}"]
    assert cli.main(["export", *argv]) == 0
    told = capsys.readouterr()
    assert "up to a minute" in told.err  # it is silent meanwhile
    ((path, out), options) = asked[0]
    assert path == checkpoint
    assert out == Path("assets/policies/first")
    assert options["evaluation"] == {**figures, "total": {"mxd": 1}, "mean": {}}
    assert json.loads(told.out)["bundle"] == str(out)


def test_memory_that_ran_out_says_what_to_lower(capsys, monkeypatch):
    class OutOfMemoryError(RuntimeError): ...

    def run(_):
        raise OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setitem(cli._COMMANDS, "info", (run, None, "", ""))
    assert "lower env.num_envs" in complaint(capsys, 1, "info")
