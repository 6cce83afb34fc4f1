"""Many runs, with services that only pretend; what they come to; going on after an interruption."""

import json

import pytest
from krabby.course.courses import make_course
from krabby_cli.__main__ import main
from krabby_cli.processes_report import Case, is_done, make_report, time_limit_s, to_markdown, way_m

SIM = {
    "distance_m": 15.0, "furthest_m": 15.0, "course_m": 16.0, "falls": 0, "course_completed": True,
    "gate_clamps": 0, "gate_faults": {"command_timeout": 1}, "sim_time_s": 40.0,
}  # fmt: skip
LOOP = {"loop_hz": 100.0, "deadline_misses": 2, "policy_s": 40.0, "blind_s": 0.0}


@pytest.fixture
def stack(fakes, tmp_path):
    """Fake services whose simulator ends by itself; call it with what they report."""
    fakes["sim-hal"] = "end"

    def reports(sim=None, loop=None):
        figures = {"sim-hal": SIM | (sim or {}), "gameloop": LOOP | (loop or {})}
        (tmp_path / "figures.json").write_text(json.dumps(figures))
        return fakes

    reports()
    return reports


def evaluate(*argv):
    where = ("--courses", "flat,steps", "--difficulties", "0.5")
    return main(["evaluate", "--processes", "--policy", "gait", *where, *argv])


def runs(tmp_path):
    return (tmp_path / "runs/evaluate/gait/runs.jsonl").read_text().splitlines()


def report(tmp_path):
    return json.loads((tmp_path / "runs/evaluate/gait/report.json").read_text())


def test_every_case_is_run_once_written_down_and_summed_up(stack, tmp_path, capsys):
    assert evaluate("--seeds", "0-1") == 0
    cases = [tuple(json.loads(line)[k] for k in ("course", "difficulty", "seed"))
             for line in runs(tmp_path)]  # fmt: skip
    assert cases == [("flat", 0.5, 0), ("steps", 0.5, 0), ("flat", 0.5, 1), ("steps", 0.5, 1)]
    cells = report(tmp_path)["cells"]
    assert [(c["course"], c["difficulty"], c["runs"]) for c in cells] == [
        ("flat", 0.5, 2), ("steps", 0.5, 2), ("all", 0.5, 4), ("all", "all", 4)
    ]  # fmt: skip
    assert cells[-1]["success"] == 1.0
    said = capsys.readouterr().err
    assert "[3/4] flat, difficulty 0.5, seed 1; about" in said
    assert "report in runs/evaluate/gait/report.md" in said
    assert "4 of 4 runs" in (tmp_path / "runs/evaluate/gait/report.md").read_text()


def test_a_second_call_makes_only_what_is_missing(stack, tmp_path, capsys):
    assert evaluate("--seeds", "0") == 0
    assert evaluate("--seeds", "0-1") == 0
    assert len(runs(tmp_path)) == 4
    assert "2 of 4 runs are done already" in capsys.readouterr().err
    assert evaluate("--seeds", "0-1") == 0
    assert len(runs(tmp_path)) == 4


def test_ctrl_c_ends_with_a_report_and_the_same_command_goes_on(stack, tmp_path, capsys):
    fakes = stack()
    assert evaluate("--seeds", "0") == 0
    fakes["gameloop"], fakes["sim-hal"] = "interrupt", ""
    assert evaluate("--seeds", "0-1") == 1
    assert "interrupted: the same command continues here" in capsys.readouterr().err
    assert report(tmp_path)["cells"][-1]["runs"] == 2
    fakes["gameloop"], fakes["sim-hal"] = "", "end"
    assert evaluate("--seeds", "0-1") == 0
    assert report(tmp_path)["cells"][-1]["runs"] == 4


def test_a_run_that_failed_is_made_again_and_three_in_a_row_end_it(stack, tmp_path, capsys):
    fakes = stack()
    fakes["camera"] = "die-at-start"
    assert evaluate("--seeds", "0-4") == 1
    assert len(runs(tmp_path)) == 3
    said = capsys.readouterr().err
    assert "3 runs in a row failed, the last one: camera ended with status 2" in said
    assert report(tmp_path)["cells"] == []
    fakes["camera"] = ""
    assert evaluate("--seeds", "0") == 0
    assert report(tmp_path)["cells"][-1]["runs"] == 2


def test_a_folder_with_another_evaluation_is_refused_and_left_alone(stack, tmp_path, capsys):
    assert evaluate("--seeds", "0") == 0
    assert evaluate("--seeds", "0-1", "--set", "sim-hal.degrade.payload_kg=5") == 2
    said = capsys.readouterr().err
    assert (
        "settings = [], this one has ['sim-hal.degrade.payload_kg=5']; give another --out" in said
    )
    assert len(runs(tmp_path)) == 2


