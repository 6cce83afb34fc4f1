"""Which interpreter runs sim-hal on Isaac Lab, and what is said where there is none."""

import argparse
import stat
import sys

import pytest
from krabby_cli import isaac_python as module
from krabby_cli.__main__ import main
from krabby_cli.errors import UsageError
from krabby_cli.isaac_python import ISAAC_PYTHON_ENV, isaac_python
from krabby_cli.plan import make_plan
from krabby_cli.up import add_parser


def plan_of(*argv):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = ["--base-port", "0", "--no-view", "--no-black-box", "--course", "flat"]
    return make_plan(parser.parse_args(["up", *options, *argv]))


@pytest.fixture
def has_all(tmp_path, monkeypatch):
    """An interpreter that finds every module it is asked for."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(ISAAC_PYTHON_ENV, str(python))
    return str(python)


def test_sim_hal_alone_runs_in_the_trainers_environment(has_all):
    plan = plan_of("--backend", "isaaclab")
    pythons = {child.name: child.argv[0] for child in plan.children}
    assert pythons == {"sim-hal": has_all, "camera": sys.executable, "gameloop": sys.executable}
    sim = plan.children[0]
    assert sim.argv[1:4] == ("-P", "-m", "krabby_sim_hal")
    assert 'backend="isaaclab"' in sim.argv
    assert sim.memory_bytes == 16 << 30
    assert plan.start_timeout_s == 600.0
    assert plan_of("--backend", "isaaclab", "--start-timeout", "30").start_timeout_s == 30.0


def test_mujoco_runs_here_and_needs_no_other_environment(monkeypatch):
    monkeypatch.setenv(ISAAC_PYTHON_ENV, "/nowhere/python")
    plan = plan_of()
    assert {child.argv[0] for child in plan.children} == {sys.executable}
    assert 'backend="mujoco"' in plan.children[0].argv
    assert plan.start_timeout_s == 60.0


def test_a_missing_environment_is_named_with_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.delenv(ISAAC_PYTHON_ENV, raising=False)
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path / ".venv"))
    expected = rf"no {tmp_path}/\.venv-train/bin/python; run make train-setup .*{ISAAC_PYTHON_ENV}"
    with pytest.raises(UsageError, match=expected):
        isaac_python()
    monkeypatch.setenv(ISAAC_PYTHON_ENV, "/nowhere/python")
    with pytest.raises(UsageError, match=r"no KRABBY_ISAAC_PYTHON=/nowhere/python; run make"):
        isaac_python()


def test_an_environment_that_lacks_something_is_named_with_what(monkeypatch):
    monkeypatch.setattr(module, "_TRY", module._TRY.replace("isaaclab", "no_such_module"))
    monkeypatch.setenv(ISAAC_PYTHON_ENV, sys.executable)
    with pytest.raises(UsageError, match=r"lacks no_such_module.*; run make train-setup"):
        isaac_python()


def test_a_file_that_is_no_interpreter_is_named(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("not a program")
    python.chmod(0o755)
    monkeypatch.setenv(ISAAC_PYTHON_ENV, str(python))
    with pytest.raises(UsageError, match=r"does not run .*; run make train-setup"):
        isaac_python()


def test_the_command_line_refuses_with_status_2(monkeypatch, capsys):
    monkeypatch.setenv(ISAAC_PYTHON_ENV, "/nowhere/python")
    assert main(["up", "--base-port", "0", "--backend", "isaaclab"]) == 2
    assert "make train-setup" in capsys.readouterr().err


def test_threads_of_one_process_cannot_have_it(has_all):
    with pytest.raises(UsageError, match="--backend isaaclab needs separate processes"):
        plan_of("--backend", "isaaclab", "--in-process", "--speed", "0")
