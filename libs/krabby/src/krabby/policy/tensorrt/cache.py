"""Built engines on disk: found by what they depend on, written whole or not at all.

    <folder>/<key>.plan       the engine
    <folder>/<key>.json       what it was built of and for, its hash, how it did; without it the
                              engine does not count
    <folder>/<device>.timing  kernel timings of the device: the next build is faster, and the same
    <folder>/build.lock       held during a build: two builds at once do not fit into an Orin
    <folder>/<key>.loading    there while an engine is being loaded; left over, loading it ended
                              the process, and it is not tried again

`key` is a SHA-256, so a new network, TensorRT, driver stack or option simply finds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from krabby.policy.tensorrt.device import Device
from krabby.policy.tensorrt.engine import BuildOptions, Shapes
from krabby.policy.tensorrt.errors import CacheError, EngineRefused

__all__ = ["FORMAT", "EngineCache", "EngineRecord", "Recipe"]

log = structlog.get_logger(__name__)

FORMAT: Final = 1
"""Of this cache; part of every key."""
_LOCK_PAUSE_S = 0.1


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine depends on."""

    model_sha256: str
    shapes: Shapes
    """Of the inputs."""
    options: BuildOptions
    toolkit: str
    """What builds it, "tensorrt"."""
    toolkit_version: str
    device: str
    compute_capability: str
    cuda_runtime: str
    format: int = FORMAT

    @classmethod
    def of(
        cls,
        model: bytes,
        shapes: Shapes,
        options: BuildOptions,
        device: Device,
        toolkit: tuple[str, str],
    ) -> Recipe:
        """The recipe for `model` on `device`, with a toolkit given as (name, version)."""
        return cls(
            model_sha256=hashlib.sha256(model).hexdigest(),
            shapes=shapes,
            options=options,
            toolkit=toolkit[0],
            toolkit_version=toolkit[1],
            device=device.name,
            compute_capability=device.compute_capability,
            cuda_runtime=device.runtime_version,
        )

    @property
    def key(self) -> str:
        """SHA-256 of it all, hex."""
        return _digest(_canonical(self))

    @property
    def device_key(self) -> str:
        """SHA-256 of what kernel timings depend on, hex."""
        return _digest(
            _canonical([self.toolkit, self.toolkit_version, self.device, self.cuda_runtime, FORMAT])
        )

    def same_platform(self, other: Recipe) -> bool:
        """Whether an engine of `other` may run where this one does."""
        names = ("toolkit", "toolkit_version", "device", "compute_capability")
        return all(getattr(self, name) == getattr(other, name) for name in names)


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an engine: the file beside it."""

    key: str
    source: str
    """The network's name, for people and for counting its starts."""
    recipe: Recipe
    plan_sha256: str
    plan_bytes: int
    built_unix_s: float
    build_s: float
    good: bool = False
    """Whether it passed its self-test the last time."""
    verdict: str = ""
    """What the self-test found the last time."""
    tested_unix_s: float = 0.0
    unseen_starts: int = 0
    """Starts of the same network since it was last used."""


