"""The safety gate between the wire and a back end: commands, operators' requests, the cycle."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import structlog
from krabby_proto import (
    FLAG_HOLD,
    SAFETY_STATES,
    CommandOutcome,
    CommandStatus,
    Message,
    SafetyOutcome,
    fault_names,
)
from numpy.typing import NDArray

from krabby.hal.backend import HalBackend, Reading, Slot, limp
from krabby.hal.measurement import Measurement
from krabby.safety.gate import GateCfg, SafetyGate

__all__ = ["GateHandler"]

log = structlog.get_logger(__name__)


class GateHandler:
    """Implements `krabby_proto.HalHandler` around a back end and the gate in front of it."""

    def __init__(self, backend: HalBackend, *, answer_delay_ns: int = 0) -> None:
        """Put a gate in front of `backend`.

        Args:
            backend: Moves the joints; nothing else writes to it.
            answer_delay_ns: Lock-step: simulated time that an answer takes [ns].
        """
        self.backend = backend
        cfg = GateCfg.from_description(backend.desc)
        # Another count in each process, so that no client takes one for the other.
        self.gate = SafetyGate(cfg, arm_count=secrets.randbits(32))
        self.drive = limp(backend.desc)
        """What was written last."""
        self.measured = Measurement(self.gate.cfg.joint_count, len(backend.desc.leg_names))
        """The newest complete measurement; level and at rest before the first."""
        self.on_actuated: Callable[[Message, int], None] = lambda message, applied_ns: None
        """Called with an applied command and when it reaches the drives."""
        self.expected_capture_ns: int | None = None
        """Lock-step: capture time of the state to be answered; commands for others are refused."""
        self.last_command_ns: int | None = None
        """Capture time of the state that the newest accepted command answers."""
        self.position_clamps = np.zeros(self.gate.cfg.joint_count, np.int64)
        self.rate_clamps = np.zeros(self.gate.cfg.joint_count, np.int64)
        """Targets cut by the gate, per joint."""
        self.fault_counts: Counter[str] = Counter()
        """How often the gate found each fault; the loop's leaving at the end is one."""
        self._faults = self.gate.faults
        self._clock_ns = backend.clock_ns
        self._answer_delay_ns = answer_delay_ns

    def cycle(self, slot: Slot) -> Reading:
        """One slot: write, read, judge, write."""
        gate, backend = self.gate, self.backend
        self._write(self._clock_ns())
        reading = backend.read(slot)
        now_ns = self._clock_ns()
        if reading.faults:
            gate.raise_fault(reading.faults, now_ns)
        measured = reading.measured
        if measured is not None:
            self.measured = measured
            gate.observe(
                measured.joint_pos,
                measured.joint_vel,
                measured.joint_effort,
                measured.base_quat_w,
                now_ns,
                reading.capture_ns,
            )
        backend.judged(gate, now_ns)
        if not backend.buffered:  # else the next cycle asks anew before anything is sent
            self._write(now_ns)
        return reading

    def on_command(self, message: Message) -> CommandOutcome:
        """Give a valid command to the gate, and what the gate makes of it to the drives."""
        expected = self.expected_capture_ns
        if expected is not None and message.capture_ns != expected:
            return self.outcome(CommandStatus.REJECTED_STALE)
        self.last_command_ns = message.capture_ns
        now_ns = self._clock_ns()
        self.backend.commanded(now_ns)
        hold = bool(message.flags & FLAG_HOLD)
        result = self.gate.command(message.payload, now_ns, hold=hold)
        if result.status is not CommandStatus.APPLIED:
            return self.outcome(result.status)
        applied_ns = self._write(now_ns, self._answer_delay_ns)
        self.on_actuated(message, applied_ns)
        _count_bits(self.position_clamps, result.position_clamp_mask)
        _count_bits(self.rate_clamps, result.rate_clamp_mask)
        return self.outcome(
            result.status,
            position_clamp_mask=result.position_clamp_mask,
            rate_clamp_mask=result.rate_clamp_mask,
            applied_ns=applied_ns,
        )

    def on_safety(self, op: str, by: str) -> SafetyOutcome:
        """Carry out what an operator asked for, or say what stands in the way."""
        obstacle = self.backend.obstacle(op, self.gate)
        if obstacle:
            log.info("operator", op=op, by=by, ok=False, reason=obstacle)
            return self.answer(False, obstacle)
        now_ns = self._clock_ns()
        reply = self.gate.request(op, now_ns)
        if op != "status":
            self._write(now_ns, self._answer_delay_ns)
            log.info("operator", op=op, by=by, ok=reply.ok, reason=reply.reason)
            self.backend.operated(op, granted=reply.ok)
        return self.answer(reply.ok, reply.reason)

    def outcome(self, status: CommandStatus, **facts: int) -> CommandOutcome:
        """The answer to a command, with the gate as it is now."""
        gate = self.gate
        return CommandOutcome(
            status, int(gate.state), int(gate.faults), arm_count=gate.arm_count, **facts
        )

    def answer(self, ok: bool, reason: str) -> SafetyOutcome:
        """The answer to an operator, with the gate as it is now."""
        return SafetyOutcome(
            ok=ok,
            state=SAFETY_STATES[self.gate.state],
            faults=tuple(fault_names(int(self.gate.faults))),
            reason=reason,
        )

    def summary(self) -> dict[str, Any]:
        """What the gate did, for the last log line."""
        position, rate = int(self.position_clamps.sum()), int(self.rate_clamps.sum())
        return {
            "gate_clamps": position + rate,
            "gate_position_clamps": position,
            "gate_rate_clamps": rate,
            "gate_faults": dict(self.fault_counts),
        }

    def _write(self, now_ns: int, delay_ns: int = 0) -> int:
        """Ask the gate, hand its decision to the drives; when that reaches them [ns]."""
        self.drive = self.gate.step(now_ns)
        faults = self.gate.faults
        if faults != self._faults:
            self.fault_counts.update(fault_names(int(faults & ~self._faults)))
            self._faults = faults
        return self.backend.write(self.drive, now_ns + delay_ns)


def _count_bits(counts: NDArray[np.int64], mask: int) -> None:
    """Add one wherever the mask has a bit; commands without a clamp cost nothing."""
    while mask:
        low = mask & -mask
        counts[low.bit_length() - 1] += 1
        mask ^= low
