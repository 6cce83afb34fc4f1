"""Plans, shards, processes and the folder that keeps the trials."""

import dataclasses
import functools
import json

import pytest
from krabby.benchmark.book import Book
from krabby.benchmark.runner import (
    BenchmarkError,
    Shard,
    TrialKey,
    Work,
    plan_trials,
    run_trials,
)
from krabby.benchmark.scenario import Cell, CommandSegment, Scenario
from krabby.benchmark.suites import SUITES, find_suite
from krabby.benchmark.trace import TrialResult
from krabby.benchmark.trial import TrialCfg
from krabby.course.courses import make_course

HEAD = {"policy": "gait", "suite": "test"}


def short(seed, vx):
    return Scenario(
        course=make_course("flat", 0.5, seed),
        commands=(CommandSegment(start_s=0.0, vx=vx),),
        duration_s=1.0,
    )


def cell(name, trials=3, vx=0.2, quick=False):
    make = functools.partial(short, vx=vx)
    return Cell(
        name=name, family="f", summary="", goal="track", make=make, trials=trials, quick=quick
    )


def result(cell="a", seed=0, time_s=1.5):
    return TrialResult(
        cell=cell, seed=seed, policy="gait", outcome="success", reason="", time_s=time_s,
        waypoints=1, of_waypoints=8, progress_m=1.0, course_m=15.0, figures={"energy": 2.5},
    )  # fmt: skip


def test_every_cell_has_some_trials_before_one_has_all():
    keys = plan_trials([cell("a", 2), cell("b", 1), cell("c", 3)])
    assert [(k.cell, k.seed) for k in keys] == [
        ("a", 0), ("b", 0), ("c", 0), ("a", 1), ("c", 1), ("c", 2)
    ]  # fmt: skip


def test_shards_are_disjoint_and_together_the_whole():
    cells = [cell("a", 5), cell("b", 4)]
    parts = [plan_trials(cells, shard=Shard(i, 3)) for i in (1, 2, 3)]
    assert sorted(key for part in parts for key in part) == sorted(plan_trials(cells))
    assert [len(part) for part in parts] == [3, 3, 3]


def test_the_quick_version_has_its_cells_and_at_most_eight_trials_of_each():
    cells = [cell("a", 64, quick=True), cell("b", 64), cell("c", 4, quick=True)]
    keys = plan_trials(cells, quick=True)
    assert {k.cell for k in keys} == {"a", "c"}
    assert len(keys) == 8 + 4


@pytest.mark.parametrize(("index", "count"), [(0, 2), (3, 2), (1, 0)])
def test_a_shard_that_is_none_is_refused(index, count):
    with pytest.raises(BenchmarkError, match="give 1/N to N/N"):
        Shard(index, count)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processes():
    cells = tuple(  # of a module that another process can import
        dataclasses.replace(each, trials=1)
        for each in find_suite("published")
        if each.name in ("steps-0.25", "gap-1")
    )
    work = Work(cells=cells, policy="gait", trial=TrialCfg())
    keys = plan_trials(cells)

    def outcomes(jobs):
        found = run_trials(work, keys, jobs=jobs)
        return sorted((r.cell, r.seed, r.outcome, json.dumps(r.figures)) for r in found)

    assert outcomes(2) == outcomes(1)


def test_a_trial_that_fails_is_named():
    work = Work(cells=(cell("a"),), policy="gait", trial=TrialCfg())
    with pytest.raises(BenchmarkError, match="cell a, seed -1 failed: CourseError"):
        list(run_trials(work, [TrialKey("a", -1)]))


def test_a_folder_keeps_trials_and_knows_them_again(tmp_path):
    with Book(tmp_path, HEAD, Shard()) as book:
        book.add(result(seed=0))
        book.add(result(seed=1, time_s=0.1 + 0.2))
    with Book(tmp_path, HEAD, Shard()) as again:
        assert again.done == {TrialKey("a", 0), TrialKey("a", 1)}
        assert again.results == [result(seed=0), result(seed=1, time_s=0.1 + 0.2)]


def test_a_line_that_was_cut_off_is_run_again(tmp_path):
    with Book(tmp_path, HEAD, Shard()) as book:
        book.add(result(seed=0))
        book.add(result(seed=1))
    path = tmp_path / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with Book(tmp_path, HEAD, Shard()) as again:
        assert again.done == {TrialKey("a", 0)}
        again.add(result(seed=1))
    assert len(path.read_bytes().splitlines()) == 2