class EngineCache:
    """A folder of engines, safe against other processes that use it and against a power cut."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder.

        Raises:
            CacheError: It cannot be written.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise CacheError(
                f"the engine cache {folder} cannot be written ({error.strerror}); mount a volume "
                "there, or set inference.cache_dir"
            ) from error

    def records(self) -> list[EngineRecord]:
        """All engines, newest first. Damaged records are left out."""
        found = [record for path in self.folder.glob("*.json") if (record := _read_record(path))]
        return sorted(found, key=lambda record: (-record.built_unix_s, record.key))

    def record(self, key: str) -> EngineRecord | None:
        """One engine's record."""
        return _read_record(self._path(key, "json"))

    def plan(self, key: str) -> bytes | None:
        """An engine, the very bytes that were stored; None when there is none.

        Raises:
            EngineRefused: It is damaged; it was deleted.
        """
        record = self.record(key)
        try:
            plan = self._path(key, "plan").read_bytes()
        except FileNotFoundError:
            plan = None
        except OSError as error:
            raise CacheError(f"engine {key[:12]}… cannot be read: {error}") from error
        if record is None and plan is None:
            return None
        if record is not None and plan is not None and _digest(plan) == record.plan_sha256:
            return plan
        self.discard(key)
        raise EngineRefused(f"engine {key[:12]}… in {self.folder} is damaged; it was deleted")

    def store(self, recipe: Recipe, source: str, plan: bytes, build_s: float) -> EngineRecord:
        """Keeps an engine; the record last, so that half of one never counts."""
        key = recipe.key
        record = EngineRecord(
            key=key,
            source=source,
            recipe=recipe,
            plan_sha256=_digest(plan),
            plan_bytes=len(plan),
            built_unix_s=time.time(),
            build_s=round(build_s, 3),
        )
        self._write(self._path(key, "plan"), plan)
        self._write_record(record)
        return record

    def judge(self, key: str, *, good: bool, verdict: str) -> None:
        """Notes how the self-test went."""
        with self._index():
            record = self.record(key)
            if record is not None:
                changes = {"good": good, "verdict": verdict, "tested_unix_s": time.time()}
                self._write_record(msgspec.structs.replace(record, **changes))

    def discard(self, key: str) -> int:
        """Deletes an engine; returns the bytes that this freed."""
        freed = 0
        for suffix in ("json", "plan", "loading"):
            path = self._path(key, suffix)
            with contextlib.suppress(FileNotFoundError):
                freed += path.stat().st_size
                path.unlink()
        return freed

    def used(self, key: str, source: str, keep_starts: int) -> None:
        """Counts a start of the network `source`, and drops its engines that went unused.

        Starts and not days: a robot's clock may begin in 1970 each morning. The newest good engine
        of the model in use stays: it is what is rolled back to.
        """
        with self._index():
            current = self.record(key)
            spared = next(
                (other.key for other in self.records() if other.key != key and other.good
                 and current is not None
                 and other.recipe.model_sha256 == current.recipe.model_sha256),
                "",
            )  # fmt: skip
            for record in self.records():
                if record.source != source:
                    continue
                unseen = 0 if record.key == key else record.unseen_starts + 1
                if unseen > keep_starts and record.key != spared:
                    self.discard(record.key)
                    log.info("engine deleted, unused", engine=record.key[:12], network=source)
                elif unseen != record.unseen_starts:
                    self._write_record(msgspec.structs.replace(record, unseen_starts=unseen))

    def prune(self, stale: Callable[[EngineRecord], bool]) -> tuple[int, int]:
        """Deletes what `stale` says, and left-overs of broken writes; (engines, bytes freed)."""
        engines = freed = 0
        with self._index():
            known = {record.key for record in self.records()}
            for record in self.records():
                if stale(record):
                    freed += self.discard(record.key)
                    engines += 1
        with self._index(), self._held("build.lock", wait=False) as alone:
            for path in self.folder.iterdir() if alone else ():
                orphan = path.suffix in {".json", ".plan", ".loading"} and path.stem not in known
                if orphan or path.suffix == ".part":
                    freed += path.stat().st_size
                    path.unlink()
        return engines, freed

    def timings(self, recipe: Recipe) -> bytes:
        """Kernel timings of the device, or nothing."""
        try:
            return self._path(recipe.device_key, "timing").read_bytes()
        except OSError:
            return b""

    def store_timings(self, recipe: Recipe, timings: bytes) -> None:
        """Keeps kernel timings for the next build."""
        if timings:
            self._write(self._path(recipe.device_key, "timing"), timings)

    def building(self, wait: Callable[[], None]) -> AbstractContextManager[bool]:
        """Holds the right to build; `wait` is called repeatedly until it is granted.

        The kernel releases it when the holder dies.
        """
        return self._held("build.lock", wait=wait)

    @contextlib.contextmanager
    def loading(self, key: str) -> Generator[None]:
        """Around the loading of an engine, which may end the process.

        Raises:
            EngineRefused: It did the last time; it was deleted.
        """
        path = self._path(key, "loading")
        with self._opened(path) as marker:
            marker.seek(0)
            left_over = bool(marker.read(1)) and _lock(marker)
            if left_over:
                self.discard(key)
                raise EngineRefused(
                    f"loading engine {key[:12]}… ended this process the last time; it was deleted"
                )
            fcntl.flock(marker, fcntl.LOCK_SH)
            marker.write(b"1")
            marker.flush()
            try:
                yield
            finally:  # which a crash does not reach
                path.unlink(missing_ok=True)

    def _path(self, stem: str, suffix: str) -> Path:
        return self.folder / f"{stem}.{suffix}"

    def _write_record(self, record: EngineRecord) -> None:
        text = msgspec.json.format(msgspec.json.encode(record), indent=2)
        self._write(self._path(record.key, "json"), text + b"\n")

    def _write(self, path: Path, content: bytes) -> None:
        """All of it or nothing, also when the power goes."""
        try:
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fchmod(file.fileno(), 0o644)  # other users' services read it too
                    os.fsync(file.fileno())
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise CacheError(
                f"{path} cannot be written ({error.strerror}); free some space: "
                "python -m krabby.policy.tensorrt prune, or give inference.cache_dir another volume"
            ) from error

    def _index(self) -> AbstractContextManager[bool]:
        """Around changes of records; never held for long."""
        return self._held("index.lock", wait=lambda: None)

    def _opened(self, path: Path) -> IO[bytes]:
        try:
            return path.open("a+b")
        except OSError as error:
            raise CacheError(
                f"{path} cannot be opened ({error.strerror}); run python -m "
                "krabby.policy.tensorrt as the user that the services run as"
            ) from error

    @contextlib.contextmanager
    def _held(self, name: str, wait: Callable[[], None] | bool) -> Iterator[bool]:
        """A lock file; with wait=False only if it is free, which the value tells."""
        with self._opened(self.folder / name) as file:
            held = _lock(file)
            while not held and callable(wait):
                wait()
                time.sleep(_LOCK_PAUSE_S)
                held = _lock(file)
            yield held


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_record(path: Path) -> EngineRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=EngineRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def _canonical(value: object) -> bytes:
    plain = msgspec.to_builtins(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
