"""The report of a suite: report.json for programs, report.md and success.png for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from krabby.benchmark import table
from krabby.benchmark.aggregate import FIGURES
from krabby.benchmark.outcome import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from krabby.benchmark.intervals import Estimate
    from krabby.benchmark.scenario import Cell, Target
    from krabby.benchmark.table import Row
    from krabby.benchmark.trace import TrialResult

__all__ = [
    "Report",
    "figure_text",
    "markdown",
    "markdown_table",
    "target_text",
    "write_report",
    "write_whole",
]

_PICTURE: Final = "success.png"
_BY_NAME: Final = {figure.name: figure for figure in FIGURES}
_MOTION: Final = (
    "time_ratio", "cost_of_transport", "power", "touchdowns", "clearance", "three_feet",
    "contact_peak_p99", "contact_peak", "foot_above_base",
)  # fmt: skip
_LOADS: Final = (
    "position_clamps", "rate_clamps", "above_rated", "joint_rms", "blind", "feature_age",
)  # fmt: skip
_TRACKING: Final = (
    "walked_vx", "walked_vy", "walked_yaw", "error_vx", "error_vy", "error_yaw", "obeys",
)  # fmt: skip
_STANDING: Final = ("drift", "creep")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a report says."""

    facts: Mapping[str, Any]
    """Revision, robot, physics step, machine and the like."""
    policies: tuple[str, ...]
    cells: Sequence[Row]
    families: Sequence[Row]
    groups: Sequence[Row]
    missing: Mapping[str, Sequence[str]]
    """Cells with too few trials, by policy."""
    unknown: Sequence[str] = field(default=())
    """Cells that have trials and that the suite lacks; left out."""

    @classmethod
    def of(
        cls, cells: Sequence[Cell], results: Iterable[TrialResult], facts: Mapping[str, Any]
    ) -> Report:
        """From the trials of one or more policies and shards.

        Raises:
            TrialsError: two results of one trial differ.
        """
        trials = table.merge(results)
        names = {cell.name for cell in cells}
        known = [trial for trial in trials if trial.cell in names]
        return cls(
            facts=dict(facts),
            policies=tuple(sorted({trial.policy for trial in known})),
            cells=table.cell_rows(cells, known),
            families=table.family_rows(cells, known),
            groups=table.group_rows(cells, known),
            missing=table.missing(cells, known),
            unknown=sorted({trial.cell for trial in trials} - names),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, in SI units."""
        return {
            "format": 1,
            "facts": self.facts,
            "policies": list(self.policies),
            "missing": {policy: list(names) for policy, names in self.missing.items()},
            "unknown_cells": list(self.unknown),
            "groups": [_row_json(row) for row in self.groups],
            "families": [_row_json(row) for row in self.families],
            "cells": [_row_json(row) | _cell_json(row) for row in self.cells],
        }


def write_report(
    folder: Path,
    cells: Sequence[Cell],
    results: Iterable[TrialResult],
    facts: Mapping[str, Any],
) -> Report:
    """Write report.json, report.md and, where matplotlib is installed, success.png.

    Args:
        folder: made if it is missing.
        cells: of the suite, with the number of trials that were to be run.
        results: trials of one or more policies and shards.
        facts: revision, robot, physics step, machine and the like, for the head of the report.
    """
    report = Report.of(cells, results, facts)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = find_spec("matplotlib") is not None
    if pictures:
        from krabby.benchmark.report_picture import plot_success

        plot_success(report.cells, report.policies, folder / _PICTURE)
    write_whole(folder / "report.json", json.dumps(report.as_json(), indent=1) + "\n")
    write_whole(folder / "report.md", markdown(report, picture=_PICTURE if pictures else ""))
    return report


def figure_text(name: str, estimate: Estimate | None, *, with_n: bool = True) -> str:
    """An estimate with its interval, and n, in the unit of its figure; `-` for none."""
    if estimate is None:
        return "-"
    figure = _BY_NAME.get(name)
    digits, scale = (figure.digits, figure.scale) if figure else (2, 1.0)
    text = estimate.text(digits, scale=scale)
    if not with_n:
        text = text.rpartition(" (n ")[0]
    if estimate.largest == estimate.largest:  # not NaN
        text += f", largest {scale * estimate.largest:.{digits}f}"
    return f"{text} {estimate.where}".rstrip()


def target_text(target: Target | None) -> str:
    """`success ≥ 0.97`; in the figure's unit."""
    if target is None:
        return "-"
    figure = _BY_NAME.get(target.figure)
    sign, bound = ("≥", target.at_least) if target.at_most is None else ("≤", target.at_most)
    assert bound is not None
    unit = f" {figure.unit}" if figure and figure.unit else ""
    return f"{target.figure} {sign} {bound * (figure.scale if figure else 1.0):g}{unit}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row names the columns."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def markdown(report: Report, *, picture: str = "") -> str:
    """The report for people."""
    parts = [f"# Benchmark: {report.facts.get('suite', 'suite')}, {', '.join(report.policies)}"]
    parts.append(
        "Definitions: docs/benchmark.md. Every value is followed by its 95 % interval in brackets "
        "and the number of trials. A target is met when the value reaches it; *not certain* marks "
        "an interval that reaches to the other side of the target."
    )
    parts.append("\n".join(f"- {name}: {_plain(value)}" for name, value in report.facts.items()))
    parts += ["## Missing", _missing(report)]
    parts += ["## Families", _outcome_table(report, report.families)]
    parts += ["## Groups", _outcome_table(report, report.groups)]
    parts += [f"![Success of each cell with its interval and target]({picture})"] * bool(picture)
    parts.append("## Cells")
    for row in report.families:
        cells = [cell for cell in report.cells if cell.cells[0].family == row.name]
        parts += [f"### {row.name}{_held_out(row)}", _cell_table(report, cells)]
    tracked = [row for row in report.cells if row.cells[0].goal == "track"]
    stood = [row for row in report.cells if row.cells[0].goal == "stand"]
    for title, rows, names in (
        ("Commands", tracked, _TRACKING),
        ("Standing", stood, _STANDING),
        ("Motion", report.families, _MOTION),
        ("Loads, limits and pictures", report.families, _LOADS),
    ):
        for policy in report.policies if rows else ():
            found = _figure_table(rows, policy, names)
            parts += [f"## {title}: {policy}", found] if found else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _missing(report: Report) -> str:
    lines: list[str] = []
    for policy, names in sorted(report.missing.items()):
        by_count: dict[str, list[str]] = {}
        for name in names:
            cell, _, count = name.partition(": ")
            by_count.setdefault(count, []).append(cell)
        lines += [
            f"- {policy}, {count} trials: {', '.join(cells)}" for count, cells in by_count.items()
        ]
    if report.unknown:
        lines.append(f"- Not in the suite, left out: {', '.join(report.unknown)}")
    return "\n".join(lines) or "Nothing: every cell has all its trials."


def _outcome_table(report: Report, rows: Sequence[Row]) -> str:
    """Success, falls and targets of each policy, side by side."""
    head = ["", "cells"]
    for policy in report.policies:
        head += [f"{policy}: success", "fell", "falls per 100 m", "targets met"]
    lines = []
    for row in rows:
        line = [f"{row.name}{_held_out(row)}", str(len(row.cells))]
        for policy in report.policies:
            found = row.results.get(policy, {})
            line += [figure_text("success", found.get("success"))]
            line += [figure_text(n, found.get(n), with_n=False) for n in ("fell", "falls_per_100m")]
            line.append(_targets_met(report, row, policy))
        lines.append(line)
    return markdown_table(head, lines)


def _targets_met(report: Report, row: Row, policy: str) -> str:
    mine = {cell.name for cell in row.cells}
    verdicts = [
        table.judge(cell.cells[0].target, cell.results.get(policy, {}))
        for cell in report.cells
        if cell.name in mine and cell.cells[0].target is not None
    ]
    met = sum(verdict.startswith("met") for verdict in verdicts)
    return f"{met} of {len(verdicts)}" if verdicts else "-"


def _cell_table(report: Report, rows: Sequence[Row]) -> str:
    head = ["cell", "what", "target"]
    for policy in report.policies:
        head += [f"{policy}: success", "verdict", "other outcomes"]
    lines = []
    for row in rows:
        cell = row.cells[0]
        line = [f"{row.name}{' (held out)' if cell.held_out else ''}", cell.summary]
        line.append(target_text(cell.target))
        for policy in report.policies:
            found = row.results.get(policy, {})
            line += [
                figure_text("success", found.get("success")),
                _verdict(cell.target, found),
                _others(row.outcomes.get(policy, {})),
            ]
        lines.append(line)
    return markdown_table(head, lines)


def _verdict(target: Target | None, found: Mapping[str, Estimate]) -> str:
    if target is None:
        return "-"
    verdict = table.judge(target, found)
    if target.figure == "success" or target.figure not in found:
        return verdict
    return f"{verdict}: {figure_text(target.figure, found[target.figure])}"


def _others(outcomes: Mapping[str, int]) -> str:
    named = [
        f"{outcome.replace('_', ' ')} {count}"
        for outcome, count in sorted(outcomes.items(), key=lambda item: (-item[1], item[0]))
        if outcome != Outcome.SUCCESS
    ]
    return ", ".join(named) or "-"


def _figure_table(rows: Sequence[Row], policy: str, names: Sequence[str]) -> str:
    """Rows and the figures that any of them has; empty without one."""
    measured = [(row, row.results.get(policy, {})) for row in rows]
    names = [name for name in names if any(name in found for _, found in measured)]
    head = ["", *(_title(name) for name in names), "n"]
    lines = []
    for row, found in measured:
        texts = [figure_text(name, found.get(name), with_n=False) for name in names]
        counts = sorted({found[name].n for name in names if name in found})
        lines.append([f"{row.name}{_held_out(row)}", *texts, _range(counts)])
    return markdown_table(head, lines) if names else ""


def _range(counts: Sequence[int]) -> str:
    if not counts:
        return "0"
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _title(name: str) -> str:
    figure = _BY_NAME.get(name)
    if figure is None:
        return name.replace("_", " ")
    return f"{figure.title} [{figure.unit}]" if figure.unit else figure.title


def _held_out(row: Row) -> str:
    if row.name not in (row.cells[0].family, row.cells[0].name):
        return ""  # the name of a group tells
    some = any(cell.held_out for cell in row.cells)
    return " (held out)" if row.held_out else " (partly held out)" if some else ""


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "held_out": row.held_out,
        "results": {
            policy: {name: estimate.as_json() for name, estimate in found.items()}
            for policy, found in row.results.items()
        },
        "outcomes": {policy: dict(counts) for policy, counts in row.outcomes.items()},
    }


def _cell_json(row: Row) -> dict[str, Any]:
    cell = row.cells[0]
    target = cell.target
    return {
        "family": cell.family,
        "summary": cell.summary,
        "goal": cell.goal,
        "trials": cell.trials,
        "facts": cell.facts,
        "target": target and {
            "figure": target.figure, "at_least": target.at_least, "at_most": target.at_most,
        },
        "verdicts": target and {p: table.judge(target, r) for p, r in row.results.items()},
    }  # fmt: skip
