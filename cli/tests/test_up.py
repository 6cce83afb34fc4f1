import argparse
import contextlib
import json
import os
import socket
import sys
import tomllib

import psutil
import pytest
from krabby.robot.errors import BundleError, CourseError, UnknownCourse
from krabby_cli import plan as plan_module
from krabby_cli import up as up_module
from krabby_cli.__main__ import main
from krabby_cli.plan import DEFAULT_COURSE, DEFAULT_POLICY, service_command
from krabby_cli.progress import Progress
from krabby_cli.up import add_parser


def up(*argv):
    return main(["up", "--base-port", "0", "--no-view", "--no-black-box", *argv])


def quiet(*argv):
    """Without the black box beside it."""
    return parsed("--no-black-box", *argv)


def summary_of(capsys):
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1]), captured.err


def parsed(*argv):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["up", "--base-port", "0", "--no-view", *argv])


def overrides_of(plan, name):
    """A child's `key=value` arguments as one table, later ones winning as the services do it."""
    (child,) = [child for child in plan.children if child.name == name]
    table = {}
    for argument in child.argv:
        key, equals, value = argument.partition("=")
        if equals:
            table[key] = tomllib.loads(f"v = {value}")["v"]
    return table


def test_a_run_ends_after_its_duration_with_a_summary_on_the_last_line(fakes, tmp_path, capsys):
    assert up("--duration", "0.5", "--seed", "7") == 0

    summary, said = summary_of(capsys)
    assert summary["exit"] == "finished"
    assert (summary["policy"], summary["course"], summary["seed"]) == (
        DEFAULT_POLICY, DEFAULT_COURSE, 7,
    )  # fmt: skip
    assert (summary["distance_m"], summary["loop_hz"]) == (5.5, 100.0)
    assert 0.5 <= summary["duration_s"] < 30.0
    assert (tmp_path / "journal").read_text().split() == ["gameloop", "camera", "sim-hal"]
    assert f"{DEFAULT_POLICY} on {DEFAULT_COURSE}, difficulty 0.5, seed 7" in said

    (folder,) = (tmp_path / "runs").iterdir()
    assert summary["logs"] == f"runs/{folder.name}"
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert {p.name for p in folder.iterdir()} == {
        "run.json", "summary.json", "sim-hal.log", "camera.log", "gameloop.log"
    }  # fmt: skip
    assert set(json.loads((folder / "run.json").read_text())["endpoints"]) >= {"state", "truth"}


def test_ctrl_c_stops_in_order_and_is_no_failure(fakes, tmp_path, capsys):
    fakes["gameloop"] = "interrupt"
    assert up() == 0

    summary, _ = summary_of(capsys)
    assert (summary["exit"], summary["reason"]) == ("interrupted", "SIGINT")
    # Only those that were past their startup when the signal came write the journal.
    journal = (tmp_path / "journal").read_text().split()
    assert journal == [name for name in ("gameloop", "camera", "sim-hal") if name in journal]
    assert "gameloop" in journal


def test_a_service_that_dies_is_named_and_the_others_are_stopped(fakes, tmp_path, capsys):
    fakes["camera"] = "die-at-start"
    before = set(psutil.Process().children(recursive=True))  # pools of other tests keep theirs
    assert up("--duration", "60") == 1

    summary, said = summary_of(capsys)
    assert summary["exit"] == "failed"
    assert "camera ended with status 2" in summary["reason"]
    assert "camera: port 1 is taken; set metrics_port" in said
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_service_that_fails_while_stopping_fails_the_run(fakes, capsys):
    fakes["gameloop"] = "fail-at-end"
    assert up("--duration", "0.2") == 1
    summary, said = summary_of(capsys)
    assert summary["exit"] == "failed"
    assert "gameloop ended with status 4 when it was stopped" in said


def test_a_service_that_never_gets_ready_is_named(fakes, capsys):
    fakes["gameloop"] = "never-ready"
    for timeout_s in ("1.5", "30"):
        assert up("--start-timeout", timeout_s) == 1
        summary, _ = summary_of(capsys)
        if "sim-hal" not in summary["reason"] and "camera" not in summary["reason"]:
            break  # on a busy machine the others were not ready either
    assert summary["reason"].startswith(f"gameloop not ready after {timeout_s} s")
    assert summary["duration_s"] == 0.0


def test_a_run_until_over_ends_when_the_truth_says_so():
    for truth in ({"waypoint_index": 8.0}, {"falls": 1.0}):
        progress = Progress("tcp://127.0.0.1:1")
        progress._values |= {"waypoint_count": 8.0, **truth}
        assert progress.is_over
        progress._values |= {"waypoint_count": 8.0, "waypoint_index": 7.0, "falls": 0.0}
        assert not progress.is_over
        progress.close()


