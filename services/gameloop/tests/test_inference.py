"""Policies on another backend: moved before the loop begins, swapped without building."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import msgspec
import numpy as np
import pytest
from krabby.policy.tensorrt import backend as inference
from krabby.policy.tensorrt.config import InferenceCfg
from krabby.policy.tensorrt.testing import FAKE, orders
from krabby.runtime.app import Runtime
from krabby.runtime.testing import free_port, running, until
from krabby_gameloop.service import Gameloop
from krabby_proto import ControlClient, make_hello
from krabby_proto.testing import FakeHal


@pytest.fixture
def on_fake_gpu(tmp_path, monkeypatch, cfg):
    """A configuration that asks for TensorRT, and a fake one."""
    monkeypatch.setattr(inference, "engine_platform", lambda cfg: FAKE)

    def make(**keys):
        table = {"backend": "tensorrt", "cache_dir": str(tmp_path / "engines"), "budget_s": 1.0}
        return msgspec.structs.replace(cfg, metrics_port=0, inference=InferenceCfg(**table | keys))

    with orders(tmp_path / "orders.json"):
        yield make


def targets(loop, desc):
    loop.controller.policies.start(desc.default_joint_pos, 0)
    runner = loop.controller.policies.chosen
    return runner.policy.step(np.zeros((1, runner.bundle.observation.size), np.float32))


def test_by_default_policies_stay_on_onnx_runtime(cfg):
    loop = Gameloop(cfg)
    networks = [runner.network for runner in loop.controller.policies.runners]
    loop.prepare(Runtime("gameloop"))
    assert [runner.network for runner in loop.controller.policies.runners] == networks
    assert {network.backend for network in networks} == {"onnxruntime"}


def test_the_chosen_and_the_blind_policy_move_to_the_gpu_and_walk_alike(on_fake_gpu, cfg, desc):
    plain, moved = Gameloop(cfg), Gameloop(on_fake_gpu())
    moved.prepare(Runtime("gameloop"))
    backends = [runner.network.backend for runner in moved.controller.policies.runners]
    assert backends == ["tensorrt", "tensorrt"]
    assert targets(moved, desc).tolist() == targets(plain, desc).tolist()


def test_a_swap_while_walking_takes_an_engine_that_is_there_and_builds_none(
    on_fake_gpu, policies, desc, tmp_path
):
    hello = make_hello(service="fake-hal", clock="monotonic", robot=desc.identity)
    with FakeHal(hello=hello) as hal:
        endpoints = msgspec.structs.replace(
            on_fake_gpu().endpoints,
            state=hal.endpoints["state"],
            command=hal.endpoints["command"],
            control=f"tcp://127.0.0.1:{free_port()}",
            nav=f"tcp://127.0.0.1:{free_port()}",
            features=f"tcp://127.0.0.1:{free_port()}",
        )
        loop = Gameloop(
            msgspec.structs.replace(on_fake_gpu(allow_fallback=False), endpoints=endpoints)
        )
        with running(loop), ControlClient(endpoints.control) as client:
            asked = client.request("policy", timeout_s=60.0, policy=str(policies / "other"))
            assert not asked["ok"]
            assert "python -m krabby.policy.tensorrt build other" in asked["reason"]
            asked = client.request("policy", timeout_s=60.0, policy=str(policies / "blind"))
            assert asked["ok"]
            until(lambda: loop.controller.policies.chosen.network.backend == "tensorrt")


# The process

WITH_FAKE = """
import sys
from krabby.policy.tensorrt import backend
from krabby.policy.tensorrt.testing import FAKE
backend.engine_platform = lambda cfg: FAKE
from krabby_gameloop.__main__ import main
sys.exit(main())
"""


def healthz(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as answer:
            return answer.read().decode().strip()
    except (OSError, urllib.error.HTTPError):
        return ""


def test_while_an_engine_is_built_healthz_says_so_and_sigterm_ends_it(policies, tmp_path):
    port = free_port()
    with orders(tmp_path / "orders.json", hang=True):
        process = subprocess.Popen(
            [sys.executable, "-c", WITH_FAKE, f"metrics_port={port}",
             f"policy={policies / 'blind'}", f"blind_policy={policies / 'blind'}",
             "inference.backend=tensorrt", f"inference.cache_dir={tmp_path / 'engines'}"],
            stdout=subprocess.PIPE, text=True, env=os.environ.copy(),
        )  # fmt: skip
        try:
            until(lambda: healthz(port) == "building: blind/policy 50 %")
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert "building an engine" in events
    assert events[-1] == "summary"


def test_a_gpu_that_must_be_there_and_is_not_ends_the_start_with_the_remedy(policies, tmp_path):
    with orders(tmp_path / "orders.json", no_device="no driver; install one"):
        done = subprocess.run(
            [sys.executable, "-c", WITH_FAKE, "metrics_port=0", f"policy={policies / 'blind'}",
             "blind_policy=", "inference.backend=tensorrt", "inference.allow_fallback=false"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "gameloop: no driver; install one\n"
