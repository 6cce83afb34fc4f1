"""MXD and success over difficulty: one set of figures for a report's table and for its picture.

`python -m krabby_trainer.evaluation.curves FOLDER...` writes the table "By difficulty" in report.md
and difficulty.png again from report.json, of any edition.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from krabby.benchmark.intervals import Estimate, ratio, share
from krabby.benchmark.outcome import Outcome
from krabby.benchmark.report import markdown_table, write_whole

from krabby_trainer.evaluation.metrics import OUTCOMES
from krabby_trainer.evaluation.suite import TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "FirstEpisodes",
    "columns",
    "curves",
    "difficulty_section",
    "drawn_figures",
    "figures_text",
    "first_episodes",
    "main",
    "plot_difficulty",
    "two_plots",
]

_COLOURS: Final = {"steps": "#3b75af", "gap": "#4f9d4b", "hurdle": "#d9773a", "ramps": "#b58d1d"}
_APART: Final = 0.012
"""Between the curves of two types in difficulty, so that their intervals can be told apart."""
_SECTION: Final = re.compile(r"## By difficulty\n.*?(?=\n## |\n!\[)", re.DOTALL)
_FIGURES: Final = "Description"
"""Field of a picture in which its figures are written."""


class FirstEpisodes(NamedTuple):
    """The first episode of each robot of a group; each robot counts once."""

    difficulty: float
    """Middle of the group's range."""
    mxd: Estimate
    success: Estimate
    fell: Estimate


def first_episodes(
    report: Mapping[str, Any], kind: str, low: float = 0.0, high: float = np.inf
) -> FirstEpisodes:
    """Of the robots on one obstacle type whose difficulty is in `low` to `high`.

    A range of some width has its upper end only where no harder course was drawn.
    """
    robots = report["robot"]
    d, top = np.array(robots["difficulty"]), report["difficulty"][1]
    within = np.isclose(d, low, atol=1e-4)
    if high > low:
        within = (d >= low) & ((d < high) | (high >= top))
    chosen = np.flatnonzero((np.array(robots["type"]) == kind) & within)
    mxd = np.array(robots["mxd_first"])[chosen].tolist()
    outcomes = np.array(robots["outcome_first"])[chosen]
    succeeded, fell = (
        int((outcomes == OUTCOMES.index(name)).sum()) for name in (Outcome.SUCCESS, Outcome.FELL)
    )
    n = len(chosen)
    return FirstEpisodes(
        (low + high) / 2,
        _mean_share(mxd),
        share(succeeded, n),
        share(fell, n),
    )


def _mean_share(values: Sequence[float]) -> Estimate:
    """Mean of values in [0, 1]; no interval where all agree, since Student's has no width then."""
    mean = ratio(values, [1.0] * len(values), low=0.0, high=1.0)
    agree = len(set(values)) == 1
    return Estimate(mean.value, np.nan, np.nan, mean.n) if agree else mean


def curves(report: Mapping[str, Any]) -> dict[str, list[FirstEpisodes]]:
    """By obstacle type: a point for each of the report's groups of difficulty."""
    return {
        kind: [
            first_episodes(report, kind, group["difficulty_low"], group["difficulty_high"])
            for group in report["by_difficulty"][kind]
        ]
        for kind in TYPES
    }


def difficulty_section(report: Mapping[str, Any]) -> str:
    """The table over difficulty, under its heading."""
    points = curves(report)
    rows = [
        (kind, group, point)
        for kind in TYPES
        for group, point in zip(report["by_difficulty"][kind], points[kind], strict=True)
    ]
    table = columns(
        rows,
        ("terrain", lambda kind, group, point: kind),
        ("difficulty", lambda kind, group, point: group["difficulty"]),
        ("obstacles", lambda kind, group, point: group["obstacle_text"]),
        ("MXD", lambda kind, group, point: point.mxd.text(2)),
        ("success", lambda kind, group, point: point.success.text(2)),
        ("fell", lambda kind, group, point: point.fell.text(2)),
        ("MEV", lambda kind, group, point: f"{group['mev']:.3f}"),
        ("torque RMS", lambda kind, group, point: f"{group['torque_rms_nm']:.1f}"),
    )
    return (
        f"## By difficulty\n\n{table}\n\nMXD, success and falls are of the first episode of each "
        "robot, with the 95 % interval (Student's for MXD, none where all robots agree; Wilson's "
        "for shares) and the number of robots; MEV and torque are of all steps."
    )


def plot_difficulty(report: Mapping[str, Any], path: Path) -> None:
    """Draw the curves; their figures are in the picture too (`drawn_figures`)."""
    figure, (left, right) = two_plots()
    points = curves(report)
    for kind, of_kind in points.items():
        at = [point.difficulty + _APART * (TYPES.index(kind) - 1.5) for point in of_kind]
        for axes, name in ((left, "mxd"), (right, "success")):
            estimates: list[Estimate] = [getattr(point, name) for point in of_kind]
            values = [estimate.value for estimate in estimates]
            axes.plot(at, values, "o-", color=_COLOURS[kind], label=kind, markersize=4, lw=1)
            lows, highs = [one.low for one in estimates], [one.high for one in estimates]
            axes.vlines(at, lows, highs, color=_COLOURS[kind], lw=1)
    for axes, title in ((left, "MXD"), (right, "success")):
        axes.set_title(f"{title} of first episodes, 95 % interval", fontsize=10)
        axes.set_xlabel("difficulty")
        axes.set_xlim(report["difficulty"][0] - 0.05, report["difficulty"][1] + 0.05)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=80, metadata={_FIGURES: figures_text(points)})
    _reduce_colours(path)


def drawn_figures(path: Path) -> str:
    """The figures that a picture was drawn from, as `figures_text` gives them; empty without."""
    from PIL import Image

    with Image.open(path) as picture:
        return str(picture.info.get(_FIGURES, ""))


def figures_text(points: Mapping[str, Sequence[FirstEpisodes]]) -> str:
    """JSON: by type, for each point difficulty, MXD and success with their intervals."""

    def numbers(point: FirstEpisodes) -> list[float | None]:
        found = [point.difficulty]
        for one in (point.mxd, point.success):
            found += [one.value, one.low, one.high]
        return [None if np.isnan(number) else round(number, 4) for number in found]

    return json.dumps({kind: [numbers(point) for point in of] for kind, of in points.items()})


def _reduce_colours(path: Path) -> None:
    """A palette of 64 colours: half the bytes, nothing to be seen of it."""
    from PIL import Image, PngImagePlugin

    with Image.open(path) as drawn:
        kept = PngImagePlugin.PngInfo()
        kept.add_text(_FIGURES, str(drawn.info[_FIGURES]))
        small = drawn.convert("RGB").quantize(64)
    small.save(path, optimize=True, pnginfo=kept)


def columns(rows: Iterable[tuple[Any, ...]], *titled: tuple[str, Callable[..., str]]) -> str:
    """A table from its columns: the title, and the text of a row."""
    titles, texts = zip(*titled, strict=True)
    return markdown_table(titles, [[text(*row) for text in texts] for row in rows])


def two_plots() -> tuple[Any, Any]:
    """A figure and its axes without pyplot: no display, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Write table and picture of the reports in some folders again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    for folder in parser.parse_args(argv).folders:
        report = json.loads((folder / "report.json").read_text())
        page = folder / "report.md"
        section = difficulty_section(report)
        write_whole(page, _SECTION.sub(lambda _, text=section: f"{text}\n", page.read_text()))
        plot_difficulty(report, folder / "difficulty.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
