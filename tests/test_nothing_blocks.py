"""Real processes: SIGTERM ends each within 3 s, also when stdout is not read."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import zmq
from krabby.runtime.testing import ended_after, free_ports, until
from krabby_proto import HalClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def ports():
    names = ("state", "command", "safety", "camera", "truth", "nav", "control", "features", "raw")
    return {
        name: f"tcp://127.0.0.1:{port}"
        for name, port in zip(names, free_ports(len(names)), strict=True)
    }


@pytest.fixture
def launch(ports):
    started = []

    def start(module, names, *arguments, stdout=subprocess.PIPE):
        endpoints = [f"endpoints.{name}={ports[name]}" for name in names]
        process = subprocess.Popen(
            [sys.executable, "-m", module, "metrics_port=0", *endpoints, *arguments],
            stdout=stdout,
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


HAL = ("state", "command", "safety", "camera", "truth", "nav")
LOOP = ("state", "command", "nav", "control", "features")


def wait_for(process, event):
    for line in process.stdout:
        if json.loads(line)["event"] == event:
            return
    raise AssertionError(f"no {event!r}")


def ended_within_3_s(process):
    process.send_signal(signal.SIGTERM)
    assert ended_after(process) < 3.2  # 3 s, and the time to notice
    return process.returncode


@pytest.mark.parametrize(
    ("module", "names", "arguments", "event"),
    [
        ("krabby_gameloop", LOOP, ("policy=gait",), "waiting for the HAL"),
        ("krabby_sim_hal", HAL, ("speed=0",), "running"),
        ("krabby_camera", ("features", "camera", "state"), (), "running"),
        ("krabby_emulator", ("raw", "truth", "nav"), ("can.interface=virtual",), "running"),
    ],
)
def test_sigterm_ends_a_process_that_waits(launch, module, names, arguments, event):
    process = launch(module, names, *arguments)
    wait_for(process, event)
    assert ended_within_3_s(process) == 0


def test_a_stdout_that_is_not_read_does_not_stop_a_hal(launch, ports):
    """3000 refused requests log a line of 500 bytes each: 1.5 MB, with 1 MiB and a pipe to fit."""
    reader, writer = os.pipe()
    process = launch("krabby_sim_hal", HAL, "camera.enabled=false", stdout=writer)
    os.close(writer)
    with HalClient({name: ports[name] for name in ("state", "command", "safety")}) as hal:
        hal.hello(60.0)
        for _ in range(3000):
            hal.safety("reset", "x" * 200, timeout_s=60.0)
        until(lambda: hal.state.wait(60.0).age_s(time.monotonic_ns()) < 0.1)
    assert ended_within_3_s(process) == 0
    os.close(reader)


def test_one_message_of_many_frames_does_not_stop_a_hal(launch, ports, capsys):
    """The gap between two states stays far below the 0.2 s that 50,000 frames took to read."""
    launch("krabby_sim_hal", HAL, "camera.enabled=false", stdout=subprocess.DEVNULL)
    context = zmq.Context()
    with HalClient({name: ports[name] for name in ("state", "command", "safety")}) as hal:
        hal.hello(60.0)
        for endpoint in ("safety", "command"):
            with context.socket(zmq.DEALER) as flooder:
                flooder.linger = 0
                flooder.connect(ports[endpoint])
                flooder.send_multipart([b""] * 50_000)
                answers, stamps = 0, []
                end = time.monotonic() + 2.0
                while time.monotonic() < end:
                    state = hal.state.wait(60.0)
                    stamps.append(state.capture_ns)
                    if len(stamps) % 50 == 0:
                        answers += hal.safety("status", "test", timeout_s=60.0)["ok"]
                worst_s = max(b - a for a, b in itertools.pairwise(stamps)) * 1e-9
                with capsys.disabled():
                    sys.stdout.write(f"\n{endpoint}: worst gap between states {worst_s:.4f} s\n")
                assert answers
                assert hal.safety("estop", "test", timeout_s=60.0)["state"] == "estop"
    context.destroy(linger=0)


def test_a_loop_that_sits_down_first_ends_in_time(launch, ports):
    launch(
        "krabby_sim_hal", HAL, "camera.enabled=false", "auto_arm=true", stdout=subprocess.DEVNULL
    )
    loop = launch("krabby_gameloop", LOOP, "policy=gait", stdout=subprocess.DEVNULL)
    with HalClient({name: ports[name] for name in ("state", "safety")}) as hal:
        until(lambda: hal.safety("status", "test", timeout_s=60.0)["state"] == "active")
        time.sleep(3.0)  # it stands, or is about to
    assert ended_within_3_s(loop) == 0
