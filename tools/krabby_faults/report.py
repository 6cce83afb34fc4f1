"""docs/faults.json and docs/faults.md: sections, each written by the run that measures it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from krabby_faults.measure import LIMITS, Row

__all__ = ["line", "put_rows", "section", "write_rows", "write_section", "write_soak"]

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "faults.md"
DATA: Final = ROOT / "docs" / "faults.json"

_HEAD: Final = """\
| robot | broken | safe after | limp after | oldest command, published / captured | fastest target \
| walks again |
| --- | --- | --- | --- | --- | --- | --- |
"""


def line(row: Row) -> str:
    """A row for people who wait for it."""
    problems = "; ".join(row.problems())
    return f"{_cells(row)}{'  PROBLEM: ' + problems if problems else ''}"


def write_rows(rows: Sequence[Row]) -> None:
    """Put measured rows into the data and the page; rows of other faults and robots stay."""
    where = _provenance()
    put_rows([{**_rounded(row.facts()), **where} for row in rows])


def put_rows(measured: Sequence[dict[str, Any]]) -> None:
    """The same with rows as the data holds them, from another checkout perhaps."""
    known = _read().get("stack", {}).get("rows", [])
    kept = {(row["robot"], row["fault"]): row for row in [*known, *measured]}
    ordered = sorted(kept.values(), key=lambda row: row["robot"], reverse=True)
    table = [Row(**{name: row[name] for name in Row._fields}) for row in ordered]
    revisions = ", ".join(sorted({row["revision"] for row in ordered}))
    loads = sorted(row["load"] for row in ordered)
    note = (
        f"Revision {revisions}; {ordered[0]['machine']}, with a load of {loads[0]:.0f} to "
        f"{loads[-1]:.0f} meanwhile.\n\n"
    )
    text = note + _HEAD + "".join(_cells(row) + "\n" for row in table)
    write_section("stack", text, {"limits": LIMITS._asdict(), "rows": ordered})


def write_soak(facts: dict[str, Any]) -> None:
    """Put the result of a soak into the data and the page."""
    data = {**_provenance(), **facts}
    text = (
        f"Revision {data['revision']}, load {data['load']:.0f}, {facts['minutes']:g} minutes, "
        f"{facts['faults']} random faults, {facts['commands']} commands applied, "
        f"{facts['stale']} of them stale; "
        f"the oldest {facts['since_publish_ms']:.1f} ms after publication and "
        f"{facts['since_capture_ms']:.1f} ms after capture.\n\n"
        "| process | memory | growth (95 % interval) | observed for |\n"
        "| --- | --- | --- | --- |\n"
    )
    for name, memory in facts["memory"].items():
        text += (
            f"| {name} | {memory['mb']:.1f} MB | {memory['mb_per_hour']:+.2f} MB/h "
            f"({memory['low']:+.2f} to {memory['high']:+.2f}) "
            f"| {memory['minutes']:.0f} min, n = {memory['n']} |\n"
        )
    if facts["problems"]:
        text += "\n" + "".join(f"- {each}\n" for each in facts["problems"])
    write_section("soak", text, data)


def write_section(name: str, text: str, facts: dict[str, Any]) -> None:
    """Replace a section of the page, and its data."""
    page = PAGE.read_text()
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, rest = page.split(begin)
    PAGE.write_text(before + begin + text + end + rest.split(end)[1])
    data = {**_read(), name: facts}
    DATA.write_text(json.dumps(data, indent=1) + "\n")


def section(name: str) -> str:
    """A section of the page as it is."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->\n", PAGE.read_text(), re.S)
    assert found, f"{PAGE} has no section {name}"
    return found[1]


def _read() -> dict[str, Any]:
    return json.loads(DATA.read_text()) if DATA.exists() else {}


def _provenance() -> dict[str, Any]:
    revision = _git("rev-parse", "--short", "HEAD") or "unknown"
    if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"):
        revision += " with changes"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return {"revision": revision, "machine": machine, "load": round(os.getloadavg()[1], 1)}


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in facts.items()}


def _cells(row: Row) -> str:
    safe = "the simulation stops too" if row.by == "simulation" else _ms(row.safe_ms)
    limp = "—" if row.by == "simulation" else _ms(row.limp_ms)
    again = "no" if row.recovery_s is None else f"{row.recovered}, {row.recovery_s:.1f} s"
    published = "—" if row.since_publish_ms is None else f"{row.since_publish_ms:.1f}"
    oldest = f"{published} / {row.since_capture_ms:.1f} ms"
    rate = "—" if row.rate is None else f"{100 * row.rate:.0f} %"
    by = ", drives" if row.by == "drives" else ""
    return f"| {row.robot} | {row.fault} | {safe} | {limp}{by} | {oldest} | {rate} | {again} |"


def _ms(value: float | None) -> str:
    return "—" if value is None else f"{value:.0f} ms"