def test_a_last_line_without_an_end_gets_one(tmp_path):
    with Book(tmp_path, HEAD, Shard()) as book:
        book.add(result(seed=0))
    path = tmp_path / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    with Book(tmp_path, HEAD, Shard()) as again:
        again.add(result(seed=1))
    with Book(tmp_path, HEAD, Shard()) as third:
        assert [each.seed for each in third.results] == [0, 1]


@pytest.mark.parametrize("line", [b"{}", b'{"a": [', b"\0\0\xff"])
def test_a_broken_line_is_named_and_no_line_is_removed(tmp_path, line):
    with Book(tmp_path, HEAD, Shard()) as book:
        book.add(result(seed=0))
    path = tmp_path / "trials.jsonl"
    content = line + b"\n" + path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(BenchmarkError, match=r"trials\.jsonl, line 1 is not a trial"):
        Book(tmp_path, HEAD, Shard())
    assert path.read_bytes() == content


def test_a_trial_of_another_policy_does_not_count_as_done(tmp_path):
    with Book(tmp_path, HEAD, Shard()) as book:
        book.add(dataclasses.replace(result(), policy="other"))
    with pytest.raises(BenchmarkError, match="is for policy 'gait' but has a trial of 'other'"):
        Book(tmp_path, HEAD, Shard())


def test_one_evaluation_at_a_time_writes_to_a_file(tmp_path):
    with Book(tmp_path, HEAD, Shard()):
        with pytest.raises(BenchmarkError, match="another evaluation may be running"):
            Book(tmp_path, HEAD, Shard())
        Book(tmp_path, HEAD, Shard(1, 2)).close()
    Book(tmp_path, HEAD, Shard()).close()


def test_a_full_disk_keeps_the_trials_before(tmp_path, monkeypatch):
    with Book(tmp_path, HEAD, Shard()) as book:
        book.add(result(seed=0))

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(BenchmarkError, match=r"No space left on device.*1 trials before are"):
            book.add(result(seed=1))
    with Book(tmp_path, HEAD, Shard()) as again:
        assert again.done == {TrialKey("a", 0)}


def test_a_folder_that_contradicts_another_is_refused_whole_and_left_alone(tmp_path):
    for index, time_s in ((1, 1.0), (2, 2.0)):
        with Book(tmp_path / str(index), HEAD, Shard(index, 2)) as part:
            part.add(result(seed=index))
            part.add(result(seed=9, time_s=time_s))
    torn = tmp_path / "1/trials-1-of-2.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"cell')
    with Book(tmp_path / "all", HEAD, Shard()) as whole:
        with pytest.raises(BenchmarkError, match="seed 9 differ"):
            whole.take_in([tmp_path / "1", tmp_path / "2"])
        assert not whole.results
        whole.take_in([tmp_path / "1"])
        assert sorted(key.seed for key in whole.done) == [1, 9]
    assert torn.read_bytes().endswith(b'{"cell')


def test_a_folder_of_another_evaluation_is_refused_and_left_alone(tmp_path):
    with Book(tmp_path, HEAD, Shard()) as book:
        book.add(result())
    with pytest.raises(BenchmarkError, match=r"policy = 'gait', this one has 'parkour'"):
        Book(tmp_path, HEAD | {"policy": "parkour"}, Shard())
    assert len((tmp_path / "trials.jsonl").read_bytes().splitlines()) == 1


def test_shards_of_two_machines_are_merged_once(tmp_path):
    for index in (1, 2):
        with Book(tmp_path / str(index), HEAD, Shard(index, 2)) as part:
            part.add(result(seed=index))
            part.add(result(seed=9))
    with Book(tmp_path / "all", HEAD, Shard()) as whole:
        whole.take_in([tmp_path / "1", tmp_path / "2"])
        assert sorted(key.seed for key in whole.done) == [1, 2, 9]
        assert len(whole.results) == 3
        with Book(tmp_path / "other", {"policy": "parkour"}, Shard()) as other:
            other.add(result())
        with pytest.raises(BenchmarkError, match="merge equal ones"):
            whole.take_in([tmp_path / "other"])


@pytest.mark.parametrize("name", SUITES)
def test_a_suites_cells_have_names_of_their_own_and_can_be_sent_to_a_process(name):
    import pickle

    cells = find_suite(name)
    assert len({each.name for each in cells}) == len(cells)
    assert [each.name for each in pickle.loads(pickle.dumps(cells))] == [c.name for c in cells]


def test_the_published_suite_walks_the_published_courses():
    scenario = {c.name: c for c in find_suite("published")}["gap-0.75"].make(5)
    assert scenario.course.content_hash == make_course("gap", 0.75, 5).content_hash
    assert not scenario.commands
    # 15 m at 0.35 m/s are some 43 s; the judge ends a trial after half as much again.
    assert 40.0 < scenario.duration_s < 80.0
