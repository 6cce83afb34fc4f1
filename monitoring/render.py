"""Draws the dashboards' panels with the data of a running Prometheus, without Grafana.

    python monitoring/render.py --prometheus http://127.0.0.1:9090 --minutes 2

Reads the same JSON that Grafana is provisioned with, asks the same queries and lays the panels out
alike: for pages about the dashboards.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

VARIABLES = {"$__rate_interval": "5s", "$robot": ".*", "$instance": ".*"}
"""What Grafana fills in."""
FOLDER = Path(__file__).parent / "grafana" / "dashboards"
CELL_IN = (0.62, 0.34)
"""Size of a cell of Grafana's grid, 24 cells wide [inch]."""
GAP = 0.12
DPI = 90
INK, FAINT, PAPER, CARD = "#d8d9da", "#6e7179", "#111217", "#181b1f"
COLOURS = {
    "green": "#73bf69", "yellow": "#fade2a", "orange": "#ff9830", "red": "#f2495c",
    "blue": "#5794f2", "purple": "#b877d9", "text": "#3a3d44",
}  # fmt: skip
CYCLE = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fff899"]


@dataclass(frozen=True)
class Series:
    """One line of an answer."""

    name: str
    labels: dict[str, str]
    times: NDArray[np.float64]
    """Seconds since the epoch."""
    values: NDArray[np.float64]


class Prometheus:
    """The HTTP API, over one window of time."""

    def __init__(self, url: str, minutes: float) -> None:
        self._url = url.rstrip("/")
        self.end = time.time()
        self.start = self.end - 60 * minutes
        self._step_s = 1.0

    def series(self, target: dict[str, Any]) -> list[Series]:
        """Everything one target of a panel gives."""
        expr = target["expr"]
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        window = {"start": self.start, "end": self.end, "step": self._step_s}
        query = urllib.parse.urlencode({"query": expr, **window})
        with urllib.request.urlopen(f"{self._url}/api/v1/query_range?{query}", timeout=30) as page:
            answer = json.load(page)["data"]["result"]
        return [
            Series(
                name=legend(target.get("legendFormat", ""), one["metric"]),
                labels=one["metric"],
                times=np.array([float(at) for at, _ in one["values"]]),
                values=np.array([float(value) for _, value in one["values"]]),
            )
            for one in answer
        ]


def legend(form: str, labels: dict[str, str]) -> str:
    """Fill {{label}} in."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), form).strip()


def human(value: float, unit: str, decimals: int | None = None) -> str:
    """A value as Grafana would write it, for the units in use."""
    if not math.isfinite(value):
        return "–"
    if unit == "percentunit":
        return f"{100 * value:.{1 if decimals is None else decimals}f} %"
    if unit == "s":
        for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
            if abs(value) * factor >= 1 or name == "µs":
                return f"{value * factor:.3g} {name}" if value else "0 s"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB"
    short = {
        "hertz": "Hz", "lengthm": "m", "velocityms": "m/s", "radian": "rad", "rotrads": "rad/s",
        "cps": "/s", "none": "",
    }.get(unit, unit.removeprefix("suffix:").strip())  # fmt: skip
    number = f"{value:.{decimals}f}" if decimals is not None else f"{value:.4g}"
    return f"{number} {short}".strip()


def clock(at: float, _: object) -> str:
    """Time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def nothing(axes: Axes, text: str) -> None:
    """A panel without a series."""
    axes.text(0.5, 0.5, text, color=FAINT, ha="center", va="center", transform=axes.transAxes)


