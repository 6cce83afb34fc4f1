"""One tick's decision: inputs and time in, joint targets or silence out. No socket, no clock.

A request to stand counts for one permission of the gate, from ARMING to the end of ACTIVE or HOLD.
The permission has ended when

* a reply shows the gate in any other state, or in ARMING again;
* no reply has shown for `safety.damp_after_s` that the gate takes this loop's commands. The gate
  damps the robot after that time without a command, so it may have been armed again unseen;
* the HAL restarted, the robot was put back, or another writer has taken the command lease.

Then requests to stand and to walk are dropped and the measured pose is sent, until the gate is
armed again and a new request to stand comes (or `auto_stand` is set).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import structlog
from krabby_proto import FLAG_RESET, STATE, CommandStatus, SafetyState, unpack

from krabby.control.modes import Mode, Situation, holds, next_mode
from krabby.control.nav import NavFilter
from krabby.control.policy_manager import PolicyManager
from krabby.policy.observation import ObservationInputs
from krabby.safety.trajectories import sit_down, stand_up

if TYPE_CHECKING:
    from krabby_proto import CommandReply, Message
    from numpy.typing import NDArray

    from krabby.control.config import ControlCfg
    from krabby.control.policy_manager import PolicyRunner
    from krabby.robot.description import RobotDescription
    from krabby.safety.trajectories import JointTrajectory

__all__ = ["JointCommand", "LocomotionController", "Request"]

log = structlog.get_logger(__name__)

_NOWHERE: Final = float("inf")
_SAFETY_STATES: Final = {int(state): state for state in SafetyState}
_TAKEN: Final = frozenset(
    {
        CommandStatus.APPLIED,
        CommandStatus.SUPERSEDED,
        CommandStatus.NOT_ARMED,
        CommandStatus.HELD,
        CommandStatus.REJECTED_SAFETY,
    }
)
"""The HAL admitted the command as the lease holder's and showed it to the gate."""
_MOVED: Final = frozenset({CommandStatus.APPLIED, CommandStatus.SUPERSEDED})
_ARMING_SLACK_PERIODS: Final = 2
"""Between the gate's end of arming and the reply that shows it."""
Request = Literal["stand", "sit"]
"""What an operator may ask of the loop."""


class _PendingRequest(NamedTuple):
    request: Request
    permission: int
    """Number of the permission it was made for."""


class JointCommand(NamedTuple):
    """What a tick decided to send to the HAL."""

    joint_pos: NDArray[np.float64]
    """Targets [rad], shape (18,)."""
    state: Message
    """The state they were computed from, or hold against."""
    features: Message | None
    """The features they were computed from."""


