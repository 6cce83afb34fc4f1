"""`krabby evaluate --processes`: the whole runtime over many courses, one run after another.

Every run is one `krabby up`. Its result is stored before the next one begins, so the same command
continues an evaluation that was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby.course.courses import make_course
from krabby.policy.bundle import PolicyBundle, bundle_dir
from krabby.robot.description import RobotDescription

from krabby_cli import up
from krabby_cli.display import PlainDisplay
from krabby_cli.errors import CliError, UsageError
from krabby_cli.options import flag, option
from krabby_cli.plan import Plan, make_plan
from krabby_cli.processes_report import Case, is_done, make_report, time_limit_s, to_markdown
from krabby_cli.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krabby_cli.processes_report import Run

__all__ = ["add_options", "run"]

_RUNS_FILE: Final = "runs.jsonl"
_HEAD_FILE: Final = "evaluation.json"
_FAILURES: Final = 3
"""Failed runs in a row after which the fault is not with the run."""
_PROGRESS_S: Final = 15.0


def add_options(parser: Any) -> None:
    """Add the options that only this way has."""
    option(
        parser, "--courses", "A,B", ("steps", "gap", "hurdle", "ramps", "mixed"),
        "courses; `krabby course --help` lists them", type=_names,
    )  # fmt: skip
    option(parser, "--difficulties", "D,D", (0.5, 0.75), "difficulties", type=_numbers)
    option(parser, "--seeds", "N-N", tuple(range(5)), "seeds of courses and noise", type=_seeds)
    option(parser, "--walk-speed", "M/S", 0.35, "walking speed asked for")
    option(parser, "--slack", "X", 1.5, "longest run, in times of the way at the walking speed")
    flag(parser, "--lockstep", "simulated time, as fast as the loop answers")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SERVICE.KEY=VALUE",
        help="any key of a service's configuration, as in krabby up; repeatable",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate as the parsed options say; returns the exit status."""
    bundle = PolicyBundle.load(bundle_dir(args.policy), RobotDescription.load())
    cases = [
        Case(course, difficulty, seed)
        for seed in args.seeds  # so that an evaluation that is broken off has some of everything
        for course in args.courses
        for difficulty in args.difficulties
    ]
    plans = _Plans(args)
    for case in cases:
        plans.check(case)
    head = {
        "policy": bundle.name,
        "files": dict(bundle.hashes),
        "walk_speed": args.walk_speed,
        "slack": args.slack,
        "lockstep": args.lockstep,
        "settings": list(args.settings),
    }
    out = args.out or Path("runs/evaluate") / bundle.name
    book = _Book(out, head)
    display = PlainDisplay(period_s=_PROGRESS_S)
    try:
        return _evaluate(cases, plans, book, display)
    finally:
        book.report(len(cases))
        display.say(f"report in {out / 'report.md'}")


def _evaluate(cases: Sequence[Case], plans: _Plans, book: _Book, display: PlainDisplay) -> int:
    left = [case for case in cases if case not in book.done]
    clock = _Eta(plans, left)
    if len(left) < len(cases):
        display.say(f"{len(cases) - len(left)} of {len(cases)} runs are done already")
    failures = missing = 0
    signals = Signals()
    with signals.caught():
        for index, case in enumerate(left):
            if signals.count:
                missing += len(left) - index
                break
            number = len(cases) - len(left) + index + 1
            display.prefix = f"[{number}/{len(cases)}] "
            display.say(f"{case}; about {_span(clock.left_s(index))} left")
            summary = up.carry_out(plans.make(case, book.folder), lambda _: display)
            if summary["exit"] == "interrupted":
                display.say("interrupted: the same command continues here")
                missing += len(left) - index
                break
            entry = book.add(case, summary)
            clock.done(index)
            display.say(_verdict(summary))
            failures = 0 if is_done(entry) else failures + 1
            missing += not is_done(entry)
            if failures >= _FAILURES:
                raise CliError(
                    f"{failures} runs in a row failed, the last one: {summary['reason']}; the same "
                    "command continues when the cause is removed"
                )
    display.prefix = ""
    return 1 if missing else 0


