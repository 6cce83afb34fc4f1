"""From the books of a run to its report."""

import json
from pathlib import Path

import numpy as np
import pytest
from krabby_trainer.evaluation.curves import (
    curves,
    difficulty_section,
    drawn_figures,
    figures_text,
    plot_difficulty,
)
from krabby_trainer.evaluation.metrics import EpisodeRecorder, StepFacts
from krabby_trainer.evaluation.outcome import Outcome
from krabby_trainer.evaluation.report import (
    PAPER,
    compare,
    comparison_markdown,
    markdown,
    results,
    write_comparison,
    write_report,
)
from krabby_trainer.evaluation.suite import SUITES, TYPES, assign
from krabby_trainer.task.terrain import Terrain

POLICIES = Path(__file__).parents[4] / "assets" / "policies"
SHIPPED = sorted(
    path.parent for path in POLICIES.glob("*/training/evaluation/*/report.json")
    if (path.parent / "difficulty.png").exists()
)  # fmt: skip

ABOUT = {
    "checkpoint": "iteration_000100.pt",
    "checkpoint_sha256": "00",
    "iteration": 100,
    "seed": 1,
}


def outcome(suite, goals, robots):
    """Every robot ends its only episode after `goals` of its index, completing at 8."""
    terrain = Terrain(SUITES[suite].env_cfg(robots=robots, seed=1).terrain)
    who, courses = assign(terrain, robots)
    recorder = EpisodeRecorder(who, step_s=0.01)
    reached = np.array([goals(who.type[i], who.difficulty[i]) for i in range(robots)])
    none = np.zeros((robots, 6), bool)
    recorder.add(
        StepFacts(
            goal_index=reached,
            foot_contact=none,
            feet_on_edge=none,
            terminated=reached < 8,
            timed_out=np.zeros(robots, bool),
            completed=reached == 8,
            torque=np.full((robots, 18), 10.0),
            saturated=np.zeros((robots, 18), bool),
            base_contact=np.zeros(robots, bool),
            distance_m=np.zeros(robots),
        )
    )
    return Outcome(run=recorder.finish(), wall_s=60.0), courses


def report(suite="paper", goals=lambda kind, d: 8, robots=16, backend="mujoco"):
    out, courses = outcome(suite, goals, robots)
    return results(out, courses, suite=SUITES[suite], backend=backend, about=ABOUT)


def test_a_report_is_plain_json(tmp_path):
    paths = write_report(report(), tmp_path)

    assert sorted(path.name for path in paths) == ["difficulty.png", "report.json", "report.md"]
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["total"]["mxd"] == 1.0
    assert again["checkpoint"] == "iteration_000100.pt"
    assert (tmp_path / "difficulty.png").stat().st_size < 60_000
    assert not list(tmp_path.glob(".*"))


def test_the_papers_own_numbers_make_its_total():
    total = sum(PAPER[kind]["mxd"] * (2 if kind == "ramps" else 1) for kind in TYPES) / 5

    assert total == pytest.approx(PAPER["total"]["mxd"], abs=0.01)


def test_the_table_shows_both_numbers_and_names_the_source():
    text = markdown(report(goals=lambda kind, d: 0 if kind == "gap" else 8))

    row = next(line for line in text.splitlines() if line.startswith("| gap |"))
    assert "0.00 ± 0.00" in row
    assert "0.96 ± 0.14" in row
    total = next(line for line in text.splitlines() if line.startswith("| **total** |"))
    assert "0.80 ± 0.40" in total  # one of five shares fails
    assert "arXiv 2309.14341" in text
    assert "26.6° steep at difficulty 1" in text


def test_the_open_suite_says_how_far_it_gets_and_where_it_fails():
    # Mastered up to d = 1.5 and lost from 2.0 on, with 1.75 in between.
    made = report("open", lambda kind, d: 8 if d < 1.6 else 4, robots=28)

    limits = made["limits"]["gap"]
    assert limits["mastered"] == {"difficulty": 1.5, "obstacle": "1.15 m"}
    assert limits["failed"]["difficulty"] == 1.75
    assert "1.15 m (d 1.5)" in markdown(made)


