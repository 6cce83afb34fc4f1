"""A loop that is stuck ends its process; one that is frozen, or stopped by a person, does not."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from krabby.runtime.testing import captured_logs, ended_after, lateness, until
from krabby.runtime.watchdog import STUCK_S, watched

PROGRAM = '''
import ctypes, re, sys, threading, time
import structlog
from krabby.runtime.app import main
from krabby.runtime.config import ServiceCfg

class Cfg(ServiceCfg, frozen=True, kw_only=True):
    fail: str = ""
    """How."""

class Walker:
    def __init__(self, cfg):
        self.cfg = cfg

    def startup(self):
        pass

    def run(self, runtime):
        with runtime.watched():
            for _ in range(50):
                runtime.beat()
                time.sleep(0.01)
            structlog.get_logger().info("sticks")
            threading.Thread(target=self.naps, daemon=True).start()
            if self.cfg.fail == "shutdown":
                return
            while not runtime.stopping:
                runtime.beat()
                time.sleep(0.01)
                getattr(self, self.cfg.fail or "beat")()

    def naps(self):
        """The floor: how late a thread of this process is that sleeps as the watchdog does."""
        late_s = 0.0
        for _ in range(8):
            began_s = time.monotonic()
            time.sleep(0.1)
            late_s += time.monotonic() - began_s - 0.1
            structlog.get_logger().info("naps", late_s=late_s)

    def beat(self):
        pass

    def busy(self):
        while True:
            pass

    def waits(self):
        threading.Lock().acquire() and threading.Event().wait()

    def keeps_the_lock(self):
        re.match(r"(a+)+$", "a" * 50 + "b")

    def library(self):
        ctypes.CDLL(None).sleep(60)

    def shutdown(self):
        if self.cfg.fail == "shutdown":
            time.sleep(60)
        return {}

sys.exit(main("walker", Cfg, Walker))
'''


@pytest.fixture
def launch(tmp_path):
    program = tmp_path / "walker.py"
    program.write_text(PROGRAM)
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, str(program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        said = []
        for line in process.stdout:
            said.append(line)
            if '"sticks"' in line:
                return process, json.loads(line)["mono_ns"] * 1e-9
        raise AssertionError(f"it did not start: {said}")

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["busy", "waits", "library", "keeps_the_lock"])
def test_a_stuck_loop_ends_its_process_within_1_s_and_names_the_frame(launch, how, capsys):
    process, began_s = launch(f"fail={how}")
    late_s, before_s = time.monotonic() - began_s, processor_s(process)
    late_s += lateness(STUCK_S - 0.1)
    if how == "keeps_the_lock":  # its limit is of processor time, and this machine may be busy
        until(lambda: psutil.Process(process.pid).status() == "zombie")
        assert processor_s(process) - before_s < 1.0
    said, _ = process.communicate(timeout=60)
    took_s = time.monotonic() - began_s
    naps = [json.loads(line)["late_s"] for line in said.splitlines() if '"naps"' in line]
    late_s = max([late_s, *naps])
    with capsys.disabled():
        sys.stdout.write(f"\n{how}: ended after {took_s:.2f} s, sleeps were {late_s:.2f} s late\n")
    if how == "keeps_the_lock":  # no thread of Python can run: the kernel's timer ends it
        assert process.returncode == -signal.SIGPROF
    else:
        assert process.returncode == 1
        assert '"loop stuck, process ended"' in said
    assert f"walker.py:{line_of(how)} {how}" in said or f'walker.py", line {line_of(how)}' in said
    assert took_s >= STUCK_S - 0.1  # the last beat was a look ago at most
    if how != "keeps_the_lock":
        assert took_s < 1.0 + 2.0 * late_s


def processor_s(process):
    """Processor time of a process, also of one that has ended and is not waited for [s]."""
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def line_of(how):
    lines = PROGRAM.splitlines()
    last = {"busy": "while True:", "waits": "threading.Lock", "library": "ctypes.CDLL"}
    return 1 + next(i for i, text in enumerate(lines) if last.get(how, "re.match") in text)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_a_frozen_process_is_not_stuck_when_it_continues(launch, seconds):
    process, _ = launch()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.send_signal(signal.SIGCONT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.mark.slow
def test_a_shutdown_that_hangs_ends_3_s_after_the_loop(launch):
    process, _ = launch("fail=shutdown")
    assert ended_after(process) < 3.3
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "did not end in time, ended by force" in said


class Loop:
    """A loop of this process under watch, whose end is noted instead of carried out."""

    def __init__(self):
        self.beats = 0
        self.ended = []

    @contextlib.contextmanager
    def watched(self):
        with watched(lambda: self.beats, lambda _: True, self.ended.append):
            yield


def test_a_loop_that_beats_goes_on_and_afterwards_it_is_not_watched():
    loop = Loop()
    end_s = time.monotonic() + 1.2
    with loop.watched():
        while time.monotonic() < end_s:
            loop.beats += 1
            time.sleep(0.01)
    until(lambda: not any(t.name == "watchdog" for t in threading.enumerate()))
    assert loop.ended == []


def test_a_loop_that_does_not_beat_is_named_and_ended_with_status_1():
    loop = Loop()
    with captured_logs() as events, loop.watched():
        until(lambda: loop.ended)
    assert loop.ended == [1]
    (event,) = (each for each in events if each["event"] == "loop stuck, process ended")
    assert any("until" in line for line in event["stuck_at"])


def test_a_loop_in_a_debugger_is_not_ended():
    loop = Loop()
    there = {"__name__": "bdb", "time": time}
    exec("def prompt(seconds):\n    time.sleep(seconds)", there)
    with loop.watched():
        there["prompt"](1.3)
        loop.beats += 1
    assert loop.ended == []
