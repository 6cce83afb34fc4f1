"""The end of a run in words, for a person: what happened, where it is written, what to do next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from krabby.course.timing import BUSY, CONTROL_HZ

__all__ = ["outcome_lines", "own_name", "too_busy"]

_LAUNCHER: Final = "krabby"
"""At the top of a checkout; it calls the environment's command."""


def own_name() -> str:
    """The command as a person can type it here: on the path, the checkout's launcher, or a path."""
    if shutil.which("krabby"):
        return "krabby"
    if Path(_LAUNCHER).is_file():
        return f"./{_LAUNCHER}"
    return str(Path(sys.executable).with_name("krabby"))


def outcome_lines(
    summary: Mapping[str, Any], recording: Path | None = None, *, lockstep: bool = False
) -> list[str]:
    """One fact a line, short enough for 44 columns, from the summary of a run.

    Args:
        summary: as `build_summary` makes it.
        recording: file of the run.
        lockstep: whether the robot's time was simulated.
    """
    lines = [_headline(summary)]
    walked = summary.get("distance_m")
    if walked is not None and summary["duration_s"] > 0.0:
        of = _figure(summary.get("course_m"))
        time_s = summary.get("sim_time_s") or 0.0 if lockstep else summary["duration_s"]
        lines.append(f"walked  {walked:.1f} of {of} m in {time_s:.0f} s, {_falls(summary)}")
        lines.append(f"course  {summary['course']}, difficulty {summary['difficulty']:g}")
        lines += _waypoints(summary)
    late = (summary.get("deadline_misses") or 0) + (summary.get("skipped") or 0)
    if busy := too_busy(late, summary["duration_s"] * CONTROL_HZ):
        lines.append(f"note    {busy}")
    lines.append(f"logs    {summary['logs']}")
    if recording is not None and recording.exists():
        lines.append(f"record  {recording}")
    lines.append(f"next    {_next(summary, recording)}")
    return lines


def _headline(summary: Mapping[str, Any]) -> str:
    if summary["exit"] == "failed":
        return f"failed: {summary['reason']}"
    if summary.get("course_completed"):
        if summary.get("falls"):
            return "no success: completed the course, but fell"
        return "success: the robot completed the course"
    if summary.get("falls"):
        return "no success: the robot fell"
    if summary["exit"] == "interrupted":
        return f"stopped by {summary['reason']}"
    return "no success: the time was up"


def _next(summary: Mapping[str, Any], recording: Path | None) -> str:
    if summary["exit"] == "failed":
        return "read the log that the first line names"
    if recording is not None and recording.exists():
        return f"{own_name()} film {shlex.quote(str(recording))} run.webp"
    if summary.get("course_completed") and not summary.get("falls"):
        return _again("difficulty", "1")
    if summary.get("falls") or summary["exit"] == "interrupted":
        return f"{_again('record', 'run.mcap')} makes a film"
    return _again("duration", "120")


def _again(option: str, value: str) -> str:
    """The same run with another option, as it is written here."""
    if Path(_LAUNCHER).is_file():
        return f"again with {option.upper()}={value}"
    return f"again with --{option} {value}"


def _falls(summary: Mapping[str, Any]) -> str:
    falls = int(summary.get("falls") or 0)
    return {0: "no fall", 1: "1 fall"}.get(falls, f"{falls} falls")


def _waypoints(summary: Mapping[str, Any]) -> list[str]:
    reached, of = summary.get("waypoints_reached"), summary.get("waypoints")
    return [] if reached is None or of is None else [f"        {reached:g} of {of:g} waypoints"]


def too_busy(late: float, due: float) -> str:
    """Words for a host that is too busy for the game loop; empty for one that is not.

    Args:
        late: ticks whose work ended late or that were left out; none in lock-step.
        due: ticks that there should have been.
    """
    share = late / max(due, 1.0)
    return f"too busy: {share:.0%} of the ticks late" if share > BUSY else ""


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"
