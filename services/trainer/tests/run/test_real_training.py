"""The whole way in Isaac Lab on the processor: train, killed, resume, export, evaluate.

Each step is a command in a separate process: there is one simulator per process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from krabby_trainer import snapshot
from krabby_trainer.run import checkpoints

pytestmark = pytest.mark.isaac

TINY = [
    "size=small",
    "env.num_envs=8",
    "env.terrain.levels=2",
    "agent.num_steps_per_env=24",
    "device=cpu",
    "seed=3",
]


def trainer(*argv, timeout=400):
    done = subprocess.run(
        [sys.executable, "-m", "krabby_trainer", *argv],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """A run killed after its second iteration and resumed: summary, where it was, output."""
    folder = tmp_path_factory.mktemp("train") / "run"
    begun = subprocess.Popen(
        [
            *(sys.executable, "-m", "krabby_trainer", "train", *TINY),
            *(f"run.dir={folder}", "run.checkpoint_minutes=0", "agent.max_iterations=500"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=(folder.parent / "killed.log").open("w"),
    )
    second = folder / "checkpoints" / "iteration_000002.pt"
    deadline = time.monotonic() + 300
    try:
        while not second.exists():
            assert begun.poll() is None, (folder.parent / "killed.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        begun.send_signal(signal.SIGKILL)
    assert begun.wait() == -signal.SIGKILL
    reached = max(
        json.loads(line)["iteration"]
        for line in (folder / "log.jsonl").read_text().splitlines()
        if line.endswith("}")
    )
    done = trainer("train", f"run.resume={folder}", f"agent.max_iterations={reached + 3}")
    return json.loads(done.stdout.splitlines()[-1]), reached, done


def test_killed_run_goes_on(killed_and_resumed):
    summary, reached, done = killed_and_resumed
    assert "going on from" in done.stderr
    assert summary["iterations"] == reached + 3
    assert summary["env_steps"] == (reached + 3) * 24 * 8
    assert summary["torque_rms_nm"] > 1.0
    assert done.stdout.count("\n") == 1
    lines = (Path(summary["run"]) / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(1, reached + 4))


def test_trained_policy_is_exported_and_walks_in_both_physics(killed_and_resumed, tmp_path):
    summary, _, _ = killed_and_resumed
    run = f"checkpoint={summary['run']}"
    trainer("export", run, "name=tiny", f"out={tmp_path / 'tiny'}")
    assert {"policy.onnx", "manifest.json"} <= {path.name for path in (tmp_path / "tiny").iterdir()}
    for backend in ("isaac", "mujoco"):
        done = trainer("eval", run, "suite=smoke", f"backend={backend}", "device=cpu")
        report = json.loads(done.stdout)
        assert report["robots"] == 8
        assert 0.0 <= report["total"]["mxd"] <= 1.0
        assert Path(report["report"]).exists()
    played = trainer("play", run, "robots=2", "seconds=0.2", "view=false", "device=cpu")
    assert json.loads(played.stdout)["robots"] == 2


@pytest.mark.timeout(600)
def test_a_student_is_distilled_goes_on_and_is_evaluated_as_deployed(killed_and_resumed, tmp_path):
    """From a teacher's checkpoint to a student's bundle, cameras in the loop."""
    summary, _, _ = killed_and_resumed
    distilled = tmp_path / "distilled"
    begin = ("train", "task=distill", *TINY, "agent.distillation.num_mini_batches=2")
    teacher = f"run.init={summary['run']}"
    trainer(*begin, teacher, f"run.dir={distilled}", "agent.max_iterations=2")
    last = json.loads((distilled / "log.jsonl").read_text().splitlines()[-1])
    assert last["Loss/action"] > 0.0
    student = tmp_path / "student"
    trainer(
        *("train", "task=student", *TINY, "agent.algorithm.num_mini_batches=2"),
        *(f"run.init={distilled}", f"run.dir={student}", "agent.max_iterations=1"),
    )
    trainer("export", f"checkpoint={student}", "name=tiny", f"out={tmp_path / 'tiny'}")
    assert {"policy.onnx", "depth_encoder.onnx"} <= {p.name for p in (tmp_path / "tiny").iterdir()}
    done = trainer(
        *("eval", f"checkpoint={student}", "suite=smoke", "backend=isaac"),
        *("conditions=deployable", "device=cpu"),
    )
    report = json.loads(done.stdout)
    assert report["robots"] == 8
    assert "deployable" in Path(report["report"]).read_text()


_TWENTY_STEPS = """
import hashlib, sys
import torch
torch.use_deterministic_algorithms(True)
from krabby_trainer.run.config import compose
from krabby_trainer.run.runner import seed_everything
from krabby_trainer.task.isaac import make_env
cfg = compose(sys.argv[1:])
env = make_env(cfg.env, device="cpu", seed=seed_everything(cfg.seed))
digest = hashlib.sha256()
for _ in range(20):
    obs, rewards, dones, _ = env.step(0.5 * torch.randn(env.num_envs, env.num_actions))
    for group in sorted(obs.keys()):
        digest.update(obs[group].numpy().tobytes())
    digest.update(rewards.numpy().tobytes() + dones.numpy().tobytes())
print(digest.hexdigest())
"""


def test_same_seed_is_the_same_twenty_steps():
    hashes = [
        subprocess.run(
            [sys.executable, "-c", _TWENTY_STEPS, *TINY[:-1], f"seed={seed}"],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        ).stdout.split()[-1]
        for seed in (3, 3, 4)
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


_CONTINUED = {
    "teacher": ["commands=everywhere", "stops=taught", "env.terrain.shares=[1,1,1,1,1,1]"],
    "distill": ["task=distill", "agent.distillation.num_mini_batches=2"],
    "distill in MuJoCo": [
        *("task=distill", "agent.distillation.num_mini_batches=2", "env.physics.backend=mujoco"),
        "env.physics.processes=2",
    ],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", _CONTINUED)
def test_a_resumed_run_is_bit_for_bit_the_run_that_never_stopped(task, tmp_path):
    """On the processor: networks, optimisers, levels and every robot's episode."""
    given = [*TINY, *_CONTINUED[task], "run.checkpoint_minutes=0"]
    if task != "teacher":
        given.append("run.init=assets/policies/teacher/training/checkpoint.pt")
    trainer("train", *given, f"run.dir={tmp_path / 'whole'}", "agent.max_iterations=3")
    first = tmp_path / "whole" / "checkpoints" / "iteration_000001.pt"
    parts = tmp_path / "parts" / "checkpoints"
    parts.mkdir(parents=True)
    for path in (first, first.with_name(first.name + ".sha256")):
        shutil.copy(path, parts)
    trainer("train", f"run.resume={tmp_path / 'parts'}")
    whole, resumed = (
        checkpoints.load(folder / "checkpoints" / "iteration_000003.pt")
        for folder in (tmp_path / "whole", tmp_path / "parts")
    )
    compared = 0
    for key in ("algorithm", "environment", "rollouts", "random"):
        theirs, ours = snapshot.tensors(whole[key]), snapshot.tensors(resumed[key])
        assert theirs.keys() == ours.keys()
        for path, value in theirs.items():
            assert torch.equal(value, ours[path]), (key, path)
        compared += len(theirs)
    assert compared > 100
