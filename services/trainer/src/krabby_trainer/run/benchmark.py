"""A checkpoint through a suite of the benchmark: exported, then walked by the game loop."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krabby.benchmark.book import Book, head_of
from krabby.benchmark.outcome import succeeded
from krabby.benchmark.report import write_report
from krabby.benchmark.runner import BenchmarkError, Shard, Work, plan_trials, run_trials
from krabby.benchmark.scenario import Goal, ScenarioError
from krabby.benchmark.suites import choose_cells, find_suite
from krabby.benchmark.teacher import load_bundle
from krabby.benchmark.trial import TrialCfg
from krabby.policy.bundle import MANIFEST_FILE
from krabby.robot.description import RobotDescription

from krabby_trainer.errors import EvaluationError
from krabby_trainer.run.export import export_bundle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krabby.benchmark.scenario import Cell

__all__ = ["run_suite"]


def run_suite(
    checkpoint: Path,
    out: Path,
    *,
    suite: str,
    cells: str = "*",
    trials: int = 0,
    processes: int = 0,
) -> dict[str, Any]:
    """Walk the trials of a suite and write its report; trials that are in `out` are kept.

    Args:
        checkpoint: what `python -m krabby_trainer train` wrote, teacher or student, or the folder
            of a bundle.
        out: folder of trials.jsonl, report.json and report.md.
        suite: a name in `krabby.benchmark.suites.SUITES`.
        cells: names or patterns of its cells, with commas between them.
        trials: of each cell at most; 0 for the cell's own number.
        processes: that run trials; 0 for all cores.

    Returns:
        Number of trials and of successes, for a line on stdout.

    Raises:
        EvaluationError: no such cell, `out` holds another evaluation, or a trial failed.
    """
    try:
        chosen = [
            dataclasses.replace(cell, trials=min(cell.trials, trials or cell.trials))
            for cell in choose_cells(suite, find_suite(suite), cells)
        ]
        if (checkpoint / MANIFEST_FILE).is_file():
            return _run(checkpoint, out, suite, chosen, processes)
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / checkpoint.stem
            export_bundle(checkpoint, bundle, name=checkpoint.stem)
            return _run(bundle, out, suite, chosen, processes)
    except (BenchmarkError, ScenarioError) as error:
        raise EvaluationError(str(error)) from error


def _run(
    folder: Path, out: Path, suite: str, cells: Sequence[Cell], processes: int
) -> dict[str, Any]:
    desc, trial = RobotDescription.load(), TrialCfg()
    policy = str(folder.resolve())
    head = head_of(suite, cells, load_bundle(policy, desc, 100.0), desc, trial)
    goals: dict[str, Goal] = {cell.name: cell.goal for cell in cells}
    work = Work(cells=tuple(cells), policy=policy, trial=trial)
    with Book(out, head, Shard()) as book:
        left = [key for key in plan_trials(cells) if key not in book.done]
        jobs = processes or len(os.sched_getaffinity(0))
        for done, result in enumerate(run_trials(work, left, jobs=jobs), start=1):
            book.add(result)
            if done % max(len(left) // 10, 1) == 0:
                sys.stderr.write(f"evaluating {suite}: {done} of {len(left)} trials\n")
        write_report(out, cells, book.results, head)
        good = sum(succeeded(goals[each.cell], each.outcome) for each in book.results)
    return {"suite": suite, "trials": len(book.results), "successes": good}