def test_a_line_cut_off_by_a_power_cut_is_made_again(stack, tmp_path):
    assert evaluate("--seeds", "0") == 0
    book = tmp_path / "runs/evaluate/gait/runs.jsonl"
    book.write_text(book.read_text()[:-30])
    assert evaluate("--seeds", "0") == 0
    assert report(tmp_path)["cells"][-1]["runs"] == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--courses", "stpes"], "did you mean 'steps'?"),
        (["--difficulties", "9"], "outside 0 to 2.5"),
        (["--policy", "gate"], "no policy 'gate'"),
        (["--walk-speed", "0"], "--walk-speed 0 is no speed"),
        (["--slack", "0.5"], "--slack 0.5 is too little"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(stack, tmp_path, capsys, argv, said):
    assert main(["evaluate", "--processes", *argv]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_may_take_one_and_a_half_times_its_way_and_the_time_to_stand_up():
    course = make_course("flat")
    # Half as much again of the way at 0.5 m/s is three seconds a metre; 8 s to stand up.
    assert time_limit_s(course, 0.5, 1.5) == pytest.approx(8.0 + 3.0 * way_m(course))
    assert 10.0 < way_m(course) < 18.0


def run_of(case, **facts):
    summary = {**LOOP, **SIM, "exit": "finished", "cpu_cores": {"total": 0.5}, **facts}
    return {**case._asdict(), "summary": summary}


HEAD = {
    "policy": "gait", "files": {"policy.onnx": "ab" * 32}, "walk_speed": 0.35, "lockstep": False,
    "settings": ["sim-hal.degrade.payload_kg=5"], "planned": 4, "machine": "2 processors",
}  # fmt: skip


def test_success_is_all_waypoints_without_a_fall_and_the_share_is_of_the_way():
    made = [
        run_of(Case("steps", 0.5, 0)),
        run_of(Case("steps", 0.5, 1), falls=1, course_completed=False, furthest_m=4.0),
        run_of(Case("steps", 0.5, 2), falls=1),  # fell and was put back before the end
        run_of(Case("steps", 0.5, 4), course_completed=False, furthest_m=8.0),  # out of time
    ]
    cell = make_report(HEAD, made)["cells"][0]
    assert (cell["runs"], cell["successes"], cell["success"], cell["falls"]) == (4, 1, 0.25, 2)
    # 1 + 4/16 + 1 + 8/16, of four
    assert cell["distance_share"] == pytest.approx(2.75 / 4)
    assert cell["seeds"] == [0, 1, 2, 4]


def test_figures_are_sums_worst_or_median_and_leaving_is_no_fault():
    made = [
        run_of(Case("gap", 0.5, 0), obs_age_p99_ms=4.0, loop_hz=99.9, blind_s=1.5,
               gate_faults={"command_timeout": 1}),
        run_of(Case("gap", 0.5, 1), obs_age_p99_ms=6.0, loop_hz=98.0, gate_clamps=3,
               gate_faults={"command_timeout": 1, "tilt": 1}),
        run_of(Case("gap", 0.5, 2), obs_age_p99_ms=30.0, gate_faults={}),
    ]  # fmt: skip
    cell = make_report(HEAD, made)["cells"][-1]
    assert (cell["state_age_p99_ms_median"], cell["state_age_p99_ms_max"]) == (6.0, 30.0)
    assert cell["loop_hz_min"] == 98.0
    assert cell["gate_faults"] == {"tilt": 1}
    assert cell["gate_clamps"] == 3
    assert (cell["blind_s"], cell["walked_s"]) == (1.5, 120.0)
    assert (cell["deadline_misses"], cell["deadline_misses_per_s"]) == (6, 0.05)
    assert cell["features_age_p99_ms_median"] is None


def test_a_run_without_a_word_from_simulator_or_loop_does_not_count():
    assert is_done(run_of(Case("gap", 0.5, 0)))
    for facts in ({"exit": "failed"}, {"course_completed": None}, {"policy_s": None}):
        assert not is_done(run_of(Case("gap", 0.5, 0), **facts))


def test_the_table_says_what_was_run_and_how_often():
    made = [run_of(Case("steps", d, s)) for d in (0.5, 0.75) for s in (0, 1, 2, 5)]
    text = to_markdown(make_report(HEAD, made))
    assert "Policy gait (abababababab) through the runtime" in text
    assert "8 of 4 runs" in text
    assert "Set: `sim-hal.degrade.payload_kg=5`." in text
    assert "| steps | 0.75 | 0-2, 5 | 4 | 1.00 | 1.00 | 0 | 0 | 100.0 |  |  | 0.0 | 8 |" in text
    assert "| all | all | 0-2, 5 | 8 |" in text


def test_an_evaluation_of_nothing_is_a_table_without_rows():
    assert "0 of 4 runs" in to_markdown(make_report(HEAD, []))