def draw_stat(axes: Axes, panel: dict[str, Any], prometheus: Prometheus) -> None:
    """The last value, large, over its course."""
    found = [s for target in panel["targets"] for s in prometheus.series(target)]
    defaults = panel["fieldConfig"]["defaults"]
    axes.set_axis_off()
    value = found[0].values[-1] if found else math.nan
    colour = COLOURS["green"]
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = COLOURS[step["color"]]
    text = human(value, defaults["unit"], defaults.get("decimals"))
    axes.text(0.5, 0.55, text, color=colour, fontsize=17, ha="center", va="center",
              transform=axes.transAxes)  # fmt: skip
    if found and np.ptp(found[0].values) > 0:
        line = axes.inset_axes((0.0, 0.0, 1.0, 0.3))
        line.set_axis_off()
        line.fill_between(found[0].times, found[0].values, found[0].values.min(), color=colour,
                          alpha=0.25, lw=0)  # fmt: skip


def draw_graph(axes: Axes, panel: dict[str, Any], prometheus: Prometheus) -> None:
    """Lines, or a stack of areas, and the budget."""
    found = [s for target in panel["targets"] for s in prometheus.series(target)]
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    unit = defaults["unit"]
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    base: NDArray[np.float64] | None = None
    for index, one in enumerate(found):
        colour = CYCLE[index % len(CYCLE)]
        times = one.times
        if stacked:
            base = np.zeros_like(one.values) if base is None else base[-len(one.values) :]
            top = base + np.nan_to_num(one.values)
            axes.fill_between(times, base, top, color=colour, alpha=0.45, lw=0.6, label=one.name)
            base = top
        else:
            axes.plot(times, one.values, color=colour, lw=0.9, label=one.name)
    if custom.get("thresholdsStyle", {}).get("mode") == "dashed":
        budget = defaults["thresholds"]["steps"][-1]["value"]
        axes.axhline(budget, color=COLOURS["red"], lw=0.9, ls="--")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value, unit)))
    if 0 < len(found) <= 8:
        axes.legend(loc="upper left", ncols=min(4, len(found)), fontsize=5.5, frameon=False,
                    labelcolor=INK, handlelength=1.0, columnspacing=1.0)  # fmt: skip
    low, high = axes.get_ylim()
    if 0 < low < 0.5 * high:
        low = 0.0
    elif high - low < 0.1 * abs(high):  # nearly constant: noise must not fill the panel
        low, high = low - 0.05 * abs(high), high + 0.05 * abs(high)
    axes.set_ylim(low, high + 0.22 * (high - low))


