"""From trials to the rows of a report: reading shards, merging them, grouping, targets.

Rows depend on the set of trials alone: not on their order, nor on how many files they came in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import msgspec

from krabby.benchmark import intervals
from krabby.benchmark.aggregate import FIGURES, estimate
from krabby.benchmark.outcome import Outcome, succeeded
from krabby.benchmark.trace import TrialResult

if TYPE_CHECKING:
    from pathlib import Path

    from krabby.benchmark.intervals import Estimate
    from krabby.benchmark.scenario import Cell, Goal, Target

__all__ = [
    "Row",
    "TrialsError",
    "Verdict",
    "cell_rows",
    "family_rows",
    "group_rows",
    "is_trial",
    "judge",
    "merge",
    "missing",
    "read_trials",
    "summarise",
]

Verdict = Literal["met", "met, not certain", "missed, not certain", "missed", "not measured"]
"""Certain where the whole 95 % interval is on one side of the target."""


class TrialsError(Exception):
    """Files of trials that cannot be read or contradict each other."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The trials of one cell, family or group, by policy."""

    name: str
    summary: str = ""
    cells: tuple[Cell, ...]
    results: Mapping[str, Mapping[str, Estimate]]
    """Figures by policy; a policy without a trial is absent."""
    outcomes: Mapping[str, Mapping[str, int]]
    """Number of trials by policy and outcome."""

    @property
    def held_out(self) -> bool:
        """Whether no cell of it is used in training."""
        return all(cell.held_out for cell in self.cells)


def read_trials(paths: Iterable[Path]) -> list[TrialResult]:
    """The trials of several files of JSON lines.

    The last line of an evaluation that was cut off, which has no end, is left out.

    Raises:
        TrialsError: a line is not a trial.
    """
    trials: list[TrialResult] = []
    for path in paths:
        lines = path.read_bytes().split(b"\n")
        if not is_trial(lines[-1]):
            lines.pop()
        for number, line in enumerate(lines, start=1):
            try:
                trials.append(_decode(line))
            except (msgspec.MsgspecError, ValueError) as error:
                raise TrialsError(
                    f"{path}, line {number} is not a trial: {error}; remove that line and run its "
                    "trial again"
                ) from error
    return trials


def is_trial(line: bytes) -> bool:
    """Whether a line of JSON is a whole trial."""
    try:
        _decode(line)
    except (msgspec.MsgspecError, ValueError):
        return False
    return True


def _decode(line: bytes) -> TrialResult:
    trial = msgspec.json.decode(line, type=TrialResult)
    Outcome(trial.outcome)  # ValueError for another word
    if trial.seed < 0 or not all(map(math.isfinite, trial.figures.values())):
        raise ValueError(f"seed {trial.seed} or a figure is out of range")
    return trial


def merge(trials: Iterable[TrialResult]) -> list[TrialResult]:
    """Each trial once, sorted.

    Raises:
        TrialsError: two results of the same trial differ, as those of two revisions do.
    """
    found: dict[tuple[str, str, int], TrialResult] = {}
    for trial in trials:
        key = (trial.policy, trial.cell, trial.seed)
        known = found.setdefault(key, trial)
        if replace(known, wall_s=0.0) != replace(trial, wall_s=0.0):
            raise TrialsError(
                f"two results of policy {key[0]!r}, cell {key[1]!r}, seed {key[2]} differ "
                f"({known.outcome} after {known.time_s} s, {trial.outcome} after {trial.time_s} s);"
                " give only files of one revision and one robot"
            )
    return [found[key] for key in sorted(found)]


def summarise(trials: Sequence[TrialResult], goals: Mapping[str, Goal]) -> dict[str, Estimate]:
    """All figures of some trials; `goals` of their cells by name. Without trials: none."""
    if not trials:
        return {}
    n = len(trials)
    counts = Counter(trial.outcome for trial in trials)
    good = [trial for trial in trials if succeeded(goals[trial.cell], trial.outcome)]
    found = {"success": intervals.share(len(good), n)}
    for outcome in Outcome:
        if outcome is not Outcome.SUCCESS:
            found[outcome.value] = intervals.share(counts[outcome], n)
    sums = [trial.figures for trial in trials]
    walked = sum(sorted(each.get("walked_m", 0.0) for each in sums))
    if walked > 0.0:
        fell = counts[Outcome.FELL]
        found["falls_per_100m"] = intervals.poisson_rate(fell, walked / 100.0, n)
    times = [t.figures for t in good if goals[t.cell] == "waypoints" and "needed_s" in t.figures]
    if times:
        found["time_ratio"] = intervals.mean([t["walk_s"] / t["needed_s"] for t in times])
    for figure in FIGURES:
        value = estimate(figure, sums)
        if value is not None:
            found[figure.name] = value
    return found


