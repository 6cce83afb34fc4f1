"""What many runs come to: pure functions from the runs' summaries to a report."""

from __future__ import annotations

from collections import Counter
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from krabby.policy.bundle import POLICY_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from krabby.course.courses import Course

__all__ = ["Case", "is_done", "make_report", "time_limit_s", "to_markdown", "way_m"]

_STANDING_UP_S: Final = 8.0
"""From all ready to walking: arming, standing up, the first picture; with room to spare."""
_LEAVING: Final = "command_timeout"
"""The fault that ends every run: the loop has gone and the gate is left alone."""

Run = dict[str, Any]


class Case(NamedTuple):
    """One run to make."""

    course: str
    difficulty: float
    seed: int
    """Of the course's layout and of the sensor's noise."""

    def __str__(self) -> str:
        """For people."""
        return f"{self.course}, difficulty {self.difficulty:g}, seed {self.seed}"


def way_m(course: Course) -> float:
    """From the spawn through all waypoints [m]."""
    points = np.vstack([course.spawn[:2], course.waypoints[:, :2]])
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


def time_limit_s(course: Course, walk_speed: float, slack: float) -> float:
    """How long a run may take [s]: the way at `walk_speed` [m/s] times `slack`, and standing up."""
    return _STANDING_UP_S + slack * way_m(course) / walk_speed


def is_done(run: Run) -> bool:
    """Whether a run counts: it ended as it should, and simulator and loop told what they saw."""
    summary = run["summary"]
    told = summary.get("course_completed") is not None and summary.get("policy_s") is not None
    return summary["exit"] == "finished" and told


def make_report(head: Mapping[str, Any], runs: Iterable[Run]) -> dict[str, Any]:
    """The figures per course and difficulty, per difficulty, and of all.

    Args:
        head: What was evaluated; goes into the report as it is.
        runs: Those that count; see `is_done`.
    """
    kept = sorted(runs, key=lambda run: (run["difficulty"], run["course"], run["seed"]))
    cells: list[dict[str, Any]] = []
    for difficulty in sorted({run["difficulty"] for run in kept}):
        of_difficulty = [run for run in kept if run["difficulty"] == difficulty]
        for course in sorted({run["course"] for run in of_difficulty}):
            of_course = [run for run in of_difficulty if run["course"] == course]
            cells.append({"course": course, "difficulty": difficulty, **_figures(of_course)})
        cells.append({"course": "all", "difficulty": difficulty, **_figures(of_difficulty)})
    if kept:
        cells.append({"course": "all", "difficulty": "all", **_figures(kept)})
    return {**head, "cells": cells}


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    summaries = [run["summary"] for run in runs]

    def values(key: str) -> list[float]:
        return [float(each[key]) for each in summaries if each.get(key) is not None]

    def over(key: str, function: Callable[[list[float]], float], digits: int = 3) -> float | None:
        found = values(key)
        return round(function(found), digits) if found else None

    successes = sum(_succeeded(each) for each in summaries)
    faults: Counter[str] = Counter()
    for each in summaries:
        faults.update(each.get("gate_faults") or {})
    faults.pop(_LEAVING, None)
    walked_s = sum(values("policy_s"))
    cores = [each["cpu_cores"]["total"] for each in summaries if each["cpu_cores"].get("total")]
    return {
        "runs": len(runs),
        "seeds": sorted({run["seed"] for run in runs}),
        "successes": successes,
        "success": round(successes / len(runs), 4),
        "distance_share": round(fmean(map(_share, summaries)), 4),
        "falls": int(sum(values("falls"))),
        "edge_feet": over("edge_feet", fmean, 4),
        "gate_clamps": int(sum(values("gate_clamps"))),
        "gate_faults": dict(faults),
        "command_timeouts": int(sum(values("command_timeouts"))),
        "bad_outputs": int(sum(values("bad_outputs"))),
        "loop_hz_min": over("loop_hz", min),
        "deadline_misses": int(sum(values("deadline_misses"))),
        "deadline_misses_per_s": round(sum(values("deadline_misses")) / walked_s, 4)
        if walked_s
        else None,
        "work_p99_ms_median": over("work_p99_ms", median),
        "state_age_p99_ms_median": over("obs_age_p99_ms", median),
        "state_age_p99_ms_max": over("obs_age_p99_ms", max),
        "features_age_p99_ms_median": over("features_age_p99_ms", median),
        "features_age_p99_ms_max": over("features_age_p99_ms", max),
        "walked_s": round(walked_s, 2),
        "blind_s": round(sum(values("blind_s")), 2),
        "blind_switches": int(sum(values("blind_switches"))),
        "effort_rms_nm": over("effort_rms_nm", fmean, 2),
        "real_time_factor_min": over("real_time_factor", min, 4),
        "cores": round(fmean(cores), 3) if cores else None,
        "machine_cores": over("machine_cores", fmean),
    }