def draw_heat(axes: Axes, panel: dict[str, Any], prometheus: Prometheus) -> None:
    """A histogram over time; rows are buckets, the number is the bucket's upper edge."""
    found = prometheus.series(panel["targets"][0])
    found.sort(key=lambda one: float(one.labels["le"]))
    if not found:
        nothing(axes, "no data")
        return
    grid = np.array(sorted({at for one in found for at in one.times}))
    below = np.zeros_like(grid)
    rows = []
    for one in found:
        total = np.interp(grid, one.times, np.nan_to_num(one.values))
        rows.append(np.clip(total - below, 0.0, None))
        below = total
    counts = np.array(rows)
    shade = np.where(counts > 0, (counts / max(counts.max(), 1e-9)) ** 0.3, np.nan)
    axes.pcolormesh(grid, np.arange(len(found)), shade, cmap="viridis", vmin=0, vmax=1,
                    shading="nearest", rasterized=True)  # fmt: skip
    edges = [one.labels["le"] for one in found]
    every = max(1, len(edges) // 7)
    axes.set_yticks(
        np.arange(len(edges))[::every] + 0.5,
        ["∞" if e == "+Inf" else human(float(e), "s") for e in edges[::every]],
    )
    budget = re.search(r"budget (\d+) ms", panel["title"])
    if budget:
        inside = [i for i, e in enumerate(edges) if float(e) <= float(budget[1]) * 1e-3 + 1e-9]
        axes.axhline(inside[-1] + 0.5, color=COLOURS["red"], lw=1.0, ls="--")


def draw_states(axes: Axes, panel: dict[str, Any], prometheus: Prometheus) -> None:
    """A bar where a series says 1, one row a series."""
    found = [s for target in panel["targets"] for s in prometheus.series(target)]
    config = panel["fieldConfig"]
    overrides = ((o["matcher"]["options"], o["properties"][0]) for o in config["overrides"])
    fixed = {name: made["value"]["fixedColor"] for name, made in overrides}
    mappings = (m["options"].items() for m in config["defaults"].get("mappings", ()))
    mapped = {value: entry["color"] for options in mappings for value, entry in options}
    if not found:
        nothing(axes, "none")
        axes.set_yticks([])
    for row, one in enumerate(reversed(found)):
        for value in np.unique(one.values):
            name = mapped.get(f"{value:g}", fixed.get(one.name, "blue"))
            bars = [(at - 0.5, 1.0) for at in one.times[one.values == value].tolist()]
            axes.broken_barh(bars, (row - 0.4, 0.8), color=COLOURS[name], lw=0)
    if found:
        axes.set_yticks(range(len(found)), [one.name for one in reversed(found)])
        axes.set_ylim(-0.6, len(found) - 0.4)


DRAW = {
    "stat": draw_stat,
    "timeseries": draw_graph,
    "heatmap": draw_heat,
    "state-timeline": draw_states,
}


def picture(board: dict[str, Any], prometheus: Prometheus, path: Path) -> None:
    """One dashboard, its panels where Grafana puts them."""
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    width, height = 24 * CELL_IN[0], rows * CELL_IN[1] + 0.5
    figure = plt.figure(figsize=(width, height), facecolor=PAPER)
    figure.text(0.2 / width, 1 - 0.3 / height, f"Krabby / {board['title']}", color=INK, fontsize=11)
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] * CELL_IN[0], 0.5 + place["y"] * CELL_IN[1]
        wide, high = place["w"] * CELL_IN[0], place["h"] * CELL_IN[1]
        card = figure.add_axes(
            ((left + GAP / 2) / width, 1 - (top + high - GAP / 2) / height,
             (wide - GAP) / width, (high - GAP) / height)
        )  # fmt: skip
        card.set_facecolor(CARD)
        card.set_xticks([])
        card.set_yticks([])
        card.spines[:].set_color("#24272c")
        card.text(0.08 / (wide - GAP), 1 - 0.19 / (high - GAP), panel["title"], color=INK,
                  fontsize=6.5, transform=card.transAxes, clip_on=True)  # fmt: skip
        margin = 1.25 if panel["type"] == "state-timeline" else 0.62
        inner = figure.add_axes(
            ((left + margin) / width, 1 - (top + high - 0.3) / height,
             (wide - margin - 0.18) / width, (high - 0.65) / height)
        )  # fmt: skip
        inner.set_facecolor(CARD)
        inner.tick_params(colors=FAINT, labelsize=5.5, length=2)
        inner.spines[:].set_visible(False)
        inner.grid(visible=True, color="#24272c", lw=0.5)
        inner.set_axisbelow(True)
        DRAW[panel["type"]](inner, panel, prometheus)
        if panel["type"] != "stat":
            inner.set_xlim(prometheus.start, prometheus.end)
            inner.xaxis.set_major_locator(MaxNLocator(4))
            inner.xaxis.set_major_formatter(FuncFormatter(clock))
    figure.savefig(path, dpi=DPI, facecolor=PAPER)
    plt.close(figure)
    with Image.open(path) as drawn:  # few colours: a third of the size
        drawn.convert("RGB").quantize(128).save(path, optimize=True)


def main() -> int:
    """Draw the dashboards that are named."""
    names = sorted(path.stem for path in FOLDER.glob("*.json"))
    parser = argparse.ArgumentParser(description="draw dashboards with the data of a Prometheus")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (all)")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=2.0, help="up to now (2)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    options = parser.parse_args()
    prometheus = Prometheus(options.prometheus, options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or names:
        target = options.out / f"{name}.png"
        picture(json.loads((FOLDER / f"{name}.json").read_text()), prometheus, target)
        sys.stderr.write(f"{target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
