"""The benchmark's suites by name."""

from __future__ import annotations

import difflib
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from krabby.benchmark.published import PUBLISHED
from krabby.benchmark.scenario import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krabby.benchmark.scenario import Cell

__all__ = ["SUITES", "find_suite"]

SUITES: Final[Mapping[str, tuple[Cell, ...]]] = MappingProxyType({"published": PUBLISHED})


def find_suite(name: str) -> tuple[Cell, ...]:
    """The cells of a suite.

    Raises:
        ScenarioError: no suite has this name.
    """
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ScenarioError(f"no suite is called {name!r}; {hint}choose from {', '.join(SUITES)}")
    return SUITES[name]