def test_a_hard_obstacle_that_is_mastered_after_one_that_is_not_does_not_count():
    made = report("open", lambda kind, d: 8 if d != 1.25 else 4, robots=28)

    assert made["limits"]["steps"]["mastered"]["difficulty"] == 1.0


def test_two_backends_are_compared_course_by_course(tmp_path):
    ours = report(goals=lambda kind, d: 7 if kind == "steps" else 8)
    other = report(goals=lambda kind, d: 0 if kind == "ramps" else 8, backend="isaac")

    comparison = compare(ours, other)
    # Completing and reaching seven goals are the same MXD, so only the 4 ramps differ.
    assert (comparison["courses"], comparison["courses_equal"]) == (16, 12)
    assert comparison["mean_absolute_difference"] == pytest.approx(4 / 16)
    assert comparison["differences"]["ramps"]["mxd"] == 1.0
    assert comparison["differences"]["total"]["mxd"] == pytest.approx(2 / 5)
    assert comparison["differences"]["steps"]["success"] == -1.0
    assert "| ramps | +1.000 |" in comparison_markdown(comparison)
    assert len(write_comparison(ours, other, tmp_path)) == 3


def test_reports_of_different_courses_are_not_compared(tmp_path):
    ours = report()

    assert compare(ours, ours | {"seed": 2, "backend": "isaac"}) is None
    assert write_comparison(ours, ours | {"checkpoint_sha256": "11"}, tmp_path) == []


def test_a_run_without_a_finished_episode_still_makes_a_report(tmp_path):
    out, courses = outcome("paper", lambda kind, d: 8, 16)
    out.run.episodes["outcome"][:] = 3  # cut off
    made = results(out, courses, suite=SUITES["paper"], backend="mujoco", about=ABOUT)

    assert made["total"]["mxd"] is None
    assert "none" in markdown(made)
    write_report(made, tmp_path)


def test_table_and_picture_over_difficulty_have_the_same_figures(tmp_path):
    # Gaps beyond d = 0.5 end at goal 4 of 8: MXD 4/7, no success. None is beyond 0.75.
    made = report(goals=lambda kind, d: 4 if kind == "gap" and d > 0.5 else 8)
    easy, hard = curves(made)["gap"][0], curves(made)["gap"][-1]
    assert (easy.mxd.value, easy.success.value, easy.fell.value) == (1.0, 1.0, 0.0)
    assert (hard.mxd.value, hard.success.value, hard.fell.value) == (0.5714, 0.0, 1.0)
    assert np.isnan(hard.mxd.low)  # all agree: Student's interval would have no width
    n = hard.success.n
    z2 = 1.959964**2
    assert hard.success.high == pytest.approx(z2 / (n + z2))  # Wilson's for 0 of n
    row = f"0.57 [no interval] (n {n}) | 0.00 [0.00, {z2 / (n + z2):.2f}] (n {n})"
    assert row in difficulty_section(made)
    plot_difficulty(made, tmp_path / "difficulty.png")
    drawn = json.loads(drawn_figures(tmp_path / "difficulty.png"))
    last = [0.625, 0.5714, None, None, 0.0, 0.0, round(z2 / (n + z2), 4)]
    assert drawn["gap"][-1] == pytest.approx(last)


def test_robots_that_differ_give_a_mean_with_its_interval():
    made = report(robots=64)
    gaps = [i for i, kind in enumerate(made["robot"]["type"]) if kind == "gap"]
    chosen = [i for i in gaps if made["robot"]["difficulty"][i] < 0.25]
    for i in chosen[1:]:
        made["robot"]["mxd_first"][i] = 0.0
    n = len(chosen)
    point = curves(made)["gap"][0].mxd
    assert n >= 2
    assert (point.value, point.n) == (pytest.approx(1 / n), n)
    assert 0.0 == point.low < point.value < point.high <= 1.0


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: f"{path.parents[2].name}-{path.name}")
def test_shipped_tables_and_pictures_are_those_of_their_report(folder):
    shipped = json.loads((folder / "report.json").read_text())
    assert difficulty_section(shipped) in (folder / "report.md").read_text()
    assert drawn_figures(folder / "difficulty.png") == figures_text(curves(shipped))


def test_all_shipped_reports_are_compared():
    assert len(SHIPPED) >= 15
