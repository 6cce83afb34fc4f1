"""One tick's decision: inputs and time in, joint targets or silence out. No socket, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import structlog
from krabby.policy.observation import ObservationInputs
from krabby.safety.gate import SafetyState
from krabby.safety.trajectories import sit_down, stand_up
from krabby_proto import FLAG_RESET, STATE, unpack

from krabby_gameloop import metrics
from krabby_gameloop.modes import Mode, Situation, holds, next_mode
from krabby_gameloop.nav import NavFilter
from krabby_gameloop.policy_switch import Pilot

if TYPE_CHECKING:
    from krabby.robot.description import RobotDescription
    from krabby.safety.trajectories import JointTrajectory
    from krabby_proto import CommandReply, Message
    from numpy.typing import NDArray

    from krabby_gameloop.config import GameloopCfg
    from krabby_gameloop.policy_switch import Runner

__all__ = ["Brain", "Sent"]

log = structlog.get_logger(__name__)

_NOWHERE: Final = float("inf")
_SAFETY_STATES: Final = {int(state): state for state in SafetyState}
Wish = Literal["stand", "sit"]


class Sent(NamedTuple):
    """What a tick decided to send."""

    joint_pos: NDArray[np.float64]
    """Targets [rad], shape (18,)."""
    state: Message
    """The state they were computed from, or hold against."""
    features: Message | None
    """The features they were computed from."""


class Brain:
    """The loop's state machine with what each mode sends."""

    def __init__(self, cfg: GameloopCfg, desc: RobotDescription, pilot: Pilot) -> None:
        self._cfg = cfg
        self._desc = desc
        self.pilot = pilot
        self.nav = NavFilter(cfg.nav, cfg.freshness)
        self.mode = Mode.SILENT
        self.wants_to_stand = cfg.auto_stand
        self.safety = SafetyState.DISARMED
        """The gate's state as of its last answer."""
        self.greeted = False
        """Whether the HAL that speaks now has been checked; set by whoever asks it."""
        self.holds = 0
        """Ticks that held the last target because the state was too old."""
        self._instance: int | None = None
        self._reset_sequence = 0
        self._was_reset = False
        self._last_target: NDArray[np.float64] | None = None
        self._trajectory: JointTrajectory | None = None
        self._trajectory_ns = 0
        self._ticked_ns = 0
        metrics.MODE[self.mode.value].set(1.0)

    def wish(self, wish: Wish) -> None:
        """An operator wants the robot to stand or to rest."""
        self.wants_to_stand = wish == "stand"

    def answered(self, reply: CommandReply) -> None:
        """Take in what the gate says."""
        # A newer HAL may know more states; what we do not know we do not follow.
        self.safety = _SAFETY_STATES.get(reply.safety_state, SafetyState.DISARMED)

    def see(self, state: Message) -> None:
        """Take in the newest state; notices a HAL that restarted and a robot that was put back."""
        if state.header.instance_id != self._instance:
            if self._instance is not None:
                log.warning("the HAL restarted")
                self.greeted = False
            self._instance = state.header.instance_id
            self._start_over()
        if state.flags & FLAG_RESET and state.sequence != self._reset_sequence:
            self._reset_sequence = state.sequence
            self._start_over()

    def _start_over(self) -> None:
        """What the gate last said, and where the joints were, is about another life."""
        self.safety = SafetyState.DISARMED
        self._was_reset = True
        self._last_target = None

    def tick(self, state: Message | None, features: Message | None, now_ns: int) -> Sent | None:
        """Decide.

        Args:
            state: The newest state, however old; None before the first.
            features: The newest features, however old.
            now_ns: Time on the clock that stamped them.

        Returns:
            What to send, or None to stay silent.
        """
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
        command = self.nav.step(now_ns)
        used: Message | None = None
        if self._last_target is not None and holds(situation, self._cfg.freshness):
            self.holds += 1
            metrics.HOLDS.inc()
            self._trajectory_ns += now_ns - self._ticked_ns  # it waits too, and goes on unhurried
            target = self._last_target
        elif self._trajectory is not None:
            target = self._trajectory.at((now_ns - self._trajectory_ns) * 1e-9)
        elif mode is Mode.POLICY and self._last_target is not None:
            inputs = _inputs(values, command)
            target = self.pilot.step(inputs, features, self._last_target, now_ns)
            used = features if self.pilot.walking.needs_features else None
        else:
            target = self._resting_target(measured)
        self._last_target = target
        self._ticked_ns = now_ns
        return Sent(target, state, used)

    def swap(self, runner: Runner, now_ns: int) -> None:
        """Walk with another policy from the next tick on."""
        origin = self._desc.default_joint_pos if self._last_target is None else self._last_target
        self.pilot.choose(runner, origin, now_ns)

    @property
    def resting(self) -> bool:
        """Whether nothing would fall if commands ended now."""
        return self.mode in (Mode.SILENT, Mode.PASSIVE)

    def _situation(self, state: Message | None, now_ns: int) -> Situation:
        done = self._trajectory is not None and (
            (now_ns - self._trajectory_ns) * 1e-9 >= self._trajectory.duration_s
        )
        return Situation(
            state_age_s=_NOWHERE if state is None else state.age_s(now_ns),
            safety=self.safety,
            greeted=self.greeted and not self._was_reset,
            wants_to_stand=self.wants_to_stand,
            trajectory_done=done,
        )

    def _enter(self, mode: Mode, measured: NDArray[np.float64] | None, now_ns: int) -> None:
        if mode is self.mode:
            return
        log.info("mode", now=mode.value, before=self.mode.value, gate=self.safety.name.lower())
        metrics.MODE[self.mode.value].set(0.0)
        metrics.MODE[mode.value].set(1.0)
        metrics.MODE_ENTERED[mode.value].set(now_ns * 1e-9)
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
            self.pilot.start(self._desc.default_joint_pos if origin is None else origin, now_ns)
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
        last_action=_NO_ACTION,  # each policy's own; the pilot puts it in
    )


_NO_ACTION: Final = np.zeros(STATE.slices["joint_pos"].stop - STATE.slices["joint_pos"].start)
