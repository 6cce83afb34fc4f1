"""Telemetry of a run: measured on the device, written to the terminal, files and Prometheus."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

import torch
from torch import Tensor

__all__ = [
    "Iteration",
    "JsonLines",
    "Meter",
    "Progress",
    "Sink",
    "TensorBoard",
    "WeightsAndBiases",
    "duration",
]

_EPISODES: Final = 100
"""Episodes that the mean reward is taken over, at least."""


@dataclass(frozen=True, kw_only=True)
class Iteration:
    number: int
    """Iterations done, this one included."""
    total: int
    """Iterations of the whole run."""
    env_steps: int
    """Robot-steps so far, all processes together."""
    wall_s: float
    """Time spent training so far, earlier parts of a resumed run included [s]."""
    eta_s: float
    """Time to the end at the present pace [s]."""
    scalars: Mapping[str, float]
    """`Group/name`: value."""


class Sink(Protocol):
    """Receives every iteration."""

    def write(self, iteration: Iteration) -> None: ...

    def close(self) -> None: ...


class Meter:
    """Sums of what the environment reports, on its device; one transfer per iteration.

    Means over steps leave out values that are not finite: the environment reports NaN for what has
    no sample. Observations and rewards have to be finite.
    """

    def __init__(self, num_envs: int, device: str | torch.device) -> None:
        self._device = device
        self._return = torch.zeros(num_envs, device=device)
        self._length = torch.zeros(num_envs, device=device)
        self._ended = torch.zeros(3, device=device)
        self._finite: Tensor | None = None
        self._sources: tuple[str, ...] = ()
        self._logs: dict[tuple[str, ...], list[Tensor]] = {}
        self._recent: deque[tuple[float, float, float]] = deque()

    def step(
        self,
        obs: Mapping[str, Tensor],
        rewards: Tensor,
        dones: Tensor,
        log: Mapping[str, Tensor | float] | None,
    ) -> None:
        self._return += rewards
        self._length += 1
        done = dones > 0
        self._ended += torch.stack(
            [(self._return * done).sum(), (self._length * done).sum(), done.sum()]
        )
        self._return.masked_fill_(done, 0.0)
        self._length.masked_fill_(done, 0.0)
        self._watch({"reward": rewards, **dict(obs.items())})
        if log:
            values = [torch.as_tensor(value, device=self._device) for value in log.values()]
            row = torch.stack([value.detach().float().reshape(()) for value in values])
            self._logs.setdefault(tuple(log), []).append(row)

    def not_finite(self) -> list[str]:
        """Names of observation groups, or `reward`, that were not finite since the last call."""
        if self._finite is None:
            return []
        bad = [
            name
            for name, fine in zip(self._sources, self._finite.tolist(), strict=True)
            if not fine
        ]
        self._finite = None
        return bad

    def take(self) -> dict[str, float]:
        """Means since the last call; keys that never had a finite value are absent."""
        scalars: dict[str, float] = {}
        for names, rows in self._logs.items():
            means = torch.stack(rows).double()
            means[~means.isfinite()] = math.nan
            for name, value in zip(names, means.nanmean(dim=0).tolist(), strict=True):
                if math.isfinite(value):
                    scalars[name if "/" in name else f"Episode/{name}"] = value
        self._logs.clear()
        self._recent.append(tuple(self._ended.tolist()))
        self._ended.zero_()
        while sum(each[2] for each in list(self._recent)[1:]) >= _EPISODES:
            self._recent.popleft()
        total, steps, count = (sum(column) for column in zip(*self._recent, strict=True))
        if count:
            scalars["Train/mean_reward"] = total / count
            scalars["Train/mean_episode_steps"] = steps / count
        return scalars

    def _watch(self, tensors: Mapping[str, Tensor]) -> None:
        # A sum is finite only if all of it is, and costs one pass without a copy.
        finite = torch.stack([tensor.sum() for tensor in tensors.values()]).isfinite()
        self._sources = tuple(tensors)
        self._finite = finite if self._finite is None else self._finite & finite


class Progress:
    """One line of progress: rewritten on a terminal, else repeated at an interval."""

    def __init__(
        self,
        *,
        period_s: float,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._period_s = period_s
        self._clock = clock
        self._said_at = -math.inf
        self._last = ""

    def write(self, iteration: Iteration) -> None:
        self.show(progress_line(iteration))

    def show(self, line: str) -> None:
        """Show a line that the next one replaces."""
        if self._terminal:
            width = _columns(self._stream)
            self._put(f"\r\x1b[K{line[: width - 1]}")
            self._last = line
        elif self._clock() - self._said_at >= self._period_s:
            self._said_at = self._clock()
            self._put(line + "\n")

    def say(self, line: str) -> None:
        """Show a line that stays."""
        if self._terminal and self._last:
            self._put(f"\r\x1b[K{line}\n{self._last}")
        else:
            self._put(line + "\n")

    def close(self) -> None:
        if self._terminal and self._last:
            self._put("\n")
            self._last = ""

    def _put(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def progress_line(iteration: Iteration) -> str:
    """One iteration in a line; what was not measured is left out."""
    parts = [f"{iteration.number}/{iteration.total}"]
    for key, show in _SHOWN.items():
        value = iteration.scalars.get(key)
        if value is not None:
            parts.append(show(value))
    parts.append(f"ETA {duration(iteration.eta_s)}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`1:02:03`."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


_SHOWN: Final[dict[str, Callable[[float], str]]] = {
    "Perf/env_steps_per_s": lambda v: f"{v / 1e3:.1f}k steps/s" if v >= 1e3 else f"{v:.0f} steps/s",
    "Perf/collect_s": lambda v: f"collect {v:.2f} s",
    "Perf/learn_s": lambda v: f"learn {v:.2f} s",
    "Train/mean_reward": lambda v: f"reward {v:.2f}",
    "Loss/action": lambda v: f"imitation {v:.4f}",
    "Episode/mxd": lambda v: f"MXD {v:.2f}",
    "Level/mean": lambda v: f"level {v:.2f}",
    "Torque/rms_nm": lambda v: f"torque {v:.1f} N·m",
    "Policy/action_std": lambda v: f"std {v:.2f}",
}


class JsonLines:
    """`log.jsonl`: one object per line, every n-th iteration.

    A resumed run drops the lines after its checkpoint, which it is about to write again.
    """

    def __init__(self, path: Path, *, every: int, iteration: int = 0) -> None:
        self._every, self._path = every, path
        if path.exists():
            kept = [line for line in _lines(path) if line[0] <= iteration]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(text + "\n" for _, text in kept), encoding="utf-8")
            partial.replace(path)
        self._file = path.open("ab", buffering=0)

    def write(self, iteration: Iteration) -> None:
        if iteration.number % self._every and iteration.number != iteration.total:
            return
        facts = {
            "iteration": iteration.number,
            "env_steps": iteration.env_steps,
            "wall_s": round(iteration.wall_s, 3),
            **{name: _rounded(value) for name, value in iteration.scalars.items()},
        }
        line = json.dumps(facts, allow_nan=False).encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        if self._file.write(line) != len(line):  # the disk is full: take the half line back
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files in the run's folder, the iteration as the step.

    Written in the caller's thread, so that a failure is the caller's to handle; after one, the next
    write begins a new file.
    """

    def __init__(self, folder: Path, *, iteration: int = 0) -> None:
        self._folder = folder
        # Events after the checkpoint are purged: the run is about to write them again.
        self._writer: Any = self._open(iteration + 1 if iteration else None)

    def write(self, iteration: Iteration) -> None:
        scalars = {**iteration.scalars, "Progress/env_steps": iteration.env_steps}
        if self._writer is None:
            self._writer = self._open(None)
        values = [{"tag": tag, "simple_value": float(v)} for tag, v in scalars.items()]
        self._put(step=iteration.number, summary={"value": values})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int | None) -> Any:
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"  # read in this order
        path = self._folder / name
        self._writer = RecordWriter(path.open("wb"))
        step = purge_step or 0
        try:
            self._put(step=step, file_version="brain.Event:2")
            if purge_step is not None:
                self._put(step=step, session_log={"status": "START"})
        except OSError:
            path.unlink(missing_ok=True)  # a full disk would get one in each iteration
            raise
        return self._writer

    def _put(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
            self._writer.flush()
        except OSError:
            writer, self._writer = self._writer, None
            with contextlib.suppress(OSError):
                writer.close()
            raise


class WeightsAndBiases:
    """The same for Weights & Biases; without a key it is written into the run's folder.

    Raises:
        OSError: The service cannot be reached or refuses.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        import wandb

        known = folder / ".wandb-id"  # a resumed run continues under its name there
        if not known.exists():
            known.write_text(os.urandom(4).hex(), encoding="utf-8")
        mode = os.environ.get("WANDB_MODE", "online")
        try:
            if mode == "online":
                wandb.Api()
        except wandb.Error:  # no key
            mode = "offline"
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=known.read_text(encoding="utf-8"),
                resume="allow",
                dir=folder,
                config=dict(config),
                mode=mode,  # type: ignore[arg-type]
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise OSError(f"Weights & Biases: {error}") from error

    def write(self, iteration: Iteration) -> None:
        scalars = {**iteration.scalars, "Progress/env_steps": iteration.env_steps}
        self._run.log(scalars, step=iteration.number)

    def close(self) -> None:
        self._run.finish()


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield int(json.loads(line)["iteration"]), line.rstrip("\n")
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was killed while it wrote


def _rounded(value: Any) -> float | None:
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _columns(stream: TextIO) -> int:
    try:
        return max(os.get_terminal_size(stream.fileno()).columns, 20)
    except (OSError, ValueError):
        return 120
