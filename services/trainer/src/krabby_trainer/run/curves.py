"""A run's learning curves: `python -m krabby_trainer.run.curves OUT.png log.jsonl [log.jsonl ...]`.

Several logs are the pieces of one training, in order; iterations and robot-steps go on from piece
to piece, and the time is that of training itself, without what lay between.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from krabby_trainer.errors import EvaluationError

__all__ = ["KEPT", "read_logs", "write_curves"]

KEPT: Final = (
    *("iteration", "env_steps", "wall_s", "Episode/goals", "Episode/mxd", "Episode/mev"),
    "Episode/fall_rate",
    *("Episode/completed", "Episode/speed", "Episode/velocity_ratio", "Level/mean"),
    *("Torque/rms_nm", "Torque/saturation", "Policy/action_std", "Policy/learning_rate"),
    *("Train/mean_reward", "Loss/value", "Loss/estimator", "Loss/adaptation"),
    *("Loss/action", "Loss/code", "Loss/scan"),
    "Perf/env_steps_per_s",
)
"""Keys of a compact log, with all of `Level/*` and `Gait/*`."""

_MANY: Final = 10
"""Curves from which a legend stands beside its panel."""


def read_logs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One row an iteration, over all pieces.

    Raises:
        EvaluationError: A file cannot be read, or is not a log of `python -m krabby_trainer train`.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            piece = [json.loads(line) for line in lines]
            done = rows[-1]["iteration"] if rows else 0
            rows += [row for row in piece if row["iteration"] > done]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path} is not a log of `python -m krabby_trainer train` "
                f"({type(error).__name__}: {error}); give the log.jsonl of a run's folder"
            ) from error
    if not rows:
        raise EvaluationError(f"{', '.join(map(str, paths))}: no iteration in it")
    return rows


def compact(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers that curves are drawn of."""
    return {key: row[key] for key in row if key in KEPT or key.startswith(("Level/", "Gait/"))}


def _nothing_ended(row: dict[str, Any]) -> bool:
    """Whether no episode ended in this iteration, as just after a resume."""
    return row.get("Episode/goals") == 0.0 and row.get("Episode/fall_rate") == 0.0


def write_curves(rows: Sequence[dict[str, Any]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    minutes = [row["wall_s"] / 60.0 for row in rows]

    def curve(axes: Any, key: str, label: str) -> None:
        points = [
            (minute, row[key])
            for minute, row in zip(minutes, rows, strict=True)
            if key in row and not (key.startswith("Episode/") and _nothing_ended(row))
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.0)

    figure, grid = plt.subplots(2, 2, figsize=(9.0, 5.6), sharex=True, layout="constrained")
    (goals, levels), (edges, torque) = grid
    goals.set_title("share of the goals reached, of episodes that ended", fontsize=9)
    curve(goals, "Episode/mxd", "goals")
    curve(goals, "Episode/fall_rate", "falls")
    goals.set_ylim(0.0, 1.02)
    reached = sorted({key for row in rows for key in row if key.startswith("Level/")})
    levels.set_title(
        "level of the curriculum" if reached else "mean square distance from the teacher",
        fontsize=9,
    )
    for key in reached or ("Loss/action", "Loss/code", "Loss/scan"):
        curve(levels, key, key.rpartition("/")[2])
    edges.set_title("feet on an edge, per robot and step", fontsize=9)
    curve(edges, "Episode/mev", "while exploring")
    torque.set_title("torque RMS [N·m]", fontsize=9)
    curve(torque, "Torque/rms_nm", "while exploring")
    for axes in (goals, levels, edges, torque):
        axes.grid(alpha=0.25)
        if len(axes.lines) > _MANY:
            beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 5, "ncols": 2}
            axes.legend(frameon=False, **beside)
        elif axes.lines:
            axes.legend(fontsize=7, frameon=False, ncols=2)
    for axes in (edges, torque):
        axes.set_xlabel("minutes of training")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or arguments[0].startswith("-"):
        sys.stderr.write(f"{(__doc__ or '').splitlines()[0]}\n")
        return 2
    try:
        write_curves(read_logs([Path(name) for name in arguments[1:]]), Path(arguments[0]))
    except EvaluationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
