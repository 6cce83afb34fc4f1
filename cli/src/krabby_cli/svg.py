"""Small pictures for a page: lines, bars and points as inline SVG, without a plotting library.

A plotting library of the browser weighs 1 to 4 MB in a page that must open without a network; what
a report draws takes these few functions. Colours come from the page's style sheet: class `c0` to
`c5` for lines, `b0` to `b9` for bars.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Band", "Line", "bands", "bars", "chart"]

_WIDTH: Final = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 8, 34
_MOST_POINTS: Final = 900
_FLAT: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line, or points."""

    name: str
    x: ArrayLike
    y: ArrayLike
    style: int = 0
    """Colour."""
    points: bool = False
    radius: float = 1.6
    """Of points."""
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Band:
    """A stretch of a row from `begin` to `end`, with a style and a name."""

    row: int
    begin: float
    end: float
    style: int
    name: str = ""


def chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, height: int = 220, equal: bool = False,
    shapes: Sequence[Sequence[tuple[float, float]]] = (),
) -> str:  # fmt: skip
    """Lines over two axes; NaN breaks a line.

    Args:
        lines: what is drawn.
        x_label: of the axis, with its unit.
        y_label: of the axis, with its unit.
        height: of the picture; ignored with `equal`.
        equal: the same scale on both axes, as on a map.
        shapes: polygons behind the lines, in the units of the axes.
    """
    drawn = [(line, *_thinned(line)) for line in lines]
    corners = [np.array(shape, float) for shape in shapes]
    xs = np.concatenate([x for _, x, _ in drawn] + [each[:, 0] for each in corners] + [[]])
    ys = np.concatenate([y for _, _, y in drawn] + [each[:, 1] for each in corners] + [[]])
    if not (np.isfinite(xs).any() and np.isfinite(ys).any()):
        return '<p class="none">nothing was recorded</p>'
    x_low, x_high, y_low, y_high = *_span(xs), *_span(ys)
    inner = _WIDTH - _LEFT - _RIGHT
    if equal:
        scale = inner / (x_high - x_low)
        height = round(min(max(scale * (y_high - y_low), 90.0), 600.0)) + _TOP + _BOTTOM
        room = (height - _TOP - _BOTTOM) / scale
        middle = 0.5 * (y_low + y_high)
        y_low, y_high = middle - 0.5 * room, middle + 0.5 * room
    x_scale = inner / (x_high - x_low)
    y_scale = (height - _TOP - _BOTTOM) / (y_high - y_low)

    def place(x: float, y: float) -> str:
        return f"{_LEFT + (x - x_low) * x_scale:.1f},{height - _BOTTOM - (y - y_low) * y_scale:.1f}"

    parts = [_open(height)]
    for corner in corners:
        around = " ".join(place(x, y) for x, y in corner)
        parts.append(f'<polygon class="box" points="{around}"/>')
    parts += _grid(x_low, x_high, y_low, y_high, x_scale, y_scale, height)
    for line, x, y in drawn:
        parts += _drawn(line, x, y, place)
    parts += _labels(x_label, y_label, height)
    parts.append("</svg>")
    named = [line for line in lines if line.name]
    return "".join(parts) + _legend([(f"c{line.style}", line.name) for line in named])


def bands(
    rows: Sequence[str], stretches: Sequence[Band], *, end: float, x_label: str = "time [s]",
    styles: Sequence[tuple[int, str]] = (),
) -> str:  # fmt: skip
    """Rows of coloured stretches over time, such as a gait diagram or the states of a gate.

    Args:
        rows: their names, from the top.
        stretches: what is drawn.
        end: of the time axis, which begins at 0.
        x_label: of the axis.
        styles: for the legend, style and name.
    """
    tall = 20
    height = _TOP + _BOTTOM + tall * len(rows)
    x_scale = (_WIDTH - _LEFT - _RIGHT) / max(end, _FLAT)
    parts = [_open(height)]
    for each in stretches:
        wide = max((each.end - each.begin) * x_scale, 0.6)
        title = f"<title>{escape(each.name)} {each.begin:.2f} s</title>" if each.name else ""
        parts.append(
            f'<rect class="b{each.style}" x="{_LEFT + each.begin * x_scale:.1f}" '
            f'y="{_TOP + tall * each.row + 3}" width="{wide:.1f}" height="{tall - 6}">'
            f"{title}</rect>"
        )
    for i, name in enumerate(rows):
        y = _TOP + tall * i + 14
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y}" text-anchor="end">'
                     f"{escape(name)}</text>")  # fmt: skip
    parts += _grid(0.0, max(end, _FLAT), 0.0, 1.0, x_scale, 0.0, height, rows=False)
    parts += _labels(x_label, "", height)
    parts.append("</svg>")
    return "".join(parts) + _legend([(f"b{style}", name) for style, name in styles])


