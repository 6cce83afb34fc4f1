"""Measured values with the number of trials and a 95 % interval: shares, rates, means, quantiles.

Every function takes whole collections and sums with `math.fsum`, so that the order of the trials
does not change the last digit. An interval that one trial cannot give is (nan, nan).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "Estimate",
    "difference",
    "mean",
    "poisson_rate",
    "quantile",
    "ratio",
    "share",
    "square_root",
]

_Z: Final = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""
_TAIL: Final = 0.025
_RESAMPLES: Final = 400
_FEWEST: Final = 8
"""Trials below which a bootstrap is too narrow to be an interval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its 95 % interval, and the number of independent trials behind both."""

    value: float
    low: float
    high: float
    n: int
    largest: float = math.nan
    """The largest trial, where the value is a mean of maxima."""
    where: str = ""
    """The joint, where the value is that of the worst joint."""

    def text(self, digits: int = 2, *, scale: float = 1.0) -> str:
        """`0.97 [0.95, 0.99] (n 256)`; values are multiplied by `scale` first."""
        value, low, high = (
            f"{scale * number:.{digits}f}" for number in (self.value, self.low, self.high)
        )
        if math.isnan(self.value):
            return f"none (n {self.n})"
        interval = "[no interval]" if math.isnan(self.low) else f"[{low}, {high}]"
        return f"{value} {interval} (n {self.n})"

    def __str__(self) -> str:
        return self.text()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Estimate:
        """The estimate of which `as_json` gave the values."""
        known: dict[str, Any] = {n: math.nan if v is None else v for n, v in values.items()}
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is not known is None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        found: dict[str, Any] = {
            name: None if math.isnan(v) else float(v) for name, v in numbers.items()
        }
        found["n"] = self.n
        if not math.isnan(self.largest):
            found["largest"] = self.largest
        return found | ({"where": self.where} if self.where else {})


_NONE: Final = Estimate(math.nan, math.nan, math.nan, 0)


def share(successes: int, n: int) -> Estimate:
    """A share of trials with its Wilson interval."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    if n == 0:
        return _NONE
    p, zz = successes / n, _Z * _Z
    middle = p + zz / (2 * n)
    half = _Z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    scale = 1 + zz / n
    low = 0.0 if successes == 0 else (middle - half) / scale
    high = 1.0 if successes == n else (middle + half) / scale
    return Estimate(p, low, high, n)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Share `a` minus share `b` of other trials, with Newcombe's interval; n is the smaller one."""
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, low, high, min(a.n, b.n))


def poisson_rate(events: int, exposure: float, n: int) -> Estimate:
    """Events per unit of exposure with the exact (Garwood) interval of a Poisson count.

    Args:
        events: counted.
        exposure: over which they were counted, for example in units of 100 m.
        n: trials behind it, for the text only.
    """
    if exposure <= 0.0:
        return Estimate(math.nan, math.nan, math.nan, n)
    top = events + 10.0 * math.sqrt(events + 1.0) + 10.0
    high = _crossing(lambda m: _poisson_cdf(events, m) - _TAIL, 0.0, top)
    low = 0.0
    if events:
        low = _crossing(lambda m: _poisson_cdf(events - 1, m) - (1.0 - _TAIL), 0.0, top)
    return Estimate(events / exposure, low / exposure, high / exposure, n)


def mean(values: Sequence[float]) -> Estimate:
    """Mean of one value per trial, with Student's interval."""
    return ratio(values, [1.0] * len(values))


def ratio(
    amounts: Sequence[float],
    exposures: Sequence[float],
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> Estimate:
    """Sum of the amounts over the sum of the exposures, one pair per trial.

    The interval is Student's, of the linearised ratio: trials are independent, ticks are not.
    `low` and `high` bound it where the quantity has bounds, as a share has.
    """
    pairs = [(y, x) for y, x in zip(amounts, exposures, strict=True) if x > 0.0]
    n = len(pairs)
    total = math.fsum(x for _, x in pairs)
    if n == 0 or total <= 0.0:
        return _NONE
    value = math.fsum(y for y, _ in pairs) / total
    if n == 1:
        return Estimate(value, math.nan, math.nan, 1)
    squares = math.fsum((y - value * x) ** 2 for y, x in pairs)
    half = student_quantile(n - 1) * math.sqrt(squares * n / (n - 1)) / total
    return Estimate(value, max(low, value - half), min(high, value + half), n)


def quantile(counts: NDArray[np.int64], values: NDArray[np.float64], fraction: float) -> Estimate:
    """Quantile of counted values, with the interval of a bootstrap over trials.

    Args:
        counts: how often each trial saw each value, (trials, values).
        values: in rising order, (values,).
        fraction: 0.99 for the value that 99 % do not exceed.
    """
    seen = counts[counts.sum(axis=1) > 0]
    n = len(seen)
    if n == 0:
        return _NONE
    value = float(_quantiles(seen.sum(axis=0)[None], values, fraction)[0])
    if n < _FEWEST:
        return Estimate(value, math.nan, math.nan, n)
    seen = seen[np.lexsort(seen.T)]  # the draw must not depend on the order of the trials
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1.0 / n), size=_RESAMPLES)
    low, high = np.quantile(_quantiles(draws @ seen, values, fraction), [_TAIL, 1.0 - _TAIL])
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)


def square_root(estimate: Estimate) -> Estimate:
    """Of a mean square: the root mean square with its interval."""
    value, low, high = (
        math.sqrt(max(0.0, number)) if not math.isnan(number) else number
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return Estimate(value, low, high, estimate.n)


@lru_cache(maxsize=1024)
def student_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t distribution with a whole number of degrees of freedom."""
    if freedom > 1000:
        return _Z + (_Z**3 + _Z) / (4 * freedom)
    return _crossing(lambda t: 0.95 - _student_inside(t, freedom), 0.0, 13.0)


def _student_inside(t: float, freedom: int) -> float:
    """Probability of |T| < t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cos2, odd = math.cos(angle) ** 2, freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cos2 * k / (k + 1)
    area = math.sin(angle) * total
    return 2.0 / math.pi * (angle + area) if odd else area


def _poisson_cdf(events: int, expected: float) -> float:
    if expected <= 0.0:
        return 1.0
    log = math.log(expected)
    return math.fsum(math.exp(k * log - expected - math.lgamma(k + 1)) for k in range(events + 1))


def _crossing(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero between two bounds."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0.0 else (low, middle)
    return (low + high) / 2


def _quantiles(
    counts: NDArray[np.int64], values: NDArray[np.float64], fraction: float
) -> NDArray[np.float64]:
    """Of each row of counts."""
    below = counts.cumsum(axis=1)
    wanted = np.ceil(fraction * below[:, -1])[:, None]
    return values[(below < wanted).sum(axis=1)]
