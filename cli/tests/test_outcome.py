"""What a person is told at the end of a run."""

import pytest
from krabby_cli import outcome
from krabby_cli.outcome import outcome_lines, own_name

SUMMARY = {
    "policy": "parkour", "course": "mixed", "difficulty": 0.5, "duration_s": 20.0,
    "deadline_misses": 3, "skipped": 1, "distance_m": 19.74, "course_m": 19.75, "falls": 0,
    "course_completed": True, "waypoints_reached": 8, "waypoints": 8, "exit": "finished",
    "reason": "the time is up", "logs": "runs/20260101T000000Z-0a0a0a0a",
}  # fmt: skip


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """A folder with the launcher of a checkout."""
    (tmp_path / "krabby").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_completed_course_is_a_success_with_distance_falls_log_and_next_step():
    assert outcome_lines(SUMMARY) == [
        "success: the robot completed the course",
        "walked  19.7 of 19.8 m in 20 s, no fall",
        "course  mixed, difficulty 0.5",
        "        8 of 8 waypoints",
        "logs    runs/20260101T000000Z-0a0a0a0a",
        "next    again with DIFFICULTY=1",
    ]
    assert max(map(len, outcome_lines(SUMMARY))) <= 46


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ({"falls": 2}, "no success: the robot fell"),
        ({"falls": 1, "course_completed": True}, "no success: completed the course, but fell"),
        ({}, "no success: the time was up"),
        ({"exit": "interrupted", "reason": "SIGINT"}, "stopped by SIGINT"),
        ({"exit": "failed", "reason": "camera ended with status 2"},
         "failed: camera ended with status 2"),
    ],
)  # fmt: skip
def test_what_kept_it_from_success_is_the_first_line(facts, first):
    assert outcome_lines(SUMMARY | {"course_completed": False} | facts)[0] == first


@pytest.mark.parametrize(
    ("facts", "there", "elsewhere"),
    [
        ({}, "DIFFICULTY=1", "--difficulty 1"),
        ({"course_completed": False}, "DURATION=120", "--duration 120"),
        ({"falls": 1}, "RECORD=run.mcap makes a film", "--record run.mcap makes a film"),
        ({"course_completed": False, "falls": 1}, "RECORD=run.mcap makes a film",
         "--record run.mcap makes a film"),
        ({"course_completed": False, "exit": "interrupted"}, "RECORD=run.mcap makes a film",
         "--record run.mcap makes a film"),
    ],
)  # fmt: skip
def test_the_next_step_is_written_as_options_are_written_here(checkout, facts, there, elsewhere):
    assert outcome_lines(SUMMARY | facts)[-1] == f"next    again with {there}"
    (checkout / "krabby").unlink()  # the wheels alone: no make
    assert outcome_lines(SUMMARY | facts)[-1] == f"next    again with {elsewhere}"


def test_a_run_that_told_nothing_has_no_figures():
    nothing = {"distance_m": None, "deadline_misses": None, "skipped": None, "duration_s": 0.0}
    lines = outcome_lines(SUMMARY | nothing | {"exit": "failed", "reason": "x", "falls": None})
    assert [line.split()[0] for line in lines] == ["failed:", "logs", "next"]


def test_in_lock_step_the_time_is_the_robots():
    lines = outcome_lines(SUMMARY | {"sim_time_s": 42.4}, lockstep=True)
    assert "walked  19.7 of 19.8 m in 42 s, no fall" in lines


def test_a_busy_machine_is_named_as_a_cause():
    # 20 s are 2000 ticks; 200 + 40 of them are 12 %.
    lines = outcome_lines(SUMMARY | {"deadline_misses": 200, "skipped": 40})
    assert "note    too busy: 12% of the ticks late" in lines
    assert not any("busy" in line for line in outcome_lines(SUMMARY | {"deadline_misses": 90}))


def test_a_recording_is_named_and_can_be_pasted_into_the_next_command(tmp_path):
    path = tmp_path / "my run.mcap"
    assert not any(line.startswith("record") for line in outcome_lines(SUMMARY, path))
    path.touch()
    *_, record, following = outcome_lines(SUMMARY, path)
    assert record == f"record  {path}"
    assert following.endswith(f" film '{path}' run.webp")


def test_the_command_is_named_as_it_can_be_typed_here(checkout, monkeypatch):
    monkeypatch.setattr(outcome.shutil, "which", lambda _: None)
    (checkout / "krabby").unlink()
    assert own_name().endswith("/bin/krabby")
    (checkout / "krabby").touch()
    assert own_name() == "./krabby"
    monkeypatch.setattr(outcome.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert own_name() == "krabby"
