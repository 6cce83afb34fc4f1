"""`krabby evaluate`: a policy through a suite of the benchmark."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby.benchmark.book import HEAD_FORMAT, Book, head_of, read_head, suite_digest
from krabby.benchmark.outcome import succeeded
from krabby.benchmark.report import write_report
from krabby.benchmark.runner import BenchmarkError, Shard, Work, plan_trials, run_trials
from krabby.benchmark.scenario import ScenarioError
from krabby.benchmark.suites import SUITES, choose_cells, find_suite
from krabby.benchmark.table import TrialsError, read_trials
from krabby.benchmark.teacher import load_bundle
from krabby.benchmark.trial import TrialCfg
from krabby.control.config import DEFAULT_POLICY, ControlCfg
from krabby.robot.assets import choose_robot
from krabby.robot.description import RobotDescription

from krabby_cli import evaluate_processes
from krabby_cli.errors import CliError, UsageError
from krabby_cli.options import POLICY_HELP, add_command, flag, option
from krabby_cli.signals import Signals
from krabby_cli.terminal import columns_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krabby.benchmark.runner import TrialKey
    from krabby.benchmark.scenario import Cell, Goal
    from krabby.benchmark.trace import TrialResult

__all__ = ["add_parser"]

_PROGRESS_S: Final = 30.0
_REDRAW_S: Final = 0.5

_DESCRIPTION: Final = """\
Run a policy through a suite of the benchmark: the robot in MuJoCo behind the safety gate, commanded
by the game loop's own controller with true ages of pictures, hand-overs and stops. Time is
simulated; a trial ends as soon as its outcome is decided. docs/benchmark.md defines outcomes and
figures.
"""
_EPILOG: Final = """\
examples:
  krabby evaluate --suite published --quick
  krabby evaluate --suite wild --policy gait --jobs 16
  krabby evaluate --suite wild --cells 'stairs*,beam*' --trials 16
  krabby evaluate --suite wild --shard 1/4 --out runs/part1      # on each of four machines
  krabby evaluate --suite wild --merge runs/part1 runs/part2 runs/part3 runs/part4
  krabby evaluate --suite wild --compare runs/evaluate/wild/parkour runs/evaluate/wild/gait
  krabby evaluate --robot crab_hex_rs --foreign --quick
  krabby evaluate --processes --policy parkour --lockstep --difficulties 0.25,0.5,0.75,1

The output folder has a line per trial in trials.jsonl, report.json and report.md. Ctrl-C keeps the
trials that have ended; the same command continues. Results do not depend on jobs and shards.
With --processes every run is a `krabby up` with sockets, in real time or in lock-step.
Exit status: 0 when every trial was run, with any outcome; 1 when some are missing; 2 when
nothing was started.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "evaluate", run, "run a policy through the benchmark", _DESCRIPTION, _EPILOG
    )
    option(parser, "--policy", "NAME", DEFAULT_POLICY, POLICY_HELP)
    option(parser, "--robot", "NAME", "", "robot: a folder of the assets folder")
    flag(parser, "--foreign", "let policies that were made for another robot walk this one")
    option(parser, "--out", "DIR", None, "output folder (runs/evaluate/SUITE/POLICY)", type=Path)
    suite = parser.add_argument_group("suites")
    option(suite, "--suite", "NAME", "published", f"suite: {', '.join(SUITES)}")
    option(suite, "--cells", "A,B", "*", "cells: names or patterns such as 'stairs*'")
    flag(suite, "--list", "list the cells and end")
    flag(suite, "--quick", "fewer cells and 8 trials of each, for a first look")
    option(suite, "--trials", "N", None, "most trials of a cell", type=int)
    option(suite, "--jobs", "N", _cores(), "processes")
    option(suite, "--shard", "I/N", None, "part to run, such as 1/4", type=_shard)
    option(suite, "--merge", "DIR", None, "folders of parts to take in", type=Path, nargs="+")
    option(
        suite, "--compare", "DIR", None, "folders of several policies for one report; runs nothing",
        type=Path, nargs="+",
    )  # fmt: skip
    option(suite, "--step-ms", "MS", 2.5, "step of the physics; 1 resolves contact peaks at 1 kHz")
    processes = parser.add_argument_group("whole processes instead of a suite")
    flag(processes, "--processes", "every run is a `krabby up`; then also:")
    evaluate_processes.add_options(processes)


