"""The process from outside: its command line, its signals, and what it costs."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from krabby.hal.jpeg import from_jpeg
from krabby.runtime.rate import Rate
from krabby.runtime.testing import ended_after, free_port, until
from krabby_proto import (
    CAMERA,
    COLOUR,
    NAV,
    TRUTH,
    CommandStatus,
    EndpointInUse,
    HalClient,
    LatestSubscriber,
    Publisher,
    unpack,
)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "krabby_sim_hal", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def start(endpoints):
    processes = []

    def launch(*arguments):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "krabby_sim_hal",
                "metrics_port=0",
                *(f"endpoints.{name}={endpoint}" for name, endpoint in endpoints.items()),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield launch
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def children_of(process):
    """Those that run: a child that ended is gone once its parent has taken note."""
    return [each for each in psutil.Process(process.pid).children() if not has_ended(each)]


def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stopped(process):
    """Its log lines, its words on stderr and how long it took to end after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    took_s = ended_after(process)
    out, err = process.communicate()
    return [json.loads(line) for line in out.splitlines()], err, took_s


def test_it_answers_says_its_state_and_ends_on_sigterm(start, endpoints):
    process = start()
    with HalClient(endpoints) as client:
        assert client.hello(60.0)["service"] == "sim-hal"
        state = client.state.wait(60.0)
        assert state is not None
        assert state.payload.shape == (70,)
    lines, _, took_s = stopped(process)
    assert process.returncode == 0
    assert took_s < 3.0
    summary = lines[-1]
    assert summary["event"] == "summary"
    assert summary["stopped_by"] == "SIGTERM"
    for figure in (
        "distance_m", "falls", "trajectory_hash", "sim_time_s", "gate_clamps", "course_completed",
        "waypoints_reached", "effort_rms_nm", "saturation_share", "commands", "real_time_factor",
    ):  # fmt: skip
        assert figure in summary, figure


def test_lock_step_without_a_game_loop_ends_on_sigterm_too(start, endpoints):
    process = start("speed=0")
    with HalClient(endpoints) as client:
        assert client.hello(60.0)["clock"] == "simulated"
    _, _, took_s = stopped(process)
    assert process.returncode == 0
    assert took_s < 3.0


