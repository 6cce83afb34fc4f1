"""The picture of a report: success of each cell with its interval, beside its target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from krabby.benchmark.table import Row

__all__ = ["plot_success"]

_COLOURS: Final = ("#2f6db5", "#d9702b", "#3f9a4d", "#8a56b0", "#7a7a7a")
_LINES_PER_COLUMN: Final = 60
_LINE_IN: Final = 0.17
"""Height of a line [in]."""


def plot_success(cells: Sequence[Row], policies: Sequence[str], path: Path) -> None:
    """A line for each cell, families under their names; cells held out of training in italics."""
    lines = _lines(cells)
    columns = max(1, math.ceil(len(lines) / _LINES_PER_COLUMN))
    each = math.ceil(len(lines) / columns)
    figure = Figure(figsize=(6.2 * columns, 1.2 + _LINE_IN * each), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for i, column in enumerate(axes):
        _column(column, lines[i * each : (i + 1) * each], policies, each)
    marks = [
        Line2D([], [], marker="o", color=colour, label=policy)
        for policy, colour in zip(policies, _COLOURS, strict=False)
    ]
    marks.append(
        Line2D([], [], marker="|", color="black", linestyle="", markersize=9, label="target")
    )
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False)
    figure.savefig(path, dpi=90)


def _lines(cells: Sequence[Row]) -> list[Row | str]:
    """Names of families, each before its cells."""
    families: dict[str, list[Row | str]] = {}
    for row in cells:
        families.setdefault(row.cells[0].family, []).append(row)
    return [line for family, rows in families.items() for line in (family, *rows)]


def _column(axes: Axes, lines: Sequence[Row | str], policies: Sequence[str], height: int) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(height - 0.4, -0.6)
    axes.set_yticks(
        range(len(lines)), [line if isinstance(line, str) else line.name for line in lines]
    )
    axes.tick_params(axis="y", length=0, labelsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel("successful trials, 95 % interval; italics: held out of training", fontsize=8)
    for y, (line, label) in enumerate(zip(lines, axes.get_yticklabels(), strict=True)):
        if isinstance(line, str):
            label.set_fontweight("bold")
            continue
        label.set_fontstyle("italic" if line.held_out else "normal")
        axes.axhline(y, color="0.93", linewidth=0.6, zorder=0)
        _cell(axes, y, line, policies)


def _cell(axes: Axes, y: int, row: Row, policies: Sequence[str]) -> None:
    target = row.cells[0].target
    if target is not None and target.figure == "success" and target.at_least is not None:
        axes.plot([target.at_least], [y], "|", color="black", markersize=9, zorder=3)
    gap = 0.6 / max(len(policies), 1)
    for i, (policy, colour) in enumerate(zip(policies, _COLOURS, strict=False)):
        found = row.results.get(policy, {}).get("success")
        at = y + gap * (i - (len(policies) - 1) / 2)
        if found is None:
            axes.text(0.0, at, "not run", fontsize=6, color=colour, va="center")
            continue
        axes.plot([found.low, found.high], [at, at], color=colour, linewidth=1.0)
        axes.plot([found.value], [at], "o", color=colour, markersize=3)
