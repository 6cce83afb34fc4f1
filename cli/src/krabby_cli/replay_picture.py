"""The picture of a replay that differs: when, which joints, and the targets of the worst."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from krabby_cli.replay_compare import Comparison

__all__ = ["plot_difference"]

_COLUMNS: Final = 1200
"""Columns of the map of all joints; a column shows the largest difference of its time."""
_WINDOW_S: Final = 2.0
_SMALLEST_RAD: Final = 1e-6


def plot_difference(comparison: Comparison, name: str, path: Path) -> None:
    """Draw run and replay; `name` is what the replay is called, the file's suffix its format."""
    figure = Figure(figsize=(10.0, 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    _map(figure, above, comparison)
    _worst(below, comparison, name)
    figure.savefig(path, dpi=100)


def _map(figure: Figure, axes: Axes, comparison: Comparison) -> None:
    """Largest difference by joint and time."""
    times, targets = comparison.times_s, comparison.targets
    sizes = np.abs(targets[:, 1] - targets[:, 0]).T
    columns = min(_COLUMNS, max(sizes.shape[1], 1))
    parts = np.array_split(sizes, columns, axis=1) if sizes.size else []
    image = np.array([part.max(axis=1) for part in parts if part.size]).T
    if not image.size:
        axes.text(0.5, 0.5, "no targets on both sides", ha="center", transform=axes.transAxes)
        return
    top = max(float(image.max()), 10 * _SMALLEST_RAD)
    drawn = axes.imshow(
        np.maximum(image, _SMALLEST_RAD), aspect="auto", interpolation="nearest", cmap="viridis",
        norm=LogNorm(_SMALLEST_RAD, top),
        extent=(float(times[0]), float(times[-1]), len(image) - 0.5, -0.5),
    )  # fmt: skip
    axes.set_yticks(range(len(comparison.joint_names)), list(comparison.joint_names), fontsize=7)
    axes.set_xlabel("time since the first tick [s]")
    figure.colorbar(drawn, ax=axes, label="difference of joint targets [rad]")
    axes.set_title(
        f"{comparison.differing_ticks} of {comparison.replayed} ticks differ, "
        f"{comparison.differing_bytes} bytes"
    )


def _worst(axes: Axes, comparison: Comparison, name: str) -> None:
    """Targets of the joint that differs most, around that moment."""
    largest = comparison.largest()
    if not largest:
        axes.set_axis_off()
        return
    joint, rad, time_s = largest[0]
    times, targets = comparison.times_s, comparison.targets
    near = np.abs(times - time_s) <= 0.5 * _WINDOW_S
    index = comparison.joint_names.index(joint)
    for side, label, colour in ((0, "run", "#2f6db5"), (1, name, "#d9702b")):
        axes.plot(times[near], targets[near, side, index], label=label, color=colour, linewidth=1.2)
    axes.axvline(time_s, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel("time since the first tick [s]")
    axes.set_ylabel(f"target of {joint} [rad]")
    axes.set_title(f"largest difference: {rad:.3g} rad at {time_s:.2f} s", fontsize=10)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["right", "top"]].set_visible(False)
