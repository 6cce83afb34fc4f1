"""The safety gate behind the wire: what a HAL does with commands and operators' requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from krabby_proto import (
    SAFETY_STATES,
    CommandOutcome,
    CommandStatus,
    HalServer,
    Message,
    SafetyOutcome,
    fault_names,
    make_hello,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand, SafetyGate

__all__ = ["GateHandler", "follow_gate", "hal_hello", "publish_state"]

log = structlog.get_logger(__name__)

_STATUS = {
    "applied": CommandStatus.APPLIED,
    "not_armed": CommandStatus.NOT_ARMED,
    "held": CommandStatus.HELD,
    "refused": CommandStatus.REJECTED_SAFETY,
}


class GateHandler:
    """Implements `krabby_proto.HalHandler` around a `SafetyGate`."""

    def __init__(
        self,
        gate: SafetyGate,
        *,
        clock_ns: Callable[[], int],
        actuate: Callable[[DriveCommand, int], int],
    ) -> None:
        """Stand in front of `gate`.

        Args:
            gate: Decides; this thread owns it.
            clock_ns: The HAL's clock.
            actuate: Hands the drives what they must do from a time on [ns], and returns when that
                reaches them by its knowledge [ns].
        """
        self.gate = gate
        self._clock_ns = clock_ns
        self._actuate = actuate
        joints = gate.cfg.joint_count
        self.on_actuated: Callable[[Message, int], None] = lambda message, applied_ns: None
        """Called with an applied command and what `actuate` returned for it."""
        self.position_clamps = np.zeros(joints, np.int64)
        self.rate_clamps = np.zeros(joints, np.int64)
        """Targets cut by the gate, per joint."""

    def on_command(self, message: Message) -> CommandOutcome:
        """Give a valid command to the gate, and what the gate makes of it to the drives."""
        now_ns = self._clock_ns()
        result = self.gate.command(message.payload, now_ns)
        status = _STATUS[result.status]
        if status is not CommandStatus.APPLIED:
            return self.outcome(status)
        applied_ns = self._actuate(self.gate.step(now_ns), now_ns)
        self.on_actuated(message, applied_ns)
        _count_bits(self.position_clamps, result.position_clamp_mask)
        _count_bits(self.rate_clamps, result.rate_clamp_mask)
        return self.outcome(
            status,
            position_clamp_mask=result.position_clamp_mask,
            rate_clamp_mask=result.rate_clamp_mask,
            applied_ns=applied_ns,
        )

    def on_safety(self, op: str, by: str) -> SafetyOutcome:
        """Carry out what an operator asked for."""
        now_ns = self._clock_ns()
        reply = self.gate.request(op, now_ns)
        if op != "status":
            self._actuate(self.gate.step(now_ns), now_ns)
            log.info("operator", op=op, by=by, ok=reply.ok, reason=reply.reason)
        return self.answer(reply.ok, reply.reason)

    def outcome(self, status: CommandStatus, **facts: int) -> CommandOutcome:
        """The answer to a command, with the gate as it is now."""
        return CommandOutcome(status, int(self.gate.state), int(self.gate.faults), **facts)

    def answer(self, ok: bool, reason: str) -> SafetyOutcome:
        """The answer to an operator, with the gate as it is now."""
        return SafetyOutcome(
            ok=ok,
            state=SAFETY_STATES[self.gate.state],
            faults=tuple(fault_names(int(self.gate.faults))),
            reason=reason,
        )


def hal_hello(
    service: str,
    desc: RobotDescription,
    *,
    clock: str = "monotonic",
    camera: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a HAL says about itself; `camera` is the camera model, None when there is none."""
    return make_hello(
        service=service, clock=clock, robot=desc.identity, camera=camera or {}, extra=extra
    )


def follow_gate(server: HalServer, gate: SafetyGate) -> None:
    """Let every reply from now on carry the gate's state and faults."""
    server.safety_state = int(gate.state)
    server.fault_bits = int(gate.faults)


def publish_state(
    server: HalServer, gate: SafetyGate, payload: ArrayLike, capture_ns: int, flags: int = 0
) -> None:
    """Publish a state, and let every reply from now on carry the gate's state and faults."""
    follow_gate(server, gate)
    server.publish_state(payload, capture_ns, flags)


def _count_bits(counts: NDArray[np.int64], mask: int) -> None:
    """Add one wherever the mask has a bit; commands without a clamp cost nothing."""
    while mask:
        low = mask & -mask
        counts[low.bit_length() - 1] += 1
        mask ^= low
