"""Runs cases of incidents again, and compares policies on them."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from krabby.benchmark.incidents import Case, CaseError, CaseJudge
from krabby.benchmark.intervals import difference, share
from krabby.benchmark.runner import BenchmarkError, TrialKey, Work, run_trials
from krabby.benchmark.trial import TrialCfg
from krabby.robot.assets import choose_robot

from krabby_cli.errors import CliError, UsageError
from krabby_cli.options import print_json, print_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from krabby.benchmark.trace import TrialResult

__all__ = ["rerun"]

_PROGRESS_S: Final = 5.0

Results = dict[tuple[str, str], list["TrialResult"]]
"""By case and policy."""


def rerun(cases: Sequence[Case], args: argparse.Namespace) -> int:
    """Run every case with the policy of its run and with `args.policy`; returns the status."""
    choose_robot(cases[0].robot)
    by_policy: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        for policy in dict.fromkeys((case.policy, args.policy or case.policy)):
            by_policy[policy].append(case)
    try:
        results = _run_all(by_policy, args)
    except (CaseError, ValueError) as error:
        raise UsageError(str(error)) from error
    except BenchmarkError as error:
        raise CliError(str(error)) from error
    ok = True
    for case in cases:
        ok &= _tell(case, args.policy or case.policy, results, args)
    return 0 if ok else 1


def _run_all(by_policy: Mapping[str, Sequence[Case]], args: argparse.Namespace) -> Results:
    results: Results = defaultdict(list)
    count = sum(map(len, by_policy.values())) * args.trials
    done, shown_s = 0, time.monotonic()
    for policy, cases in by_policy.items():
        work = Work(
            cells=tuple(case.cell for case in cases),
            policy=policy,
            trial=TrialCfg(),
            judge=CaseJudge,
        )
        keys = [TrialKey(case.name, seed) for seed in range(args.trials) for case in cases]
        for result in run_trials(work, keys, jobs=min(args.jobs, len(keys))):
            results[result.cell, policy].append(result)
            done += 1
            if time.monotonic() - shown_s > _PROGRESS_S:
                shown_s = time.monotonic()
                sys.stderr.write(f"krabby incidents: {done} of {count} trials\n")
    return results


def _tell(case: Case, judged: str, results: Results, args: argparse.Namespace) -> bool:
    """Print a case; returns whether the policy that is judged succeeds often enough."""
    shares = {}
    for policy in dict.fromkeys((case.policy, judged)):
        trials = sorted(results[case.name, policy], key=lambda trial: trial.seed)
        successes = sum(trial.outcome == "success" for trial in trials)
        falls = sum(trial.outcome == "fell" for trial in trials)
        shares[policy] = share(successes, len(trials))
        outcomes = Counter(trial.outcome for trial in trials)
        if args.json:
            print_json(
                {
                    "case": case.name,
                    "policy": policy,
                    "trials": len(trials),
                    "success": shares[policy].as_json(),
                    "fell": share(falls, len(trials)).as_json(),
                    "outcomes": dict(outcomes),
                }
            )
            continue
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        print_line(
            f"{case.name}  {policy}: success {shares[policy]}, fell {share(falls, len(trials))}; "
            f"{said}"
        )
    if len(shares) == 2 and not args.json:
        change = difference(shares[judged], shares[case.policy])
        print_line(f"{case.name}  {judged} minus {case.policy}: {change}")
    return shares[judged].value >= args.at_least