def test_it_ends_by_itself_after_its_duration(start):
    process = start("duration_s=0.5")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["sim_time_s"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["course.name=stepps"], "no course is called 'stepps'; did you mean 'steps'?"),
        (["course.difficulty=7"], "difficulty 7"),
        (["cours.name=flat"], "command line: unknown key cours; did you mean course?"),
        (["mission.sped=1"], "did you mean mission.speed?"),
        (["speed=2"], "expected 1 for real time or 0 for lock-step"),
        (["spawn=flying"], "'lying', 'standing'"),
        (["colour.scale=3"], "expected one of 2, 4, 6"),
        (["colour.enabled=true", "endpoints.colour=inproc://x"], "since another process binds it"),
        (["colour.enabled=true", "backend=isaaclab"], "it draws with MuJoCo's rays"),
        (["robot=absent.toml"], "cannot read absent.toml"),
    ],
)
def test_a_configuration_that_cannot_work_is_one_line_and_status_two(arguments, words):
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_missing_assets_are_one_line_and_status_two(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "krabby_sim_hal", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "KRABBY_ASSETS": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "KRABBY_ASSETS" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_busy_port_is_named_with_its_remedy_and_the_owner_is_unharmed(start, endpoints):
    with Publisher(endpoints["state"], TRUTH) as owner:
        process = start()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert endpoints["state"] in err
        assert "set endpoints.state" in err
        assert err.count("\n") == 1
        owner.publish(np.zeros(20), capture_ns=1)
        with pytest.raises(EndpointInUse):
            Publisher(endpoints["state"], TRUTH)


def test_colour_is_drawn_by_a_process_beside_the_loop_once_it_is_read(start, endpoints):
    place = f"tcp://127.0.0.1:{free_port()}"
    drawn = ("colour.enabled=true", "colour.scale=2", f"endpoints.colour={place}")
    process = start("spawn=standing", "course.name=steps", *drawn)
    with HalClient(endpoints) as client:
        announced = client.hello(60.0)["extra"]["colour"]
        assert announced == {"width": 212, "height": 120, "rate_hz": 5.0}
        until(lambda: children_of(process))
        (child,) = children_of(process)
        until(lambda: child.nice() >= 10)
        images = []
        with LatestSubscriber(place, COLOUR, queue=100) as colour:
            until(lambda: images.extend(colour.drain()) or len(images) >= 3)
        assert images[0].sequence == 1, "nothing was drawn before it was read"
        periods = [image.capture_ns // 200_000_000 for image in images]
        assert len(set(periods)) == len(periods), "5 Hz, and no more"
        picture = from_jpeg(images[-1].payload.tobytes())
        assert picture.shape == (120, 212, 3)
        assert picture.std() > 10, "a course under a sky is not of one colour"

        child.kill()
        until(lambda: {each.pid for each in children_of(process)} - {child.pid})
        (heir,) = children_of(process)
    lines, _, took_s = stopped(process)
    assert process.returncode == 0
    assert took_s < 3.0
    until(lambda: has_ended(heir))
    assert [line for line in lines if line["event"] == "no colour images"]


def test_the_process_that_draws_ends_with_the_one_that_was_killed(start, endpoints):
    process = start("colour.enabled=true", f"endpoints.colour=tcp://127.0.0.1:{free_port()}")
    with HalClient(endpoints) as client:
        client.hello(60.0)
    until(lambda: children_of(process))
    (child,) = children_of(process)
    process.kill()
    until(lambda: has_ended(child))


def test_help_lists_every_key():
    done = run("--help")
    assert done.returncode == 0
    for key in ("course.name", "mission.speed", "camera.see_robot", "lockstep.answer_timeout_s"):
        assert key in done.stdout


@pytest.mark.slow
def test_a_stall_of_a_second_causes_no_burst_and_no_stale_command(start, endpoints, desc):
    process = start("spawn=standing")
    with HalClient(endpoints) as client, LatestSubscriber(endpoints["truth"], TRUTH) as truth:
        client.hello(60.0)
        rate = Rate(0.01, phase_s=0.0012)
        outcomes = []

        def command_for(seconds):
            for _ in range(round(seconds / 0.01)):
                rate.wait()
                truth.latest()
                state = client.state.latest()
                if state is None:
                    continue
                reply = client.send_command(desc.default_joint_pos, capture_ns=state.capture_ns)
                if reply is not None:
                    outcomes.append((reply, state.capture_ns))

        command_for(1.5)
        before_s = float(unpack(TRUTH, truth.latest().payload)["sim_time"][0])
        before = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        command_for(1.0)
        process.send_signal(signal.SIGCONT)
        outcomes.clear()
        command_for(1.0)
        elapsed_s = time.monotonic() - before
        after_s = float(unpack(TRUTH, truth.latest().payload)["sim_time"][0])
    lines, _, _ = stopped(process)
    # Simulated time fell behind by the stall instead of being made up for.
    assert after_s - before_s < elapsed_s - 0.9
    for reply, capture_ns in outcomes:
        if reply.applied:
            assert reply.applied_ns - capture_ns < 0.1e9
    assert {CommandStatus(reply.status) for reply, _ in outcomes} <= {
        CommandStatus.APPLIED,
        CommandStatus.NOT_ARMED,
        CommandStatus.REJECTED_SAFETY,
        CommandStatus.REJECTED_STALE,
        CommandStatus.HELD,
        CommandStatus.SUPERSEDED,
    }
    assert lines[-1]["slots_lost"] >= 190
    assert lines[-1]["obs_age_max_ms"] < 100.0


@pytest.mark.slow
def test_with_depth_at_30_hz_it_costs_less_than_six_tenths_of_a_core(start, endpoints, desc):
    process = start("course.name=mixed", "spawn=standing")
    with (
        HalClient(endpoints) as client,
        LatestSubscriber(endpoints["camera"], CAMERA) as camera,
        LatestSubscriber(endpoints["nav"], NAV, bind=True) as nav,
    ):
        client.hello(60.0)
        rate = Rate(0.01, phase_s=0.0012)

        def command_for(seconds):
            """The number of the last image."""
            for _ in range(round(seconds / 0.01)):
                rate.wait()
                image = camera.latest()
                nav.take()
                state = client.state.latest()
                if state is not None:
                    client.send_command(desc.default_joint_pos, capture_ns=state.capture_ns)
            return image.sequence

        before = command_for(2.0)
        used, since = psutil.Process(process.pid).cpu_times(), time.monotonic()
        frames = command_for(10.0) - before
        after, elapsed_s = psutil.Process(process.pid).cpu_times(), time.monotonic() - since
    lines, _, _ = stopped(process)
    cores = (after.user + after.system - used.user - used.system) / elapsed_s
    assert frames >= 100
    share = min(frames / (30.0 * elapsed_s), 1.0)  # a busy machine has fewer slots
    assert cores < 0.6 * share, f"{cores:.3f} cores, {frames} images; {lines[-1]}"


def test_isaac_lab_is_refused_where_it_is_not_installed():
    done = run("backend=isaaclab")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "backend=isaaclab needs" in line
    assert "make train-setup" in line


def test_a_robot_that_is_not_in_the_scene_is_refused():
    done = run("isaac.robots=4", "isaac.published=4")
    assert done.returncode == 2
    assert "published" in done.stderr
    assert "below robots, which is 4" in done.stderr
