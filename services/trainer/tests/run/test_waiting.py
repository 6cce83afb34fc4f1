"""How often a training iteration waits for the device, in all: a list of places."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from krabby_trainer.host_reads import HostReads
from krabby_trainer.run.config import compose, rsl_rl_config, to_dict

pytestmark = pytest.mark.isaac

WAITS = {
    "learn/gradients.py": 1,  # losses
    "run/telemetry.py": 3,  # what is not finite, the log, ended episodes
    "task/broken.py": 1,  # how many robots were replaced
}
"""Host reads of one iteration by file; none of them within a step. On an H200 `HostReads` saw one
of the telemetry's less, so there they are an upper bound, as for CUDA's own count below."""
SAID = "called a synchronizing CUDA operation"
OVERRIDES = [
    *("size=small", "env.num_envs=8", "env.terrain.levels=2", "agent.num_steps_per_env=24"),
    "agent.algorithm.num_mini_batches=2",
]


@pytest.fixture(scope="module")
def runner():
    from krabby_trainer.run.runner import ParkourRunner
    from krabby_trainer.task.isaac import make_env

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    cfg = compose([*OVERRIDES, f"device={device}"])
    env = make_env(cfg.env, device=device, seed=0)
    yield ParkourRunner(
        env, rsl_rl_config(cfg), None, device, run=cfg.run, config=to_dict(cfg), provenance={}
    )
    env.close()


def iterate(runner, obs):
    obs = runner._collect(obs)
    runner._tell(9, 1.0, 1.0, runner.alg.update())
    return obs


def test_an_iteration_waits_for_the_device_at_the_listed_places_alone(runner):
    runner.alg.train_mode()
    obs = iterate(runner, runner.env.get_observations().to(runner.device))
    with HostReads() as reads:
        iterate(runner, obs)
    files: Counter[str] = Counter()
    for place, count in reads.places.items():
        files[place.partition(" at ")[2].partition(":")[0]] += count
    if torch.cuda.is_available():
        assert files
        assert not files - Counter(WAITS), reads.places
    else:
        assert files == WAITS, reads.places


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_reports_no_more_waits_than_listed(runner):
    runner.alg.train_mode()
    obs = runner.env.get_observations().to(runner.device)
    for _ in range(5):  # kernels are recorded
        obs = iterate(runner, obs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            iterate(runner, obs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in caught if SAID in str(each.message)]
    assert len(waits) <= sum(WAITS.values()), waits
