"""Figures of many trials, from the sums that each trial was reduced to.

A figure is the sum of an amount over the sum of what it is counted over, so that neither the order
of the trials nor their distribution over files matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from krabby.benchmark import intervals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krabby.benchmark.intervals import Estimate

__all__ = ["FIGURES", "Figure", "estimate"]

Kind = Literal["ratio", "share", "largest", "quantile", "worst_joint"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a group of trials."""

    name: str
    title: str
    unit: str
    kind: Kind
    """ratio: sum of `amount` over sum of `exposure`. share: of trials in which `amount` is 1.
    largest: mean of the trials' maxima; the largest of all is given beside it. quantile: 99 % of
    the counted `amount`. worst_joint: root of the mean square of the joint that has the largest."""
    amount: str
    exposure: str = ""
    digits: int = 2
    scale: float = 1.0
    """From SI units to `unit`."""
    low: float = 0.0
    high: float = math.inf
    """Bounds of what is possible."""
    better: Literal["low", "high", ""] = "low"


FIGURES: Final[tuple[Figure, ...]] = (
    Figure(name="fell_disturbed", title="fell once disturbed", unit="", kind="share",
           amount="fell_disturbed", exposure="disturbed"),
    Figure(name="obeys", title="trials that track the command", unit="", kind="share",
           amount="obeys", exposure="tracked_s", better="high"),
    Figure(name="error_vx", title="tracking error forward", unit="m/s", kind="ratio",
           amount="error_vx", exposure="tracked_s", digits=3),
    Figure(name="error_vy", title="tracking error sideways", unit="m/s", kind="ratio",
           amount="error_vy", exposure="tracked_s", digits=3),
    Figure(name="error_yaw", title="tracking error of the yaw rate", unit="rad/s", kind="ratio",
           amount="error_yaw", exposure="tracked_s", digits=3),
    Figure(name="walked_vx", title="speed forward", unit="m/s", kind="ratio",
           amount="walked_vx", exposure="tracked_s", low=-math.inf, better=""),
    Figure(name="walked_vy", title="speed to the left", unit="m/s", kind="ratio",
           amount="walked_vy", exposure="tracked_s", low=-math.inf, better=""),
    Figure(name="walked_yaw", title="yaw rate", unit="rad/s", kind="ratio",
           amount="walked_yaw", exposure="tracked_s", low=-math.inf, better=""),
    Figure(name="drift", title="drift when standing", unit="mm/s", kind="ratio",
           amount="drift", exposure="stand_s", digits=1, scale=1000.0),
    Figure(name="creep", title="creep of the stance when standing", unit="mm/s", kind="ratio",
           amount="creep", exposure="stand_s", digits=1, scale=1000.0),
    Figure(name="cost_of_transport", title="cost of transport", unit="", kind="ratio",
           amount="travel_energy", exposure="weight_m"),
    Figure(name="power", title="mechanical power", unit="W", kind="ratio",
           amount="energy", exposure="walk_s", digits=0),
    Figure(name="contact_peak_p99", title="contact peaks, 99 %", unit="body weights",
           kind="quantile", amount="peaks", digits=1),
    Figure(name="contact_peak", title="largest contact peak of a trial", unit="body weights",
           kind="largest", amount="contact_peak", digits=1),
    Figure(name="touchdowns", title="touchdowns per foot and second", unit="1/s", kind="ratio",
           amount="touchdowns", exposure="foot_s"),
    Figure(name="clearance", title="clearance", unit="cm", kind="ratio",
           amount="clearance", exposure="swings", digits=1, scale=100.0, better=""),
    Figure(name="three_feet", title="time with at least three feet down", unit="%", kind="ratio",
           amount="three_feet_s", exposure="walk_s", digits=1, scale=100.0, high=1.0,
           better="high"),
    Figure(name="position_clamps", title="position clamps per joint-tick", unit="%", kind="ratio",
           amount="position_clamps", exposure="joint_ticks", digits=3, scale=100.0, high=1.0),
    Figure(name="rate_clamps", title="rate clamps per joint-tick", unit="%", kind="ratio",
           amount="rate_clamps", exposure="joint_ticks", digits=3, scale=100.0, high=1.0),
    Figure(name="above_rated", title="above the rated torque per joint-tick", unit="%",
           kind="ratio", amount="above_rated", exposure="joint_samples", digits=2, scale=100.0,
           high=1.0),
    Figure(name="joint_rms", title="torque RMS of the worst joint", unit="N·m",
           kind="worst_joint", amount="torque_square", exposure="joint_samples", digits=1),
    Figure(name="foot_above_base", title="highest foot above the base", unit="m", kind="largest",
           amount="foot_above_base",
        low=-math.inf,
    ),
    Figure(name="blind", title="time walked by the blind policy", unit="%", kind="ratio",
           amount="blind_s", exposure="time_s", digits=1, scale=100.0, high=1.0),
    Figure(name="feature_age", title="oldest picture used", unit="ms", kind="largest",
           amount="feature_age", digits=0, scale=1000.0),
)  # fmt: skip
"""Figures of motion and tracking; `krabby.benchmark.report` adds outcomes, time and falls."""


def estimate(figure: Figure, trials: Sequence[Mapping[str, float]]) -> Estimate | None:
    """A figure of several trials in SI units; None when no trial has it.

    Args:
        figure: one of `FIGURES`.
        trials: what `Figures.figures` gave; trials without the amount are left out.
    """
    if figure.kind == "worst_joint":
        return _worst_joint(figure, trials)
    have = [trial for trial in trials if figure.amount in trial]
    if figure.exposure:
        have = [trial for trial in have if trial.get(figure.exposure, 0.0) > 0.0]
    if not have:
        return None
    amounts = [trial[figure.amount] for trial in have]
    if figure.kind == "share":
        return intervals.share(round(sum(amounts)), len(amounts))
    if figure.kind == "largest":
        mean = intervals.ratio(amounts, [1.0] * len(amounts), low=figure.low)
        return replace(mean, largest=max(amounts))
    if figure.kind == "quantile":
        return _quantile(figure, have)
    exposures = [trial[figure.exposure] for trial in have]
    return intervals.ratio(amounts, exposures, low=figure.low, high=figure.high)


def _quantile(figure: Figure, trials: Sequence[Mapping[str, float]]) -> Estimate:
    """99 % of everything that the trials counted by value, in keys such as `peaks.1.2`."""
    prefix = f"{figure.amount}."
    rows = [
        {float(name.removeprefix(prefix)): round(count) for name, count in trial.items()
         if name.startswith(prefix)}
        for trial in trials
    ]  # fmt: skip
    values = sorted(set().union(*rows))
    counts = np.array([[row.get(value, 0) for value in values] for row in rows], np.int64)
    return intervals.quantile(counts, np.array(values), 0.99)


def _worst_joint(figure: Figure, trials: Sequence[Mapping[str, float]]) -> Estimate | None:
    prefix = f"{figure.amount}."
    squares = {
        name.removeprefix(prefix): intervals.ratio(
            [trial[name] * trial[figure.exposure] for trial in trials if name in trial],
            [trial[figure.exposure] for trial in trials if name in trial],
            low=0.0,
        )
        for name in sorted({name for trial in trials for name in trial if name.startswith(prefix)})
    }
    if not squares:
        return None
    worst = max(squares, key=lambda joint: squares[joint].value)
    return replace(intervals.square_root(squares[worst]), where=worst)