def run(args: argparse.Namespace) -> int:
    """Carry out the subcommand; returns the exit status."""
    choose_robot(args.robot)
    if args.processes:
        return evaluate_processes.run(args)
    try:
        suite = find_suite(args.suite)
        cells = _chosen(suite, args)
        if args.list:
            _list(cells)
            return 0
        if args.compare:
            return _compare(suite, cells, args)
        return _evaluate(suite, cells, args)
    except (ScenarioError, TrialsError, ValueError) as error:
        raise UsageError(str(error)) from error
    except BenchmarkError as error:
        raise CliError(str(error)) from error
    except OSError as error:
        raise CliError(
            f"the report cannot be written or its trials read ({error}); trials that have ended "
            "are kept: make room, or give another --out"
        ) from error


def _evaluate(suite: Sequence[Cell], cells: Sequence[Cell], args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs} is too few; give 1 or more")
    trial = _trial_cfg(args.step_ms)
    desc = RobotDescription.load()
    rate_hz = ControlCfg().rate_hz
    bundle = load_bundle(args.policy, desc, rate_hz, foreign=args.foreign)
    head = head_of(args.suite, suite, bundle, desc, trial)
    shard = args.shard or Shard()
    out = args.out or Path("runs/evaluate") / args.suite / bundle.name
    keys = plan_trials(cells, quick=args.quick, shard=shard)
    try:
        book = Book(out, head, shard)
        book.take_in(args.merge or ())
    except BenchmarkError as error:
        raise UsageError(str(error)) from error
    with book:
        left = [key for key in keys if key not in book.done]
        if len(left) < len(keys):
            _say(f"{len(keys) - len(left)} of {len(keys)} trials are done already")
        work = Work(cells=tuple(suite), policy=args.policy, trial=trial, foreign=args.foreign)
        missing = _run(work, left, book, args.jobs) if left and not args.merge else len(left)
        if shard.count == 1:
            write_report(
                out,
                _planned(cells, quick=args.quick),
                book.results,
                head | {"quick": args.quick, "machine": _machine(), **_times(book.results)},
            )
            _say(f"report in {out / 'report.md'}")
        else:
            _say(f"part {shard} in {out}; put the parts together with --merge")
    return 1 if missing else 0


def _trial_cfg(step_ms: float) -> TrialCfg:
    try:
        return TrialCfg(substep_ns=round(step_ms * 1e6))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--step-ms {step_ms:g} does not divide 5 ms; give 1 or 2.5") from error


def _compare(suite: Sequence[Cell], cells: Sequence[Cell], args: argparse.Namespace) -> int:
    """One report of several policies on one suite."""
    try:
        heads = {str(folder): read_head(folder) for folder in args.compare}
    except BenchmarkError as error:
        raise UsageError(str(error)) from error
    first: dict[str, str] = {}
    for folder, head in heads.items():
        other = first.setdefault(head.get("policy", ""), folder)
        if heads[other] != head:
            raise UsageError(
                f"{other} and {folder} hold different evaluations of policy {head.get('policy')!r} "
                "(robot, physics step or files of the policy), which a report cannot tell apart; "
                "compare one of them"
            )
        of = tuple(head.get(key) for key in ("format", "suite", "cells_sha256"))
        if of != (HEAD_FORMAT, args.suite, suite_digest(suite)):
            raise UsageError(f"{folder} holds another suite or version than {args.suite!r}")
    paths = [path for folder in args.compare for path in sorted(folder.glob("trials*.jsonl"))]
    facts = {
        name: "; ".join(sorted({str(head[name]) for head in heads.values()}))
        for name in ("suite", "policy", "robot", "substep_ns")
    }
    out = args.out or Path("runs/evaluate") / args.suite / "compared"
    planned = _planned(cells, quick=args.quick)
    report = write_report(out, planned, read_trials(paths), facts | {"quick": args.quick})
    _say(f"report in {out / 'report.md'}")
    return 1 if report.missing else 0


