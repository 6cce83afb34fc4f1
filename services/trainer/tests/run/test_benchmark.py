"""Suites of the benchmark from the trainer."""

import json

import krabby_trainer.run.benchmark
import pytest
from krabby.benchmark.scenario import Cell, CommandSegment, Scenario
from krabby.course.courses import make_course
from krabby.policy.bundle import bundle_dir
from krabby_trainer.errors import EvaluationError
from krabby_trainer.run.benchmark import run_suite


def short(seed):
    return Scenario(
        course=make_course("flat", 0.5, seed),
        commands=(CommandSegment(start_s=0.0, vx=0.2),),
        duration_s=0.3,
    )


@pytest.fixture(autouse=True)
def suite(monkeypatch):
    cell = Cell(name="walk", family="f", summary="", goal="track", make=short, trials=3)
    monkeypatch.setattr(krabby_trainer.run.benchmark, "find_suite", lambda _: (cell,))


def test_a_bundle_walks_a_suite_and_the_same_call_continues(tmp_path):
    gait = bundle_dir("gait")
    assert run_suite(gait, tmp_path, suite="s", trials=1, processes=1)["trials"] == 1
    assert run_suite(gait, tmp_path, suite="s", trials=2, processes=1)["trials"] == 2
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [(row["cell"], row["seed"], row["policy"]) for row in rows] == [
        ("walk", 0, "gait"), ("walk", 1, "gait")
    ]  # fmt: skip
    assert "walk" in (tmp_path / "report.md").read_text()


def test_a_folder_of_another_evaluation_is_refused(tmp_path):
    run_suite(bundle_dir("gait"), tmp_path, suite="s", trials=1, processes=1)
    with pytest.raises(EvaluationError, match="give another"):
        run_suite(bundle_dir("gait"), tmp_path, suite="t", trials=1, processes=1)


def test_some_cells_of_a_suite_are_walked_and_an_unknown_one_is_refused(tmp_path, monkeypatch):
    cells = tuple(
        Cell(name=name, family="f", summary="", goal="track", make=short, trials=1)
        for name in ("walk-1", "walk-2", "stand")
    )
    monkeypatch.setattr(krabby_trainer.run.benchmark, "find_suite", lambda _: cells)
    gait = bundle_dir("gait")
    facts = run_suite(gait, tmp_path, suite="s", cells="walk*", processes=1)
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert (facts["trials"], [row["cell"] for row in rows]) == (2, ["walk-1", "walk-2"])
    with pytest.raises(EvaluationError, match=r"no cell 'stnd'; did you mean 'stand'\?"):
        run_suite(gait, tmp_path / "other", suite="s", cells="stnd", processes=1)