def test_a_simulator_that_ends_by_itself_ends_the_run_well(fakes, capsys):
    fakes["sim-hal"] = "end"
    assert up("--speed", "0", "--duration", "5") == 0
    summary, _ = summary_of(capsys)
    assert summary["exit"] == "finished"
    assert summary["distance_m"] == 5.5


def test_warnings_of_services_are_shown_once_in_a_while(fakes, capsys):
    fakes["sim-hal"] = "warn"
    assert up("--duration", "0.3") == 0
    _, said = summary_of(capsys)
    assert said.count("sim-hal: warning: behind slots=2") == 1


def test_without_camera_there_are_two_processes(fakes, tmp_path, capsys):
    assert up("--duration", "0.2", "--no-camera") == 0
    assert sorted((tmp_path / "journal").read_text().split()) == ["gameloop", "sim-hal"]
    summary, _ = summary_of(capsys)
    assert "camera" not in summary["cpu_cores"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--course", "stpes"], "did you mean 'steps'?"),
        (["--difficulty", "7"], "outside 0 to 2.5"),
        (["--policy", "gate"], "no policy 'gate'"),
        (["--policy", "teacher"], "policy 'teacher' is a teacher"),
        (["--duration", "-1"], "--duration -1.0 is out of range"),
        (["--duration", "nan"], "--duration nan is out of range"),
        (["--set", "simhal.speed=1"], "services are sim-hal, camera, gameloop"),
        (["--set", "camera.source=hal", "--no-camera"], "there is no camera to set"),
        (["--base-port", "99999"], "base port 99999 is out of range"),
        (["--record", "missing/run.mcap"], "cannot be written"),
        (["--in-process"], "add --speed 0 for lock-step"),
        (["--transport", "inproc"], "add --speed 0 for lock-step"),
        (["--in-process", "--speed", "0", "--record", "run.mcap"], "--record needs separate"),
        (["--in-process", "--speed", "0", "--until-over"], "--until-over needs separate"),
        (["--in-process", "--speed", "0", "--view"], "--view needs separate"),
        (["--view", "--view-port", "70000"], "--view-port 70000 is out of range"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(fakes, tmp_path, capsys, argv, said):
    assert up(*argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("krabby up: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("gameloop.phase=1", "--set gameloop.…: gameloop: command line: unknown key phase"),
        ("sim-hal.mission.speed=fast", "mission.speed is 'fast'; expected a number"),
    ],
)
def test_a_setting_that_a_service_does_not_know_is_said_before_anything_starts(
    tmp_path, capsys, monkeypatch, setting, said
):
    monkeypatch.chdir(tmp_path)
    assert up("--set", setting) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_policy_without_a_camera_gets_a_course_that_it_completes():
    assert plan_module.make_plan(quiet("--policy", "gait")).course == "flat"
    assert plan_module.make_plan(quiet()).course == DEFAULT_COURSE
    assert plan_module.make_plan(quiet("--policy", "gait", "--course", "gap")).course == "gap"


def test_services_that_are_not_installed_are_named(monkeypatch, capsys):
    monkeypatch.setattr(
        plan_module, "find_spec", lambda name: None if name == "krabby_camera" else name
    )
    assert up() == 2
    assert "not installed: krabby-camera; " in capsys.readouterr().err


def test_a_busy_port_is_said_before_anything_starts(fakes, tmp_path, capsys):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        base = min(max(port, 1024), 65000)
        assert main(["up", "--transport", "tcp", "--base-port", str(base)]) == 2
    err = capsys.readouterr().err
    assert f"{base} (camera) is already in use" in err
    assert "--base-port" in err
    assert not (tmp_path / "runs").exists()


def test_a_recording_is_not_overwritten(fakes, tmp_path, capsys):
    (tmp_path / "run.mcap").write_text("precious")
    assert up("--record", "run.mcap") == 2
    assert "exists already" in capsys.readouterr().err


def test_a_runs_folder_that_cannot_be_made_is_said(fakes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert up("--runs-dir", "file/runs") == 2
    assert "give a writable --runs-dir" in capsys.readouterr().err


def test_all_services_are_given_the_same_endpoints():
    plan = plan_module.make_plan(quiet("--course", "steps", "--difficulty", "0.3", "--seed", "5"))
    sim, camera, loop = (overrides_of(plan, name) for name in ("sim-hal", "camera", "gameloop"))

    for stream in ("state", "command", "nav"):
        key = f"endpoints.{stream}"
        assert sim[key] == loop[key] == plan.wiring.endpoints[stream]
    assert sim["endpoints.camera"] == camera["endpoints.camera"]
    assert camera["endpoints.features"] == loop["endpoints.features"]
    assert (sim["course.name"], sim["course.difficulty"], sim["course.seed"]) == ("steps", 0.3, 5)
    assert (sim["seed"], sim["speed"], sim["camera.enabled"]) == (5, 1, True)
    assert "duration_s" not in sim
    ports = [each["metrics_port"] for each in (sim, camera, loop)]
    assert ports == list(plan.wiring.metrics_ports.values())


def test_in_lock_step_the_simulator_counts_the_time():
    plan = plan_module.make_plan(quiet("--speed", "0", "--duration", "20"))
    assert overrides_of(plan, "sim-hal")["duration_s"] == 20.0
    assert overrides_of(plan, "sim-hal")["speed"] == 0


def test_settings_come_last_so_that_they_win():
    plan = plan_module.make_plan(quiet("--set", "sim-hal.mission.speed=0.2"))
    assert plan.children[0].argv[-1] == "mission.speed=0.2"
    plan = plan_module.make_plan(quiet("--set", "gameloop.policy=other"))
    assert plan.children[-1].argv[-1] == "policy=other"


def test_a_recording_is_made_by_a_process_of_its_own(tmp_path):
    plan = plan_module.make_plan(parsed("--record", str(tmp_path / "run.mcap")))
    recorder = plan.children[-1]
    assert recorder.argv[:5] == (sys.executable, "-P", "-m", "krabby_cli", "record")
    assert f"--endpoint=state={plan.wiring.endpoints['state']}" in recorder.argv
    assert f"--ring={plan.folder.absolute()}" in recorder.argv
    assert not recorder.expendable


def test_the_black_box_runs_beside_every_run_in_real_time():
    names = [child.name for child in plan_module.make_plan(parsed()).children]
    assert names == ["sim-hal", "camera", "gameloop", "recorder"]
    for options in (("--no-black-box",), ("--speed", "0")):
        children = plan_module.make_plan(parsed(*options)).children
        assert "recorder" not in [child.name for child in children]
    assert plan_module.make_plan(parsed()).children[-1].expendable


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ([], True),
        (["--no-view"], False),
        (["--speed", "0", "--duration", "20"], False),
        (["--speed", "0", "--duration", "20", "--view"], True),
        (["--speed", "0", "--duration", "20", "--in-process"], False),
    ],
)
def test_a_run_in_real_time_is_shown_unless_it_is_asked_otherwise(argv, shown):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    plan = plan_module.make_plan(parser.parse_args(["up", "--base-port", "0", *argv]))
    views = [child for child in plan.children if child.name == "view"]
    assert (len(views) == 1) is shown
    assert (plan.view is not None) is shown
    for view in views:
        assert view.expendable
        # A command line can be read by every user of the host.
        assert not any(plan.view.operate in word for word in view.argv)
        assert plan.view.operate in view.env.values()


def test_mistakes_have_their_own_errors():
    for argv, error in (
        (["--course", "nope"], UnknownCourse),
        (["--seed", "-1"], CourseError),
        (["--policy", "/nowhere/at/all"], BundleError),
    ):
        with pytest.raises(error):
            plan_module.make_plan(quiet(*argv))


def test_services_are_modules_of_this_interpreter():
    assert service_command("sim-hal") == (sys.executable, "-P", "-m", "krabby_sim_hal")


def test_a_summary_that_is_not_read_does_not_keep_the_process(monkeypatch):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(65536))
    os.set_blocking(writer, True)
    with os.fdopen(writer, "w") as full:
        monkeypatch.setattr(up_module, "_TELL_S", 0.05)
        monkeypatch.setattr(sys, "stdout", full)
        assert not up_module._tell("{}")
        os.close(reader)  # frees the thread that writes


def test_a_summary_that_cannot_be_written_is_printed_all_the_same(
    fakes, tmp_path, capsys, monkeypatch
):
    write = up_module.Path.write_text

    def full(path, *args, **options):
        if path.name == "summary.json":
            raise OSError(28, "No space left on device")
        return write(path, *args, **options)

    monkeypatch.setattr(up_module.Path, "write_text", full)
    assert up("--duration", "0.2") == 0
    summary, said = summary_of(capsys)
    assert summary["exit"] == "finished"
    assert "summary.json: No space left on device" in said


def test_each_service_has_the_memory_limit_of_its_container():
    plan = plan_module.make_plan(quiet("--set", "gameloop.inference.backend=tensorrt"))
    limits = {child.name: child.memory_bytes >> 20 for child in plan.children}
    assert limits == {"sim-hal": 1024, "camera": 512, "gameloop": 6144}
    plan = plan_module.make_plan(quiet("--set", "gameloop.inference.backend=onnxruntime"))
    assert plan.children[2].memory_bytes == 512 << 20
