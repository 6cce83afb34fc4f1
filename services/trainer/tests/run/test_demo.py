"""The demonstration finds the first checkpoint that walks, with few evaluations."""

import sys
from pathlib import Path

import pytest
from krabby_trainer.errors import TrainerError
from krabby_trainer.run import checkpoints, demo
from krabby_trainer.run.cli import main

PATHS = [Path(checkpoints.checkpoint_name(i)) for i in range(10)]


@pytest.mark.parametrize("first", range(10))
def test_the_first_good_checkpoint_is_found_by_halving(first):
    asked = []

    def is_good(path):
        asked.append(path)
        return PATHS.index(path) >= first

    assert demo.first_good(PATHS, is_good) == PATHS[first]
    assert len(asked) <= 4


TRAINING = """
import pathlib, signal, sys, time
from krabby_trainer.run import checkpoints
folder = pathlib.Path(sys.argv[1]) / "checkpoints"
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
payload = dict.fromkeys(checkpoints.KEYS) | {"kind": "teacher", "format": checkpoints.FORMAT}
for i in range(int(sys.argv[2])):
    payload |= {"iteration": i, "wall_s": 60.0 * i, "env_steps": 1000 * i}
    checkpoints.save(folder / checkpoints.checkpoint_name(i), payload)
    if i == int(sys.argv[3]):
        while not stopped:
            time.sleep(0.01)
        break
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A demonstration with a training that writes checkpoints and waits after number `waits`."""

    def started(mxds, *, count=8, waits=7, code=TRAINING):
        walked = []

        def evaluate(*, policy, **_):
            walked.append(policy)
            return {"total": {"mxd": mxds[policy]}}

        popen = demo.subprocess.Popen

        def process(argv, **settings):
            return popen(
                [sys.executable, "-c", code, str(tmp_path), str(count), str(waits)], **settings
            )

        monkeypatch.setattr(demo, "evaluate", evaluate)
        monkeypatch.setattr(demo, "load_subject", lambda path, *_: (int(path.stem[-6:]), {}))
        monkeypatch.setattr(demo.subprocess, "Popen", process)
        settings = {"seed": 3, "num_envs": 8, "max_minutes": 1.0, "robots": 0, "device": "cpu"}
        return demo.demo(tmp_path, mxd=0.95, **settings), walked

    return started


def test_training_stops_when_it_is_reached_and_older_checkpoints_are_searched(run):
    report, walked = run([0.1, 0.2, 0.5, 0.8, 0.96, 0.97, 0.98, 0.99])
    assert report["reached"]
    assert report["checkpoint"].endswith("iteration_000004.pt")
    assert (report["mxd"], report["env_steps"], report["minutes_of_training"]) == (0.96, 4000, 4.0)
    assert len(walked) == len(set(walked)), "one was measured twice"


def test_training_that_ends_before_names_its_best_checkpoint(run):
    report, _ = run([0.1, 0.2, 0.5, 0.6], count=4, waits=-1)
    assert report["reached"] is False
    assert report["mxd"] <= 0.6


def test_training_that_fails_is_an_error(run):
    with pytest.raises(TrainerError, match="ended with status 3"):
        run([], code="raise SystemExit(3)")


def test_an_old_run_is_not_written_over(tmp_path, capsys):
    assert main(["demo", f"out={tmp_path}"]) == 2
    assert "exists; name a new folder" in capsys.readouterr().err
