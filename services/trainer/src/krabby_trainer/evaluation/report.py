"""The report of an evaluation: JSON for machines, Markdown and plots for people."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from krabby.robot.description import RobotDescription

from krabby_trainer.evaluation.metrics import GOALS, PAPER_WEIGHTS, combine, summarise
from krabby_trainer.evaluation.suite import TYPES, ObstacleSize, obedient_score, published_tilt_deg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from krabby.course.courses import Course
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from krabby_trainer.evaluation.metrics import Run
    from krabby_trainer.evaluation.outcome import Outcome
    from krabby_trainer.evaluation.suite import Suite

__all__ = [
    "PAPER",
    "PAPER_SOURCE",
    "compare",
    "comparison_markdown",
    "markdown",
    "results",
    "write_comparison",
    "write_report",
]

PAPER_SOURCE: Final = (
    "Cheng, Shi, Agarwal, Pathak: Extreme Parkour with Legged Robots, arXiv 2309.14341, Table 2, "
    'column "Ours"; transcribed, compare with the original before publishing against it'
)
PAPER: Final[Mapping[str, Mapping[str, float]]] = {
    "hurdle": {"mxd": 0.99, "mxd_std": 0.05, "mev": 0.04, "mev_std": 0.21},
    "steps": {"mxd": 0.99, "mxd_std": 0.07, "mev": 0.04, "mev_std": 0.20},
    "gap": {"mxd": 0.96, "mxd_std": 0.14, "mev": 0.02, "mev_std": 0.14},
    "ramps": {"mxd": 1.00, "mxd_std": 0.04, "mev": 0.01, "mev_std": 0.11},
    "total": {"mxd": 0.98, "mxd_std": 0.09, "mev": 0.03, "mev_std": 0.18},
}
"""Unitree A1, four feet, 256 robots for 30 s."""
PAPER_STUDENT: Final[Mapping[str, float]] = {
    "mxd": 0.92, "mxd_std": 0.19, "mev": 0.09, "mev_std": 0.33,
}  # fmt: skip
"""Table 3, "Ours": the distilled student, with the true waypoints and velocity, over all types."""

_BINS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_GOOD, _FAILED = 0.9, 0.1
"""Success rates from which an obstacle counts as mastered, and below which it defeats the robot."""
_COLOURS: Final = {"steps": "#3b75af", "gap": "#4f9d4b", "hurdle": "#d9773a", "ramps": "#b58d1d"}


def results(
    outcome: Outcome,
    courses: Sequence[Course],
    *,
    suite: Suite,
    backend: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that was measured, plain values. `about` says of what; it comes first."""
    run, kinds = outcome.run, outcome.run.robots.type
    types = {kind: _group(run, courses, kinds == kind, suite) for kind in TYPES}
    groups = {
        kind: [
            {"difficulty": label, "difficulty_low": low, "difficulty_high": high}
            | _group(run, courses, chosen, suite)
            for label, low, high, chosen in _difficulties(run, kinds == kind, suite)
        ]
        for kind in TYPES
    }
    report: dict[str, Any] = dict(about) | {
        "suite": suite.name,
        "suite_summary": suite.summary,
        "backend": backend,
        "robots": len(run.robots),
        "seconds": float(run.steps.max()) * run.step_s,
        "episode_s": suite.episode_s,
        "difficulty": [suite.difficulty_low, suite.difficulty_high],
        "speed": list(suite.speed),
        "push_interval_s": suite.push_interval_s,
        "wall_s": round(outcome.wall_s, 1),
        "types": types,
        "total": combine(types, PAPER_WEIGHTS),
        "mean": combine(types, dict.fromkeys(TYPES, 1.0)),
        "pooled": summarise(run),
        "by_difficulty": groups,
        "falls": {kind: dict(counts) for kind, counts in sorted(outcome.falls.items())},
        "paper": {"source": PAPER_SOURCE, "results": {k: dict(v) for k, v in PAPER.items()}},
        "robot": _robots(run),
    }
    for name in ("total", "mean"):
        obedient = _weighted(types, PAPER_WEIGHTS if name == "total" else {}, "obedient_mxd")
        report[name]["obedient_mxd"] = obedient
    if suite.levels:
        report["limits"] = {kind: _limits(groups[kind]) for kind in TYPES}
    return report


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write report.json, report.md and difficulty.png to `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("report.json", "report.md", "difficulty.png")]
    _write(paths[0], json.dumps(report, indent=1) + "\n")
    _write(paths[1], markdown(report))
    _plot_difficulty(report, paths[2])
    return paths


def _condition(report: Mapping[str, Any]) -> str:
    name = report.get("conditions", "nominal")
    return "" if name == "nominal" else f", {name}"


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    parts = [
        f"# Evaluation: {report['suite']}, {report['backend']}{_condition(report)}",
        _setting(report),
        "## Beside the paper",
        _paper_table(report),
        _paper_notes(report),
        "## What else was counted",
        _detail_table(report),
        "## By difficulty",
        _difficulty_table(report),
    ]
    if "limits" in report:
        parts += ["## How far it gets", _limits_table(report)]
    if report["falls"]:
        parts += ["## Why robots fell", _falls_table(report)]
    parts += ["![MXD and success over difficulty](difficulty.png)"]
    if report.get("pictures"):
        parts += [f"![The robot on each obstacle]({report['pictures']})"]
    return "\n\n".join(parts) + "\n"


def compare(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """Two backends on the same courses; None when these reports cannot be compared.

    Differences are `ours` minus `other`.
    """
    same = ("suite", "seed", "checkpoint_sha256", "robots", "seconds")
    if any(ours.get(key) != other.get(key) for key in same):
        return None
    names = ("mxd", "mxd_first", "mev", "success", "fall_rate", "torque_rms_nm", "saturation_share")
    rows = {kind: (ours["types"][kind], other["types"][kind]) for kind in TYPES}
    rows["total"] = (ours["total"], other["total"])
    differences = {
        kind: {name: _minus(a.get(name), b.get(name)) for name in names}
        for kind, (a, b) in rows.items()
    }
    theirs = _by_course(other)
    pairs = [(mxd, theirs.get(key)) for key, mxd in _by_course(ours).items()]
    known = np.array([pair for pair in pairs if pair[1] is not None], float).reshape(-1, 2)
    apart = np.abs(known[:, 0] - known[:, 1])
    return {
        "backends": [ours["backend"], other["backend"]],
        "differences": differences,
        "courses": len(known),
        "courses_equal": int((apart < 0.5 / (GOALS - 1)).sum()),
        "mean_absolute_difference": float(apart.mean()) if len(apart) else None,
        "pairs": known.round(4).tolist(),
    }


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison for people."""
    ours, other = comparison["backends"]
    lines = [
        f"# {ours} beside {other}",
        f"The same checkpoint on the same courses; differences are {ours} minus {other}. "
        f"Of {comparison['courses']} courses, {comparison['courses_equal']} ended at the same goal "
        "in both in the robot's first episode.",
        _table(
            ["terrain", "MXD", "MXD, first episodes", "MEV", "success", "falls", "torque RMS",
             "saturated"],
            [
                [
                    kind, *(_signed(row[name], 3) for name in ("mxd", "mxd_first", "mev")),
                    *(_signed(row[name], 2) for name in ("success", "fall_rate")),
                    _signed(row["torque_rms_nm"], 1), _signed(row["saturation_share"], 4),
                ]
                for kind, row in comparison["differences"].items()
            ],
        ),
        "![MXD of each course in both](sim2sim.png)",
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"


def write_comparison(ours: Mapping[str, Any], other: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write sim2sim.json, .md and .png to `folder` if the two reports can be compared."""
    comparison = compare(ours, other)
    if comparison is None:
        return []
    paths = [folder / f"sim2sim.{suffix}" for suffix in ("json", "md", "png")]
    _write(paths[0], json.dumps(comparison, indent=1) + "\n")
    _write(paths[1], comparison_markdown(comparison))
    _plot_pairs(comparison, ours, other, paths[2])
    return paths


# What is measured, group by group.


def _group(
    run: Run, courses: Sequence[Course], chosen: NDArray[np.bool_], suite: Suite
) -> dict[str, Any]:
    walked = [courses[i] for i in np.flatnonzero(chosen).tolist()]
    obedient = [obedient_score(course, suite.speed, suite.episode_s) for course in walked]
    size = ObstacleSize.over(walked)
    return summarise(run, chosen) | {
        "obstacle": {"what": size.what, "unit": size.unit, "low": size.low, "high": size.high},
        "obstacle_text": str(size),
        "obedient_mxd": float(np.mean([mxd for mxd, _ in obedient])),
        "obedient_success": float(np.mean([success for _, success in obedient])),
    }


def _difficulties(
    run: Run, of_type: NDArray[np.bool_], suite: Suite
) -> list[tuple[str, float, float, NDArray[np.bool_]]]:
    """Label, range and robots of each difficulty, or of each quarter of drawn ones."""
    d = run.robots.difficulty
    if suite.levels:
        groups = [(f"{v:g}", v, v, np.isclose(d, v, atol=1e-4)) for v in suite.difficulties]
    else:
        groups = [
            (f"{a:g} to {b:g}", a, b, (d >= a) & ((d < b) | (b == _BINS[-1])))
            for a, b in pairwise(_BINS)
        ]
    found = [(label, a, b, of_type & robots) for label, a, b, robots in groups]
    return [group for group in found if group[-1].any()]


def _limits(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far a type is mastered without a break, and where it defeats the robot."""
    mastered: Mapping[str, Any] | None = None
    for group in groups:
        if (group["success_first"] or 0.0) < _GOOD:
            break
        mastered = group
    failed = next((g for g in groups if (g["success_first"] or 0.0) < _FAILED), None)

    def say(group: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if group is None:
            return None
        return {"difficulty": group["difficulty_high"], "obstacle": group["obstacle_text"]}

    return {"mastered": say(mastered), "failed": say(failed)}


def _robots(run: Run) -> dict[str, list[Any]]:
    """Each robot's course and first episode, to compare backends by."""
    first = run.episodes.number == 0
    order = np.argsort(run.episodes.robot[first])
    return {
        "type": run.robots.type.tolist(),
        "difficulty": run.robots.difficulty.round(6).tolist(),
        "course_seed": run.robots.course_seed.tolist(),
        "mxd_first": run.episodes.mxd[first][order].round(4).tolist(),
        "outcome_first": run.episodes.outcome[first][order].tolist(),
    }


def _by_course(report: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    robots = report["robot"]
    keys = zip(robots["type"], robots["course_seed"], strict=True)
    return dict(zip(keys, robots["mxd_first"], strict=True))


def _weighted(types: Mapping[str, Any], weights: Mapping[str, float], name: str) -> float:
    values = [types[kind][name] for kind in TYPES]
    return float(np.average(values, weights=[weights.get(kind, 1.0) for kind in TYPES]))


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


# For people.


def _setting(report: Mapping[str, Any]) -> str:
    low, high = report["speed"]
    speed = f"{low:g} m/s" if low == high else f"{low:g} to {high:g} m/s, drawn per episode"
    return (
        f"{report['suite_summary'][0].upper()}{report['suite_summary'][1:]}. "
        f"{report['robots']} robots, {report['seconds']:g} s each, episodes of "
        f"{report['episode_s']:g} s, {speed}, a push every {report['push_interval_s']:g} s, seed "
        f"{report.get('seed')}. Checkpoint `{report.get('checkpoint')}`"
        + (f", iteration {report['iteration']}" if report.get("iteration") is not None else "")
        + (f". Conditions: {report['conditions_are']}" if report.get("conditions_are") else "")
        + f". Took {report['wall_s'] / 60:.1f} minutes."
    )


def _paper_table(report: Mapping[str, Any]) -> str:
    rows = []
    for kind in ("hurdle", "steps", "gap", "ramps", "total"):
        ours = report["total"] if kind == "total" else report["types"][kind]
        paper = PAPER[kind]
        rows.append(
            [
                "**total**" if kind == "total" else kind,
                "" if kind == "total" else ours["obstacle_text"],
                _spread(ours, "mxd"), _spread(paper, "mxd"), _number(ours["obedient_mxd"], 2),
                _spread(ours, "mev"), _number(ours["mev_per_foot"], 3), _spread(paper, "mev"),
                _number(paper["mev"] / 4, 3),
            ]
        )  # fmt: skip
    return _table(
        ["terrain", "obstacles", "MXD", "paper", "obedient", "MEV", "per foot", "paper",
         "per foot"],
        rows,
    )  # fmt: skip


def _paper_notes(report: Mapping[str, Any]) -> str:
    low, high = report["speed"]
    tilt = report["types"]["ramps"]["obstacle"]["high"]
    steepest = max(group["difficulty_high"] for group in report["by_difficulty"]["ramps"])
    total = report["pooled"]
    student = [
        "- The paper's student, which is given true waypoints and velocity: total MXD "
        f"{_spread(PAPER_STUDENT, 'mxd')}, MEV {_spread(PAPER_STUDENT, 'mev')}. This one sees by "
        "its camera alone."
    ]
    return "\n".join(
        [
            *(student if report.get("sees") else ()),
            f"- Paper: {PAPER_SOURCE}. Its robot has four feet and walks a grid of "
            "25 tiles; here every robot has a course of its own, lanes are wider and pits deeper.",
            "- MXD: goals reached by the end of an episode over 7, at most 1, over finished "
            f"episodes ({total['episodes']}; {total['episodes_cut_off']} were cut off by the end "
            f"and count in `mxd_all`, {_number(report['total']['mxd_all'], 3)}). MEV: feet that "
            "stand on an edge, per robot and step, over all steps. ± is over episodes and over "
            "robot-steps, as the published code prints it. The total counts the ramps twice, as "
            f"the paper's grid does; the plain mean of the four is "
            f"{_number(report['mean']['mxd'], 3) or 'none'} / {_number(report['mean']['mev'], 3)}.",
            f"- Obedient: MXD of a robot that walks exactly as fast as asked ({low:g} to {high:g} "
            f"m/s) and meets the clock at {report['episode_s']:g} s. Whoever scores more walked "
            "faster than asked.",
            f"- Ramps: the stones here are up to {tilt:.1f}° steep. They keep the paper's heights "
            "on stones of 3.2 m, wide enough for this stance; its stones of 1 m are "
            f"{published_tilt_deg(steepest):.1f}° steep at difficulty {steepest:g}.",
        ]
    )


def _detail_table(report: Mapping[str, Any]) -> str:
    rows = []
    for kind in (*TYPES, "total"):
        ours = report["total"] if kind == "total" else report["types"][kind]
        interval = ours.get("success_ci95")
        rows.append(
            [
                "**total**" if kind == "total" else kind,
                _number(ours["success"], 3),
                f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "",
                _number(ours["success_first"], 3), _number(ours["mxd_first"], 3),
                _number(ours["fall_rate"], 3), _number(ours["time_out_rate"], 3),
                _number(ours["collision_share"], 4), _number(ours["torque_rms_nm"], 1),
                _number(ours.get("torque_rms_hardest_nm"), 1), _number(ours["saturation_share"], 4),
            ]
        )  # fmt: skip
    names = RobotDescription.load().joint_names
    hardest = names[report["pooled"]["torque_rms_hardest_joint"]]
    return (
        _table(
            ["terrain", "success", "95 %", "success, first", "MXD, first", "fell", "timed out",
             "body touches", "torque RMS", "hardest joint", "saturated"],
            rows,
        )
        + "\n\nSuccess is all 8 goals. *First* takes the first episode of each robot, so that a "
        "robot that falls often weighs no more than another. Torque in N·m; the joint that works "
        f"hardest over all terrains is {hardest}."
    )  # fmt: skip


def _difficulty_table(report: Mapping[str, Any]) -> str:
    rows = [
        [
            kind, group["difficulty"], group["obstacle_text"], str(group["robots"]),
            _spread(group, "mxd_all"), _number(group["mev"], 3),
            _number(group["success_first"], 2), _number(group["fall_rate"], 2),
            _number(group["torque_rms_nm"], 1),
        ]
        for kind in TYPES
        for group in report["by_difficulty"][kind]
    ]  # fmt: skip
    return _table(
        ["terrain", "difficulty", "obstacles", "robots", "MXD, all episodes", "MEV",
         "success, first", "fell", "torque RMS"],
        rows,
    )  # fmt: skip


def _limits_table(report: Mapping[str, Any]) -> str:
    def say(limit: Mapping[str, Any] | None, otherwise: str) -> str:
        return otherwise if limit is None else f"{limit['obstacle']} (d {limit['difficulty']:g})"

    return _table(
        ["terrain", f"mastered ({_GOOD:.0%} succeed)", f"defeated (under {_FAILED:.0%} succeed)"],
        [
            [kind, say(limits["mastered"], "none of these"), say(limits["failed"], "nowhere here")]
            for kind, limits in report["limits"].items()
        ],
    )


def _falls_table(report: Mapping[str, Any]) -> str:
    reasons = sorted({reason for counts in report["falls"].values() for reason in counts})
    return _table(
        ["terrain", *reasons],
        [
            [kind, *(str(counts.get(reason, 0)) for reason in reasons)]
            for kind, counts in report["falls"].items()
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])


def _spread(values: Mapping[str, Any], name: str) -> str:
    if values[name] is None:
        return "none"
    return f"{values[name]:.2f} ± {values[f'{name}_std']:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:+.{digits}f}"


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


# Plots.


def _plot_difficulty(report: Mapping[str, Any], path: Path) -> None:
    figure, (left, right) = _figure(2)
    for kind in TYPES:
        groups = report["by_difficulty"][kind]
        middle = [(group["difficulty_low"] + group["difficulty_high"]) / 2 for group in groups]
        for axes, name in ((left, "mxd_all"), (right, "success_first")):
            values = [group[name] for group in groups]
            axes.plot(middle, values, "o-", color=_COLOURS[kind], label=kind, markersize=4)
    for axes, title in ((left, "MXD, all episodes"), (right, "success, first episodes")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("difficulty")
        axes.set_xlim(report["difficulty"][0] - 0.03, report["difficulty"][1] + 0.03)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=80)


def _plot_pairs(
    comparison: Mapping[str, Any],
    ours: Mapping[str, Any],
    other: Mapping[str, Any],
    path: Path,
) -> None:
    figure, (left, right) = _figure(2)
    kinds = [*TYPES, "total"]
    at = np.arange(len(kinds))
    for shift, report in ((-0.2, other), (0.2, ours)):
        rows = [report["total"] if kind == "total" else report["types"][kind] for kind in kinds]
        heights = [row["mxd"] if row["mxd"] is not None else 0.0 for row in rows]
        left.bar(at + shift, heights, 0.38, label=report["backend"])
    left.set_xticks(at, kinds)
    left.set_ylim(0.0, 1.18)
    left.set_title("MXD", fontsize=10)
    left.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")

    pairs = np.round(np.array(comparison["pairs"]).reshape(-1, 2) * (GOALS - 1)).astype(int)
    counts = np.zeros((GOALS, GOALS), int)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    right.imshow(counts, origin="lower", cmap="Blues")
    for i, j in np.argwhere(counts).tolist():
        shade = "white" if counts[i, j] > counts.max() / 2 else "black"
        right.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7, color=shade)
    right.set_title("courses by goals in the first episode, up to 7", fontsize=10)
    right.set_xlabel(other["backend"])
    right.set_ylabel(ours["backend"])
    figure.savefig(path, dpi=80)


def _figure(columns: int) -> tuple[Any, NDArray[Any] | tuple[Axes, ...]]:
    """Without pyplot: no display, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * columns, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)
