"""The gate and the joints as metrics, under the same names in every HAL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import structlog
from krabby_proto import SAFETY_STATES, CommandStatus, Fault, SafetyState
from prometheus_client import Counter, Gauge

from krabby.hal.handler import GateHandler
from krabby.runtime.logging import log_every
from krabby.runtime.metrics import OBSERVATION_AGE, STREAM_OVERSIZED, Totals, children

__all__ = ["OBSERVATION", "GateMetrics", "OversizedRequests"]

log = structlog.get_logger(__name__)

OBSERVATION = OBSERVATION_AGE.labels("state")
"""Age of the state behind a command when it reached the actuators."""

_COMMANDS = children(
    Counter("krabby_commands_total", "Commands by what became of them", ["status"]),
    [status.name.lower() for status in CommandStatus],
)
_SAFETY_STATE = children(
    Gauge("krabby_safety_state", "1 for the state the safety gate is in", ["state"]), SAFETY_STATES
)
_SAFETY_ENTERED = children(
    Gauge(
        "krabby_safety_state_entered_seconds",
        "CLOCK_MONOTONIC when the gate last entered the state, to one slot; 0 for never",
        ["state"],
    ),
    SAFETY_STATES,
)
_FAULTS = children(
    Gauge("krabby_fault_active", "1 while the safety gate reports the fault", ["fault"]),
    [str(fault.name).lower() for fault in Fault],
)
_EFFORT_BUDGET = Gauge(
    "krabby_effort_budget_ratio", "RMS torque over rated torque, of the joint that works hardest"
)
_EFFORT_RMS = Gauge(
    "krabby_joint_effort_rms_newton_meters", "Filtered RMS torque of a drive", ["joint"]
)
_POSITION = Gauge("krabby_joint_position_radians", "Measured angle", ["joint"])
_TARGET = Gauge("krabby_joint_target_radians", "Angle the drive is told to hold", ["joint"])
_VELOCITY = Gauge("krabby_joint_velocity_radians_per_second", "Measured speed", ["joint"])
_EFFORT = Gauge("krabby_joint_effort_newton_meters", "Torque of a drive, magnitude", ["joint"])
_EFFORT_LIMIT = Gauge(
    "krabby_joint_effort_limit_newton_meters",
    "Largest torque the gate lets the drive give now",
    ["joint"],
)
_CLAMPED = Counter(
    "krabby_command_clamped_total", "Targets cut by the safety gate", ["joint", "kind"]
)


_OVERSIZED = children(STREAM_OVERSIZED, ("command", "safety"))


class OversizedRequests:
    """Counts and names requests that were dropped for their number of frames."""

    def __init__(self) -> None:
        self._totals = Totals()
        self._warn = log_every(log)
        self._told: dict[str, int] = {}

    def update(self, oversized: Mapping[str, int]) -> None:
        """Bring the metrics up to date; `oversized` are totals by endpoint."""
        for endpoint, count in oversized.items():
            self._totals.show(_OVERSIZED[endpoint], count)
            if count > self._told.get(endpoint, 0):
                self._told[endpoint] = count
                self._warn.warning(
                    "requests with too many frames dropped", endpoint=endpoint, total=count
                )


class GateMetrics:
    """Hands what is counted elsewhere to the metrics, a few times a second.

    The loop counts in plain integers; here the counters catch up with them.
    """

    def __init__(self, handler: GateHandler, joint_names: Sequence[str]) -> None:
        """Watch a handler and its gate; every series exists from now on."""
        self._handler = handler
        self._joints = {
            metric: [metric.labels(name) for name in joint_names]
            for metric in (_EFFORT_RMS, _POSITION, _TARGET, _VELOCITY, _EFFORT, _EFFORT_LIMIT)
        }
        self._clamped = {
            kind: [_CLAMPED.labels(name, kind) for name in joint_names]
            for kind in ("position", "rate")
        }
        self._totals = Totals()
        self._state: SafetyState | None = None

    def note_state(self, now_ns: int) -> None:
        """Stamp the gate's state if it is another one than in the last slot; else a comparison.

        How long a state took to be reached can be told from it exactly, which no scrape could.
        """
        state = self._handler.gate.state
        if state is not self._state:
            self._state = state
            _SAFETY_ENTERED[SAFETY_STATES[state]].set(now_ns * 1e-9)

    def update(self, commands: Mapping[str, int]) -> None:
        """Bring every metric up to date; `commands` are totals by status."""
        handler, gate = self._handler, self._handler.gate
        measured, drive = handler.measured, handler.drive
        for state, gauge in zip(SafetyState, _SAFETY_STATE.values(), strict=True):
            gauge.set(gate.state is state)
        for fault, gauge in zip(Fault, _FAULTS.values(), strict=True):
            gauge.set(fault in gate.faults)
        _EFFORT_BUDGET.set(gate.effort.ratio)
        for metric, values in (
            (_EFFORT_RMS, gate.effort.rms),
            (_POSITION, measured.joint_pos),
            (_TARGET, drive.joint_pos),
            (_VELOCITY, measured.joint_vel),
            (_EFFORT, np.abs(measured.joint_effort)),
            (_EFFORT_LIMIT, drive.effort_limit),
        ):
            for gauge, value in zip(self._joints[metric], values.tolist(), strict=True):
                gauge.set(value)
        for status, count in commands.items():
            self._totals.show(_COMMANDS[status], count)
        clamps = {"position": handler.position_clamps, "rate": handler.rate_clamps}
        for kind, counters in self._clamped.items():
            for counter, count in zip(counters, clamps[kind], strict=True):
                self._totals.show(counter, int(count))
