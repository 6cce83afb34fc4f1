"""Random faults for a long time: memory and stale commands."""

from __future__ import annotations

import random
import sys
import threading
import time
from typing import Any, Final, NamedTuple

import numpy as np
from krabby_proto import ProtoError

from krabby_faults.measure import LIMITS, measure
from krabby_faults.report import write_soak
from krabby_faults.stack import Stack
from krabby_faults.table import FAULTS

__all__ = ["soak"]

_SAMPLE_S: Final = 2.0
_SETTLE: Final = 1 / 5
"""Share of the time after which processes are left alone, so that their memory can be compared."""
_COMPARE: Final = 1 / 3
"""Share of the time after which it is compared: what a new process loads late does not count."""
_MOST_MB_PER_HOUR: Final = 1.0
_LEAST_MINUTES: Final = 5
"""A process that lived for less of the comparison shows no slope."""
_QUANTILE: Final = 1.96
"""Of the normal distribution, for an interval of 95 %."""


class _Sample(NamedTuple):
    time_s: float
    pid: int
    mb: float


class _Memory(threading.Thread):
    """Samples the memory of each service."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self._stack = stack
        self._stopped = threading.Event()
        self.samples: dict[str, list[_Sample]] = {name: [] for name in stack.services}

    def run(self) -> None:
        while not self._stopped.wait(_SAMPLE_S):
            for name, process in list(self._stack.processes.items()):
                try:
                    mb = self._stack.memory_mb(name)
                except (OSError, IndexError):
                    continue
                self.samples[name].append(_Sample(time.monotonic(), process.pid, mb))

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def slopes(self, since_s: float) -> dict[str, dict[str, float]]:
        """Growth of each process that lived from then to the end, with its 95 % interval [MB/h].

        The least memory of each minute counts: what a fault takes and gives back is above it.
        """
        found = {}
        for name, samples in self.samples.items():
            if not samples:
                continue
            last = samples[-1].pid
            kept = [s for s in samples if s.pid == last and s.time_s >= since_s]
            if not kept:
                continue
            minutes = ((np.array([s.time_s for s in kept]) - kept[0].time_s) // 60.0).astype(int)
            if minutes[-1] < _LEAST_MINUTES:
                continue
            sizes = np.array([s.mb for s in kept])
            least = np.array([sizes[minutes == m].min() for m in np.unique(minutes)])
            slope, low, high = theil_sen(np.unique(minutes) / 60.0, least)
            found[name] = {
                "mb_per_hour": round(slope, 3),
                "low": round(low, 3),
                "high": round(high, 3),
                "mb": round(float(sizes[-1]), 1),
                "minutes": round((kept[-1].time_s - kept[0].time_s) / 60.0, 1),
                "n": len(least),
            }
        return found


def theil_sen(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Median slope over all pairs, which one step does not move, and its 95 % interval.

    The interval is Sen's: as many ranks around the median as Kendall's statistic varies by.
    """
    i, j = np.triu_indices(len(x), k=1)
    slopes = np.sort((y[j] - y[i]) / (x[j] - x[i]))
    n = len(x)
    spread = _QUANTILE * np.sqrt(n * (n - 1) * (2 * n + 5) / 18.0)
    low, high = (round((len(slopes) + sign * spread) / 2) for sign in (-1, 1))
    low, high = max(low - 1, 0), min(high, len(slopes) - 1)
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])


def soak(policy: str, minutes: float, seed: int, write: bool) -> int:
    """Random faults on the simulated robot with a camera; returns the exit status."""
    chance = random.Random(seed)
    faults = [one for one in FAULTS if "simulated" in one.robots and not one.needs_root]
    gentle = [one for one in faults if not (_ends_a_process(one.name) or one.grows)]
    stack = Stack("simulated", policy, camera=True)
    memory = _Memory(stack)
    problems: list[str] = []
    began_ns, count = time.monotonic_ns(), 0
    try:
        stack.start()
        stack.make_walk()
        memory.start()
        began_s = time.monotonic()
        end_s, settle_s = began_s + 60.0 * minutes, began_s + 60.0 * minutes * _SETTLE
        while time.monotonic() < end_s:
            fault = chance.choice(faults if time.monotonic() < settle_s else gentle)
            count += 1
            try:
                row = measure(stack, fault)
            except (TimeoutError, ProtoError) as error:
                problems.append(f"{fault.name}: not measured: {error}")
                stack.revive()
                continue
            problems += [f"{row.fault}: {each}" for each in row.problems()]
        memory.stop()
        slopes = memory.slopes(began_s + 60.0 * minutes * _COMPARE)
        problems += [f"{n}: ended too late to compare" for n in stack.services if n not in slopes]
        worst = stack.probe.worst(began_ns)
        stale = stack.probe.stale(
            began_ns, LIMITS.since_publish_ms * 1e-3, LIMITS.since_capture_ms * 1e-3
        )
    finally:
        stack.close()
    facts: dict[str, Any] = {
        "minutes": minutes, "seed": seed, "faults": count, "commands": worst.commands,
        "stale": stale, "since_publish_ms": round(worst.since_publish_s * 1e3, 2),
        "since_capture_ms": round(worst.since_capture_s * 1e3, 2), "memory": slopes,
        "problems": problems,
    }  # fmt: skip
    sys.stdout.write("".join(f"{key}: {value}\n" for key, value in facts.items()))
    if write:
        write_soak(facts)
    grows = any(each["mb_per_hour"] > _MOST_MB_PER_HOUR for each in slopes.values())
    return 1 if stale or grows or problems else 0


def _ends_a_process(name: str) -> bool:
    return any(word in name for word in ("killed", "ended", "stuck", "takes all memory"))
