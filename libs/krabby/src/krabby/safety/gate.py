"""The safety gate: what stands between a command and the motors, the same code in every HAL.

The process that owns the motors holds one `SafetyGate` and calls, in this order, every cycle:

    gate.observe(joint_pos, joint_vel, joint_effort, quat_wb, now_ns)   # what was measured
    gate.command(joint_pos_target, now_ns)                              # when a command came
    drive = gate.step(now_ns)                                           # what the drives do now

Nothing here reads a clock, a socket or a file: time comes in as `now_ns`, so that every rule can be
tried in a test at any speed.

                       ┌──┐ late measurement: gains from zero again
                       │  ▼
    DISARMED ──arm──► ARMING ──arming_s──► ACTIVE ◄──late / in time again──► HOLD
       ▲                │                    │                                │
       │                └────── trip ────────┴──────────── trip ──────────────┘
       │                                     ▼
       ├──disarm, reset────────────────── DAMP ──arm──► ARMING
       └──reset── ESTOP ◄──estop── (from anywhere)

Invariants, for all calls in any order:

* `joint_pos` lies within the limits (`krabby.safety.target`). It starts at the measured pose with
  every `arm`, and with the measurement that starts ARMING again; then it is moved by commands
  alone, each by at most `max_rate` times the time since the one before, of which
  `max_target_step_s` count at most. A command with `hold` moves nothing.
* `arm_count` differs from before whenever `joint_pos` has started from a measured pose.
* DISARMED, DAMP and ESTOP give no stiffness: kp is zero and only damping remains.
* From one `step` to the next kp rises by at most the time between them over `arming_s`, of which
  `max_target_step_s` count at most.
* ESTOP is left by `reset` alone, and then only to DISARMED.
* Without a valid command the pose is held `hold_after_s` after the last one and the drives are
  damped `damp_after_s` after it; without a valid measurement likewise after `state_stale_s` and
  `state_stop_s`. ARMING on a late measurement has no stiffness and starts again from the next.
* Both ages are judged at the begin of every call, before what the call brings counts. So the
  command or measurement that ends a silence does not hide it, wherever the process stood still.
* A drive that obeys `effort_limit`, and falls limp by itself when `drive_timeout_s` passed
  without a new `DriveCommand`, never has a filtered RMS effort above its rated torque.

A clock that stands still lets nothing move; one that steps back trips the gate (`Fault.CLOCK`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from krabby_proto.states import CommandStatus, Fault, SafetyState
from numpy.typing import ArrayLike, NDArray

from krabby.robot.errors import GateConfigError
from krabby.safety.limits import GateCfg
from krabby.safety.measured import MeasuredRobot
from krabby.safety.target import LimitedTarget

__all__ = ["DriveCommand", "DriveMode", "GateCfg", "GateConfigError", "SafetyGate"]

_CLOCK_SLACK_NS: Final = 1_000_000
"""Times read by several stages of one cycle may cross by this much; more is a broken clock."""
_NO_FAULT: Final = Fault(0)
_ARM_COUNTS: Final = 1 << 32


class DriveMode(IntEnum):
    """What a drive does with a `DriveCommand`."""

    DAMP = 0
    """Torque = -kd * joint_vel; the position is to be ignored."""
    POSITION = 1
    """Torque = kp * (joint_pos - measured) - kd * joint_vel."""


class GateResult(NamedTuple):
    """What became of one command."""

    status: CommandStatus
    """APPLIED: it is the target now, perhaps clamped; of a hold, the target stays. NOT_ARMED:
    DISARMED or ARMING. HELD: the measurements are stale, so the target stays. REJECTED_SAFETY,
    REJECTED_LENGTH or REJECTED_NONFINITE: see `reason`."""
    position_clamp_mask: int = 0
    """Bit i is set when joint i was cut to its position limits."""
    rate_clamp_mask: int = 0
    """Bit i is set when joint i was cut to its rate limit."""
    reason: str = ""
    """Why a command was refused; empty otherwise."""


class GateReply(NamedTuple):
    """The answer to an operator."""

    ok: bool
    reason: str
    """What happened, or what stands in the way and what to do about it."""


class DriveCommand(NamedTuple):
    """What every drive must do from now on, and for `GateCfg.drive_timeout_s` at most.

    Arrays have shape (n,), dtype float64, joint order of `robot.toml`; they are read-only and
    later steps do not change them.
    """

    mode: DriveMode
    joint_pos: NDArray[np.float64]
    """Target angle [rad]; the measured one, cut to the limits, in mode DAMP."""
    kp: NDArray[np.float64]
    """Stiffness [N·m/rad]."""
    kd: NDArray[np.float64]
    """Damping [N·m·s/rad]."""
    effort_limit: NDArray[np.float64]
    """Largest torque magnitude [N·m], damping included."""


class SafetyGate:
    """One robot's gate; see the module for what it promises. For one thread, the drives' owner.

    Args:
        cfg: The limits it keeps.
        arm_count: What `arm_count` begins with; 0 counts as 1.
    """

    def __init__(self, cfg: GateCfg, *, arm_count: int = 1) -> None:
        self.cfg = cfg
        self.arm_count = max(arm_count % _ARM_COUNTS, 1)
        """Rises each time a pose is taken to arm from; of 32 bits, never 0."""
        self._state = SafetyState.DISARMED
        self._faults = _NO_FAULT
        self._now_ns = 0
        self._command_ns = 0  # newest valid command, or the start of ACTIVE
        self._ramp_ns = 0  # ARMING: time the gains have risen for, at the newest `step`
        self._ramp_at_ns = 0  # ARMING: when that was
        self._target = LimitedTarget(cfg)
        self._measured = MeasuredRobot(cfg)
        self.effort = self._measured.effort

        self._hold_ns = _to_ns(cfg.hold_after_s)
        self._damp_ns = _to_ns(cfg.damp_after_s)
        self._stale_ns = _to_ns(cfg.state_stale_s)
        self._stop_ns = _to_ns(cfg.state_stop_s)
        self._arming_ns = _to_ns(cfg.arming_s)
        self._credit_ns = _to_ns(cfg.max_target_step_s)
        self._no_kp = _frozen(np.zeros(cfg.joint_count))

    @property
    def state(self) -> SafetyState:
        """What the drives may do."""
        return self._state

    @property
    def faults(self) -> Fault:
        """Why the gate tripped; kept until the next `arm` or `reset`."""
        return self._faults

    @property
    def target(self) -> NDArray[np.float64]:
        """A copy of the target in force [rad], shape (n,)."""
        return self._target.pos.copy()

    def observe(
        self,
        joint_pos: NDArray[np.floating],
        joint_vel: NDArray[np.floating],
        joint_effort: NDArray[np.floating],
        quat_wb: NDArray[np.floating],
        now_ns: int,
        captured_ns: int | None = None,
    ) -> None:
        """Takes in what was measured; call it every cycle.

        Values that are not finite count as no measurement.

        Args:
            joint_pos: Measured angles [rad], shape (n,).
            joint_vel: Measured speeds [rad/s], shape (n,).
            joint_effort: Measured torques [N·m], shape (n,).
            quat_wb: Base to world, xyzw, shape (4,).
            now_ns: The HAL's clock.
            captured_ns: When it was measured, by the same clock; `now_ns` when left out.
        """
        now_ns = self._advance(now_ns)
        was_live = self._state.live
        measured = self._measured
        if not measured.read(joint_pos, joint_vel, joint_effort, quat_wb):
            self._supervise(now_ns)
        else:
            self._supervise(now_ns, Fault.STATE_GAP)
            late = self._state is SafetyState.ARMING and measured.age_ns(now_ns) >= self._stale_ns
            measured.accept(now_ns if captured_ns is None else min(captured_ns, now_ns))
            if late:
                self._begin_arming(now_ns)
        if measured.faults and was_live:
            self._trip(measured.faults)

    def command(self, joint_pos_target: ArrayLike, now_ns: int, hold: bool = False) -> GateResult:
        """Makes a command the target, as far as state, position and rate limits allow.

        Args:
            joint_pos_target: Wanted angles [rad], shape (n,). Anything else is refused.
            now_ns: The HAL's clock.
            hold: No motion is asked for: a command like any other, but the target stays.
        """
        now_ns = self._advance(now_ns)
        self._supervise(now_ns)
        wanted = np.asarray(joint_pos_target)
        refused = _refusal(wanted, self.cfg.lower.shape, self._state)
        if refused is not None:
            return refused
        self._command_ns = now_ns
        self._supervise(now_ns)  # a command ends the hold that its absence began
        if self._state is SafetyState.HOLD:
            return GateResult(CommandStatus.HELD)
        if hold:
            wanted = self._target.pos
        return GateResult(CommandStatus.APPLIED, *self._target.move(wanted, now_ns))

    def request(self, op: str, now_ns: int) -> GateReply:
        """Answers an operator: arm, disarm, estop, reset or status."""
        now_ns = self._advance(now_ns)
        self._supervise(now_ns)
        match op:
            case "arm":
                return self._arm(now_ns)
            case "disarm":
                return self._disarm()
            case "estop":
                self._estop()
                return GateReply(True, "emergency stop latched; reset it, then arm")
            case "reset":
                return self._reset()
            case "status":
                return GateReply(True, self._state.name)
            case _:
                return GateReply(
                    False, f"unknown request {op!r}; use arm, disarm, estop, reset or status"
                )

    def raise_fault(self, fault: Fault, now_ns: int) -> None:
        """Takes in a fault that the HAL found: damps the drives, or latches `Fault.ESTOP`."""
        self._supervise(self._advance(now_ns))
        if Fault.ESTOP in fault:
            self._estop()
        self._trip(fault)

    def step(self, now_ns: int) -> DriveCommand:
        """What the drives must do from now on; call it every cycle and after every command."""
        now_ns = self._advance(now_ns)
        self._supervise(now_ns)
        cfg = self.cfg
        if not self._state.live:
            joint_pos = self._target.clipped(self._measured.joint_pos)
            mode, kp, kd = DriveMode.DAMP, self._no_kp, cfg.damp_kd
        elif self._state is SafetyState.ARMING:
            self._ramp_ns, self._ramp_at_ns = self._risen_ns(now_ns), now_ns
            share = self._ramp_ns / self._arming_ns
            joint_pos = self._target.pos.copy()
            mode = DriveMode.POSITION
            kp = _frozen(cfg.kp * share)
            kd = _frozen(cfg.damp_kd + (cfg.kd - cfg.damp_kd) * share)
        else:
            joint_pos = self._target.pos.copy()
            mode, kp, kd = DriveMode.POSITION, cfg.kp, cfg.kd
        return DriveCommand(mode, _frozen(joint_pos), kp, kd, self.effort.limit())

    def _advance(self, now_ns: int) -> int:
        """The gate's own time, which never runs backwards."""
        behind_ns = self._now_ns - now_ns
        if behind_ns <= 0:
            self._now_ns = now_ns
        elif behind_ns > _CLOCK_SLACK_NS:
            # Ages measured on a clock that stepped back would stay small for as long as the step:
            # a deadman that never strikes. Start over on the new time, limp.
            self._now_ns = now_ns
            self._measured.at_ns = None
            if self._state.live:
                self._trip(Fault.CLOCK)
        return self._now_ns

    def _supervise(self, now_ns: int, missing: Fault = Fault.STATE_STALE) -> None:
        """Lets time act: arming ends or starts again, late commands hold, later ones damp.

        Args:
            now_ns: The gate's own time.
            missing: What it is called when measurements have been missing too long.
        """
        if not self._state.live:
            return
        state_age_ns = self._measured.age_ns(now_ns)
        if state_age_ns >= self._stop_ns:
            self._trip(missing)
            return
        if self._state is SafetyState.ARMING:
            if state_age_ns >= self._stale_ns:
                self._begin_rising(now_ns)
                return
            if self._risen_ns(now_ns) < self._arming_ns:
                return
            # The deadman starts with the permission.
            self._command_ns = self._target.moved_ns = now_ns
        command_age_ns = now_ns - self._command_ns
        if command_age_ns >= self._damp_ns:
            self._trip(Fault.COMMAND_TIMEOUT)
        elif command_age_ns >= self._hold_ns or state_age_ns >= self._stale_ns:
            self._state = SafetyState.HOLD
        else:
            self._state = SafetyState.ACTIVE

    def _begin_arming(self, now_ns: int) -> None:
        """From the newest measured pose, with gains from zero."""
        self.arm_count = max((self.arm_count + 1) % _ARM_COUNTS, 1)
        self._target.start(self._measured.joint_pos)
        self._begin_rising(now_ns)
        self._state = SafetyState.ARMING

    def _begin_rising(self, now_ns: int) -> None:
        """ARMING: the gains are zero now."""
        self._ramp_ns, self._ramp_at_ns = 0, now_ns

    def _risen_ns(self, now_ns: int) -> int:
        """ARMING: the time the gains have risen for; a late `step` is credited with a part."""
        return self._ramp_ns + min(now_ns - self._ramp_at_ns, self._credit_ns)

    def _trip(self, fault: Fault) -> None:
        self._faults |= fault
        if self._state is not SafetyState.ESTOP:
            self._state = SafetyState.DAMP

    def _estop(self) -> None:
        self._faults |= Fault.ESTOP
        self._state = SafetyState.ESTOP

    def _arm(self, now_ns: int) -> GateReply:
        if self._state is SafetyState.ESTOP:
            return GateReply(False, "emergency stop is latched; reset it first")
        if self._state.live:
            return GateReply(False, f"already armed ({self._state.name})")
        seen_ns = self._measured.at_ns
        if seen_ns is None or now_ns - seen_ns >= self._stale_ns:
            return GateReply(False, "no fresh measurement; check that the HAL reads its drives")
        if self._measured.faults:
            names = ", ".join(str(fault.name) for fault in self._measured.faults)
            return GateReply(False, f"the newest measurement shows {names}; clear it first")
        self._faults = _NO_FAULT
        self._begin_arming(now_ns)
        return GateReply(True, f"arming; commands are followed in {self.cfg.arming_s} s")

    def _disarm(self) -> GateReply:
        if self._state is SafetyState.ESTOP:
            return GateReply(False, "emergency stop is latched; the drives are limp; reset it")
        self._state = SafetyState.DISARMED
        return GateReply(True, "disarmed; the drives are limp")

    def _reset(self) -> GateReply:
        if self._state.live:
            return GateReply(False, f"nothing to reset ({self._state.name}); disarm first")
        self._state = SafetyState.DISARMED
        self._faults = _NO_FAULT
        return GateReply(True, "faults cleared; arm when the robot is ready")


_REMEDY: Final = {
    SafetyState.DAMP: "arm again",
    SafetyState.ESTOP: "reset, then arm",
}


def _refusal(
    wanted: NDArray[np.generic], shape: tuple[int, ...], state: SafetyState
) -> GateResult | None:
    """The answer to a command that cannot be followed; None if it can."""
    if wanted.shape != shape:
        return GateResult(
            CommandStatus.REJECTED_LENGTH, reason=f"{wanted.shape} angles for {shape[0]}"
        )
    if not np.isfinite(wanted).all():
        return GateResult(CommandStatus.REJECTED_NONFINITE, reason="non-finite angles")
    if state in _REMEDY:
        return GateResult(CommandStatus.REJECTED_SAFETY, reason=f"{state.name}: {_REMEDY[state]}")
    return None if state.following else GateResult(CommandStatus.NOT_ARMED)


def _to_ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _frozen(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array.setflags(write=False)
    return array