def cell_rows(cells: Sequence[Cell], trials: Sequence[TrialResult]) -> list[Row]:
    """One row for each cell, in the order of the suite.

    A cell that names another one in `facts["baseline"]` has the figure `success_change` too.
    """
    rows = {row.name: row for row in _rows(cells, trials, lambda cell: (cell.name,))}
    for name, row in rows.items():
        base = row.cells[0].facts.get("baseline", name)
        if base != name and base in rows:
            rows[name] = _beside(row, rows[base])
    return list(rows.values())


def family_rows(cells: Sequence[Cell], trials: Sequence[TrialResult]) -> list[Row]:
    """One row for each family, in the order of the suite."""
    return _rows(cells, trials, lambda cell: (cell.family,))


def group_rows(cells: Sequence[Cell], trials: Sequence[TrialResult]) -> list[Row]:
    """All cells, those held out of training, the others, and groups in `facts["group"]`.

    A group that has the name of a family is left out.
    """
    families = {cell.family for cell in cells}

    def groups(cell: Cell) -> tuple[str, ...]:
        named = {str(cell.facts["group"])} - families if "group" in cell.facts else ()
        return ("all cells", "held out of training" if cell.held_out else "not held out", *named)

    return _rows(cells, trials, groups)


def missing(cells: Sequence[Cell], trials: Sequence[TrialResult]) -> dict[str, list[str]]:
    """By policy: which cells have too few trials, as `name: 12 of 64`."""
    counts = Counter((trial.policy, trial.cell) for trial in trials)
    lacking = {
        policy: [
            f"{cell.name}: {counts[policy, cell.name]} of {cell.trials}"
            for cell in cells
            if counts[policy, cell.name] < cell.trials
        ]
        for policy in sorted({trial.policy for trial in trials})
    }
    return {policy: names for policy, names in lacking.items() if names}


def judge(target: Target, found: Mapping[str, Estimate]) -> Verdict:
    """Whether figures reach a target; of maxima, the largest counts."""
    if target.figure not in found:
        return "not measured"
    figure = found[target.figure]
    if figure.largest == figure.largest:  # not NaN
        return "met" if _meets(target, figure.largest) else "missed"
    met = _meets(target, figure.value)
    ends = {_meets(target, end) for end in (figure.low, figure.high) if end == end}
    certain = ends == {met}
    if met:
        return "met" if certain else "met, not certain"
    return "missed" if certain else "missed, not certain"


def _meets(target: Target, value: float) -> bool:
    if target.at_least is not None:
        return value >= target.at_least
    assert target.at_most is not None
    return value <= target.at_most


def _rows(
    cells: Sequence[Cell],
    trials: Sequence[TrialResult],
    names_of: Callable[[Cell], tuple[str, ...]],
) -> list[Row]:
    by_name: dict[str, list[Cell]] = {}
    for cell in cells:
        for name in names_of(cell):
            by_name.setdefault(name, []).append(cell)
    goals: dict[str, Goal] = {cell.name: cell.goal for cell in cells}
    by_cell: dict[tuple[str, str], list[TrialResult]] = {}
    for trial in trials:
        by_cell.setdefault((trial.policy, trial.cell), []).append(trial)
    policies = sorted({trial.policy for trial in trials})
    return [
        _row(name, members, {p: _of(by_cell, p, members) for p in policies}, goals)
        for name, members in by_name.items()
    ]


def _beside(row: Row, base: Row) -> Row:
    """The row with the change of success against a baseline."""
    results = {
        policy: {
            **found,
            "success_change": intervals.difference(
                found["success"], base.results[policy]["success"]
            ),
        }
        if policy in base.results
        else found
        for policy, found in row.results.items()
    }
    return replace(row, results=results)


def _of(
    by_cell: Mapping[tuple[str, str], list[TrialResult]], policy: str, members: Sequence[Cell]
) -> list[TrialResult]:
    return [trial for cell in members for trial in by_cell.get((policy, cell.name), ())]


def _row(
    name: str,
    members: Sequence[Cell],
    trials: Mapping[str, list[TrialResult]],
    goals: Mapping[str, Goal],
) -> Row:
    some = {policy: chosen for policy, chosen in trials.items() if chosen}
    return Row(
        name=name,
        summary=members[0].summary if len(members) == 1 else "",
        cells=tuple(members),
        results={policy: summarise(chosen, goals) for policy, chosen in some.items()},
        outcomes={policy: Counter(t.outcome for t in chosen) for policy, chosen in some.items()},
    )
