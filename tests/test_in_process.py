"""One process for all services walks as three processes do."""

import argparse
import json
import subprocess
import sys

import pytest
from krabby_cli import up
from krabby_cli.errors import ServiceDied
from krabby_cli.in_process import run_services
from krabby_cli.plan import make_plan

GAIT = ("up", "--speed", "0", "--duration", "3", "--policy", "gait", "--course", "flat")


def configuration(*argv):
    """What `krabby up --in-process` would configure its services with."""
    parser = argparse.ArgumentParser()
    up.add_parser(parser.add_subparsers())
    return make_plan(parser.parse_args([*GAIT, "--in-process", *argv])).configuration


def krabby(*argv):
    """Exit status and summary of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "krabby_cli", *argv], capture_output=True, text=True, timeout=100
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def compared(tmp_path, *argv):
    """The game loop's report in one process, and the summary of processes; both walked alike."""
    folder = ("--base-port", "0", "--runs-dir", str(tmp_path))
    status, apart, err = krabby(*GAIT, *folder, *argv)
    assert status == 0, err
    reports = run_services(configuration(*argv))
    assert set(reports) == {"sim-hal", "camera", "gameloop"}
    together = reports["sim-hal"]
    assert together["sim_time_s"] == apart["sim_time_s"] == 3.0
    assert together["distance_m"] == apart["distance_m"] > 0.0
    assert together["trajectory_hash"] == apart["trajectory_hash"]
    return reports["gameloop"], apart


def test_in_one_process_the_trajectory_is_that_of_three_processes(tmp_path):
    loop, apart = compared(tmp_path)
    assert loop["policy_s"] == apart["policy_s"] > 0.0


def test_so_it_is_for_a_policy_that_waits_for_the_camera(tmp_path, seeing_gait):
    loop, apart = compared(tmp_path, "--policy", str(seeing_gait))
    assert loop["policy_s"] == apart["policy_s"] > 0.0
    assert loop["blind_s"] == apart["blind_s"] == 0.0


def test_the_command_sums_up_as_it_does_for_processes(tmp_path):
    status, summary, err = krabby(*GAIT, "--in-process", "--no-camera", "--runs-dir", str(tmp_path))
    assert status == 0, err
    assert (summary["exit"], summary["sim_time_s"]) == ("finished", 3.0)
    assert summary["policy_s"] > 0.0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "summary.json").read_text()) == summary
    events = [
        json.loads(line)["event"] for line in (folder / "services.log").read_text().splitlines()
    ]
    assert "met the HAL" in events


def test_a_service_that_fails_is_named_and_the_others_are_stopped():
    absent = ("--set", "gameloop.endpoints.state=inproc://absent/state")
    impatient = ("--set", "sim-hal.lockstep.start_timeout_s=0.3")
    with pytest.raises(ServiceDied, match=r"sim-hal failed: no command within 0\.3 s"):
        run_services(configuration(*absent, *impatient))


def test_it_ends_when_it_is_told_to():
    reports = run_services(configuration("--duration", "0"), stopping=lambda: True)
    assert reports["sim-hal"]["sim_time_s"] < 3.0
