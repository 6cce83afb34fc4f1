"""Two processes as torchrun starts them, without GPUs: they stay one run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from krabby_trainer.learn.gradients import GradientStep, adam
from krabby_trainer.run import checkpoints

pytestmark = pytest.mark.slow

_PROCESS = """
import importlib.util, json, os, signal, sys, types
spec = importlib.util.spec_from_file_location("world", sys.argv[1])
world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(world)
made = types.SimpleNamespace(make_env=lambda *_, **__: world.FakeEnv())
sys.modules["krabby_trainer.task.isaac"] = made
from krabby_trainer.run import cli, runner, telemetry
if os.environ.get("STOP_RANK") == os.environ["RANK"]:
    tell = runner.ParkourRunner._tell
    def stop(self, *args):
        tell(self, *args)
        if self.current_learning_iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    runner.ParkourRunner._tell = stop
learn = runner.ParkourRunner.learn
def learned(self, *args):
    learn(self, *args)
    total = sum(float(p.double().sum()) for p in self.alg.actor.parameters())
    sys.stderr.write(json.dumps({"sum": total, "level": self.env.level.tolist()}) + "\\n")
runner.ParkourRunner.learn = learned
status = cli.main(sys.argv[2:])
assert not world.torch.distributed.is_initialized(), "it ends with the others' connections open"
sys.exit(status)
"""


def together(tmp_path, *typed, **environment):
    """Train in two processes; what each wrote to standard error and output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [
        *("train", "device=cpu", "agent.num_steps_per_env=4", "agent.actor.hidden_dims=[16]"),
        *("agent.critic.hidden_dims=[16]", "agent.algorithm.num_learning_epochs=1", *typed),
    ]
    world = Path(__file__).parents[1] / "conftest.py"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(world), *argv],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **environment,
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in (0, 1)
    ]
    said = [each.communicate(timeout=200) for each in processes]
    assert [each.returncode for each in processes] == [0, 0], said
    return said


def ending(said):
    return [json.loads(err.splitlines()[-1]) for _, err in said]


def test_gradients_and_a_number_travel_in_one_message():
    """One process of two whose other one has nothing to say: half of everything is left."""
    from torch import distributed

    first, second, unused = (torch.nn.Parameter(torch.zeros(n)) for n in (2, 1, 3))
    optimizer = adam([first, second, unused], 0.1, "cpu")
    seen = []

    def loss():
        step.number.fill_(6.0)
        return (first * torch.tensor([1.0, 2.0])).sum() - 8.0 * second.sum()

    def adapt():
        seen.extend([first.grad.tolist(), second.grad.tolist(), unused.grad, step.number.item()])

    step = GradientStep(
        loss, optimizer, [[first, second, unused]], max_norm=100.0, world_size=2, adapt=adapt
    )
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        step.descend()
    finally:
        distributed.destroy_process_group()
    assert seen == [[0.5, 1.0], [-4.0], None, 3.0]
    # Adam's first step is its rate, against the sign of the gradient.
    torch.testing.assert_close(first.detach(), torch.tensor([-0.1, -0.1]))
    torch.testing.assert_close(second.detach(), torch.tensor([0.1]))
    assert unused.tolist() == [0.0, 0.0, 0.0]


def test_two_processes_learn_one_policy_and_one_of_them_writes(tmp_path):
    said = together(tmp_path, "agent.max_iterations=3", "run.dir=r")
    first, second = ending(said)
    assert first["sum"] == second["sum"]
    summary = json.loads(said[0][0])
    assert said[1][0] == ""
    assert summary["env_steps"] == 2 * 3 * 4 * 4
    payload = checkpoints.load(tmp_path / summary["checkpoint"])
    assert len(payload["ranks"]) == 1
    assert len(list((tmp_path / "r").glob("events.*"))) == 1

    resumed = together(tmp_path, "agent.max_iterations=5", "run.resume=auto", "run.dir=r")
    whole = together(tmp_path, "agent.max_iterations=5", "run.dir=whole")
    assert ending(resumed) == ending(whole)


@pytest.mark.parametrize(("desired_kl", "factor"), [(1e-9, 1 / 1.5), (1e9, 1.5)])
def test_the_learning_rate_follows_the_divergence_of_all_processes(tmp_path, desired_kl, factor):
    together(
        tmp_path,
        "agent.max_iterations=1",
        "run.dir=r",
        f"agent.algorithm.desired_kl={desired_kl}",
        "agent.algorithm.learning_rate=2e-4",
        "agent.algorithm.num_mini_batches=2",
        "agent.algorithm.num_learning_epochs=2",
    )
    (line,) = (tmp_path / "r" / "log.jsonl").read_text().splitlines()
    # Before the first of four steps nothing has diverged yet, so that three count.
    assert json.loads(line)["Policy/learning_rate"] == pytest.approx(2e-4 * factor**3)


def test_signal_to_any_process_stops_all_of_them_together(tmp_path):
    said = together(tmp_path, "agent.max_iterations=50", "run.dir=r", STOP_RANK="1")
    summary = json.loads(said[0][0])
    assert summary["stopped_by"] == "SIGTERM"
    assert summary["iterations"] == 2


_SIMULATOR = """
import importlib.util, os, sys, types
def make_env(cfg, *, device, seed):
    spec = importlib.util.spec_from_file_location("world", os.environ["WORLD"])
    world = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(world)
    return world.FakeEnv(cfg.num_envs)
sys.modules["krabby_trainer.task.isaac"] = types.SimpleNamespace(make_env=make_env)
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_nodes_under_torchrun_train_over_tcp_and_resume(tmp_path):
    """Two of torchrun's agents, as on two machines: they meet at an address and a port."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_SIMULATOR)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)]),
        "WORLD": str(Path(__file__).parents[1] / "conftest.py"),
        "OMP_NUM_THREADS": "1",
    }

    def on_two_nodes(*typed):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
        nodes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                    *("--nproc-per-node", "1", "--node-rank", str(rank), "--rdzv-id", "test"),
                    *("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint),
                    *("--local-addr", "127.0.0.1", "-m", "krabby_trainer", "train", *typed),
                ],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in (0, 1)
        ]
        said = [node.communicate(timeout=200) for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], said
        (summary,) = [json.loads(out.splitlines()[-1]) for out, _ in said if out.strip()]
        return summary

    small = ("device=cpu", "env.num_envs=4", "agent.num_steps_per_env=4", "run.dir=r")
    tiny = ("agent.actor.hidden_dims=[16]", "agent.critic.hidden_dims=[16]")
    first = on_two_nodes(*small, *tiny, "agent.max_iterations=2")
    assert (first["iterations"], first["env_steps"]) == (2, 2 * 2 * 4 * 4)
    second = on_two_nodes(*small, "run.resume=auto", "agent.max_iterations=3")
    assert (second["iterations"], second["env_steps"]) == (3, 2 * 3 * 4 * 4)
