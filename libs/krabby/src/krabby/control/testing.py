"""A game loop without sockets whose ticks are recorded, for tests of what reads recordings."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np
from krabby_proto import (
    FLAG_OPERATOR,
    NAV,
    STATE,
    TICKS,
    CommandReply,
    CommandStatus,
    Message,
    SafetyState,
    Stream,
    TickRecord,
    decode,
    encode,
    pack,
)
from numpy.typing import ArrayLike, NDArray

from krabby.control import snapshot
from krabby.control.config import ControlCfg
from krabby.control.controller import LocomotionController
from krabby.control.policy_manager import PolicyManager
from krabby.robot.description import RobotDescription
from krabby.safety.trajectories import rest_joint_pos

__all__ = ["RecordedLoop"]

_PERIOD_NS: Final = 10_000_000
_SNAPSHOT_TICKS: Final = 100


@dataclasses.dataclass
class Gate:
    """What the HAL answers."""

    status: CommandStatus = CommandStatus.APPLIED
    state: SafetyState = SafetyState.ACTIVE
    fault_bits: int = 0
    silent: bool = False
    """No answers at all."""


class RecordedLoop:
    """A controller of a robot that goes where it is told, with some noise on what it measures.

    Its records are made in the order of the game loop's.
    """

    def __init__(self, cfg: ControlCfg, desc: RobotDescription, *, seed: int = 0) -> None:
        """Lying, not commanded yet."""
        self._noise = np.random.default_rng(seed)
        self._record = TickRecord()
        self._read_ns: list[int] = []
        self.gate = Gate()
        self.command: ArrayLike | None = None
        """What a person asks for: vx, vy [m/s], yaw rate [rad/s]; None for silence."""
        self.swap: Any = None
        """A policy to change to in the next tick."""
        self.joint_pos = rest_joint_pos(desc)
        self.ticks = 0
        self.messages: list[Message] = []
        """States and records in order."""
        policies = PolicyManager(cfg, desc)
        self.controller = LocomotionController(
            cfg, desc, policies, host_clock=self._clock, tape=self._record
        )
        self.controller.hal_checked = True
        self._record.add_snapshot(snapshot.pack(self.controller))

    @property
    def now_ns(self) -> int:
        """Time of the newest tick."""
        return self.ticks * _PERIOD_NS

    def run(self, ticks: int) -> None:
        """Let so many periods pass."""
        for _ in range(ticks):
            self._tick()

    def _clock(self) -> int:
        self._read_ns.append(self.now_ns + len(self._read_ns))
        return self._read_ns[-1]

    def _tick(self) -> None:
        self.ticks += 1
        controller, record, now_ns = self.controller, self._record, self.now_ns
        state = self._state()
        controller.handle_state(state)
        if self.command is not None and self.ticks % 5 == 0:
            payload = np.asarray(self.command, dtype=np.float32)
            controller.nav.receive(self._message(NAV, payload, FLAG_OPERATOR), now_ns)
        if self.swap is not None:
            controller.swap_policy(self.swap, now_ns)
            self.swap = None
        sent = controller.tick(state, None, now_ns)
        parts, read_ns, safety = record.cut(), self._read_ns, controller.permission.safety
        self._read_ns = []
        if sent is not None:
            if not self.gate.silent:
                controller.handle_reply(self._reply(), now_ns)
            if self.gate.state is SafetyState.ACTIVE:
                self.joint_pos = sent.joint_pos
        late = record.cut()
        record.add_parts(parts)
        record.add_decided_on(state, None)
        if sent is not None:
            record.add_decision(sent.joint_pos, controller.nav.command, controller.nav.asked)
        policies = controller.policies
        record.add_status(
            {
                "policy": policies.chosen.bundle.name,
                "walking": policies.active.bundle.name,
                "nav_source": controller.nav.source,
            }
        )
        content = record.finish(
            tick=self.ticks - 1,
            now_ns=now_ns,
            mode=controller.mode.value,
            safety_state=int(safety),
            sent=sent is not None,
            hal_checked=controller.hal_checked,
            leaving=False,
            command_sequence=self.ticks,
            host_ns=read_ns,
        )
        assert content is not None, "a record of this loop is short"
        record.add_parts(late)
        self.messages += [state, self._message(TICKS, content)]
        if self.ticks % _SNAPSHOT_TICKS == 0:
            record.add_snapshot(snapshot.pack(controller))

    def _state(self) -> Message:
        noise = self._noise
        upright = np.array([0.0, 0.0, 0.0, 1.0]) + 0.01 * noise.standard_normal(4)
        payload = pack(
            STATE,
            base_quat_w=upright / np.linalg.norm(upright),
            base_ang_vel_b=0.1 * noise.standard_normal(3),
            base_lin_acc_b=(0.0, 0.0, 9.81),
            joint_pos=self.joint_pos + 1e-3 * noise.standard_normal(len(self.joint_pos)),
            joint_vel=0.1 * noise.standard_normal(len(self.joint_pos)),
            joint_effort=np.zeros(len(self.joint_pos)),
            foot_contact=np.ones(6),
        )
        return self._message(STATE, payload)

    def _message(
        self, stream: Stream, payload: NDArray[np.float32] | bytes, flags: int = 0
    ) -> Message:
        frames = encode(
            stream,
            payload,
            instance_id=stream.id,
            sequence=self.ticks,
            capture_ns=self.now_ns,
            publish_ns=self.now_ns,
            flags=flags,
        )
        return decode(frames, stream)

    def _reply(self) -> CommandReply:
        gate = self.gate
        frame = CommandReply.pack(
            gate.status,
            safety_state=int(gate.state),
            fault_bits=gate.fault_bits,
            position_clamp_mask=0,
            rate_clamp_mask=0,
            request_sequence=self.ticks,
            applied_sequence=self.ticks,
            applied_ns=self.now_ns,
            server_ns=self.now_ns,
        )
        return CommandReply.unpack(frame)
