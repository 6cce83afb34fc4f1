"""Checkpoints: everything that a resumed run needs, in one file that is written atomically.

A checkpoint is written beside its place, synced and renamed, with its SHA-256 in a file next to it
(`sha256sum --check` reads it). It is read with `weights_only`: tensors and plain values, no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import random
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from krabby_trainer.errors import CheckpointDamaged, CheckpointError, first_line
from krabby_trainer.run import foreign
from krabby_trainer.task.observations import described

__all__ = [
    "FORMAT",
    "Kind",
    "checkpoint_name",
    "find_checkpoints",
    "kind_of",
    "load",
    "load_to_resume",
    "newest_intact",
    "prune",
    "random_state",
    "require_kind",
    "restore_random_state",
    "save",
    "set_aside",
    "verify",
]

Kind = Literal["teacher", "distilled student", "fine-tuned student"]
FORMAT = 1
"""Version of the payload's keys."""
KEYS = (
    "algorithm",
    "config",
    "env_steps",
    "environment",
    "format",
    "iteration",
    "provenance",
    "random",
    "wall_s",
)
WEIGHTS_OF = "weights_of_sha256"
"""Key of one that holds weights alone: the SHA-256 of the file they were taken from."""
_NAME = re.compile(r"iteration_(\d+)\.pth?")
"""Written as .pt; a .pth, as other tools call such files, is found too."""


def checkpoint_name(iteration: int) -> str:
    return f"iteration_{iteration:06d}.pt"


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder or in its `checkpoints`, oldest iteration first."""
    found = {path for place in (folder, folder / "checkpoints") for path in place.glob("*.pt*")}
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_iteration)


def save(path: Path, payload: Mapping[str, Any]) -> None:
    """Write a checkpoint so that a reader finds either all of it or the one before.

    Raises:
        CheckpointError: A key is missing, or the file cannot be written.
    """
    complete = {"format": FORMAT, **payload}
    _check_keys(path, complete)
    buffer = io.BytesIO()
    torch.save(complete, buffer)
    data = buffer.getbuffer()
    digest = hashlib.sha256(data).hexdigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The sum goes first: alone it says nothing, while a file without one is trusted less.
        _replace(_sum_path(path), f"{digest}  {path.name}\n".encode())
        _replace(path, data)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path} ({error.strerror}); training needs a folder it "
            "may write to and some hundred MB of space, see run.dir and run.keep"
        ) from error


def save_weights(checkpoint: Path, path: Path) -> None:
    """Write what a checkpoint's networks need, for new runs, measuring and export.

    Left out is what only a resumed run needs: optimisers, curriculum, random numbers.

    Raises:
        CheckpointError: As `load` and `save`.
    """
    payload = load(checkpoint)
    algorithm = {
        key: value
        for key, value in payload["algorithm"].items()
        if not key.endswith("optimizer_state_dict")
    }
    nothing = {"environment": None, "rollouts": None, "random": None, "ranks": []}
    of = payload.get(WEIGHTS_OF) or hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    save(path, {**payload, **nothing, "algorithm": algorithm, WEIGHTS_OF: of})


def save_small(checkpoint: Path, path: Path) -> None:
    """Write what a run needs to be resumed on another machine: some MB instead of hundreds.

    Robots lose their episodes and their bodies, which a resumed run draws anew, and those of
    further processes their curriculum; the moments of the optimisers are rounded to bfloat16.

    Raises:
        CheckpointError: As `load_to_resume` and `save`.
    """
    payload = load_to_resume(checkpoint)
    algorithm = {
        key: _rounded(value) if key.endswith("optimizer_state_dict") else value
        for key, value in payload["algorithm"].items()
    }
    environment = {
        key: value
        for key, value in (payload["environment"] or {}).items()
        if not key.startswith("body.")
    }
    left = {"environment": environment or None, "rollouts": None, "ranks": []}
    save(path, {**payload, **left, "algorithm": algorithm})


def _rounded(optimiser: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state with its moments as bfloat16; loading it makes them float32 again."""
    state = {
        index: {
            key: value.to(torch.bfloat16) if key.startswith("exp_avg") else value
            for key, value in moments.items()
        }
        for index, moments in optimiser["state"].items()
    }
    return {**optimiser, "state": state}


def kind_of(payload: Mapping[str, Any]) -> Kind:
    """What a checkpoint holds; older ones do not name it."""
    if "kind" in payload:
        return payload["kind"]
    algorithm = payload["algorithm"] or {}
    if "encoder_state_dict" not in algorithm:
        return "teacher"
    return "distilled student" if "teacher" in algorithm else "fine-tuned student"


def require_kind(payload: Mapping[str, Any], path: Path, wanted: Sequence[Kind], use: str) -> None:
    """Refuse a checkpoint of another kind than its use needs.

    Raises:
        CheckpointError: Names the kind, the run's task and what is needed.
    """
    kind = kind_of(payload)
    if kind not in wanted:
        task = (payload["config"] or {}).get("task", "an unknown task")
        raise CheckpointError(
            f"{path} is a {kind}'s checkpoint (task={task}, iteration {payload['iteration']}); "
            f"{use} needs a {' or a '.join(wanted)}'s"
        )


