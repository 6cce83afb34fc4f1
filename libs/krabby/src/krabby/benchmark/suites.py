"""The benchmark's suites by name."""

from __future__ import annotations

import difflib
import fnmatch
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from krabby.benchmark.published import PUBLISHED
from krabby.benchmark.scenario import ScenarioError
from krabby.benchmark.wild import WILD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from krabby.benchmark.scenario import Cell

__all__ = ["SUITES", "cell_table", "choose_cells", "find_suite"]

SUITES: Final[Mapping[str, tuple[Cell, ...]]] = MappingProxyType(
    {"published": PUBLISHED, "wild": WILD}
)


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


def choose_cells(suite: str, cells: Sequence[Cell], patterns: str) -> list[Cell]:
    """The cells whose names match.

    Args:
        suite: its name, for errors.
        cells: of the suite.
        patterns: names, or patterns such as `stairs*`, with commas between them.

    Raises:
        ScenarioError: a pattern matches no cell.
    """
    wanted = [part.strip() for part in patterns.split(",") if part.strip()]
    hint = f"`krabby evaluate --suite {suite} --list` shows those it has"
    if not wanted:
        raise ScenarioError(f"cells {patterns!r} of suite {suite!r} are none; {hint}")
    names = [cell.name for cell in cells]
    for each in wanted:
        if not fnmatch.filter(names, each):
            near = difflib.get_close_matches(each, names, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ScenarioError(f"suite {suite!r} has no cell {each!r}; {meant}{hint}")
    return [c for c in cells if any(fnmatch.fnmatchcase(c.name, each) for each in wanted)]


def cell_table(cells: Iterable[Cell]) -> str:
    """The cells as a table in Markdown: name, family, trials, target, held out, what it is."""
    rows = [("cell", "family", "trials", "target", "held out", "what")]
    rows += [("---",) * len(rows[0])]
    for cell in cells:
        mark = "held out" if cell.held_out else ""
        rows.append((cell.name, cell.family, str(cell.trials), _bound(cell), mark, cell.summary))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _bound(cell: Cell) -> str:
    target = cell.target
    if target is None:
        return ""
    if target.at_least is not None:
        return f"{target.figure} >= {target.at_least:g}"
    return f"{target.figure} <= {target.at_most:g}"
