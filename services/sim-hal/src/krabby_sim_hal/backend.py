"""The simulated robot behind the wire: the stage, drives and the safety gate.

Everything but sockets, pacing and metrics. Time is passed in, except where the clock is asked for
the moment an actuator write returned; so a test drives it with a clock of its own, and lock-step
with simulated time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from krabby.hal.handler import GateHandler
from krabby.hal.measurement import StatePayload
from krabby.mujoco.actuation_delay import DriveLine
from krabby.mujoco.stage import Stage
from krabby.mujoco.world import SUBSTEP_NS
from krabby.safety.gate import GateCfg, SafetyGate
from krabby_proto import CommandOutcome, CommandStatus, Message, SafetyOutcome, fault_names

from krabby_sim_hal.auto_arm import AutoArm

if TYPE_CHECKING:
    from collections.abc import Callable

    from krabby.course.courses import Course
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand
    from numpy.typing import NDArray

    from krabby_sim_hal.config import SimHalCfg

__all__ = ["Simulator"]

log = structlog.get_logger(__name__)


class Simulator(Stage):
    """One robot on one course; implements `krabby_proto.HalHandler`."""

    def __init__(
        self,
        cfg: SimHalCfg,
        desc: RobotDescription,
        course: Course,
        *,
        clock_ns: Callable[[], int],
    ) -> None:
        self.gate = SafetyGate(GateCfg.from_description(desc))
        super().__init__(cfg, desc, course, tilt_limit_rad=self.gate.cfg.tilt_limit_rad)
        self._clock_ns = clock_ns
        self._answer_delay_ns = round(cfg.lockstep.answer_delay_s * 1e9) if cfg.speed == 0.0 else 0
        self._auto_arm = AutoArm(enabled=cfg.auto_arm)
        self._just_reset = False
        self._payload = StatePayload()
        self._hash = hashlib.sha256()
        self.gate_faults: Counter[str] = Counter()
        """How often the gate found each fault; the loop's leaving at the end is one."""
        self._faults = self.gate.faults

        self.expected_capture_ns: int | None = None
        """Lock-step: capture time of the state to be answered; commands for others are refused."""
        self.last_command_ns: int | None = None
        """Capture time of the state that the newest accepted command answers."""
        self.handler = GateHandler(self.gate, clock_ns=clock_ns, actuate=self._actuate)
        self._line = DriveLine(desc.latency.command_s, self.gate.step(clock_ns()))

    @property
    def drive(self) -> DriveCommand:
        """What the drives were last told."""
        return self._line.current

    def advance(self, slot_ns: int, now_ns: int, substeps: int) -> None:
        """Let the world catch up with `slot_ns`, then let the gate judge what was measured.

        Args:
            slot_ns: The time the world shall have reached; the last substep ends there.
            now_ns: The clock, at or after `slot_ns`: the capture time of the measurement.
            substeps: How many to integrate.
        """
        self.reset_if_due(now_ns)
        begin_ns = slot_ns - substeps * SUBSTEP_NS
        for index in range(substeps):
            self.world.substep(self._line.at(begin_ns + index * SUBSTEP_NS))
        measured = self._measured
        self.world.measure(measured)
        self.gate.observe(
            measured.joint_pos,
            measured.joint_vel,
            measured.joint_effort,
            measured.base_quat_w,
            now_ns,
        )
        self.watch(now_ns)
        if self._reset_at_ns is None and self._auto_arm.due(now_ns, self.gate.state):
            reply = self.gate.request("arm", now_ns)
            log.info("armed by itself", ok=reply.ok, reason=reply.reason)
        self._line.write(self.gate.step(now_ns), now_ns)
        self._count_faults()

    def state(self) -> tuple[NDArray[np.float32], bool]:
        """The `state` payload, and whether it is the first one after a reset.

        The array is reused by the next call.
        """
        was_reset, self._just_reset = self._just_reset, False
        return self._payload.fill(self._measured), was_reset

    def control_tick(self, now_ns: int) -> NDArray[np.float32]:
        """Once per control period: account for what was walked, return the `truth` payload.

        The array is reused by the next call.
        """
        self._hash.update(self.world.state_bytes())
        return super().control_tick(now_ns)

    def on_command(self, message: Message) -> CommandOutcome:
        """Give a valid command to the gate, and what the gate makes of it to the drives."""
        expected = self.expected_capture_ns
        if expected is not None and message.capture_ns != expected:
            return self.handler.outcome(CommandStatus.REJECTED_STALE)
        self.last_command_ns = message.capture_ns
        self._auto_arm.command(self._clock_ns())
        return self.handler.on_command(message)

    def on_safety(self, op: str, by: str) -> SafetyOutcome:
        """Carry out what an operator asked for."""
        outcome = self.handler.on_safety(op, by)
        if op != "status":
            self._auto_arm.operator(op, granted=outcome.ok)
        return outcome

    def summary(self) -> dict[str, Any]:
        """What the run came to, for the last log line."""
        handler = self.handler
        position, rate = int(handler.position_clamps.sum()), int(handler.rate_clamps.sum())
        return super().summary() | {
            "trajectory_hash": self._hash.hexdigest(),
            "gate_clamps": position + rate,
            "gate_position_clamps": position,
            "gate_rate_clamps": rate,
            "gate_faults": dict(self.gate_faults),
        }

    def _count_faults(self) -> None:
        faults = self.gate.faults
        if faults != self._faults:
            self.gate_faults.update(fault_names(int(faults & ~self._faults)))
            self._faults = faults

    def _target_joint_pos(self) -> NDArray[np.float64] | None:
        return self.gate.target if self.gate.state.following else None

    def _fell(self, now_ns: int) -> None:
        """Make the robot limp."""
        self.gate.request("disarm", now_ns)

    def _put_back(self, now_ns: int, *, new_lap: bool) -> None:
        if new_lap:
            self.gate.request("disarm", now_ns)
        self._auto_arm.reset()
        self._just_reset = True

    def _actuate(self, drive: DriveCommand, now_ns: int) -> int:
        """Put what the gate decided on the line; when that write returned [ns]."""
        self._line.write(drive, now_ns + self._answer_delay_ns)
        return self._clock_ns()
