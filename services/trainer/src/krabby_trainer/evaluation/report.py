"""The report of an evaluation: JSON for machines, Markdown and plots for people."""

from __future__ import annotations

import json
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from krabby.benchmark.intervals import Estimate, share
from krabby.benchmark.report import markdown_table, write_whole
from krabby.robot.description import RobotDescription

from krabby_trainer.evaluation.curves import (
    columns,
    difficulty_section,
    first_episodes,
    plot_difficulty,
    two_plots,
)
from krabby_trainer.evaluation.metrics import GOALS, PAPER_WEIGHTS, combine, mxd_of, summarise
from krabby_trainer.evaluation.suite import TYPES, obedient_score, obstacle_size, published_tilt_deg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from krabby.course.courses import Course
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
    if suite.levels:
        report["limits"] = {kind: _limits(groups[kind]) for kind in TYPES}
    return report


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write report.json, report.md and difficulty.png to `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("report.json", "report.md", "difficulty.png")]
    write_whole(paths[0], json.dumps(report, indent=1) + "\n")
    write_whole(paths[1], markdown(report))
    plot_difficulty(report, paths[2])
    return paths


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    name = report.get("conditions", "nominal")
    condition = "" if name == "nominal" else f", {name}"
    parts = [
        f"# Evaluation: {report['suite']}, {report['backend']}{condition}",
        _setting(report),
        "## Beside the paper",
        _paper_table(report),
        _paper_notes(report),
        "## What else was counted",
        _detail_table(report),
        difficulty_section(report),
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
    rows["total"] = tuple(report["pooled"] | report["total"] for report in (ours, other))
    differences = {
        kind: {n: None if None in (a.get(n), b.get(n)) else a[n] - b[n] for n in names}
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
        "Courses that ended at the same goal in both in the robot's first episode: "
        f"{share(comparison['courses_equal'], comparison['courses'])}.",
        columns(
            comparison["differences"].items(),
            ("terrain", lambda kind, row: kind),
            ("MXD", lambda kind, row: _number(row["mxd"], 3, "+")),
            ("MXD, first episodes", lambda kind, row: _number(row["mxd_first"], 3, "+")),
            ("MEV", lambda kind, row: _number(row["mev"], 3, "+")),
            ("success", lambda kind, row: _number(row["success"], 2, "+")),
            ("falls", lambda kind, row: _number(row["fall_rate"], 2, "+")),
            ("torque RMS", lambda kind, row: _number(row["torque_rms_nm"], 1, "+")),
            ("saturated", lambda kind, row: _number(row["saturation_share"], 4, "+")),
        ),
        "![MXD of each course in both](sim2sim.png)",
    ]
    return "\n\n".join(lines) + "\n"


def write_comparison(ours: Mapping[str, Any], other: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write sim2sim.json, .md and .png to `folder` if the two reports can be compared."""
    comparison = compare(ours, other)
    if comparison is None:
        return []
    paths = [folder / f"sim2sim.{suffix}" for suffix in ("json", "md", "png")]
    write_whole(paths[0], json.dumps(comparison, indent=1) + "\n")
    write_whole(paths[1], comparison_markdown(comparison))
    _plot_pairs(comparison, ours, other, paths[2])
    return paths


# What is measured, group by group.


def _group(
    run: Run, courses: Sequence[Course], chosen: NDArray[np.bool_], suite: Suite
) -> dict[str, Any]:
    walked = [courses[i] for i in np.flatnonzero(chosen).tolist()]
    obedient = [obedient_score(course, suite.speed, suite.episode_s) for course in walked]
    size = obstacle_size(*walked)
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
    mastered = list(takewhile(lambda group: (group["success_first"] or 0.0) >= _GOOD, groups))
    failed = [group for group in groups if (group["success_first"] or 0.0) < _FAILED]
    found = {"mastered": mastered[-1:], "failed": failed[:1]}
    return {
        name: {"difficulty": some[0]["difficulty_high"], "obstacle": some[0]["obstacle_text"]}
        if some
        else None
        for name, some in found.items()
    }


def _robots(run: Run) -> dict[str, list[Any]]:
    """Each robot's course and first episode, to compare backends by."""
    first = run.episodes[run.episodes["number"] == 0]
    first = first[np.argsort(first["robot"])]
    return {
        "type": run.robots.type.tolist(),
        "difficulty": run.robots.difficulty.round(6).tolist(),
        "course_seed": run.robots.course_seed.tolist(),
        "mxd_first": mxd_of(first).round(4).tolist(),
        "outcome_first": first["outcome"].tolist(),
    }


def _by_course(report: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    robots = report["robot"]
    keys = zip(robots["type"], robots["course_seed"], strict=True)
    return dict(zip(keys, robots["mxd_first"], strict=True))


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
    rows = [
        (kind, report["types"][kind], PAPER[kind]) for kind in ("hurdle", "steps", "gap", "ramps")
    ]
    return columns(
        [*rows, ("**total**", report["total"], PAPER["total"])],
        ("terrain", lambda kind, ours, paper: kind),
        ("obstacles", lambda kind, ours, paper: ours.get("obstacle_text", "")),
        ("MXD", lambda kind, ours, paper: _spread(ours, "mxd")),
        ("paper", lambda kind, ours, paper: _spread(paper, "mxd")),
        ("obedient", lambda kind, ours, paper: _number(ours["obedient_mxd"], 2)),
        ("MEV", lambda kind, ours, paper: _spread(ours, "mev")),
        ("per foot", lambda kind, ours, paper: _number(ours["mev_per_foot"], 3)),
        ("paper", lambda kind, ours, paper: _spread(paper, "mev")),
        ("per foot", lambda kind, ours, paper: _number(paper["mev"] / 4, 3)),
    )


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
            "25 tiles; here every robot has its own course, lanes are wider and pits deeper.",
            "- MXD: goals reached by the end of an episode over 7, at most 1, over finished "
            f"episodes ({total['episodes']}; {total['episodes_cut_off']} were cut off by the end "
            f"and count in `mxd_all`, {_number(report['total']['mxd_all'], 3)}). MEV: feet that "
            "stand on an edge, per robot and step, over all steps. ± is over episodes and over "
            "robot-steps, as the published code prints it. The total counts the ramps twice, as "
            f"the paper's grid does; the plain mean of the four is "
            f"{_number(report['mean']['mxd'], 3) or 'none'} / {_number(report['mean']['mev'], 3)}.",
            f"- Obedient: MXD of a robot that walks exactly as fast as asked ({low:g} to {high:g} "
            f"m/s) and meets the clock at {report['episode_s']:g} s. A higher score means "
            "walking faster than asked.",
            f"- Ramps: the stones here are up to {tilt:.1f}° steep. They keep the paper's heights "
            "on stones of 3.2 m, wide enough for this stance; its stones of 1 m are "
            f"{published_tilt_deg(steepest):.1f}° steep at difficulty {steepest:g}.",
        ]
    )


def _detail_table(report: Mapping[str, Any]) -> str:
    names = RobotDescription.load().joint_names
    hardest = names[report["pooled"]["torque_rms_hardest_joint"]]
    table = columns(
        (*report["types"].items(), ("**all**", report["pooled"])),
        ("terrain", lambda kind, ours: kind),
        ("success", lambda kind, ours: _estimate(ours, "success")),
        ("MXD", lambda kind, ours: _estimate(ours, "mxd", 3)),
        ("fell", lambda kind, ours: _estimate(ours, "fell")),
        ("timed out", lambda kind, ours: _estimate(ours, "timed_out")),
        ("falls per 100 m", lambda kind, ours: _estimate(ours, "falls_per_100m")),
        ("body touches", lambda kind, ours: _number(ours["collision_share"], 4)),
        ("torque RMS", lambda kind, ours: _number(ours["torque_rms_nm"], 1)),
        ("hardest joint", lambda kind, ours: _number(ours["torque_rms_hardest_nm"], 1)),
        ("saturated", lambda kind, ours: _number(ours["saturation_share"], 4)),
    )
    return (
        f"{table}\n\nIn brackets the 95 % interval (docs/benchmark.md), with the number of robots. "
        "Success (all 8 goals), falls and time-outs are of the first episode of each robot; MXD "
        "and falls per 100 m are of all episodes. The last row counts every robot once. Torque in "
        f"N·m; the joint with the largest RMS over all terrains is {hardest}."
    )


def _limits_table(report: Mapping[str, Any]) -> str:
    def say(limit: Mapping[str, Any] | None, otherwise: str) -> str:
        return otherwise if limit is None else f"{limit['obstacle']} (d {limit['difficulty']:g})"

    return columns(
        report["limits"].items(),
        ("terrain", lambda kind, limits: kind),
        (f"mastered ({_GOOD:.0%} succeed)", lambda kind, ls: say(ls["mastered"], "none of these")),
        (f"defeated (under {_FAILED:.0%} succeed)", lambda kind, ls: say(ls["failed"], "nowhere")),
    )


def _falls_table(report: Mapping[str, Any]) -> str:
    reasons = sorted({reason for counts in report["falls"].values() for reason in counts})
    return markdown_table(
        ["terrain", *reasons],
        [[kind, *(str(c.get(r, 0)) for r in reasons)] for kind, c in report["falls"].items()],
    )


def _spread(values: Mapping[str, Any], name: str) -> str:
    if values[name] is None:
        return "none"
    return f"{values[name]:.2f} ± {values[f'{name}_std']:.2f}"


def _estimate(values: Mapping[str, Any], name: str, digits: int = 2) -> str:
    return Estimate.from_json(values["estimates"][name]).text(digits)


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.{digits}f}"


# Plots.


def _plot_pairs(
    comparison: Mapping[str, Any], ours: Mapping[str, Any], other: Mapping[str, Any], path: Path
) -> None:
    figure, (left, right) = two_plots()
    at = np.arange(len(TYPES))
    for shift, report in ((-0.2, other), (0.2, ours)):
        mxd = [first_episodes(report, kind).mxd for kind in TYPES]
        left.bar(at + shift, [one.value for one in mxd], 0.38, label=report["backend"])
        lows, highs = [one.low for one in mxd], [one.high for one in mxd]
        left.vlines(at + shift, lows, highs, color="black", lw=1)
    left.set_xticks(at, TYPES)
    left.set_ylim(0.0, 1.18)
    left.set_title("MXD of first episodes, 95 % interval", fontsize=10)
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
