"""Plants faults, diagnoses the recorded runs and counts ranks and false alarms.

    python -m krabby_diagnosis --seeds 100-102 --sound 50 --out runs/diagnosis

A line per run goes to results.jsonl; the same command continues after an interruption. The table
goes to table.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from krabby.benchmark.trial import Policies
from krabby.diagnosis.diagnose import diagnose
from krabby.diagnosis.log import RunLog
from krabby.policy.bundle import PolicyBundle, bundle_dir
from krabby.policy.statistics import load_statistics
from krabby.robot.description import RobotDescription

from krabby_diagnosis.runs import FAULTS, Run, faulty_runs, record, sound_runs

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m krabby_diagnosis", description=__doc__)
    parser.add_argument("--seeds", default="100-102", help="first-last, not those of tuning (0-20)")
    parser.add_argument("--sound", type=int, default=50, help="runs without a fault")
    parser.add_argument("--seconds", type=float, default=13.0, help="of a run; 3 s are standing up")
    parser.add_argument("--shard", default="1/1", help="I/N: every N-th run, from the I-th")
    parser.add_argument("--out", type=Path, default=Path("runs/diagnosis"))
    args = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    first, last = (int(part) for part in args.seeds.split("-"))
    index, count = (int(part) for part in args.shard.split("/"))
    desc = RobotDescription.load()
    runs = [
        *faulty_runs(desc, range(first, last + 1)),
        *sound_runs(desc, args.sound, first + 1000),
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.jsonl"
    done = {each["key"] for each in _results(path)}
    policies = {name: Policies(desc, name) for name in ("gait", "parkour")}
    for run in runs[index - 1 :: count]:
        if run.key not in done:
            result = _try(run, policies[run.policy], desc, args.seconds)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            sys.stderr.write(f"{run.key}: {result['found'] or 'nothing'}\n")
    table = _table(_results(path))
    (args.out / "table.md").write_text(table, encoding="utf-8")
    sys.stdout.write(table)
    return 0


def _try(run: Run, policies: Policies, desc: RobotDescription, seconds: float) -> dict[str, Any]:
    messages, falls = record(run, policies, desc, seconds)
    log = RunLog.read(messages)
    began_s = time.process_time()
    bundle = PolicyBundle.load(bundle_dir(run.policy), desc)
    diagnosis = diagnose(log, desc, layout=bundle.observation, statistics=load_statistics(bundle))
    right = [
        rank
        for rank, finding in enumerate(diagnosis.findings, 1)
        if finding.kind == run.kind and (not run.where or set(finding.where) == set(run.where))
    ]
    return {
        "key": run.key,
        "name": run.name,
        "variant": run.variant,
        "policy": run.policy,
        "course": run.course,
        "seed": run.seed,
        "where": list(run.where),
        "rank": right[0] if right else None,
        "found": [f"{each.kind} {' '.join(each.where)}".strip() for each in diagnosis.findings],
        "followed_s": round(float(log.following.sum()) * 0.01, 1),
        "falls": falls,
        "diagnosis_s": round(time.process_time() - began_s, 2),
    }


def _results(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| planted | policy | seed, course | variant | walked or stood | falls | rank |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in FAULTS:
        for each in sorted(
            (r for r in results if r["name"] == name), key=lambda r: (r["policy"], r["seed"])
        ):
            variant = " ".join(
                [each["variant"], *(each["where"] if len(each["where"]) < 3 else [])]
            )
            rank = each["rank"] or f"missed: {', '.join(each['found']) or 'nothing found'}"
            lines.append(
                f"| {name} | {each['policy']} | {each['seed']}, {each['course']} | {variant} | "
                f"{each['followed_s']:g} s | {each['falls']} | {rank} |"
            )
    planted = [r for r in results if r["name"] != "sound"]
    sound = [r for r in results if r["name"] == "sound"]
    first = sum(r["rank"] == 1 for r in planted)
    alarms = [f"{r['key']}: {', '.join(r['found'])}" for r in sound if r["found"]]
    lines += [
        "",
        f"{first} of {len(planted)} planted faults are ranked first. Of {len(sound)} sound runs "
        f"{len(alarms)} gave an alarm{': ' if alarms else '.'}{'; '.join(alarms)}",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
