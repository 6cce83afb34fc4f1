import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from krabby.runtime.testing import FakeClock
from krabby_cli.summary import CpuMeter, RunEnd, build_summary

PLAN = SimpleNamespace(
    run_id="feed", policy="gait", course="flat", difficulty=0.5, seed=3, folder=Path("runs/x")
)
END = RunEnd(
    exit="finished",
    reason="the time is up",
    duration_s=30.01234,
    cpu_cores={"sim-hal": 0.45678, "camera": 0.1, "gameloop": 0.3, "recorder": 0.2},
    machine_cores=1.23456,
)
LOOP = {
    "loop_hz": 100.0,
    "deadline_misses": 1,
    "obs_age_p50_ms": 3.1,
    "obs_age_p99_ms": 5.2,
    "features_age_p99_ms": 80.0,
    "command_rtt_p50_ms": 0.5,
    "command_rtt_p99_ms": 1.5,
    "command_timeouts": 0,
    "ticks": 3000,
}
SIM = {
    "distance_m": 8.5,
    "falls": 0,
    "course_completed": False,
    "waypoints_reached": 4,
    "gate_clamps": 12,
    "effort_rms_nm": 13.0,
    "trajectory_hash": "ab" * 32,
    "sim_time_s": 31.0,
    "real_time_factor": 1.0,
    "obs_age_p50_ms": 99.0,
}
KEYS = {
    "policy", "course", "difficulty", "seed", "duration_s", "loop_hz", "distance_m", "falls",
    "course_completed", "waypoints_reached", "deadline_misses", "obs_age_p50_ms",
    "obs_age_p99_ms", "features_age_p99_ms", "command_rtt_p50_ms", "command_rtt_p99_ms",
    "command_timeouts", "gate_clamps", "effort_rms_nm", "trajectory_hash", "sim_time_s",
    "real_time_factor", "cpu_cores", "exit", "reason", "run_id", "logs",
    "furthest_m", "course_m", "waypoints", "edge_feet", "gate_faults", "effort_rms_max_nm",
    "saturation_share", "frames_dropped", "degrade", "frames_used", "frames_withheld",
    "camera_work_p99_ms", "skipped", "work_p50_ms", "work_p99_ms", "observe_p99_ms", "infer_p99_ms",
    "holds", "policy_s", "blind_s", "blind_switches", "bad_outputs", "machine_cores",
}  # fmt: skip


def test_every_figure_comes_from_the_service_that_measures_it():
    camera = {"frames": 900, "dropped": {"dark": 3}, "processing_p99_ms": 1.2}
    summary = build_summary(PLAN, END, {"gameloop": LOOP, "sim-hal": SIM, "camera": camera}, {})

    assert set(summary) == KEYS
    assert summary["obs_age_p50_ms"] == 3.1, "the loop's own figure, not the simulator's"
    assert summary["distance_m"] == 8.5
    assert summary["duration_s"] == 30.012
    assert summary["exit"] == "finished"
    assert (summary["frames_used"], summary["frames_withheld"]) == (900, {"dark": 3})
    assert summary["camera_work_p99_ms"] == 1.2
    assert summary["machine_cores"] == 1.235


def test_cores_are_those_of_the_three_services():
    cores = build_summary(PLAN, END, {}, {})["cpu_cores"]
    assert cores == {"sim-hal": 0.457, "camera": 0.1, "gameloop": 0.3, "total": 0.857}


def test_what_was_not_reported_is_null_and_the_truth_stream_helps_out():
    summary = build_summary(PLAN, END, {}, {"distance_m": 2.5, "falls": 1})

    assert set(summary) == KEYS
    assert summary["loop_hz"] is None
    assert summary["trajectory_hash"] is None
    assert (summary["distance_m"], summary["falls"]) == (2.5, 1)


def test_processor_use_counts_from_the_mark():
    clock = FakeClock()
    meter = CpuMeter({"self": os.getpid()}, clock=lambda: clock() * 1e-9)
    assert meter.cores() == {}

    before = sum(os.times()[:2])
    while sum(os.times()[:2]) - before < 0.1:
        pass
    meter.mark()
    clock.advance(1.0)
    meter.sample()
    used = meter.cores()["self"]
    # Ticks of the kernel's accounting are 10 ms: between the mark and here at least 0.1 s passed.
    assert 0.08 <= used <= 1.0
    assert meter.recent() == meter.cores()
    # Of the whole machine: by the kernel's own accounting, in ticks, and never less than nothing.
    assert meter.machine >= 0.0

    meter.mark()
    clock.advance(10.0)
    meter.sample()
    assert meter.cores()["self"] < used


def test_processor_use_includes_children_before_and_after_their_end():
    clock = FakeClock()
    meter = CpuMeter({"self": os.getpid()}, clock=lambda: clock() * 1e-9)
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    started_s = sum(os.times()[:2])
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        clock.advance(1.0)
        meter.sample()
        lives = meter.cores()["self"]
        child.communicate(b"\n", timeout=30)
    own = sum(os.times()[:2]) - started_s
    meter.sample()
    ended = meter.cores()["self"]
    # Ticks of the kernel's accounting are 10 ms, two of each process; here one second passed.
    assert lives >= 0.3 - 0.04
    assert lives <= ended + 0.04
    assert ended >= 0.3 - 0.04
    assert own < 0.2, "this process burned the time itself"


def test_a_process_that_is_gone_has_no_figure():
    assert CpuMeter({"gone": 2**22 - 1}).cores() == {}