def _planned(cells: Sequence[Cell], *, quick: bool) -> list[Cell]:
    """The cells that are run, with the number of trials that are run of each."""
    counts = Counter(key.cell for key in plan_trials(cells, quick=quick))
    return [dataclasses.replace(c, trials=counts[c.name]) for c in cells if counts[c.name]]


def _run(work: Work, keys: Sequence[TrialKey], book: Book, jobs: int) -> int:
    """Run trials and write them down; how many are missing in the end."""
    goals: dict[str, Goal] = {cell.name: cell.goal for cell in work.cells}
    progress, signals = _Progress(len(keys)), Signals()
    done = 0
    _say(f"{len(keys)} trials, {min(jobs, len(keys))} at a time")
    with signals.caught():
        results = run_trials(work, keys, jobs=jobs)
        try:
            for result in results:
                book.add(result)
                done += 1
                progress.add(result, good=succeeded(goals[result.cell], result.outcome))
                if signals.count and done < len(keys):
                    _say(f"{signals.name}: ending what runs; the same command continues here")
                    break
        finally:
            getattr(results, "close", lambda: None)()
            progress.close()
    return len(keys) - done


class _Progress:
    """How far it is, on stderr: a line that is redrawn on a terminal, else one now and then."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._began_s = time.monotonic()
        self._shown_s = self._began_s
        self._done = self._good = 0
        self._simulated_s = 0.0
        self._live = sys.stderr.isatty()

    def add(self, result: TrialResult, *, good: bool) -> None:
        """A trial has ended."""
        self._done += 1
        self._good += good
        self._simulated_s += result.time_s
        now_s = time.monotonic()
        last = self._done == self._count
        if not last and now_s - self._shown_s < (_REDRAW_S if self._live else _PROGRESS_S):
            return
        self._shown_s = now_s
        elapsed_s = now_s - self._began_s
        left_s = elapsed_s / self._done * (self._count - self._done)
        line = (
            f"{self._done} of {self._count} trials, {_clock(left_s)} left, {self._good} successes, "
            f"{self._simulated_s / max(elapsed_s, 1e-9):.0f} simulated s per s"
        )
        width = columns_of(sys.stderr.fileno()) - 1 if self._live else None
        sys.stderr.write(f"\r\x1b[K{line[:width]}" if self._live else f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self._live and self._done:
            sys.stderr.write("\n")


def _chosen(suite: Sequence[Cell], args: argparse.Namespace) -> list[Cell]:
    """The cells that the options name, with the number of trials they allow."""
    cells = choose_cells(args.suite, suite, args.cells)
    if args.trials is None:
        return cells
    if args.trials < 1:
        raise UsageError(f"--trials {args.trials} is too few; give 1 or more")
    return [dataclasses.replace(c, trials=min(c.trials, args.trials)) for c in cells]


def _list(cells: Sequence[Cell]) -> None:
    width = max(len(cell.name) for cell in cells)
    for cell in cells:
        marks = "held out, " * cell.held_out + "quick, " * cell.quick
        sys.stdout.write(f"{cell.name:<{width}}  {cell.summary} ({marks}{cell.trials} trials)\n")
    trials = Counter(cell.family for cell in cells)
    sys.stdout.write(
        f"{len(cells)} cells in {len(trials)} families, {sum(c.trials for c in cells)} trials\n"
    )


def _times(results: Sequence[TrialResult]) -> dict[str, float]:
    simulated_s, cpu_s = sum(r.time_s for r in results), sum(r.wall_s for r in results)
    return {"simulated_s": round(simulated_s, 1), "processor_s": round(cpu_s, 1)}


def _machine() -> str:
    return f"{os.cpu_count()} processors ({platform.machine()})"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _shard(text: str) -> Shard:
    first, _, count = text.partition("/")
    try:
        return Shard(int(first), int(count))
    except (ValueError, BenchmarkError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no part such as 1/4") from error


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
