"""What a policy observed where it was evaluated, to compare a robot's observations with.

A bundle may carry `observation_statistics.json`, named and hashed by its manifest like a network:
per term of the observation and number of it, mean, standard deviation and the 0.5 % and 99.5 %
quantiles, before scaling, over the time in which the policy walked.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from krabby.config import Config, Text
from krabby.policy._manifest import STATISTICS_FILE
from krabby.robot.errors import BundleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.policy.bundle import PolicyBundle

__all__ = ["STATISTICS_FILE", "ObservationStatistics", "TermStatistics", "load_statistics"]

_QUANTILES: Final = (0.005, 0.995)
_DIGITS: Final = 4


class TermStatistics(Config, frozen=True, kw_only=True):
    """One term, in the units of `krabby.policy.observation`; as many numbers each as it has."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    """0.5 % quantile."""
    high: tuple[float, ...]
    """99.5 % quantile."""

    @classmethod
    def of(cls, values: NDArray[np.floating[Any]]) -> TermStatistics:
        """Of samples (N, size)."""
        low, high = np.quantile(values, _QUANTILES, axis=0)
        columns = (values.mean(0), values.std(0), low, high)
        mean, std, low, high = (tuple(map(_rounded, column)) for column in columns)
        return cls(mean=mean, std=std, low=low, high=high)


class ObservationStatistics(Config, frozen=True, kw_only=True):
    """The file."""

    source: Text
    """Simulator, courses and conditions."""
    samples: int
    """Control steps."""
    terms: dict[Text, TermStatistics]

    def to_json(self) -> bytes:
        """The file's content: a line for each quantity of each term."""
        head = {"source": self.source, "samples": self.samples}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        terms = [
            f"    {json.dumps(name)}: {{\n"
            + ",\n".join(
                f'      "{key}": {json.dumps(list(values))}'
                for key, values in msgspec.structs.asdict(term).items()
            )
            + "\n    }"
            for name, term in self.terms.items()
        ]
        body = ",\n".join(terms)
        return "\n".join(["{", *lines, '  "terms": {', body, "  }", "}", ""]).encode()


def load_statistics(bundle: PolicyBundle) -> ObservationStatistics | None:
    """The statistics of a bundle; None when it carries none.

    Raises:
        BundleError: they are malformed, or of other terms than the policy observes.
    """
    content = bundle.files.get(STATISTICS_FILE)
    if content is None:
        return None
    source = bundle.path / STATISTICS_FILE
    try:
        found = msgspec.json.decode(content, type=ObservationStatistics)
    except msgspec.DecodeError as error:
        raise BundleError(f"{source}: {error}; export the policy again") from error
    for name, statistics in found.terms.items():
        term = bundle.observation.term(name)
        size = None if term is None else term.size
        for key, values in msgspec.structs.asdict(statistics).items():
            if len(values) != size or not all(map(math.isfinite, values)):
                raise BundleError(
                    f"{source}: {name}.{key} has {len(values)} numbers, the policy observes "
                    f"{size or 'no such term'}; export the policy again"
                )
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