def bars(names: Sequence[str], values: ArrayLike, limits: ArrayLike, *, unit: str) -> str:
    """Horizontal bars, each with a mark where its limit is."""
    heights = np.asarray(values, float)
    marks = np.asarray(limits, float)
    tall = 16
    height = _TOP + _BOTTOM + tall * len(names)
    left = 110
    most = float(max(np.nanmax(heights), np.nanmax(marks), _FLAT)) * 1.05
    scale = (_WIDTH - left - _RIGHT) / most
    parts = [_open(height)]
    for i, (name, value, mark) in enumerate(zip(names, heights, marks, strict=True)):
        y = _TOP + tall * i
        style = 6 if value > mark else 1
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{y + 12}" text-anchor="end">'
            f"{escape(name)}</text>"
            f'<rect class="b{style}" x="{left}" y="{y + 3}" width="{value * scale:.1f}" '
            f'height="{tall - 5}"><title>{value:.1f} {escape(unit)}</title></rect>'
            f'<line class="mark" x1="{left + mark * scale:.1f}" x2="{left + mark * scale:.1f}" '
            f'y1="{y + 1}" y2="{y + tall - 1}"/>'
        )
    for value in _ticks(0.0, most, 6):
        x = left + value * scale
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - _BOTTOM + 16}" text-anchor="middle">'
            f"{value:g}</text>"
        )
    parts += _labels(unit, "", height)
    return "".join([*parts, "</svg>"])


def _open(height: int) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" preserveAspectRatio="xMinYMin">'


def _thinned(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Points of the line; of many, the lowest and the highest of each bin, so that peaks stay."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    if len(x) <= _MOST_POINTS:
        return x, y
    if line.points:
        every = 1 + len(x) // _MOST_POINTS
        return x[::every], y[::every]
    size = math.ceil(len(x) / (_MOST_POINTS // 2))
    keep: list[int] = []
    for begin in range(0, len(x), size):
        part = y[begin : begin + size]
        if np.isfinite(part).any():
            keep += sorted({begin + int(np.nanargmin(part)), begin + int(np.nanargmax(part))})
        else:
            keep.append(begin)
    return x[keep], y[keep]


def _span(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if high - low < _FLAT:
        return low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1.0, 2.0, 5.0, 10.0) if s * power >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _grid(
    x_low: float, x_high: float, y_low: float, y_high: float, x_scale: float, y_scale: float,
    height: int, *, rows: bool = True,
) -> list[str]:  # fmt: skip
    parts: list[str] = []
    bottom = height - _BOTTOM
    for value in _ticks(x_low, x_high, 8):
        x = _LEFT + (value - x_low) * x_scale
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">'
            f"{value:g}</text>"
        )
    for value in _ticks(y_low, y_high, max(3, height // 40)) if rows else ():
        y = bottom - (value - y_low) * y_scale
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    return parts


def _drawn(
    line: Line, x: np.ndarray, y: np.ndarray, place: Callable[[float, float], str]
) -> list[str]:
    if line.points:
        dots = "".join(
            f'<circle cx="{at[0]}" cy="{at[1]}" r="{line.radius}"/>'
            for at in (
                place(a, b).split(",") for a, b in zip(x, y, strict=True) if a == a and b == b
            )
        )
        return [f'<g class="p{line.style}">{dots}</g>']
    runs: list[list[str]] = [[]]
    for a, b in zip(x, y, strict=True):
        if math.isfinite(a) and math.isfinite(b):
            runs[-1].append(place(a, b))
        elif runs[-1]:
            runs.append([])
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    return [
        f'<polyline class="c{line.style}"{dash} points="{" ".join(run)}"/>' for run in runs if run
    ]


def _labels(x_label: str, y_label: str, height: int) -> list[str]:
    parts = [
        f'<text class="label" x="{(_LEFT + _WIDTH) // 2}" y="{height - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    ]
    if y_label:
        middle = (height - _BOTTOM + _TOP) // 2
        parts.append(
            f'<text class="label" transform="translate(13 {middle}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_label)}</text>'
        )
    return parts


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    if not entries:
        return ""
    keys = "".join(
        f'<span><i class="k-{style}"></i>{escape(name)}</span>' for style, name in entries
    )
    return f'<p class="legend">{keys}</p>'
