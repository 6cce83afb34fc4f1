"""The shape of a process, seen from outside: exit status, stdout, signals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from krabby.runtime.app import Runtime
from krabby.runtime.metrics import MetricsServer
from krabby.runtime.testing import ended_after, free_port, running

PROGRAM = '''
import ctypes, sys, threading, time
import structlog
from krabby.config import NonNegative
from krabby.runtime.app import main
from krabby.runtime.config import ServiceCfg

log = structlog.get_logger()

class BundleMismatch(Exception):
    """Meant for people."""

class Cfg(ServiceCfg, frozen=True, kw_only=True):
    speed: NonNegative = 1.0
    """How fast."""
    fail: str = ""
    """Where to fail."""

class Walker:
    def __init__(self, cfg):
        self.cfg = cfg
        if cfg.fail == "check":
            raise BundleMismatch("policy expects joint 4; re-export it")

    def prepare(self, runtime):
        while self.cfg.fail == "prepare" and not runtime.stopping:
            runtime.doing("building")
            runtime.beat()
            time.sleep(0.01)
        runtime.doing("")

    def startup(self):
        if self.cfg.fail == "startup":
            raise BundleMismatch("no robot on the bus; plug it in")

    def run(self, runtime):
        if self.cfg.fail == "run":
            raise KeyError("a bug")
        if self.cfg.fail == "deaf":
            log.info("deaf")
            while True:
                time.sleep(0.01)
        while not runtime.stopping and self.cfg.fail != "end":
            runtime.beat()
            time.sleep(0.01)
            if self.cfg.fail == "chatter":
                for _ in range(200):
                    log.info("chatter", pad="x" * 1000)
                sys.stderr.write("e" * 10000 + chr(10))
        if self.cfg.fail == "hang":
            time.sleep(60)
        if self.cfg.fail == "library":  # Python's signal handlers cannot run in there
            ctypes.CDLL(None).sleep(60)
            ctypes.CDLL(None).sleep(60)
        if self.cfg.fail == "thread":
            threading.Thread(target=time.sleep, args=(60,), name="stuck").start()

    def shutdown(self):
        return {"distance_m": 4.2}

sys.exit(main("walker", Cfg, Walker, errors=(BundleMismatch,)))
'''


class Process:
    def __init__(self, path, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines = []

    def wait_for(self, event):
        for text in self.process.stdout:
            self.lines.append(json.loads(text))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]
        raise AssertionError(f"no {event!r} in {self.lines}")

    def finish(self):
        out, self.stderr = self.process.communicate(timeout=60)
        self.lines += [json.loads(text) for text in out.splitlines()]
        return self.process.returncode

    @property
    def events(self):
        return [line["event"] for line in self.lines]


@pytest.fixture
def launch(tmp_path):
    program = tmp_path / "walker.py"
    program.write_text(PROGRAM)
    started = []

    def start(*arguments, **environment):
        started.append(Process(program, *arguments, **environment))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_gracefully_with_a_summary_and_status_zero(launch, number):
    walker = launch(KRABBY_RUN_ID="run7")
    walker.wait_for("running")
    walker.process.send_signal(number)
    assert walker.finish() == 0
    summary = walker.lines[-1]
    assert summary["event"] == "summary"
    assert summary["stopped_by"] == number.name
    assert summary["distance_m"] == 4.2
    assert {line["run_id"] for line in walker.lines} == {"run7"}
    assert walker.stderr == ""


def test_what_is_slow_happens_before_startup_and_healthz_names_it(launch):
    port = free_port()
    walker = launch(f"metrics_port={port}", "fail=prepare")
    walker.wait_for("starting")
    body = b""
    while body != b"building\n":
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(  # not served, or no beat yet
                f"http://127.0.0.1:{port}/healthz", timeout=60
            ) as answer,
        ):
            body = answer.read()
            assert body in (b"ok\n", b"building\n")
        time.sleep(0.01)
    walker.process.send_signal(signal.SIGTERM)
    assert walker.finish() == 0
    assert walker.events[-1] == "summary"


def test_signals_that_arrive_together_are_one_request_to_stop(launch):
    walker = launch()
    walker.wait_for("running")
    walker.process.send_signal(signal.SIGTERM)
    walker.process.send_signal(signal.SIGINT)
    assert walker.finish() == 0
    assert walker.events[-1] == "summary"


def test_a_signal_again_half_a_second_later_ends_at_once(launch):
    walker = launch("fail=hang")
    walker.wait_for("running")
    for _ in range(100):
        walker.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            walker.process.wait(0.1)
            break
    assert walker.finish() == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hang", "library", "deaf"])
def test_whatever_it_is_doing_it_has_ended_3_s_after_the_signal(launch, how):
    walker = launch(f"fail={how}")
    walker.wait_for("deaf" if how == "deaf" else "running")
    asked_s = time.monotonic()
    walker.process.send_signal(signal.SIGTERM)
    assert ended_after(walker.process) < 3.2  # 3 s, and the time to notice
    assert time.monotonic() - asked_s > 2.0
    assert walker.finish() == 1
    last = walker.lines[-1]
    assert last["event"] == "did not end in time, ended by force"
    assert any(line.endswith(" run") for line in last["stuck_at"])


@pytest.mark.slow
def test_stdout_and_stderr_without_a_reader_do_not_keep_it(launch):
    walker = launch("fail=chatter")
    walker.wait_for("running")
    time.sleep(1.0)  # 20 MB of lines: the pipes and the queues are full
    walker.process.send_signal(signal.SIGTERM)
    assert ended_after(walker.process) < 3.2
    assert walker.process.returncode == 0
    walker.process.communicate()


def test_a_thread_that_is_stuck_is_left_behind(launch):
    walker = launch("fail=thread")
    walker.wait_for("running")
    walker.process.send_signal(signal.SIGTERM)
    assert walker.finish() == 0
    assert walker.events[-2:] == ["summary", "threads left behind"]
    assert walker.lines[-1]["threads"] == ["stuck"]


def test_a_service_that_is_done_ends_by_itself(launch):
    walker = launch("fail=end")
    assert walker.finish() == 0
    assert walker.events == ["starting", "running", "summary"]
    assert walker.lines[-1]["stopped_by"] == "end"
    assert walker.lines[0]["config"]["fail"] == "end"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sped=2"], "walker: command line: unknown key sped; did you mean speed?\n"),
        (["speed=-1"], "walker: command line: speed is -1; expected"),
        (["--config", "absent.toml"], "walker: cannot read absent.toml"),
        (["fail=check"], "walker: policy expects joint 4; re-export it\n"),
        (
            ["metrics_port=70000"],
            "walker: command line: metrics_port is 70000; expected a whole",
        ),
    ],
)
def test_a_bad_configuration_is_one_line_and_status_two(launch, arguments, message):
    walker = launch(*arguments)
    assert walker.finish() == 2
    assert walker.stderr.startswith(message)
    assert walker.stderr.count("\n") == 1
    assert walker.lines == []


def test_a_failure_while_starting_is_one_line_and_status_one(launch):
    walker = launch("fail=startup")
    assert walker.finish() == 1
    assert walker.stderr == "walker: no robot on the bus; plug it in\n"
    assert walker.events == ["starting", "summary", "failed"]
    assert walker.lines[-1]["error"] == "BundleMismatch"


def test_a_bug_leaves_its_traceback_in_the_log_and_status_one(launch):
    walker = launch("fail=run")
    assert walker.finish() == 1
    assert walker.events[-1] == "crashed"
    assert "KeyError: 'a bug'" in walker.lines[-1]["exception"]


def test_a_busy_metrics_port_is_named_with_the_way_out(launch):
    with MetricsServer(0) as other:
        walker = launch(f"metrics_port={other.port}")
        assert walker.finish() == 1
        assert f"127.0.0.1:{other.port}" in walker.stderr
        assert "set metrics_port to another port" in walker.stderr


def test_check_reads_the_configuration_and_starts_nothing(launch, tmp_path):
    config = tmp_path / "walker.toml"
    config.write_text("speed = 3\n")
    walker = launch("--check", KRABBY_CONFIG=str(config))
    assert walker.finish() == 0
    (line,) = walker.lines
    assert line["event"] == "configuration is usable"
    assert line["config"]["speed"] == 3.0


def test_check_finds_a_file_that_does_not_fit(launch):
    assert launch("--check", "fail=check").finish() == 2


def test_the_loop_shows_in_the_exposition_and_in_the_health_file(launch, tmp_path):
    port, alive = free_port(), tmp_path / "alive"
    walker = launch(f"metrics_port={port}", f"health_file={alive}")
    walker.wait_for("running")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        assert b"krabby_service_info{run_id=" in answer.read()
    walker.process.send_signal(signal.SIGTERM)
    assert walker.finish() == 0
    assert not alive.exists()


def test_help_lists_every_key(launch):
    walker = launch("--help")
    out, _ = walker.process.communicate(timeout=60)
    assert walker.process.returncode == 0
    assert "speed  (a number of at least 0, default 1.0)\n      How fast." in out
    assert "realtime.fifo_priority  (a whole number from 0 to 99, default 0)" in out


def test_log_level_comes_from_the_environment(launch):
    assert launch("fail=end", KRABBY_LOG_LEVEL="WARNING").finish() == 0


def test_an_unknown_log_level_is_refused(launch):
    walker = launch("fail=end", KRABBY_LOG_LEVEL="chatty")
    assert walker.finish() == 2
    assert "chatty" in walker.stderr
    assert "debug, info, warning, error" in walker.stderr


def test_the_first_reason_to_stop_stays():
    runtime = Runtime("walker")
    assert not runtime.stopping
    runtime.stop("SIGINT")
    runtime.stop("SIGTERM")
    assert runtime.stopping
    assert runtime.stop_reason == "SIGINT"


class Threaded:
    def __init__(self, fail=""):
        self.fail = fail

    def startup(self):
        if self.fail == "startup":
            raise ValueError("startup")

    def run(self, runtime):
        while not runtime.stopping:
            runtime.beat()
            time.sleep(0.001)
        if self.fail == "run":
            raise ValueError("run")

    def shutdown(self):
        return {"turns": 1}


def test_a_service_runs_in_a_thread_for_tests():
    with running(Threaded()) as runtime:
        assert not runtime.stopping
    assert runtime.summary == {"turns": 1}


@pytest.mark.parametrize("where", ["startup", "run"])
def test_what_a_service_raises_in_its_thread_is_raised_in_the_test(where):
    with pytest.raises(ValueError, match=where), running(Threaded(where)):
        pass
