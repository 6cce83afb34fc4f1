"""The three real processes, started by one command; timing belongs to `make bench`, not here."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from krabby.runtime.testing import free_port, kept_rate, log_events, until
from krabby_cli.plan import DEFAULT_POLICY
from krabby_proto import (
    CAMERA,
    FEATURES,
    FLAG_OPERATOR,
    NAV,
    STATE,
    TRUTH,
    ControlClient,
    HalClient,
    Publisher,
)
from krabby_proto.access import use_client_key
from krabby_proto.recording import Recording

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SERVICES = ("sim-hal", "camera", "gameloop")


@pytest.fixture
def krabby(tmp_path):
    """Starts `krabby up` with free ports and separate logs."""
    started = []

    def start(*argv):
        process = subprocess.Popen(
            [sys.executable, "-m", "krabby_cli", "up", "--base-port", "0", "--no-view",
             "--no-black-box", "--runs-dir", str(tmp_path / "runs"), *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def finished(process, timeout_s=120):
    """Exit status, summary and what was said."""
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, json.loads(out.splitlines()[-1]), err


def log_lines(tmp_path):
    """What the services of the one run in the folder have logged, by service."""
    return {path.stem: log_events(path) for path in tmp_path.glob("runs/*/*.log")}


def logged(tmp_path, event):
    """Whether some service of the one run in the folder has logged the event."""
    lines = itertools.chain.from_iterable(log_lines(tmp_path).values())
    return any(line["event"] == event for line in lines)


def running_services(tmp_path, timeout_s=60, others=()):
    """Pids by service of the one run in the folder, once all are past their startup."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        lines = log_lines(tmp_path)
        if set(lines) == {*SERVICES, *others} and all(
            [line["event"] for line in each if line["event"] in ("starting", "running")][-1:]
            == ["running"]
            for each in lines.values()
        ):
            return {
                name: [line["pid"] for line in each if line["event"] == "starting"][-1]
                for name, each in lines.items()
                if name in SERVICES
            }
        time.sleep(0.1)
    raise AssertionError(f"not all of {SERVICES} were running after {timeout_s} s")


def test_the_crab_walks_a_flat_course_and_the_summary_is_complete(krabby, tmp_path):
    recording = tmp_path / "run.mcap"
    with kept_rate() as kept_hz:
        status, summary, err = finished(
            krabby("--duration", "12", "--course", "flat", "--record", str(recording))
        )
        lost_hz = max(100.0 - kept_hz(), 0.0)

    assert status == 0, err
    assert summary["exit"] == "finished"
    assert (summary["policy"], summary["course"]) == (DEFAULT_POLICY, "flat")
    assert 12.0 <= summary["duration_s"] < 20.0
    assert summary["falls"] == 0
    assert summary["distance_m"] > 1.0
    assert 95.0 - 3 * lost_hz < summary["loop_hz"] < 101.0  # a busy machine loses ticks
    assert summary["course_completed"] is False
    for key in (
        "waypoints_reached", "deadline_misses", "obs_age_p50_ms", "obs_age_p99_ms",
        "features_age_p99_ms", "command_rtt_p50_ms", "command_rtt_p99_ms", "command_timeouts",
        "gate_clamps", "effort_rms_nm",
    ):  # fmt: skip
        assert isinstance(summary[key], int | float), key
        assert summary[key] >= 0
    assert len(summary["trajectory_hash"]) == 64
    assert set(summary["cpu_cores"]) == {*SERVICES, "total"}
    assert 0 < summary["cpu_cores"]["total"] < 2.0

    streams = {message.stream.name for message in Recording(recording)}
    assert streams == {s.name for s in (STATE, CAMERA, FEATURES, TRUTH)} | {"trace", "ticks"}


def test_a_person_who_says_stop_is_obeyed_against_the_mission_and_one_from_the_future(
    krabby, tmp_path
):
    krabby("--course", "flat")
    running_services(tmp_path)
    (record,) = tmp_path.glob("runs/*/run.json")
    endpoints = json.loads(record.read_text())["endpoints"]
    with (
        ControlClient(endpoints["control"]) as loop,
        Publisher(endpoints["nav"], NAV, bind=False) as operator,
        Publisher(endpoints["nav"], NAV, bind=False) as rogue,
    ):

        def status():
            return loop.request("status", timeout_s=60.0)

        def stopped():
            now_ns = time.monotonic_ns()
            operator.publish((0, 0, 0), capture_ns=now_ns, flags=FLAG_OPERATOR)
            ahead_ns = now_ns + 5_000_000_000
            rogue.publish((0.9, 0, 0), capture_ns=ahead_ns, publish_ns=ahead_ns)
            time.sleep(0.02)
            said = status()
            return said["nav_source"] == "operator" and not any(said["nav"])

        until(lambda: any(status()["nav"]))
        assert status()["nav_source"] == "mission"
        until(stopped)
        assert all(stopped() for _ in range(100))
        assert logged(tmp_path, "walking command refused: future")
        until(lambda: status()["nav_source"] == "mission")
        assert logged(tmp_path, "walking commands")


