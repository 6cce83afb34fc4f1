"""The summary of a run: one JSON object made of what each service reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import psutil

from krabby_cli.plan import Plan

__all__ = ["CpuMeter", "ExitState", "RunEnd", "build_summary"]

ExitState = Literal["finished", "interrupted", "failed"]

_FROM_GAMELOOP: Final = (
    "loop_hz", "deadline_misses", "skipped", "work_p50_ms", "work_p99_ms", "observe_p99_ms",
    "infer_p99_ms", "obs_age_p50_ms", "obs_age_p99_ms", "features_age_p99_ms",
    "command_rtt_p50_ms", "command_rtt_p99_ms", "command_timeouts", "holds", "policy_s", "blind_s",
    "blind_switches", "bad_outputs",
)  # fmt: skip
_FROM_CAMERA: Final = {
    "frames_used": "frames",
    "frames_withheld": "dropped",
    "camera_work_p99_ms": "processing_p99_ms",
}
"""Name in the summary: name in the camera's report."""
_FROM_SIM_HAL: Final = (
    "distance_m", "furthest_m", "course_m", "falls", "course_completed", "waypoints_reached",
    "waypoints", "edge_feet", "gate_clamps", "gate_faults", "effort_rms_nm", "effort_rms_max_nm",
    "saturation_share", "frames_dropped", "degrade", "trajectory_hash", "sim_time_s",
    "real_time_factor",
)  # fmt: skip


class RunEnd(NamedTuple):
    """How a run ended."""

    exit: ExitState
    reason: str
    duration_s: float
    """From the moment all were ready to the moment the first was stopped [s]."""
    cpu_cores: Mapping[str, float] = {}
    """Mean processor use while the robot walked, in cores, by service."""
    machine_cores: float | None = None
    """The same of everything on the machine; None when it was not measured."""


def build_summary(
    plan: Plan, end: RunEnd, reports: Mapping[str, Mapping[str, Any]], latest: Mapping[str, float]
) -> dict[str, Any]:
    """The summary; a figure that no service reported is null.

    Args:
        plan: what was run.
        end: how it ended.
        reports: `summary` events by service; empty for a service that died before it.
        latest: the last figures of the truth stream, for a simulator that could not report.
    """
    loop, camera, sim = (reports.get(name, {}) for name in ("gameloop", "camera", "sim-hal"))
    figures = {name: loop.get(name) for name in _FROM_GAMELOOP}
    figures |= {name: camera.get(theirs) for name, theirs in _FROM_CAMERA.items()}
    figures |= {name: sim.get(name, latest.get(name)) for name in _FROM_SIM_HAL}
    services = ("sim-hal", "camera", "gameloop")
    cores = {name: end.cpu_cores[name] for name in services if name in end.cpu_cores}
    rounded = {name: round(value, 3) for name, value in cores.items()}
    return {
        "policy": plan.policy,
        "course": plan.course,
        "difficulty": plan.difficulty,
        "seed": plan.seed,
        "duration_s": round(end.duration_s, 3),
        **figures,
        "cpu_cores": {**rounded, "total": round(sum(cores.values()), 3) if cores else None},
        "machine_cores": None if end.machine_cores is None else round(end.machine_cores, 3),
        "exit": end.exit,
        "reason": end.reason,
        "run_id": plan.run_id,
        "logs": str(plan.folder),
    }


class CpuMeter:
    """Mean processor use of processes, each with its children, between a mark and the last sample.

    A process that draws for sim-hal is a child of it.
    """

    def __init__(
        self, pids: Mapping[str, int], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._processes: dict[str, psutil.Process] = {}
        for name, pid in pids.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._processes[name] = psutil.Process(pid)
        self._last: dict[str, tuple[float, float]] = {}
        self._before: dict[str, tuple[float, float]] = {}
        self._marked: dict[str, tuple[float, float]] = {}
        self._machine = self._machine_marked = (0.0, 0.0)
        self.sample()
        self.mark()

    def sample(self) -> None:
        """Look at every process that is still there."""
        now = self._clock()
        self._before = dict(self._last)
        machine = psutil.cpu_times()
        self._machine = (now, sum(machine) - machine.idle - getattr(machine, "iowait", 0.0))
        for name, process in self._processes.items():
            with contextlib.suppress(psutil.Error):
                self._last[name] = (now, _busy_s(process))

    def mark(self) -> None:
        """Start of the span that `cores` is about: the last sample."""
        self._marked = dict(self._last)
        self._machine_marked = self._machine

    @property
    def machine(self) -> float | None:
        """Processor use of the whole machine, mark to last sample [cores]; None without a span."""
        rates = _rates({"machine": self._machine_marked}, {"machine": self._machine})
        return rates.get("machine")

    def cores(self) -> dict[str, float]:
        """Processor use from the mark to the last sample [cores], by name."""
        return _rates(self._marked, self._last)

    def recent(self) -> dict[str, float]:
        """Processor use between the last two samples [cores], by name."""
        return _rates(self._before, self._last)


def _busy_s(process: psutil.Process) -> float:
    """Processor time of a process and of its children, also of those that have ended [s]."""
    busy_s = sum(process.cpu_times()[:4])
    for thread in Path(f"/proc/{process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            for child in thread.read_text().split():
                with contextlib.suppress(psutil.Error):
                    busy_s += _busy_s(psutil.Process(int(child)))
    return busy_s


def _rates(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    rates: dict[str, float] = {}
    for name, (then_s, then_cpu_s) in before.items():
        now_s, now_cpu_s = after[name]
        if now_s > then_s:
            rates[name] = (now_cpu_s - then_cpu_s) / (now_s - then_s)
    return rates
