"""`krabby evaluate` on a suite of two cells of one second each, in this process."""

import json
import os
import signal

import krabby_cli.evaluate
import pytest
from krabby.benchmark.scenario import Cell, CommandSegment, Scenario
from krabby.course.courses import make_course
from krabby_cli.__main__ import main

interrupt_at: list[int] = []
"""Seeds whose scenario is made while Ctrl-C is pressed."""


def short(seed):
    if seed in interrupt_at:
        os.kill(os.getpid(), signal.SIGINT)
    return Scenario(
        course=make_course("flat", 0.5, seed),
        commands=(CommandSegment(start_s=0.0, vx=0.2),),
        duration_s=0.3,
    )


@pytest.fixture(autouse=True)
def suite(monkeypatch):
    interrupt_at.clear()
    cells = tuple(
        Cell(name=name, family="f", summary=name, goal="track", make=short, trials=2)
        for name in ("walk-a", "walk-b")
    )
    monkeypatch.setenv("KRABBY_ROBOT", "crab_hex")  # for --robot changes it
    monkeypatch.setattr(krabby_cli.evaluate, "find_suite", lambda _: cells)
    return cells


def evaluate(out, *argv):
    return main(["evaluate", "--policy", "gait", "--jobs", "1", "--out", str(out), *argv])


def trials(folder):
    return [
        (row["cell"], row["seed"])
        for path in sorted(folder.glob("trials*.jsonl"))
        for row in map(json.loads, path.read_text().splitlines())
    ]


def test_every_trial_is_written_down_and_reported(tmp_path, capsys):
    assert evaluate(tmp_path) == 0
    assert trials(tmp_path) == [("walk-a", 0), ("walk-b", 0), ("walk-a", 1), ("walk-b", 1)]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [cell["name"] for cell in report["cells"]] == ["walk-a", "walk-b"]
    assert "4 of 4 trials" in capsys.readouterr().err


def test_cells_and_their_number_can_be_chosen_and_added_later(tmp_path, capsys):
    assert evaluate(tmp_path, "--cells", "*-b", "--trials", "1") == 0
    assert trials(tmp_path) == [("walk-b", 0)]
    assert evaluate(tmp_path, "--trials", "1") == 0
    assert trials(tmp_path) == [("walk-b", 0), ("walk-a", 0)]
    assert "1 of 2 trials are done already" in capsys.readouterr().err


def test_ctrl_c_keeps_what_has_ended_and_the_same_command_continues(tmp_path, capsys):
    interrupt_at.append(1)
    assert evaluate(tmp_path) == 1
    assert "SIGINT: ending what runs; the same command continues here" in capsys.readouterr().err
    done = trials(tmp_path)
    assert 2 <= len(done) < 4
    interrupt_at.clear()
    assert evaluate(tmp_path) == 0
    assert trials(tmp_path)[: len(done)] == done
    assert len(trials(tmp_path)) == 4


def test_parts_put_together_are_the_whole(tmp_path):
    for part in ("1", "2"):
        assert evaluate(tmp_path / part, "--shard", f"{part}/2") == 0
        assert not (tmp_path / part / "report.json").exists()
    folders = [str(tmp_path / part) for part in ("1", "2")]
    assert evaluate(tmp_path / "all", "--merge", *folders) == 0
    evaluate(tmp_path / "whole")
    read = [json.loads((tmp_path / each / "report.json").read_text()) for each in ("all", "whole")]
    for report in read:
        report["facts"].pop("processor_s")
    assert read[0] == read[1]


def test_other_settings_in_the_same_folder_are_refused(tmp_path, capsys):
    assert evaluate(tmp_path, "--trials", "1") == 0
    assert evaluate(tmp_path, "--step-ms", "1") == 2
    assert "substep_ns = 2500000, this one has 1000000; give another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--cells", "run-*"], "has no cell 'run-*'; `krabby evaluate --suite"),
        (["--cells", "walk-c"], "no cell 'walk-c'; did you mean 'walk-"),
        (["--cells", ","], "cells ',' of suite"),
        (["--trials", "0"], "--trials 0 is too few"),
        (["--jobs", "0"], "--jobs 0 is too few"),
        (["--step-ms", "2"], "--step-ms 2 does not divide 5 ms"),
        (["--step-ms", "nan"], "--step-ms nan does not divide 5 ms"),
        (["--step-ms", "inf"], "--step-ms inf does not divide 5 ms"),
        (["--compare", "/no/folder"], "name a folder that `krabby evaluate` wrote"),
        (["--policy", "gate"], "no policy 'gate'"),
        (["--robot", "crab"], "has no such robot"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(tmp_path, capsys, argv, said):
    assert evaluate(tmp_path / "out", *argv) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_cells_are_listed(capsys):
    assert main(["evaluate", "--list"]) == 0
    assert "2 cells in 1 families, 4 trials" in capsys.readouterr().out