def test_the_gait_is_parked_backwards_by_a_script(krabby, tmp_path, figures):
    krabby("--course", "field", "--difficulty", "0", "--policy", "gait")
    running_services(tmp_path)
    (record,) = tmp_path.glob("runs/*/run.json")
    script = Path(__file__).parents[1] / "examples/scripted_drive.py"
    done = subprocess.run(
        [sys.executable, script, "reverse-parking", "--run", record.parent, "--limit", "100"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    figures["path error of reverse parking"] = f"{report['path_error_rms_m']} m RMS"
    assert (report["completed"], report["fell"], report["clamped"]) == (True, False, [])
    assert report["path_error_rms_m"] < 0.15
    assert report["end_error_m"] < 0.4
    assert abs(report["end_heading_error_rad"]) < 0.3


def test_ctrl_c_leaves_no_process_and_still_sums_up(krabby, tmp_path):
    process = krabby("--transport", "tcp")
    pids = running_services(tmp_path)
    process.send_signal(signal.SIGINT)
    status, summary, err = finished(process)

    assert status == 0, err
    assert (summary["exit"], summary["reason"]) == ("interrupted", "SIGINT")
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


def test_nothing_but_metrics_listens_and_a_relay_may_die(krabby, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("krabby_proto.access._chosen", None)
    base_port = free_port() // 20 * 20
    process = krabby("--base-port", str(base_port), "--listen", "127.0.0.1", "--course", "flat")
    pids = running_services(tmp_path, others=("relay",))
    listening = {
        connection.laddr.port
        for pid in pids.values()
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {base_port + 11, base_port + 12, base_port + 13}, "metrics"

    (record,) = tmp_path.glob("runs/*/run.json")
    inside = json.loads(record.read_text())["endpoints"]
    assert all(endpoint.startswith("ipc://") for endpoint in inside.values())
    use_client_key(tmp_path / "config" / "krabby" / "keys" / "operator.toml")
    with HalClient({"safety": f"curve://127.0.0.1:{base_port + 5}"}) as operator:
        until(lambda: operator.safety("status", "test", 60.0)["state"] == "active")
        for relay in relays(process):
            with contextlib.suppress(psutil.NoSuchProcess):  # one may end with another
                relay.kill()
        operator.hello(60.0)  # asked again until it is answered: a request dies with a relay
        until(lambda: operator.safety("status", "test", 60.0)["state"] == "active")
        assert all(psutil.pid_exists(pid) for pid in pids.values())
        assert operator.safety("estop", "test", 60.0)["state"] == "estop"
    process.send_signal(signal.SIGINT)
    status, summary, err = finished(process)
    assert (status, summary["exit"]) == (0, "interrupted"), err


def relays(process):
    """The relay's processes of a run."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # also of a zombie
            if "relay" in child.cmdline():
                found.append(child)
    return found


def test_a_killed_camera_is_started_again_and_the_run_has_failed(krabby, tmp_path):
    process = krabby()
    pids = running_services(tmp_path)
    os.kill(pids["camera"], signal.SIGKILL)
    until(lambda: running_services(tmp_path)["camera"] != pids["camera"])
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, summary, err = finished(process)

    assert status == 1
    assert summary["exit"] == "failed"
    assert "camera ended by SIGKILL" in err
    assert "started again" in err
    assert "camera ended by SIGKILL" in summary["reason"]


def test_in_lock_step_a_killed_camera_ends_the_run(krabby, tmp_path):
    process = krabby("--speed", "0")
    pids = running_services(tmp_path)
    os.kill(pids["camera"], signal.SIGKILL)
    status, summary, err = finished(process)

    assert status == 1
    assert summary["exit"] == "failed"
    assert "camera ended by SIGKILL" in err
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


def test_in_lock_step_the_same_seed_gives_the_same_trajectory_however_processes_are_held_up(
    krabby, tmp_path
):
    runs = []
    for held_up in (None, "camera"):
        argv = ("--speed", "0", "--duration", "6", "--course", "steps", "--seed", "4")
        process = krabby(*argv, "--difficulty", "0.1")
        if held_up is not None:
            pid = running_services(tmp_path)[held_up]
            os.kill(pid, signal.SIGSTOP)
            until(lambda: logged(tmp_path, "waiting for an announced message"))
            os.kill(pid, signal.SIGCONT)
        status, summary, err = finished(process)
        assert status == 0, err
        runs.append(summary)
        shutil.rmtree(tmp_path / "runs")
    assert runs[0]["trajectory_hash"] == runs[1]["trajectory_hash"]
    assert runs[0]["sim_time_s"] == pytest.approx(6.0, abs=0.02)
    assert runs[0]["distance_m"] == runs[1]["distance_m"]


def test_a_second_run_on_the_same_ports_is_refused_and_the_first_unharmed(krabby, tmp_path):
    first = krabby()
    pids = running_services(tmp_path)
    (record,) = tmp_path.glob("runs/*/run.json")
    state = json.loads(record.read_text())["endpoints"]["state"]
    # sim-hal by itself on the first one's endpoint: its own check, not that of the supervisor.
    sim = subprocess.run(
        [sys.executable, "-m", "krabby_sim_hal", f"endpoints.state={state}", "metrics_port=0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert sim.returncode != 0
    assert state in sim.stderr
    assert "already in use" in sim.stderr
    assert all(psutil.pid_exists(pid) for pid in pids.values())
    first.send_signal(signal.SIGINT)
    status, summary, err = finished(first)
    assert status == 0, err
    assert summary["exit"] == "interrupted"
