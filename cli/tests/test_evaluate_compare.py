"""`krabby evaluate --compare`: one report of the folders of several policies."""

import json

import msgspec
import pytest
from krabby.benchmark.book import HEAD_FORMAT, suite_digest
from krabby.benchmark.suites import find_suite
from krabby.benchmark.trace import TrialResult
from krabby_cli.__main__ import main


@pytest.fixture
def folder(tmp_path):
    """Writes a folder with 8 trials of the cell steps-1."""

    def write(policy, successes, **changes):
        path = tmp_path / f"{policy}{len(changes)}"
        path.mkdir()
        head = {
            "format": HEAD_FORMAT,
            "suite": "published",
            "cells_sha256": suite_digest(find_suite("published")),
            "policy": policy,
            "robot": "r",
            "substep_ns": 2_500_000,
        }
        (path / "evaluation.json").write_text(json.dumps(head | changes))
        trials = [
            TrialResult(
                cell="steps-1", seed=seed, policy=policy,
                outcome="success" if seed < successes else "fell", reason="", time_s=9.0,
                waypoints=8, of_waypoints=8, progress_m=9.0, course_m=9.0, figures={},
            )
            for seed in range(8)
        ]  # fmt: skip
        (path / "trials-1-of-1.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, trials)))
        return str(path)

    return write


def test_policies_stand_side_by_side(folder, tmp_path):
    folders = [folder("gait", 2), folder("parkour", 8)]
    argv = ["evaluate", "--compare", *folders, "--cells", "steps-1", "--trials", "8"]
    assert main([*argv, "--out", str(tmp_path / "both")]) == 0
    report = json.loads((tmp_path / "both/report.json").read_text())
    (cell,) = report["cells"]
    shares = {policy: found["success"]["value"] for policy, found in cell["results"].items()}
    assert shares == {"gait": 0.25, "parkour": 1.0}
    assert report["facts"]["policy"] == "gait; parkour"


def test_the_exit_status_says_that_trials_are_missing(folder, tmp_path):
    argv = ["evaluate", "--compare", folder("gait", 2), "--out", str(tmp_path / "out")]
    assert main([*argv, "--quick", "--cells", "steps-1"]) == 0
    assert main([*argv, "--cells", "steps-1"]) == 1
    text = (tmp_path / "out/report.md").read_text()
    assert "- gait, 8 of 64 trials: steps-1" in text


def test_folders_of_another_version_of_the_suite_are_refused(folder, capsys):
    for index, changes in enumerate(({"cells_sha256": "0"}, {"format": 1})):
        assert main(["evaluate", "--compare", folder(f"gait{index}", 2, **changes)]) == 2
        assert "holds another suite or version than 'published'" in capsys.readouterr().err


def test_one_policy_on_two_robots_is_not_taken_for_one(folder, capsys, tmp_path):
    folders = [folder("gait", 2), folder("gait", 8, robot="other")]
    assert main(["evaluate", "--compare", *folders, "--out", str(tmp_path / "out")]) == 2
    assert "hold different evaluations of policy 'gait'" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_no_traceback(folder, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    argv = ["evaluate", "--compare", folder("gait", 2), "--out", str(tmp_path / "file")]
    assert main(argv) == 1
    assert "the report cannot be written" in capsys.readouterr().err
