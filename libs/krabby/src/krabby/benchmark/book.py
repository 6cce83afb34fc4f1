"""The output folder of an evaluation: what is evaluated, and a line for every trial that ended."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from krabby.benchmark.runner import BenchmarkError, TrialKey
from krabby.benchmark.table import TrialsError, is_trial, merge, read_trials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from krabby.benchmark.runner import Shard
    from krabby.benchmark.scenario import Cell
    from krabby.benchmark.trace import TrialResult
    from krabby.benchmark.trial import TrialCfg
    from krabby.policy.bundle import PolicyBundle
    from krabby.robot.description import RobotDescription

__all__ = ["HEAD_FORMAT", "Book", "head_of", "read_head", "suite_digest"]

HEAD_FILE: Final = "evaluation.json"
HEAD_FORMAT: Final = 2
"""Raised when the rules of outcomes or the sums of a trial change: older trials do not mix."""
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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_head(dict(head))
            self._file = self._path.open("ab", buffering=0)
        except (OSError, ValueError) as error:
            raise BenchmarkError(
                f"{folder} cannot hold the evaluation ({error}); give another --out"
            ) from error
        try:
            self._lock()
            self.results = _trials_of(folder, dict(head))
        except BenchmarkError:
            self.close()
            raise

    @property
    def done(self) -> set[TrialKey]:
        """Trials that need not be run again."""
        return {TrialKey(result.cell, result.seed) for result in self.results}

    def add(self, result: TrialResult) -> None:
        """Write a trial down; it is on the disk when this returns.

        Raises:
            BenchmarkError: the disk is full or broken; the trials before this one are kept.
        """
        self._write([result])

    def _write(self, results: Sequence[TrialResult]) -> None:
        lines = b"".join(msgspec.json.encode(result) + b"\n" for result in results)
        end = os.fstat(self._file.fileno()).st_size
        try:
            while lines:
                lines = lines[self._file.write(lines) or 0 :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.truncate(self._path, end)
            raise BenchmarkError(
                f"{self._path} cannot be written ({error}); the {len(self.results)} trials before "
                "are kept, and the same command continues once there is room"
            ) from error
        self.results.extend(results)

    def take_in(self, folders: Iterable[Path]) -> None:
        """Copy the trials of other folders of the same evaluation.

        Raises:
            BenchmarkError: one belongs to another evaluation, or has another result of a trial;
                then nothing is copied.
        """
        ours = read_head(self.folder)
        found: list[TrialResult] = []
        for folder in folders:
            theirs = read_head(folder)
            if theirs != ours:
                raise BenchmarkError(f"{folder} {_difference(theirs, ours)}; merge equal ones")
            found += _trials_of(folder, theirs)
        try:
            together = merge([*self.results, *found])
        except TrialsError as error:
            raise BenchmarkError(str(error)) from error
        known = self.done
        self._write([each for each in together if TrialKey(each.cell, each.seed) not in known])

    def _lock(self) -> None:
        """Keep other evaluations from writing to the same file, and end its last line."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _mend(self._path)
        except OSError as error:
            raise BenchmarkError(
                f"{self._path} cannot be written ({error}); another evaluation may be running "
                "there: let it end, or give another --out"
            ) from error

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
        "format": HEAD_FORMAT,
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


def _trials_of(folder: Path, head: Mapping[str, Any]) -> list[TrialResult]:
    """All trials of a folder."""
    try:
        results = read_trials(sorted(folder.glob(_TRIALS)))
    except (OSError, TrialsError) as error:
        raise BenchmarkError(str(error)) from error
    policy = head.get("policy")
    for result in results:
        if result.policy != policy:
            raise BenchmarkError(
                f"{folder} is for policy {policy!r} but has a trial of {result.policy!r} (cell "
                f"{result.cell}, seed {result.seed}); remove its line or give another folder"
            )
    return results


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    for key in {**ours, **theirs}:
        if theirs.get(key) != ours.get(key):
            return (
                f"holds an evaluation with {key} = {theirs.get(key)!r}, this one has "
                f"{ours.get(key)!r}"
            )
    return "holds another evaluation"


def _mend(path: Path) -> None:
    """End the last line, or remove it where it was cut off: its trial is run again."""
    data = path.read_bytes()
    tail = data[data.rfind(b"\n") + 1 :]
    if not tail:
        return
    if is_trial(tail):
        with path.open("ab") as file:
            file.write(b"\n")
    else:
        os.truncate(path, len(data) - len(tail))
