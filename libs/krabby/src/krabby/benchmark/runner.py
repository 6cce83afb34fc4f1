"""Many trials over processes, in an order that does not depend on how many there are."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from krabby.benchmark import outcome
from krabby.benchmark.figures import Figures
from krabby.benchmark.teacher import load_any
from krabby.benchmark.trial import Policies, Trial, TrialCfg
from krabby.robot.description import RobotDescription
from krabby.runtime.child import interrupts_ignored

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from krabby.benchmark.scenario import Cell
    from krabby.benchmark.trace import Judge, TrialFacts, TrialResult
    from krabby.control.config import ControlCfg

__all__ = ["BenchmarkError", "Shard", "TrialKey", "Work", "plan_trials", "run_trials"]

QUICK_TRIALS: Final = 8
"""Trials of a cell in the quick version of a suite."""


class BenchmarkError(Exception):
    """Trials that cannot be run."""


class TrialKey(NamedTuple):
    """One trial of a suite."""

    cell: str
    seed: int


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 1."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise BenchmarkError(f"shard {self.index}/{self.count}; give 1/N to N/N")

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.index}/{self.count}"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a process needs to know to run the trials of a suite."""

    cells: tuple[Cell, ...]
    policy: str
    """Name or folder of the bundle."""
    trial: TrialCfg
    foreign: bool = False
    """Take bundles that were made for another robot as if they were for this one."""
    control: ControlCfg | None = None
    judge: Callable[[TrialFacts], Judge] = outcome.Judge
    """Decides a trial."""

    def policies(self, desc: RobotDescription) -> Policies:
        """The policies that walk, not loaded yet."""
        load = functools.partial(load_any, foreign=self.foreign)
        return Policies(desc, self.policy, control=self.control, load=load)


def plan_trials(
    cells: Sequence[Cell], *, quick: bool = False, shard: Shard | None = None
) -> list[TrialKey]:
    """Every trial of the cells, or of one shard; all cells have some before one has all."""
    if quick:
        cells = [cell for cell in cells if cell.quick] or list(cells)
    counts = {cell.name: min(cell.trials, QUICK_TRIALS) if quick else cell.trials for cell in cells}
    keys = [
        TrialKey(cell.name, seed)
        for seed in range(max(counts.values(), default=0))
        for cell in cells
        if seed < counts[cell.name]
    ]
    part = Shard() if shard is None else shard
    return keys[part.index - 1 :: part.count]


def run_trials(work: Work, keys: Iterable[TrialKey], *, jobs: int = 1) -> Iterator[TrialResult]:
    """The results of trials as they end, in any order with more than one process.

    Raises:
        BenchmarkError: a trial failed; it names the trial.
    """
    if jobs < 1:
        raise BenchmarkError(f"{jobs} jobs; give 1 or more")
    if jobs == 1:
        return _in_this_process(work, keys)
    return _over_processes(work, list(keys), jobs)


def _in_this_process(work: Work, keys: Iterable[TrialKey]) -> Generator[TrialResult, None, None]:
    before = structlog.get_config()
    _silence()
    try:
        runner = _Runner(work)
        for key in keys:
            yield runner.run(key)
    finally:
        structlog.configure(**before)


def _silence() -> None:
    """Log nothing: what the loop says of every trial would fill the terminal."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _over_processes(
    work: Work, keys: list[TrialKey], jobs: int
) -> Generator[TrialResult, None, None]:
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), interrupts_ignored():
        pool = ProcessPoolExecutor(
            min(jobs, max(len(keys), 1)), context, initializer=_begin, initargs=(work,)
        )
        # Two tasks for each process: none waits, and little is lost when the rest is cancelled.
        waiting = {pool.submit(_run, key): key for key in keys[: 2 * jobs]}
    rest = iter(keys[2 * jobs :])
    try:
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                del waiting[future]
                try:
                    for key in rest:
                        waiting[pool.submit(_run, key)] = key
                        break
                    yield future.result()
                except BrokenProcessPool as error:
                    raise BenchmarkError(
                        "a process ended in the middle of a trial, most likely for lack of memory; "
                        "the same command continues, give it fewer jobs"
                    ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Runner:
    """Runs trials in this process, one after the other."""

    def __init__(self, work: Work) -> None:
        self._desc = RobotDescription.load()
        self._work = work
        self._policies = work.policies(self._desc)
        self._cells = {cell.name: cell for cell in work.cells}

    def run(self, key: TrialKey) -> TrialResult:
        """The result of a trial."""
        try:
            trial = Trial(
                self._cells[key.cell], key.seed, self._policies, self._desc, self._work.trial
            )
            return trial.run(self._work.judge(trial.facts), Figures(trial.facts))
        except Exception as error:
            raise BenchmarkError(
                f"cell {key.cell}, seed {key.seed} failed: {type(error).__name__}: {error}"
            ) from error


_runner: _Runner | None = None
"""Of this process, where it is one of many."""


def _begin(work: Work) -> None:
    global _runner
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _silence()
    _runner = _Runner(work)


def _run(key: TrialKey) -> TrialResult:
    assert _runner is not None, "the pool's initialiser made it"
    return _runner.run(key)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start meanwhile use one thread for linear algebra."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
