"""One tick's decision: inputs and time in, joint targets or silence out. No socket, no clock.

Which requests count, and when the gate may have been left: `krabby.control.permission`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import structlog
from krabby_proto import FLAG_RESET, STATE, CommandReply, Message, SafetyState, unpack
from numpy.typing import NDArray

from krabby.control.config import ControlCfg
from krabby.control.modes import Mode, Situation, holds, next_mode
from krabby.control.nav import NavFilter
from krabby.control.permission import Permission, Request
from krabby.control.policy_manager import PolicyManager, PolicyRunner
from krabby.control.tape import Tape
from krabby.policy.observation import ObservationInputs
from krabby.robot.description import RobotDescription
from krabby.safety.trajectories import JointTrajectory, sit_down, stand_up

__all__ = ["JointCommand", "LocomotionController", "Request"]

log = structlog.get_logger(__name__)


class JointCommand(NamedTuple):
    """What a tick decided to send to the HAL."""

    joint_pos: NDArray[np.float64]
    """Targets [rad], shape (18,)."""
    state: Message
    """The state they were computed from, or hold against."""
    features: Message | None
    """The features they were computed from."""
    hold: bool
    """No motion is asked for: the gate is to keep its target, wherever this loop takes it to be."""


class LocomotionController:
    """The state machine of the modes, and the joint targets of each.

    It counts in plain attributes, which a process that exposes metrics reads after a tick.
    """

    def __init__(
        self,
        cfg: ControlCfg,
        desc: RobotDescription,
        policies: PolicyManager,
        *,
        host_clock: Callable[[], int] = time.monotonic_ns,
        tape: Tape | None = None,
    ) -> None:
        """A controller that has seen nothing yet.

        Args:
            cfg: Limits and times.
            desc: The robot.
            policies: What walks.
            host_clock: Times a person's walking commands [ns].
            tape: Notes what this controller takes in, for a replay; None for nowhere.
        """
        self.cfg = cfg
        self.desc = desc
        self.policies = policies
        self.tape = tape
        self.nav = NavFilter(cfg.nav, cfg.freshness, host_clock=host_clock, tape=tape)
        self.mode = Mode.SILENT
        self.permission = Permission(cfg, desc, self._permission_ended, tape)
        self.hal_checked = False
        """Whether the HAL that sends now has been checked; set by the owner of the sockets."""
        self.holds = 0
        """Ticks that held the last target because the state was too old."""
        self._instance: int | None = None
        self._reset_sequence = 0
        self._was_reset = False
        self._last_target: NDArray[np.float64] | None = None
        self._trajectory: JointTrajectory | None = None
        self._trajectory_ns = 0
        self._trajectory_origin: tuple[NDArray[np.float64], bool] | None = None
        """Pose it began from, and whether the robot walked then."""
        self._forget_nav = False

    def request(self, request: Request) -> str | None:
        """Ask the robot to stand or to sit; returns the reason when that is refused.

        May be called from another thread.
        """
        return self.permission.request(request, silent=self.mode is Mode.SILENT)

    def handle_reply(self, reply: CommandReply, sent_ns: int | None = None) -> None:
        """Take the HAL's reply to the command of the tick at `sent_ns`, the last one when None."""
        self.permission.handle_reply(reply, sent_ns)

    def handle_state(self, state: Message) -> None:
        """Take the newest state; detects a HAL that restarted and a robot that was respawned."""
        if self.tape is not None:
            self.tape.add_seen(state)
        if state.header.instance_id != self._instance:
            if self._instance is not None:
                log.warning("the HAL restarted")
                self.hal_checked = False
            self._instance = state.header.instance_id
            self._start_over("the HAL restarted")
        if state.flags & FLAG_RESET and state.sequence != self._reset_sequence:
            self._reset_sequence = state.sequence
            self._start_over("the robot was respawned")

    def _start_over(self, reason: str) -> None:
        self.permission.start_over(reason)
        self._was_reset = True

    def _permission_ended(self) -> None:
        self._last_target = None
        self._forget_nav = True

    def tick(
        self, state: Message | None, features: Message | None, now_ns: int
    ) -> JointCommand | None:
        """Decide.

        Args:
            state: The newest state, however old; None before the first.
            features: The newest features, however old.
            now_ns: Time on the clock that stamped them.

        Returns:
            What to send, or None to stay silent.
        """
        self.permission.judge(now_ns)
        if self._forget_nav:
            self.nav.forget(now_ns)
            self._forget_nav = False
        self.permission.take_request()
        situation = self._situation(state, now_ns)
        mode = next_mode(self.mode, situation, self.cfg.freshness)
        self._was_reset = False
        if mode is Mode.SILENT or state is None:
            self._enter(mode, None, now_ns)
            self._last_target = None
            self.permission.safety = SafetyState.DISARMED  # until the next reply
            return None
        values = unpack(STATE, state.payload)
        measured = values["joint_pos"].astype(np.float64)
        self._enter(mode, measured, now_ns)
        stale = holds(situation, self.cfg.freshness)
        waits = self._last_target is not None and (stale or self.permission.unapplied)
        command = self.nav.command
        if not waits and mode is not Mode.NO_LEASE:
            policies = self.policies
            command = self.nav.step(now_ns, policies.command_range, halt=policies.halts)
        used: Message | None = None
        if waits and self._last_target is not None:
            if stale:
                self.holds += 1
            self._wait(now_ns)
            target = self._last_target
        elif self._trajectory is not None:
            target = self._trajectory.at((now_ns - self._trajectory_ns) * 1e-9)
        elif mode is Mode.POLICY and self._last_target is not None:
            inputs = _inputs(values, command)
            target = self.policies.step(inputs, features, self._last_target, now_ns)
            used = features if self.policies.active.needs_features else None
        else:
            target = self._resting_target(measured)
        self._last_target = target
        self.permission.sent_ns = now_ns
        return JointCommand(target, state, used, mode in _AT_REST)

    def _wait(self, now_ns: int) -> None:
        """The last target is sent again: trajectory and hand-over wait, and go on unhurried."""
        elapsed_ns = now_ns - self.permission.sent_ns
        self._trajectory_ns = min(self._trajectory_ns + elapsed_ns, now_ns)
        self.policies.wait(elapsed_ns)

    def swap_policy(self, runner: PolicyRunner, now_ns: int) -> None:
        """Walk with another policy from the next tick on."""
        if self.tape is not None:
            self.tape.add_policy(runner.identity)
        origin = self.desc.default_joint_pos if self._last_target is None else self._last_target
        self.policies.choose(runner, origin, now_ns)

    @property
    def resting(self) -> bool:
        """Whether nothing would fall if commands ended now."""
        return self.mode in (Mode.SILENT, Mode.PASSIVE, Mode.NO_LEASE)

    def _situation(self, state: Message | None, now_ns: int) -> Situation:
        done = self._trajectory is not None and (
            (now_ns - self._trajectory_ns) * 1e-9 >= self._trajectory.duration_s
        )
        return Situation(
            state_age_s=math.inf if state is None else state.age_s(now_ns),
            safety=self.permission.safety,
            has_lease=self.permission.has_lease,
            hal_checked=self.hal_checked and not self._was_reset,
            stand_requested=self.permission.stand_requested,
            trajectory_done=done,
        )

    def _enter(self, mode: Mode, measured: NDArray[np.float64] | None, now_ns: int) -> None:
        if mode is self.mode:
            return
        gate = self.permission.safety.name.lower()
        log.info("mode", now=mode.value, before=self.mode.value, gate=gate)
        if mode in (Mode.STAND_UP, Mode.SIT_DOWN) and measured is not None:
            # From the target, not from the pose that sags below it: the drives see no step.
            start = measured if self._last_target is None else self._last_target
            self._begin_trajectory(mode, start, walking=self.mode is Mode.POLICY)
            self._trajectory_ns = now_ns
        else:
            self._trajectory = self._trajectory_origin = None
        if mode is Mode.POLICY:
            origin = self._last_target
            self.policies.start(self.desc.default_joint_pos if origin is None else origin, now_ns)
        self.nav.restart()
        self.mode = mode

    def _begin_trajectory(self, mode: Mode, start: NDArray[np.float64], *, walking: bool) -> None:
        """Stand up or sit down from `start` [rad], shape (18,)."""
        if mode is Mode.STAND_UP:
            self._trajectory = stand_up(self.desc, start)
        else:
            self._trajectory = sit_down(self.desc, start, walking=walking)
        self._trajectory_origin = (start, walking)

    def _resting_target(self, measured: NDArray[np.float64]) -> NDArray[np.float64]:
        """Armed: where the robot was left. Not armed: where it is, so that arming moves nothing."""
        armed = self.permission.safety.live
        return self._last_target if armed and self._last_target is not None else measured


def _inputs(
    values: dict[str, NDArray[np.float32]], command: NDArray[np.float64]
) -> ObservationInputs:
    return ObservationInputs(
        base_quat_w=values["base_quat_w"],
        base_ang_vel_b=values["base_ang_vel_b"],
        base_lin_acc_b=values["base_lin_acc_b"],
        joint_pos=values["joint_pos"],
        joint_vel=values["joint_vel"],
        foot_contact=values["foot_contact"],
        nav_command=command,
        last_action=_NO_ACTION,  # each policy's own; its runner puts it in
    )


_AT_REST: Final = (Mode.PASSIVE, Mode.NO_LEASE)
_NO_ACTION: Final = np.zeros(STATE.slices["joint_pos"].stop - STATE.slices["joint_pos"].start)
