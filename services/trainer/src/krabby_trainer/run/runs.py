"""`python -m krabby_trainer runs`: a table of the runs in a folder."""

from __future__ import annotations

import datetime
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krabby_trainer.errors import ConfigError, TrainerError
from krabby_trainer.run.config import read_config
from krabby_trainer.run.telemetry import duration

__all__ = ["facts", "find", "table"]

_COLUMNS = (
    *("run", "task", "state", "iteration", "robots", "steps/s", "MXD", "level", "reward"),
    *("trained", "changed"),
)


def find(root: Path) -> list[Path]:
    """Folders of runs below `root`, oldest first."""
    found = [path.parent for path in root.rglob("config.yaml") if not path.is_symlink()]
    return sorted(found, key=lambda folder: (folder / "config.yaml").stat().st_mtime)


def table(root: Path) -> str:
    """The runs below `root`, a line each.

    Raises:
        ConfigError: There is no such folder.
    """
    if not root.is_dir():
        raise ConfigError(f"root={root} is not a folder; give the folder of your runs")
    rows = [_COLUMNS, *(tuple(_cells(facts(folder), root)) for folder in find(root))]
    if len(rows) == 1:
        return f"no runs in {root}\n"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines) + "\n"


def facts(folder: Path) -> dict[str, Any]:
    """What a run's folder says of it."""
    try:
        config = read_config(folder / "config.yaml")
    except TrainerError:
        config = {}
    last = _last_row(folder / "log.jsonl")
    done, total = int(last.get("iteration", 0)), config.get("agent", {}).get("max_iterations", 0)
    state = "done" if total and done >= total else "stopped"
    newest = folder / "log.jsonl" if last else folder / "config.yaml"
    return {
        "folder": folder,
        "task": config.get("task", "?"),
        "state": "running" if _is_locked(folder) else state,
        "iteration": done,
        "of": total,
        "robots": config.get("env", {}).get("num_envs"),
        "changed": datetime.datetime.fromtimestamp(newest.stat().st_mtime),
        "last": last,
    }


def _cells(run: dict[str, Any], root: Path) -> Iterator[str]:
    last = run["last"]

    def number(key: str, form: str) -> str:
        value = last.get(key)
        return "" if value is None else form.format(value)

    yield str(run["folder"].relative_to(root)) if run["folder"] != root else "."
    yield run["task"]
    yield run["state"]
    yield f"{run['iteration']}/{run['of']}"
    yield str(run["robots"])
    yield number("Perf/env_steps_per_s", "{:.0f}")
    yield number("Episode/mxd", "{:.2f}")
    yield number("Level/mean", "{:.2f}")
    yield number("Train/mean_reward", "{:.1f}")
    yield duration(last["wall_s"]) if "wall_s" in last else ""
    yield f"{run['changed']:%Y-%m-%d %H:%M}"


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a log."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 65536))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return {}


def _is_locked(folder: Path) -> bool:
    """Whether a trainer is at work in it."""
    try:
        with (folder / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