class LocomotionController:
    """The state machine of the modes, and the joint targets of each.

    It counts in plain attributes, which a process that exposes metrics reads after a tick.
    """

    def __init__(self, cfg: ControlCfg, desc: RobotDescription, policies: PolicyManager) -> None:
        self._cfg = cfg
        self._desc = desc
        self.policies = policies
        self.nav = NavFilter(cfg.nav, cfg.freshness)
        self.mode = Mode.SILENT
        self.stand_requested = cfg.auto_stand
        """Whether standing was requested under this permission of the gate."""
        self.has_lease = True
        """False while the HAL refuses commands because another writer holds the lease."""
        self.lease_losses = 0
        """Times another writer was found to hold the lease."""
        self.safety = SafetyState.DISARMED
        """The gate's state as of its last answer."""
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
        self._ticked_ns = 0
        self._stands_by_itself = cfg.auto_stand
        """`auto_stand`, but not after a request to sit."""
        self._leaving = False
        self._pending: _PendingRequest | None = None
        self._permission = 0
        self._was_live = self._followed = False
        """Whether the gate was armed, and followed commands, under this permission."""
        self._taken_ns: int | None = None
        """Tick of the last command that a live gate took; None while not armed."""
        self._heard_ns: int | None = None
        """Tick of the last command that was answered at all."""
        self._arming_ns: int | None = None
        """The HAL's time of the first reply that showed ARMING."""
        self._unapplied = False
        """Whether the gate has not made the last target its own."""
        self._forget_nav = False
        self._damp_ns = round(desc.safety.damp_after_s * 1e9)
        self._arming_limit_ns = round(
            (desc.safety.arming_s + _ARMING_SLACK_PERIODS / cfg.rate_hz) * 1e9
        )

    def request(self, request: Request) -> str | None:
        """Ask the robot to stand or to rest; returns the reason when that is refused.

        The next tick acts on it, unless the permission that it was made for has ended by then.
        May be called from another thread.
        """
        permission = self._permission
        if request == "stand":
            reason = self._stand_refusal()
            if reason is not None:
                return reason
        self._pending = _PendingRequest(request, permission)
        return None

    def sit_for_good(self) -> None:
        """Sit down and do not stand up again: the process ends."""
        self._stands_by_itself = self.stand_requested = False
        self._leaving = True

    def handle_reply(self, reply: CommandReply) -> None:
        """Take the HAL's reply to the command of the last tick."""
        self._heard_ns = self._ticked_ns
        # A newer HAL may know more states; what we do not know we do not follow.
        self.safety = _SAFETY_STATES.get(reply.safety_state, SafetyState.DISARMED)
        if reply.status == CommandStatus.REJECTED_LEASE:
            self._lose_lease()
            return
        if reply.status in _TAKEN and not self.has_lease:
            self.has_lease = True
            log.info("this loop holds the command lease again")
        if not self.safety.live:
            if self._was_live:
                self._end_permission(f"the gate is in {self.safety.name}")
            return
        if self.safety is SafetyState.ARMING and self._followed:
            self._end_permission("the gate was armed again")
        if reply.status in _TAKEN:
            self._taken_ns = self._ticked_ns
        self._watch_arming(reply.server_ns)
        self._was_live = True
        self._followed = self.safety.following
        self._unapplied = self._followed and reply.status not in _MOVED

    def handle_state(self, state: Message) -> None:
        """Take the newest state; detects a HAL that restarted and a robot that was put back."""
        if state.header.instance_id != self._instance:
            if self._instance is not None:
                log.warning("the HAL restarted")
                self.hal_checked = False
            self._instance = state.header.instance_id
            self._start_over("the HAL restarted")
        if state.flags & FLAG_RESET and state.sequence != self._reset_sequence:
            self._reset_sequence = state.sequence
            self._start_over("the robot was put back")

    def _start_over(self, reason: str) -> None:
        """What the gate last said, and where the joints were, is about another life."""
        self._end_permission(reason)
        self.safety = SafetyState.DISARMED
        self.has_lease = True
        self._was_reset = True

    def _stand_refusal(self) -> str | None:
        """Why the robot cannot be asked to stand up now; None when it can."""
        if self._leaving:
            return "the game loop is ending"
        if not self.has_lease:
            return "another writer holds the command lease; stop it, arm, then ask again"
        if self.mode is Mode.SILENT:
            return "the HAL sends no fresh state; see `krabby status`"
        if self.safety is SafetyState.ESTOP:
            return "the emergency stop is latched; reset, arm, then ask again"
        if not self.safety.live:
            return f"the gate is in {self.safety.name}; arm, then ask again"
        return None

    def _lose_lease(self) -> None:
        """Another writer moves the robot; the gate's state is about that one's commands."""
        if self.has_lease:
            self.lease_losses += 1
            log.warning(
                "another writer holds the command lease",
                remedy="stop it; this loop commands again 0.5 s after its last command",
            )
        self.has_lease = False
        self._end_permission("another writer holds the command lease")

    def _watch_arming(self, server_ns: int) -> None:
        """Arming that takes longer than it can was begun again: that is another permission."""
        if self.safety is SafetyState.ARMING and self._arming_ns is None:
            self._arming_ns = server_ns
        if self._arming_ns is None:
            return
        if server_ns - self._arming_ns > self._arming_limit_ns:
            taken_ns = self._taken_ns
            self._end_permission("arming was begun again")
            self._taken_ns = taken_ns
        if self.safety is not SafetyState.ARMING:
            self._arming_ns = None
        elif self._arming_ns is None:
            self._arming_ns = server_ns

    def _end_permission(self, reason: str) -> None:
        """Drop every request made so far."""
        if self.stand_requested and not self._stands_by_itself:
            log.info("the request to stand has ended", reason=reason)
        self._permission += 1
        self.stand_requested = self._stands_by_itself
        self._was_live = self._followed = self._unapplied = False
        self._taken_ns = self._arming_ns = None
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
        self._begin(now_ns)
        situation = self._situation(state, now_ns)
        mode = next_mode(self.mode, situation, self._cfg.freshness)
        self._was_reset = False
        if mode is Mode.SILENT or state is None:
            self._enter(mode, None, now_ns)
            self._last_target = None
            self.safety = SafetyState.DISARMED  # until the gate says otherwise again
            return None
        values = unpack(STATE, state.payload)
        measured = values["joint_pos"].astype(np.float64)
        self._enter(mode, measured, now_ns)
        stale = holds(situation, self._cfg.freshness)
        waits = self._last_target is not None and (stale or self._unapplied)
        command = self.nav.command if waits or mode is Mode.NO_LEASE else self.nav.step(now_ns)
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
        self._ticked_ns = now_ns
        return JointCommand(target, state, used)

    def _begin(self, now_ns: int) -> None:
        """Judge the gate's last answer by its age, then take the pending request."""
        if self._taken_ns is not None and now_ns - self._taken_ns >= self._damp_ns:
            silence_s = round((now_ns - self._taken_ns) * 1e-9, 3)
            self._end_permission(f"the gate has not answered to a command for {silence_s} s")
            self.safety = SafetyState.DISARMED  # until it says otherwise
        if self._heard_ns is not None and now_ns - self._heard_ns >= self._damp_ns:
            # It may have damped a robot that gives way since: hold no pose from before.
            self.safety = SafetyState.DISARMED
        if self._forget_nav:
            self.nav.forget(now_ns)
            self._forget_nav = False
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.request == "sit":
            self._stands_by_itself = self.stand_requested = False
        elif pending.permission == self._permission and not self._leaving:
            self._stands_by_itself = self._cfg.auto_stand
            self.stand_requested = True
        else:
            log.info("the request to stand has ended", reason="the gate was left before it counted")

    def _wait(self, now_ns: int) -> None:
        """The last target is sent again: trajectory and hand-over wait, and go on unhurried."""
        elapsed_ns = now_ns - self._ticked_ns
        self._trajectory_ns = min(self._trajectory_ns + elapsed_ns, now_ns)
        self.policies.wait(elapsed_ns)

    def swap_policy(self, runner: PolicyRunner, now_ns: int) -> None:
        """Walk with another policy from the next tick on."""
        origin = self._desc.default_joint_pos if self._last_target is None else self._last_target
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
            state_age_s=_NOWHERE if state is None else state.age_s(now_ns),
            safety=self.safety,
            has_lease=self.has_lease,
            hal_checked=self.hal_checked and not self._was_reset,
            stand_requested=self.stand_requested,
            trajectory_done=done,
        )

    def _enter(self, mode: Mode, measured: NDArray[np.float64] | None, now_ns: int) -> None:
        if mode is self.mode:
            return
        log.info("mode", now=mode.value, before=self.mode.value, gate=self.safety.name.lower())
        if mode in (Mode.STAND_UP, Mode.SIT_DOWN) and measured is not None:
            # From the target, not from the pose that sags below it: the drives see no step.
            start = measured if self._last_target is None else self._last_target
            if mode is Mode.STAND_UP:
                self._trajectory = stand_up(self._desc, start)
            else:
                walking = self.mode is Mode.POLICY
                self._trajectory = sit_down(self._desc, start, walking=walking)
            self._trajectory_ns = now_ns
        else:
            self._trajectory = None
        if mode is Mode.POLICY:
            origin = self._last_target
            self.policies.start(self._desc.default_joint_pos if origin is None else origin, now_ns)
        self.nav.restart()
        self.mode = mode

    def _resting_target(self, measured: NDArray[np.float64]) -> NDArray[np.float64]:
        """Armed: where the robot was left. Not armed: where it is, so that arming moves nothing."""
        armed = self.safety.live
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


_NO_ACTION: Final = np.zeros(STATE.slices["joint_pos"].stop - STATE.slices["joint_pos"].start)
