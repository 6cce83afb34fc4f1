"""The output folder of an evaluation: what is evaluated, and a line for every trial that ended."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from krabby.benchmark.runner import BenchmarkError, TrialKey
from krabby.benchmark.trace import TrialResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from io import BufferedWriter

    from krabby.benchmark.runner import Shard
    from krabby.benchmark.scenario import Cell
    from krabby.benchmark.trial import TrialCfg
    from krabby.policy.bundle import PolicyBundle
    from krabby.robot.description import RobotDescription

__all__ = ["Book", "head_of", "read_head", "suite_digest"]

HEAD_FILE: Final = "evaluation.json"
_TRIALS: Final = "trials*.jsonl"


class Book:
    """Trials on the disk; the same evaluation continues in the same folder.

    Every shard writes its own file, so that the folders of several machines can be put together.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any], shard: Shard) -> None:
        """Open or make the folder.

        Args:
            folder: where it is.
            head: what is evaluated; a folder of another evaluation is refused.
            shard: the part that is run here.

        Raises:
            BenchmarkError: the folder belongs to another evaluation or cannot be written.
        """
        self.folder = folder
        part = "" if shard.count == 1 else f"-{shard.index}-of-{shard.count}"
        self._path = folder / f"trials{part}.jsonl"
        self._file: BufferedWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_head(dict(head))
            self.results = [
                result for path in sorted(folder.glob(_TRIALS)) for result in _read(path)
            ]
        except (OSError, ValueError) as error:
            raise BenchmarkError(
                f"{folder} cannot hold the evaluation ({error}); give another --out"
            ) from error

    @property
    def done(self) -> set[TrialKey]:
        """Trials that need not be run again."""
        return {TrialKey(result.cell, result.seed) for result in self.results}

    def add(self, result: TrialResult) -> None:
        """Write a trial down; it is on the disk when this returns."""
        if self._file is None:
            self._file = self._path.open("ab")
        self._file.write(msgspec.json.encode(result) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.results.append(result)

    def take_in(self, folders: Iterable[Path]) -> None:
        """Copy the trials of other folders of the same evaluation.

        Raises:
            BenchmarkError: one belongs to another evaluation.
        """
        ours, known = read_head(self.folder), self.done
        for folder in folders:
            theirs = read_head(folder)
            if theirs != ours:
                raise BenchmarkError(f"{folder} {_difference(theirs, ours)}; merge equal ones")
            for path in sorted(folder.glob(_TRIALS)):
                for result in _read(path):
                    key = TrialKey(result.cell, result.seed)
                    if key not in known:
                        known.add(key)
                        self.add(result)

    def _check_head(self, head: dict[str, Any]) -> None:
        path = self.folder / HEAD_FILE
        if not path.exists():
            path.write_text(f"{json.dumps(head, indent=2)}\n", encoding="utf-8")
            return
        theirs = read_head(self.folder)
        if theirs != json.loads(json.dumps(head)):
            raise BenchmarkError(f"{self.folder} {_difference(theirs, head)}; give another --out")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def head_of(
    suite: str,
    cells: Sequence[Cell],
    bundle: PolicyBundle,
    desc: RobotDescription,
    trial: TrialCfg,
) -> dict[str, Any]:
    """What is evaluated: equal heads have comparable trials."""
    return {
        "format": 1,
        "suite": suite,
        "cells_sha256": suite_digest(cells),
        "policy": bundle.name,
        "files": dict(bundle.hashes),
        "robot": f"{desc.name} {desc.content_hash[:12]}",
        "substep_ns": trial.substep_ns,
    }


def suite_digest(cells: Iterable[Cell]) -> str:
    """Tells versions of a suite apart."""
    text = "\n".join(f"{c.name}|{c.family}|{c.goal}|{c.summary}" for c in cells)
    return hashlib.sha256(text.encode()).hexdigest()


def read_head(folder: Path) -> dict[str, Any]:
    """What was evaluated in a folder.

    Raises:
        BenchmarkError: the folder holds no evaluation.
    """
    path = folder / HEAD_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkError(
            f"{path} cannot be read ({error}); name a folder that `krabby evaluate` wrote"
        ) from error


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    for key in {**ours, **theirs}:
        if theirs.get(key) != ours.get(key):
            return (
                f"holds an evaluation with {key} = {theirs.get(key)!r}, this one has "
                f"{ours.get(key)!r}"
            )
    return "holds another evaluation"


def _read(path: Path) -> list[TrialResult]:
    """Trials of a file; a line that was cut off is removed, and its trial is run again."""
    lines = path.read_bytes().splitlines()
    results: list[TrialResult] = []
    kept: list[bytes] = []
    for line in lines:
        try:
            results.append(msgspec.json.decode(line, type=TrialResult))
            kept.append(line)
        except msgspec.MsgspecError:
            continue
    if len(kept) < len(lines):
        staging = path.with_suffix(".tmp")
        staging.write_bytes(b"".join(line + b"\n" for line in kept))
        staging.replace(path)
    return results