def load_to_resume(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """As `load`, to resume a run.

    Raises:
        CheckpointError: As `load`, or it holds weights alone.
    """
    payload = load(path, device)
    if WEIGHTS_OF in payload:
        raise CheckpointError(
            f"run.resume={path}: it holds the weights of networks alone, no optimisers and no "
            f"curriculum to go on with; begin a new run with them: run.init={path}"
        )
    return payload


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint, its tensors on `device`.

    Raises:
        CheckpointError: There is none, it holds more than tensors and plain values, or it was
            written by another version.
        CheckpointDamaged: It is not what was written; the message names the newest intact one.
    """
    if not path.exists():
        there = [each.name for each in find_checkpoints(path.parent)]
        hint = f"that folder has {', '.join(there)}" if there else "that folder has none"
        raise CheckpointError(f"no checkpoint {path}; {hint}")
    ours = _sum_path(path).is_file() or bool(_NAME.fullmatch(path.name))
    if path.is_dir() or not ours:
        try:
            kind = foreign.named(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
        if kind:
            raise CheckpointError(
                f"{path} is not a checkpoint of this trainer but {kind}; give a file "
                "iteration_NNNNNN.pt of a run's checkpoints, or the run's folder"
            )
    problem = verify(path)
    if problem:
        raise CheckpointDamaged(f"{path} is damaged: {problem}; {_remedy(path)}")
    try:
        payload = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, so it was not written by this "
            f"trainer and is not loaded ({first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointDamaged(
            f"{path} is damaged: {first_line(error)}; {_remedy(path)}"
        ) from error
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, not a checkpoint")
    if payload.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {payload.get('format')!r}, this trainer reads {FORMAT}; use the "
            "revision that wrote it: `python -m krabby_trainer info` names it when it can"
        )
    _check_keys(path, payload)
    _check_terms(path, payload.get("observations"))
    return payload


def verify(path: Path) -> str:
    """What is wrong with a file; empty when it is intact."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        recorded = _sum_path(path)
        if recorded.is_file():
            expected = recorded.read_text(encoding="utf-8", errors="replace").split(" ")[0].strip()
            return "" if digest == expected else f"SHA-256 {digest[:12]}…, not {expected[:12]}…"
        # Without its sum: the archive has checksums too.
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return f"record {bad} fails its checksum" if bad else ""
    except zipfile.BadZipFile:
        return "not a whole archive"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def newest_intact(folder: Path) -> Path | None:
    """The checkpoint of the highest iteration whose checksum holds, or None."""
    for path in reversed(find_checkpoints(folder)):
        if not verify(path):
            return path
    return None


def prune(folder: Path, *, keep: int, keep_every: int) -> None:
    """Remove all but the newest `keep`, and those on multiples of `keep_every` (0: none)."""
    for path in find_checkpoints(folder)[: -max(keep, 1)]:
        if keep_every and _iteration(path) % keep_every == 0:
            continue
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with contextlib.suppress(FileNotFoundError):
            _sum_path(path).unlink()


def set_aside(folder: Path, *, beyond: int) -> list[Path]:
    """Move checkpoints of later iterations into `set-aside`: the run resumes an earlier one.

    Returns:
        Where they are now.
    """
    moved = []
    for path in find_checkpoints(folder):
        if _iteration(path) > beyond:
            aside = path.parent / "set-aside"
            aside.mkdir(exist_ok=True)
            for each in (path, _sum_path(path)):
                if each.exists():
                    each.replace(aside / each.name)
            moved.append(aside / path.name)
    return moved


def random_state() -> dict[str, Any]:
    """The generators of torch, NumPy and Python, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), following],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to where `random_state` found them."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    name, keys, position, has_gauss, gauss = state["numpy"]
    words = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state((name, words, position, has_gauss, gauss))  # noqa: NPY002
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal), following))


def _check_keys(path: Path, payload: Mapping[str, Any]) -> None:
    missing = [key for key in KEYS if key not in payload]
    if missing:
        raise CheckpointError(f"{path}: a checkpoint needs the keys {', '.join(missing)}")


def _check_terms(path: Path, theirs: Mapping[str, Mapping[str, int]] | None) -> None:
    """Networks read observation terms by their place: these have to be the same."""
    ours = described()
    if theirs is None:
        return
    for group in ours:
        if list(theirs.get(group, {}).items()) != list(ours[group].items()):
            raise CheckpointError(
                f"{path} was trained on the {group} observations {dict(theirs.get(group, {}))}, "
                f"this version has {ours[group]}; use the revision that wrote it"
            )


def _replace(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` with nothing in between that a reader or a crash could see."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _iteration(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def _remedy(path: Path) -> str:
    intact = newest_intact(path.parent)
    return f"the newest intact one is {intact}" if intact else "no intact one is beside it"
