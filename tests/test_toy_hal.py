"""The example that the documentation gives for a back end: it runs, and keeps the contract."""

import importlib.util
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from krabby.hal.backend import Slot
from krabby.hal.config import HalCfg, HalEndpointsCfg
from krabby.runtime.testing import free_ports, running
from krabby.safety.gate import DriveCommand, DriveMode
from krabby_proto import STATE, CommandStatus, HalClient, unpack

EXAMPLE = Path(__file__).parents[1] / "examples" / "toy_hal.py"
SLOT = Slot(5_000_000, 5_000_000, 1, 10_000_000)
NAMES = ("state", "camera", "command", "safety")


@pytest.fixture(scope="module")
def toy_hal():
    spec = importlib.util.spec_from_file_location("toy_hal", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def endpoints():
    ports = free_ports(len(NAMES))
    return {name: f"tcp://127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=True)}


def test_a_joint_goes_63_per_cent_of_its_way_in_the_lag(toy_hal):
    toy = toy_hal.Toy()
    begin = toy.desc.default_joint_pos
    ones = np.ones(18)
    toy.write(DriveCommand(DriveMode.POSITION, begin + 0.1, ones, ones, ones), 0)
    for _ in range(10):  # 50 ms
        measured = toy.read(SLOT).measured
    assert measured.joint_pos == pytest.approx(begin + 0.1 * (1.0 - math.exp(-1.0)))
    assert measured.joint_vel == pytest.approx(0.1 * (math.exp(-0.9) - math.exp(-1.0)) / 0.005)


def test_limp_joints_stay_where_they_are(toy_hal):
    toy = toy_hal.Toy()
    toy.read(SLOT)
    assert toy.measured.joint_pos == pytest.approx(toy.desc.default_joint_pos)
    assert not toy.measured.joint_vel.any()


def test_it_passes_the_check_of_the_command_line(endpoints):
    arguments = [f"endpoints.{name}={endpoint}" for name, endpoint in endpoints.items()]
    hal = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "metrics_port=0", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with HalClient(endpoints) as client:
            assert client.hello(60.0)["service"] == "toy-hal"
        places = [f"{name}={endpoints[name]}" for name in ("state", "command", "safety")]
        check = subprocess.run(
            [sys.executable, "-m", "krabby_cli", "check-hal", "--json", *places],
            capture_output=True,
            text=True,
            timeout=60,
        )
        hal.send_signal(signal.SIGTERM)
        out, _ = hal.communicate(timeout=60)
    finally:
        hal.kill()
        hal.wait()
    results = [json.loads(line) for line in check.stdout.splitlines()]
    assert len(results) > 25, check.stderr
    # How regular the state is depends on what else this machine does.
    failed = {result["name"]: result["detail"] for result in results if not result["passed"]}
    assert failed.keys() <= {"state rate", "state age"}, failed
    assert hal.returncode == 0
    summary = json.loads(out.splitlines()[-1])
    assert summary["slots"] > 200
    assert summary["gate_faults"] == {"estop": 1}  # the check's own


def test_armed_it_follows_commands(toy_hal, endpoints):
    service = toy_hal.build(HalCfg(endpoints=HalEndpointsCfg(**endpoints)))
    with running(service), HalClient(endpoints) as client:
        client.hello(60.0)
        assert client.state.wait(60.0) is not None
        assert client.safety("arm", "test", 60.0)["ok"]
        target = service.backend.desc.default_joint_pos + 0.1
        joint_pos, answers = service.backend.desc.default_joint_pos, set()
        for _ in range(800):  # half a second of arming, a few of the joints' lags
            state = client.state.wait(60.0)
            reply = client.send_command(target, capture_ns=state.capture_ns, deadline_s=1.0)
            answers.add(CommandStatus(reply.status))
            joint_pos = unpack(STATE, state.payload)["joint_pos"]
            if np.abs(joint_pos - target).max() < 0.001:
                break
    assert answers >= {CommandStatus.NOT_ARMED, CommandStatus.APPLIED}
    assert joint_pos == pytest.approx(target, abs=0.001)
