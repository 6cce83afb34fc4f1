"""Reports of made-up trials: shards, groups, targets, missing cells, several policies."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krabby.benchmark import table
from krabby.benchmark.aggregate import FIGURES
from krabby.benchmark.outcome import Outcome
from krabby.benchmark.report import Report, markdown, target_text, write_report
from krabby.benchmark.scenario import Cell, Target
from krabby.benchmark.table import TrialsError
from krabby.benchmark.trace import TrialResult

WALL_S = itertools.count(1.0, 0.1)


def make_cell(name, family="stairs", goal="waypoints", **changes):
    return Cell(
        name=name, family=family, summary=f"{name} in m", goal=goal,
        make=lambda seed: None, **{"trials": 4, **changes},
    )  # fmt: skip


CELLS = (
    make_cell("up", target=Target(at_least=0.7), facts={"group": "published"}),
    make_cell("spiral", held_out=True, target=Target(at_least=0.9)),
    make_cell("cliff", "impassable", "stand_off", target=Target(figure="fell", at_most=0.02)),
)


def trial(cell="up", seed=0, policy="parkour", outcome="success", **figures):
    return TrialResult(
        cell=cell, seed=seed, policy=policy, outcome=outcome,
        reason="" if outcome == "success" else "why", time_s=10.0, waypoints=2, of_waypoints=2,
        progress_m=5.0, course_m=5.0, wall_s=next(WALL_S),
        figures={"walked_m": 5.0, "walk_s": 12.0, "needed_s": 10.0, "travel_energy": 100.0,
                 "weight_m": 400.0} | figures,
    )  # fmt: skip


TRIALS = [
    *(trial("up", seed) for seed in range(3)),
    trial("up", 3, outcome="fell"),
    *(trial("spiral", seed, outcome="stuck") for seed in range(2)),
    *(trial("cliff", seed, outcome="refused") for seed in range(4)),
]


def test_a_cell_has_its_success_falls_and_times():
    row = table.cell_rows(CELLS, TRIALS)[0]
    found = row.results["parkour"]
    assert str(found["success"]) == "0.75 [0.30, 0.95] (n 4)"
    assert found["fell"].value == 0.25
    # 1 fall in 20 m; exact bounds of one event: 0.0253 and 5.572
    assert found["falls_per_100m"].text() == "5.00 [0.13, 27.86] (n 4)"
    assert found["time_ratio"].value == pytest.approx(1.2)
    assert found["cost_of_transport"].value == 0.25
    assert row.outcomes["parkour"] == {"success": 3, "fell": 1}


def test_a_disturbed_cell_is_compared_with_its_baseline():
    target = Target(figure="success_change", at_least=-0.05)
    late = make_cell("late", facts={"baseline": "up"}, target=target)
    trials = [*TRIALS, *(trial("late", seed) for seed in range(4))]
    rows = {row.name: row for row in table.cell_rows((*CELLS, late), trials)}
    # 4 of 4 minus 3 of 4
    assert rows["late"].results["parkour"]["success_change"].value == 0.25
    assert table.judge(target, rows["late"].results["parkour"]) == "met, not certain"
    assert "success_change" not in rows["up"].results["parkour"]


def test_standing_off_is_success_before_what_is_impassable_and_nowhere_else():
    rows = {row.name: row.results["parkour"] for row in table.cell_rows(CELLS, TRIALS)}
    assert (rows["cliff"]["success"].value, rows["cliff"]["refused"].value) == (1.0, 1.0)
    refused = table.summarise([trial(outcome="refused")], {"up": "waypoints"})
    assert refused["success"].value == 0.0
    assert "time_ratio" not in refused


def test_falls_of_trials_that_the_disturbance_did_not_reach_do_not_count():
    target = Target(figure="fell_disturbed", at_most=0.02)
    cells = (make_cell("release", target=target),)
    stuck = [trial("release", n, outcome="stuck", disturbed=0.0, fell_disturbed=0.0)
             for n in range(3)]  # fmt: skip
    row = table.cell_rows(cells, stuck)[0]
    assert table.judge(target, row.results["parkour"]) == "not measured"
    fell = trial("release", 3, outcome="fell", disturbed=1.0, fell_disturbed=1.0)
    early = trial("release", 4, outcome="fell", disturbed=0.0, fell_disturbed=0.0)
    found = table.cell_rows(cells, [*stuck, fell, early])[0].results["parkour"]
    assert (found["fell_disturbed"].value, found["fell_disturbed"].n) == (1.0, 1)
    assert table.judge(target, found) == "missed"


def test_families_and_groups_pool_their_trials():
    families = {row.name: row for row in table.family_rows(CELLS, TRIALS)}
    assert families["stairs"].results["parkour"]["success"].n == 6
    assert not families["stairs"].held_out
    groups = {row.name: row.results["parkour"]["success"].n
              for row in table.group_rows(CELLS, TRIALS)}  # fmt: skip
    assert groups == {
        "all cells": 10, "not held out": 8, "published": 4, "held out of training": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("successes", "verdict"),
    # Wilson intervals of n = 64: 64 [0.943, 1], 60 [0.850, 0.975], 56 [0.772, 0.936], 40 to 0.735
    [(64, "met"), (60, "met, not certain"), (56, "missed, not certain"), (40, "missed")],
)
def test_a_target_is_met_with_or_without_certainty(successes, verdict):
    trials = [trial(seed=i, outcome="success" if i < successes else "fell") for i in range(64)]
    found = table.summarise(trials, {"up": "waypoints"})
    assert table.judge(Target(at_least=0.9), found) == verdict


def test_a_target_on_a_maximum_counts_the_largest_trial():
    trials = [trial(seed=i, foot_above_base=0.1 if i else 0.6) for i in range(9)]
    found = table.summarise(trials, {"up": "waypoints"})
    assert table.judge(Target(figure="foot_above_base", at_most=0.5), found) == "missed"
    assert table.judge(Target(figure="drift", at_most=0.5), found) == "not measured"


def test_targets_are_written_in_the_unit_of_their_figure():
    assert target_text(Target(at_least=0.97)) == "success ≥ 0.97"
    assert target_text(Target(figure="drift", at_most=0.005)) == "drift ≤ 5 mm/s"


def test_cells_with_too_few_trials_are_named():
    assert table.missing(CELLS, TRIALS) == {"parkour": ["spiral: 2 of 4"]}
    text = markdown(Report.of(CELLS, [*TRIALS, trial("attic")], {"suite": "wild"}))
    assert "- parkour, 2 of 4 trials: spiral" in text
    assert "Not in the suite, left out: attic" in text


def test_policies_stand_side_by_side():
    gait = [trial("up", seed, policy="gait", outcome="stuck") for seed in range(4)]
    text = markdown(Report.of(CELLS, [*TRIALS, *gait], {"suite": "wild", "physics_step_s": 0.0025}))
    (line,) = [line for line in text.splitlines() if line.startswith("| up |")]
    assert line == (
        "| up | up in m | success ≥ 0.7 | 0.00 [0.00, 0.49] (n 4) | missed | stuck 4 "
        "| 0.75 [0.30, 0.95] (n 4) | met, not certain | fell 1 |"
    )
    assert "| spiral (held out) |" in text
    assert "| stairs (partly held out) | 2 |" in text
    assert "- physics_step_s: 0.0025" in text


def test_a_trial_twice_counts_once():
    assert len(table.merge([*TRIALS, *TRIALS])) == len(TRIALS)


def test_contradicting_results_of_one_trial_are_refused():
    with pytest.raises(TrialsError, match=r"cell 'up', seed 0 differ \(success .*, fell"):
        table.merge([trial(), trial(outcome="fell")])


def test_lines_that_are_no_trial_are_refused(tmp_path):
    path = tmp_path / "trials.jsonl"
    for line in ('{"cell": "up", "se', json.dumps(asdict(trial(outcome="won"))), ""):
        path.write_text(f"{json.dumps(asdict(trial()))}\n{line}\n")
        with pytest.raises(TrialsError, match=r"trials\.jsonl, line 2 is not a trial"):
            table.read_trials([path])


def test_a_last_line_without_an_end_is_left_out_unless_it_is_whole(tmp_path):
    path, whole = tmp_path / "trials.jsonl", json.dumps(asdict(trial()))
    for last, count in (('{"cell": "up", "se', 1), (json.dumps(asdict(trial(seed=1))), 2)):
        path.write_text(f"{whole}\n{last}")
        assert len(table.read_trials([path])) == count


def test_a_report_is_json_text_and_a_picture(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in TRIALS))
    write_report(tmp_path / "out", CELLS, table.read_trials([path]), {"suite": "wild"})
    report = json.loads((tmp_path / "out/report.json").read_text())
    up = report["cells"][0]
    assert up["results"]["parkour"]["success"]["n"] == 4
    assert up["verdicts"] == {"parkour": "met, not certain"}
    assert report["missing"] == {"parkour": ["spiral: 2 of 4"]}
    assert "![Success of each cell" in (tmp_path / "out/report.md").read_text()
    assert (tmp_path / "out/success.png").read_bytes().startswith(b"\x89PNG")


figures = st.fixed_dictionaries(
    {
        "walked_m": st.floats(0, 20),
        "travel_energy": st.floats(0, 1e4),
        "weight_m": st.floats(0.1, 1e4),
        "tracked_s": st.floats(0.1, 30),
        "error_vx": st.floats(0, 3),
        "obeys": st.sampled_from([0.0, 1.0]),
        "peaks": st.just(3.0),
        "peaks.0.5": st.sampled_from([1.0, 2.0]),
        "peaks.1.5": st.sampled_from([1.0, 2.0]),
        "joint_samples": st.just(100.0),
        "torque_square.lf_knee": st.floats(0, 900),
        "torque_square.rf_knee": st.floats(0, 900),
        "foot_above_base": st.floats(-0.3, 1.0),
    }
)
one_trial = st.builds(
    trial,
    cell=st.sampled_from(["up", "spiral", "cliff"]),
    policy=st.sampled_from(["parkour", "gait"]),
    outcome=st.sampled_from(["success", "fell", "stuck", "refused"]),
)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(one_trial, figures), max_size=24),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_shards_in_any_order_give_the_same_report(trials, shards, order):
    trials = [replace(t, seed=i, figures=t.figures | f) for i, (t, f) in enumerate(trials)]
    whole = Report.of(CELLS, trials, {}).as_json()
    shuffled = trials[:]
    order.shuffle(shuffled)
    parts = [shuffled[i::shards] for i in range(shards)]
    joined = [one for part in reversed(parts) for one in part]
    again = Report.of(CELLS, joined + parts[0], {})
    assert json.dumps(again.as_json()) == json.dumps(whole)


def test_the_page_defines_every_figure_and_outcome():
    page = (Path(__file__).parents[4] / "docs/benchmark.md").read_text()
    names = [figure.name for figure in FIGURES] + [outcome.value for outcome in Outcome]
    assert [name for name in names if f"`{name}`" not in page] == []
