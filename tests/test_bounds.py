"""`krabby up` with a service that is stuck, frozen or out of memory: damped, back within 3 s."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from krabby.runtime.testing import lateness, log_events, slowdown, until, worst_lateness
from krabby_proto import HalClient
from krabby_proto.recording import Recording

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SABOTAGE = Path(__file__).parents[1] / "tools" / "krabby_faults" / "sabotage"
"""Signals that make a process fail."""
SAFE_S = 0.15
BACK_S = 3.0
"""Or as long as the first start took, where the machine is so busy that this took longer."""
LATE_S = 0.1
"""What a busy machine may add to a time that two processes measure."""


class Run:
    """A `krabby up` without a camera, its log and the states it publishes."""

    def __init__(self, folder):
        self._folder = folder / "runs"
        self._began_s = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "krabby_cli", "up", "--base-port", "0", "--no-view",
             "--no-camera", "--policy", "gait", "--course", "flat",
             "--runs-dir", str(self._folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SABOTAGE)},
        )  # fmt: skip

    def wait_for_start(self):
        until(lambda: self.times("gameloop", "running") and self.times("sim-hal", "running"))
        self.first_start_s = time.monotonic() - self._began_s

    def endpoint(self, stream):
        (record,) = self._folder.glob("*/run.json")
        return json.loads(record.read_text())["endpoints"][stream]

    def events(self, name):
        return [each for path in self._folder.glob(f"*/{name}.log") for each in log_events(path)]

    def times(self, name, event, **facts):
        """When a service logged it [s, CLOCK_MONOTONIC]."""
        return [
            each["mono_ns"] * 1e-9
            for each in self.events(name)
            if each["event"] == event and facts.items() <= each.items()
        ]

    def last_words(self, name):
        """What a process logged that ended by itself."""
        ends = ("crashed", "loop stuck, process ended")
        return [each for each in self.events(name) if each["event"] in ends]

    def pid(self, name):
        return [each["pid"] for each in self.events(name) if each["event"] == "starting"][-1]

    def walks(self):
        modes = [e["now"] for e in self.events("gameloop") if e["event"] == "mode"]
        return modes[-1:] == ["policy"]

    def signal(self, name, number):
        os.kill(self.pid(name), number)
        return time.monotonic()

    def end(self):
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        return json.loads(out.splitlines()[-1]), err


@pytest.fixture
def walking(tmp_path):
    run = Run(tmp_path)
    try:
        run.wait_for_start()
        until(run.walks)
        yield run
    finally:
        if run.process.poll() is None:
            run.end()


def damped_after(run, began_s):
    """Time from `began_s` to the gate's first DAMP that the safety socket shows [s].

    Less three times what the worst sleep of this process was late meanwhile, on a busy machine.
    """
    with worst_lateness() as late_s, HalClient({"safety": run.endpoint("safety")}) as hal:
        until(lambda: hal.safety("status", "test", timeout_s=60.0)["state"] == "damp")
        return time.monotonic() - began_s - 3 * late_s()


def back_after(run, name, gone_s):
    """Time from the end of the process to the next one's loop [s]; then the robot walks again."""
    until(lambda: run.times(name, "running")[-1] > gone_s)
    running_s = run.times(name, "running")[-1]
    until(lambda: run.walks() and run.times("gameloop", "mode", now="policy")[-1] > gone_s)
    return running_s - gone_s


@pytest.mark.parametrize("kind", ["stuck", "out of memory"])
@pytest.mark.parametrize("name", ["gameloop", "sim-hal"])
def test_a_service_that_cannot_continue_ends_and_is_back_within_3_s(walking, name, kind, capsys):
    number = {"stuck": signal.SIGUSR1, "out of memory": signal.SIGUSR2}[kind]
    began_s = walking.signal(name, number)
    damp_s = damped_after(walking, began_s) if name == "gameloop" else None
    slow = slowdown(0.2)
    late_s = lateness(began_s + 1.0 - time.monotonic())
    until(lambda: walking.last_words(name))
    (last,) = walking.last_words(name)
    gone_s = last["mono_ns"] * 1e-9
    took_s = back_after(walking, name, gone_s)
    summary, said = walking.end()
    with capsys.disabled():
        damped = "" if damp_s is None else f"damped after {damp_s:.3f} s, "
        sys.stdout.write(
            f"\n{name} {kind}: {damped}ended after {gone_s - began_s:.2f} s, back {took_s:.2f} s "
            f"later; sleeps here were {late_s:.2f} s late, work took {slow:.2f} times as long\n"
        )
    if kind == "stuck":
        assert gone_s - began_s < slow * (1.0 + late_s)
        assert any(each.endswith(" stick") for each in last["stuck_at"])
        assert damp_s is None or damp_s < SAFE_S + LATE_S
    else:  # where the machine is so slow that taking the memory takes 0.8 s, it is stuck instead
        assert "MemoryError" in last.get("exception", "") or "eat" in last["stuck_at"][-1]
    assert took_s < max(BACK_S, walking.first_start_s)
    assert (summary["exit"], summary["falls"]) == ("failed", 0)
    assert f"{name} ended with status 1" in summary["reason"]
    assert "started again" in said


def test_a_disk_that_fills_up_ends_a_recorded_run_with_one_line(tmp_path):
    """No file may grow beyond 700 kB, which fails as a full disk does: the recording is first."""
    limit = 700_000
    ended = subprocess.run(
        [sys.executable, "-m", "krabby_cli", "up", "--base-port", "0", "--no-view",
         "--no-camera", "--policy", "gait", "--duration", "60",
         "--runs-dir", str(tmp_path / "runs"), "--record", str(tmp_path / "run.mcap")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if "recorder" in line or "recording" in line]
    assert any("recorder ended with status 1" in line for line in said)
    assert any("File too large; it can be read up to there" in line for line in said)
    assert "Traceback" not in ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["exit"] == "failed"
    reading = Recording(tmp_path / "run.mcap")
    assert {message.stream.name for message in reading} >= {"state", "truth"}
    assert reading.damage.startswith("it ends in the middle")


@pytest.mark.parametrize("name", ["gameloop", "sim-hal"])
def test_a_frozen_service_is_damped_by_its_peer_and_continues(walking, name):
    pid = walking.pid(name)
    began_s = walking.signal(name, signal.SIGSTOP)
    try:
        if name == "gameloop":
            assert damped_after(walking, began_s) < SAFE_S + LATE_S
        until(lambda: time.monotonic() - began_s > 2.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: walking.walks() and walking.times("gameloop", "mode")[-1] > began_s + 2.0)
    assert walking.pid(name) == pid
    summary, _ = walking.end()
    assert (summary["exit"], summary["falls"]) == ("interrupted", 0)