def _succeeded(summary: Mapping[str, Any]) -> bool:
    return bool(summary["course_completed"]) and not summary["falls"]


def _share(summary: Mapping[str, Any]) -> float:
    """How much of the way was walked before the run ended, from 0 to 1."""
    if summary["course_completed"]:
        return 1.0
    return min(summary["furthest_m"] / summary["course_m"], 1.0)


_COLUMNS: Final[tuple[tuple[str, str, int], ...]] = (
    ("runs", "runs", 0),
    ("success", "success", 2),
    ("distance", "distance_share", 2),
    ("falls", "falls", 0),
    ("clamps", "gate_clamps", 0),
    ("loop [Hz]", "loop_hz_min", 1),
    ("state age p99 [ms]", "state_age_p99_ms_median", 1),
    ("features age p99 [ms]", "features_age_p99_ms_median", 1),
    ("blind [s]", "blind_s", 1),
    ("deadline misses", "deadline_misses", 0),
    ("tick p99 [ms]", "work_p99_ms_median", 1),
    ("cores", "cores", 2),
    ("of machine", "machine_cores", 2),
)
"""Heading, key, decimals."""


def to_markdown(report: Mapping[str, Any]) -> str:
    """A table with a line above and an explanation below."""
    pace = "in lock-step" if report["lockstep"] else "in real time"
    done = report["cells"][-1]["runs"] if report["cells"] else 0
    lines = [
        f"Policy {report['policy']} ({report['files'][POLICY_FILE][:12]}) through the runtime: "
        f"simulator, camera and game loop as processes over ZeroMQ, {pace}, {done} of "
        f"{report['planned']} runs, asked to walk {report['walk_speed']:g} m/s, on "
        f"{report['machine']}."
    ]
    if report["settings"]:
        lines.append(f"\nSet: `{' '.join(report['settings'])}`.")
    headings = ["course", "d", "seeds", *(heading for heading, _, _ in _COLUMNS), "gate faults"]
    lines += ["", _row(headings), _row(["---"] * 3 + ["---:"] * len(_COLUMNS) + ["---"])]
    lines += [_row(_cells(cell)) for cell in report["cells"]]
    lines.append(
        "\nSuccess: all waypoints without a fall. Distance: share of the way walked before the "
        "end, a fall or the time limit. Clamps: targets the safety gate cut. Loop: slowest run. "
        "Ages and the tick's work: median over runs of each run's p99. Blind: walked by the blind "
        "policy. Cores: mean processor use while walking, of the three processes and of everything "
        "on the machine."
    )
    return "\n".join(lines) + "\n"


def _cells(cell: Mapping[str, Any]) -> list[str]:
    figures = [_number(cell[key], digits) for _, key, digits in _COLUMNS]
    faults = ", ".join(f"{name} {count}" for name, count in cell["gate_faults"].items())
    difficulty = cell["difficulty"]
    shown = difficulty if isinstance(difficulty, str) else f"{difficulty:g}"
    return [cell["course"], shown, _ranges(cell["seeds"]), *figures, faults or "none"]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, neighbours as a range: 0-4, 7."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
