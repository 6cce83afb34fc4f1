"""The figures of the live table, from a service's /metrics."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["LiveFigures", "Scrape", "compare", "fetch", "parse"]

_PERIOD: Final = "krabby_loop_period_seconds"
_AGES: Final = {
    "krabby_observation_age_at_actuation_seconds": " at drive",
    "krabby_message_age_seconds": "",
}
"""Metric: suffix of the stream's name in the table."""
_MISSES: Final = "krabby_loop_deadline_misses_total"
_TIMEOUT_S: Final = 0.25


@dataclass(frozen=True)
class Scrape:
    """A service's counters at one time."""

    time_s: float
    loops: float = 0.0
    deadline_misses: float = 0.0
    ages: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    """Cumulative counts by upper bound [s], by stream."""


@dataclass(frozen=True)
class LiveFigures:
    """Figures between two scrapes."""

    loop_hz: float
    deadline_misses: int
    """Since the service started."""
    age_p99_ms: Mapping[str, float]
    """Upper bound of the bucket that holds the 99th percentile, by stream."""


def fetch(port: int, now_s: float) -> Scrape | None:
    """Scrape a service of this host; None when it does not answer in time."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_TIMEOUT_S) as page:
            return parse(page.read().decode(), now_s)
    except (OSError, ValueError):
        return None


def parse(text: str, now_s: float) -> Scrape:
    # 30 ms to import, needed for a run on a terminal only.
    from prometheus_client.parser import text_string_to_metric_families

    loops = misses = 0.0
    ages: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{_PERIOD}_count":
                loops = sample.value
            elif sample.name == _MISSES:
                misses = sample.value
            elif family.name in _AGES and sample.name.endswith("_bucket"):
                stream = sample.labels.get("stream", "") + _AGES[family.name]
                ages.setdefault(stream, {})[float(sample.labels["le"])] = sample.value
    return Scrape(now_s, loops, misses, ages)


def compare(before: Scrape, after: Scrape) -> LiveFigures:
    elapsed = after.time_s - before.time_s
    return LiveFigures(
        loop_hz=(after.loops - before.loops) / elapsed if elapsed > 0 else math.nan,
        deadline_misses=int(after.deadline_misses),
        age_p99_ms={
            stream: 1e3 * bound
            for stream, buckets in after.ages.items()
            if (bound := _quantile(before.ages.get(stream, {}), buckets, 0.99)) is not None
        },
    )


def _quantile(
    before: Mapping[float, float], after: Mapping[float, float], q: float
) -> float | None:
    counts = {bound: count - before.get(bound, 0.0) for bound, count in sorted(after.items())}
    total = max(counts.values(), default=0.0)
    if total <= 0:
        return None
    return next(bound for bound, count in counts.items() if count >= q * total)