class _Plans:
    """Makes the plan of each run, as `krabby up` would."""

    def __init__(self, args: argparse.Namespace) -> None:
        if not 0.0 < args.walk_speed <= 2.0:
            raise UsageError(f"--walk-speed {args.walk_speed:g} is no speed; give 0.05 to 2 m/s")
        if not 1.0 <= args.slack < 1e3:
            raise UsageError(f"--slack {args.slack:g} is too little; give 1 or more")
        self._args = args
        parser = argparse.ArgumentParser()
        up.add_parser(parser.add_subparsers())
        self._parser = parser

    def limit_s(self, case: Case) -> float:
        """How long the run may take [s]."""
        return time_limit_s(make_course(*case), self._args.walk_speed, self._args.slack)

    def check(self, case: Case) -> None:
        """Raise for a course, difficulty or seed that is none."""
        make_course(*case)

    def make(self, case: Case, folder: Path) -> Plan:
        """The plan, on free ports."""
        args = self._args
        settings = [f"sim-hal.mission.speed={args.walk_speed}", *args.settings]
        argv = [
            "up",
            *("--policy", str(args.policy), "--course", case.course),
            *("--difficulty", str(case.difficulty), "--seed", str(case.seed)),
            *("--duration", f"{self.limit_s(case):.1f}", "--until-over"),
            *("--speed", "0" if args.lockstep else "1", "--base-port", "0", "--no-view"),
            *("--runs-dir", str(folder / "logs")),
            *(f"--set={setting}" for setting in settings),
        ]
        return make_plan(self._parser.parse_args(argv))


class _Book:
    """The output folder: what was evaluated, a line per run, the report."""

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        self.folder = folder
        self._head = head
        self._runs: dict[Case, Run] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_head()
            self._read()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{folder} cannot hold the evaluation ({error!r}); give another --out"
            ) from error

    @property
    def done(self) -> set[Case]:
        """Runs that need not be made again."""
        return {case for case, entry in self._runs.items() if is_done(entry)}

    def add(self, case: Case, summary: dict[str, Any]) -> Run:
        """Write a run down; it is on the disk when this returns."""
        entry = {**case._asdict(), "summary": summary}
        with (self.folder / _RUNS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry)}\n")
            file.flush()
            os.fsync(file.fileno())
        self._runs[case] = entry
        return entry

    def report(self, planned: int) -> None:
        """Write report.json and report.md about what is done."""
        head = {**self._head, "planned": max(planned, len(self.done)), "machine": _machine()}
        report = make_report(head, (self._runs[case] for case in self.done))
        text = json.dumps(report, indent=2)
        (self.folder / "report.json").write_text(f"{text}\n", encoding="utf-8")
        (self.folder / "report.md").write_text(to_markdown(report), encoding="utf-8")

    def _check_head(self) -> None:
        path = self.folder / _HEAD_FILE
        if not path.exists():
            path.write_text(f"{json.dumps(self._head, indent=2)}\n", encoding="utf-8")
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
        for key, ours in self._head.items():
            if theirs.get(key) != ours:
                raise UsageError(
                    f"{self.folder} holds an evaluation with {key} = {theirs.get(key)!r}, this one "
                    f"has {ours!r}; give another --out"
                )

    def _read(self) -> None:
        path = self.folder / _RUNS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the power went while it was written: that run is made again
            self._runs[Case(entry["course"], entry["difficulty"], entry["seed"])] = entry


class _Eta:
    """How long the rest takes, by what the runs took so far beside their limits."""

    def __init__(self, plans: _Plans, cases: Sequence[Case]) -> None:
        self._limits_s = [plans.limit_s(case) for case in cases]
        self._began_s = time.monotonic()
        self._share = 1.0

    def done(self, index: int) -> None:
        """The run of that index, and all before it, are over."""
        elapsed_s = time.monotonic() - self._began_s
        self._share = elapsed_s / sum(self._limits_s[: index + 1])

    def left_s(self, index: int) -> float:
        """Time for the run of that index and all after it [s]."""
        return self._share * sum(self._limits_s[index:])


def _verdict(summary: dict[str, Any]) -> str:
    if summary["exit"] != "finished":
        return f"failed: {summary['reason']}"
    walked = f"{summary['furthest_m']} of {summary['course_m']} m in {summary['sim_time_s']} s"
    if summary["falls"]:
        return f"fell after {walked}"
    blind = f", {summary['blind_s']} s of it blind" if summary["blind_s"] else ""
    return f"{'completed' if summary['course_completed'] else 'out of time'}: {walked}{blind}"


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _machine() -> str:
    return f"{os.cpu_count()} processors ({platform.machine()})"


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 0.5,1") from error


def _seeds(text: str) -> tuple[int, ...]:
    seeds: list[int] = []
    try:
        for part in _names(text):
            first, dash, last = part.partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds like 0-4,7") from error
    return tuple(dict.fromkeys(seeds))
