"""Sweeps: every value is checked first, every run resumes, Optuna continues where it was."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from krabby_trainer.errors import ConfigError, TrainerError
from krabby_trainer.run import sweep as sweeping
from krabby_trainer.run.runs import table
from krabby_trainer.run.sweep import result, sweep

SMALL = [
    *("agent.num_steps_per_env=4", "agent.actor.hidden_dims=[16]", "env.num_envs=4"),
    *("agent.critic.hidden_dims=[16]", "agent.algorithm.num_learning_epochs=1", "device=cpu"),
]
_WORLD = """
import sys, time, types
def make_env(cfg, *, device, seed):
    import importlib.util, os
    spec = importlib.util.spec_from_file_location("world", os.environ["WORLD"])
    world = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(world)
    class Slow(world.FakeEnv):
        def step(self, actions):
            time.sleep(float(os.environ.get("SLOW", "0")))
            return super().step(actions)
    return Slow(cfg.num_envs)
sys.modules["krabby_trainer.task.isaac"] = types.SimpleNamespace(make_env=make_env)
"""


@pytest.fixture
def command(tmp_path):
    """Starts a sweep in a process, over the tiny world in place of the simulator."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_WORLD)
    paths = [str(tmp_path / "site"), *sys.path]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "WORLD": str(Path(__file__).parents[1] / "conftest.py"),
        "OMP_NUM_THREADS": "1",
    }

    def start(*overrides, **more):
        return subprocess.Popen(
            [sys.executable, "-m", "krabby_trainer", "sweep", *SMALL, *overrides],
            cwd=tmp_path,
            env={**environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finished(process):
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["seed=1"], "nothing varies"),
        (["seed=1,-2"], "seed=-2"),
        (["env.num_env=1,2"], "did you mean env.num_envs?"),
        (["size=small,huge"], "no such preset"),
        (["env.terrain.columns=24,3"], "3 columns"),
        (["agent.algorithm.gamma=interval(0.9,0.99)"], "an interval needs sweep.trials=N"),
        (["agent.algorithm.gamma=interval(0.9,2)", "sweep.trials=3"], "gamma=2"),
        (["seed=1,2", "sweep.trials=-1"], "sweep.trials"),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_any_starts(tmp_path, monkeypatch, typed, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping, "_run_hydra", lambda _: pytest.fail("started"))
    with pytest.raises((ConfigError, ValueError)) as refused:
        sweep(typed)
    assert says in str(refused.value)
    assert not any(tmp_path.iterdir())


def test_the_result_is_the_mean_of_the_last_ten_iterations(tmp_path):
    rows = [{"iteration": i, "Level/mean": float(i), "x": None} for i in range(1, 21)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert result(tmp_path, "Level/mean") == 15.5
    assert math.isnan(result(tmp_path, "x"))


def test_runs_at_once_get_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with sweeping._gpu() as first, sweeping._gpu() as second:
        assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("4", "7")
        with pytest.raises(TrainerError, match=r"n_jobs=2"), sweeping._gpu():
            pass
    with sweeping._gpu() as again:
        assert again["CUDA_VISIBLE_DEVICES"] == "4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with sweeping._gpu() as alone:
        assert alone == {}


def test_intervals_ranges_and_choices_become_distributions():
    from hydra_plugins.krabby_optuna import _distribution
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def of(value):
        return _distribution(OverridesParser.create().parse_override(f"key={value}"))

    assert of("tag(log,interval(1e-4,1e-2))") == FloatDistribution(1e-4, 1e-2, log=True)
    assert of("interval(0,1)") == FloatDistribution(0.0, 1.0)
    assert of("range(1,9,2)") == IntDistribution(1, 7, step=2)
    assert of("[16],[32,16]") == CategoricalDistribution(["[16]", "[32,16]"])


def test_the_table_of_runs_tells_running_stopped_and_done(tmp_path):
    for name, done in (("a", 2), ("b", 5), ("c", 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text("task: teacher\nagent: {max_iterations: 5}\n")
        row = {"iteration": done, "wall_s": 61.0, "Episode/mxd": 0.951}
        (folder / "log.jsonl").write_text(json.dumps(row) + '\n{"iteration": 9')
    with (tmp_path / "c" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = table(tmp_path).splitlines()
    cells = {line.split()[0]: line.split() for line in lines[1:]}
    assert cells["a"][1:4] == ["teacher", "stopped", "2/5"]
    assert cells["b"][2:4] == ["done", "5/5"]
    assert cells["c"][2:4] == ["running", "1/5"]
    assert "0.95" in cells["a"]
    assert "0:01:01" in cells["a"]
    assert table(tmp_path / "a" / "..") != ""
    with pytest.raises(ConfigError, match="not a folder"):
        table(tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_jobs_at_once_and_an_interrupted_sweep_resumes(command, tmp_path):
    given = ("seed=1,2", "agent.max_iterations=40", "run.name=s", "run.checkpoint_minutes=0")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    process = command(*given, *launcher, SLOW="0.5")
    folder = tmp_path / "runs" / "sweeps" / "s"
    logs = [folder / name / "log.jsonl" for name in ("seed-1", "seed-2")]
    deadline = time.monotonic() + 200
    while not all(log.exists() and log.read_text().count("\n") >= 4 for log in logs):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    runs = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _trains(p, folder)]
    assert len(runs) == 2
    for number in runs:
        os.kill(number, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    # A run that logs its fourth iteration has the checkpoint of its third.
    kept = [log.read_text().splitlines()[:3] for log in logs]

    lines = finished(command(*given, *launcher)).splitlines()
    assert [line.split()[2:4] for line in lines[1:]] == [["done", "40/40"]] * 2
    for log, before in zip(logs, kept, strict=True):
        after = log.read_text().splitlines()
        assert after[:3] == before
        assert [json.loads(line)["iteration"] for line in after] == list(range(1, 41))


def _trains(process: Path, folder: Path) -> bool:
    try:
        return b"\0train\0" in (line := (process / "cmdline").read_bytes()) and (
            str(folder).encode() in line
        )
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_optuna_goes_on_with_new_draws(command, tmp_path):
    space = "agent.algorithm.learning_rate_max=tag(log,interval(1e-3,5e-3))"
    given = (space, "agent.max_iterations=1", "run.name=o")
    finished(command(*given, "sweep.trials=2", "hydra/launcher=submitit_local"))
    lines = finished(command(*given, "sweep.trials=3")).splitlines()
    assert len({line.split()[0] for line in lines[1:]}) == 3
    rates = [float(line.split()[0].rpartition("max-")[2]) for line in lines[1:]]
    assert all(1e-3 <= rate <= 5e-3 for rate in rates)


def test_a_sweep_without_a_result_says_where_to_look(tmp_path, monkeypatch):
    """The job fails in the launcher of this process: none of its trials has a value."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping.sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match=r"none of 2 trials has a result; see output\.txt"):
        sweep([*SMALL, "agent.algorithm.gamma=0.9,0.99", "sweep.trials=2"])
