"""`krabby incidents`: falls, faults and stops of recorded runs, and the same simulated."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby_proto.recording import Recording

from krabby_cli.errors import CliError, UsageError, writing
from krabby_cli.options import POLICY_HELP, add_command, flag, option, print_json, print_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krabby.benchmark.incidents import Case, Incident

__all__ = ["add_parser"]

_RERUN: Final = "rerun"

_DESCRIPTION: Final = """\
List what went wrong in recordings: falls, faults of the safety gate, emergency stops. Each becomes
a case, which `rerun` simulates from 4 s before: the course, the robot standing where it was, the
walking commands, other camera noise and a start moved by up to 2 cm and 2 degrees with each trial.
A success is a robot that is on its feet 4 s behind the incident. Stops are not repeated.
"""
_EPILOG: Final = """\
examples:
  krabby incidents run.mcap
  krabby incidents runs/                                     every recording below a folder
  krabby incidents run.mcap --save cases                     one JSON file for each
  krabby incidents rerun cases/run-fall-1.json --policy gait
  krabby incidents rerun cases --at-least 0.9                a folder of cases is a regression suite

Exit status of a list: 0. Of rerun: 0 when the policy succeeds in at least that share of the trials
of every case, 1 when not, 2 when nothing was run.
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "incidents", run, "list what went wrong in recordings, run it again",
        _DESCRIPTION, _EPILOG,
    )  # fmt: skip
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="recordings, or folders of them; behind the word rerun cases, folders of them, or "
        "recordings",
    )
    option(parser, "--save", "DIR", None, "write the cases to this folder", type=Path)
    flag(parser, "--json", "one line of JSON for each incident or case")
    again = parser.add_argument_group("rerun")
    option(again, "--policy", "NAME", "", f"another {POLICY_HELP}, beside the one of the run")
    option(again, "--trials", "N", 8, "trials of each case and policy")
    option(again, "--at-least", "SHARE", 0.8, "share of successes that each case wants, 0 to 1")
    option(again, "--jobs", "N", len(os.sched_getaffinity(0)), "processes")


def run(args: argparse.Namespace) -> int:
    if args.paths[0] != _RERUN:
        return _list([Path(path) for path in args.paths], args)
    if len(args.paths) == 1:
        raise UsageError("rerun what? give a case, a folder of cases, or a recording")
    if not 1 <= args.trials <= 10_000 or not 0.0 <= args.at_least <= 1.0 or args.jobs < 1:
        raise UsageError(
            f"--trials {args.trials}, --at-least {args.at_least:g}, --jobs {args.jobs}: give 1 to "
            "10000, 0 to 1, and 1 or more"
        )
    from krabby_cli.incidents_rerun import rerun

    return rerun(_cases([Path(path) for path in args.paths[1:]]), args)


def _list(paths: Sequence[Path], args: argparse.Namespace) -> int:
    count = 0
    for path in _recordings(paths):
        for incident, case in _found(path):
            count += 1
            if args.json:
                print_json(_facts(path, incident, case))
            else:
                print_line(_line(path, incident, case))
            if case is not None and args.save is not None:
                _save(case, args.save)
    if not count:
        print_line("no falls, faults or stops")
    return 0


def _found(path: Path) -> list[tuple[Incident, Case | None]]:
    # Cases are made of the benchmark's parts, which load the simulator.
    from krabby.benchmark.incidents import find_incidents

    recording = Recording(path)
    found = find_incidents(recording)
    if recording.damage:
        sys.stderr.write(f"krabby incidents: {path} is not complete: {recording.damage}\n")
    return found


def _line(path: Path, incident: Incident, case: Case | None) -> str:
    faults = f" ({', '.join(incident.faults)})" if incident.faults else ""
    line = f"{path}  {incident.time_s:8.2f} s  {incident.kind}{faults}"
    if case is None:
        return f"{line}  no case: not a run in simulation, or its course is not recorded"
    x, y = case.place
    return (
        f"{line}  {case.policy} on {case.course} {case.difficulty:g} seed {case.seed} at "
        f"{x:.2f}, {y:.2f} m  {case.name}"
    )


def _facts(path: Path, incident: Incident, case: Case | None) -> dict[str, Any]:
    return {
        "recording": str(path),
        "kind": incident.kind,
        "time_s": round(incident.time_s, 3),
        "faults": list(incident.faults),
        "case": None if case is None else case.name,
        "policy": None if case is None else case.policy,
        "course": None if case is None else case.course,
        "place": None if case is None else list(case.place),
    }


def _save(case: Case, folder: Path) -> None:
    path = folder / f"{case.name}.json"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.pack())


def _recordings(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.rglob("*.mcap"))
            if not inside:
                raise UsageError(f"no recordings in {path}; give the folder of some .mcap files")
            found.extend(inside)
        else:
            found.append(path)
    return found


def _cases(paths: Sequence[Path]) -> list[Case]:
    from krabby.benchmark.incidents import CaseError, read_case

    cases: list[Case] = []
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(
                f"no cases in {path}; `krabby incidents RECORDING --save {path}` writes some"
            )
        for each in inside:
            if each.suffix == ".mcap":
                cases.extend(case for _, case in _found(each) if case is not None)
                continue
            try:
                cases.append(read_case(each))
            except CaseError as error:
                raise UsageError(str(error)) from error
    if not cases:
        raise CliError("no incident that can be run again")
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two cases are named {twice[0]}; rename one in its file")
    robots = {case.robot for case in cases}
    if len(robots) > 1:
        raise UsageError(
            f"cases of {len(robots)} robots ({', '.join(sorted(robots))}); give those of one"
        )
    return cases
