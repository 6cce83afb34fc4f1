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

What always holds, whatever is called in whatever order:

* `joint_pos` lies within the limits. It starts at the measured pose with every `arm`, and with the
  measurement that starts ARMING again; then it is moved by commands alone, each by at most
  `max_rate` times the time since the one before, of which `max_target_step_s` count at most.
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

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from krabby_proto.states import CommandStatus, Fault, SafetyState

from krabby.robot.errors import GateConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from krabby.robot.description import RobotDescription

__all__ = [
    "DriveCommand",
    "DriveMode",
    "GateCfg",
    "GateConfigError",
    "GateReply",
    "GateResult",
    "SafetyGate",
]

_CLOCK_SLACK_NS: Final = 1_000_000
"""Times read by several stages of one cycle may cross by this much; more is a broken clock."""

_CLAMP_REPORT_RAD: Final = 1e-6
"""A clamp is reported from here on: a limit that went through float32 is no violation."""

_EFFORT_READING_CAP: Final = 10.0
"""Multiples of the peak torque above which a reading is cut, so that its square stays finite."""


_NO_FAULT: Final = Fault(0)


class DriveMode(IntEnum):
    """What a drive does with a `DriveCommand`."""

    DAMP = 0
    """Torque = -kd * joint_vel; the position is to be ignored."""
    POSITION = 1
    """Torque = kp * (joint_pos - measured) - kd * joint_vel."""


class GateResult(NamedTuple):
    """What became of one command."""

    status: CommandStatus
    """APPLIED: it is the target now, perhaps clamped. NOT_ARMED: DISARMED or ARMING. HELD: the
    measurements are stale, so the target stays. REJECTED_SAFETY, REJECTED_LENGTH or
    REJECTED_NONFINITE: see `reason`."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class GateCfg:
    """The limits a `SafetyGate` keeps.

    Arrays have shape (n,), joint order of `robot.toml`; `from_description` takes them from there.
    """

    lower: NDArray[np.float64]
    """Lower end of the mechanical range [rad]."""
    upper: NDArray[np.float64]
    """Upper end of the mechanical range [rad]."""
    max_rate: NDArray[np.float64]
    """Fastest change of a target [rad/s]."""
    kp: NDArray[np.float64]
    """Stiffness once armed [N·m/rad]."""
    kd: NDArray[np.float64]
    """Damping once armed [N·m·s/rad]."""
    damp_kd: NDArray[np.float64]
    """Damping while limp [N·m·s/rad]."""
    rated_torque: NDArray[np.float64]
    """RMS effort a drive bears for ever [N·m]."""
    peak_torque: NDArray[np.float64]
    """Effort a drive bears for moments [N·m]."""
    position_margin_rad: float = 0.02
    """Targets stay this far inside the mechanical range."""
    range_margin_rad: float = 0.15
    """How far outside it a joint may be measured: the stops give way a little."""
    rms_window_s: float = 30.0
    """Time constant of the effort filter."""
    fold_start: float = 0.8
    """Mean square effort over rated² at which the effort limit starts to fold towards rated."""
    budget_trip: float = 1.05
    """RMS effort over rated above which the drive is taken to ignore its limit."""
    tilt_limit_rad: float = 1.0
    """Largest angle between the base's up and the world's."""
    hold_after_s: float = 0.05
    """Age of the newest valid command at which the pose is held."""
    damp_after_s: float = 0.15
    """Age of the newest valid command at which the drives are damped."""
    state_stale_s: float = 0.03
    """Age of the newest measurement at which the pose is held, and arming starts again."""
    state_stop_s: float = 0.1
    """Age of the newest measurement at which the drives are damped."""
    drive_timeout_s: float = 0.1
    """Drives fall limp by themselves when no `DriveCommand` came for this long."""
    arming_s: float = 0.5
    """Time over which the gains rise from zero."""
    max_target_step_s: float = 0.02
    """Time credited to one target, or one rise of the gains, at most: late calls cannot jump."""

    def __post_init__(self) -> None:
        """Freezes the arrays and refuses limits that contradict each other."""
        for name in _JOINT_FIELDS:
            array = np.array(getattr(self, name), dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for problem in self._problems():
            raise GateConfigError(f"safety gate: {problem}")

    @classmethod
    def from_description(cls, desc: RobotDescription, **overrides: float) -> GateCfg:
        """The limits of a robot; `overrides` are thresholds such as `tilt_limit_rad`."""
        safety = desc.safety
        thresholds = {
            "position_margin_rad": safety.position_margin_rad,
            "rms_window_s": safety.rms_window_s,
            "fold_start": safety.fold_start,
            "tilt_limit_rad": safety.tilt_limit_rad,
            "hold_after_s": safety.hold_after_s,
            "damp_after_s": safety.damp_after_s,
            "state_stale_s": safety.state_stale_s,
            "state_stop_s": safety.state_stop_s,
            "arming_s": safety.arming_s,
            "max_target_step_s": safety.max_target_step_s,
        }
        every_joint = np.ones_like(desc.kp)
        return cls(
            lower=desc.joint_lower,
            upper=desc.joint_upper,
            max_rate=desc.velocity_limit,
            kp=desc.kp,
            kd=desc.kd,
            damp_kd=safety.damp_kd * every_joint,
            rated_torque=desc.rated_torque * every_joint,
            peak_torque=desc.peak_torque * every_joint,
            **(thresholds | overrides),
        )

    @property
    def target_lower(self) -> NDArray[np.float64]:
        """Lowest target the gate lets through [rad], shape (n,)."""
        return self.lower + self.position_margin_rad

    @property
    def target_upper(self) -> NDArray[np.float64]:
        """Highest target the gate lets through [rad], shape (n,)."""
        return self.upper - self.position_margin_rad

    @property
    def joint_count(self) -> int:
        """Number of joints."""
        return self.lower.size

    def _problems(self) -> Iterator[str]:
        """What contradicts what; lazily, so that a rule may rely on those before it."""
        shapes = {name: getattr(self, name).shape for name in _JOINT_FIELDS}
        if len(set(shapes.values())) > 1 or self.lower.ndim != 1:
            yield f"per-joint limits have shapes {shapes}; give one value per joint in each"
        for name in _JOINT_FIELDS:
            if not np.isfinite(getattr(self, name)).all():
                yield f"{name} = {getattr(self, name)} is not finite; give numbers"
        for name in ("max_rate", "rated_torque"):
            if not (getattr(self, name) > 0.0).all():
                yield f"{name} = {getattr(self, name)} must be positive"
        for name in ("kp", "kd", "damp_kd"):
            if not (getattr(self, name) >= 0.0).all():
                yield f"{name} = {getattr(self, name)} must not be negative"
        for name in ("position_margin_rad", "range_margin_rad"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                yield f"{name} = {getattr(self, name)} must be finite and not negative"
        if not (self.target_lower < self.target_upper).all():
            yield (
                f"lower = {self.lower} and upper = {self.upper} leave no room for targets"
                f" {self.position_margin_rad} rad inside them"
            )
        if not (self.rated_torque <= self.peak_torque).all():
            yield f"rated_torque = {self.rated_torque} exceeds peak_torque = {self.peak_torque}"
        for name in _SCALAR_FIELDS:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0.0):
                yield f"{name} = {getattr(self, name)} must be positive and finite"
        if self.hold_after_s > self.damp_after_s:
            yield f"hold_after_s = {self.hold_after_s} exceeds damp_after_s = {self.damp_after_s}"
        if self.state_stale_s > self.state_stop_s:
            yield f"state_stale_s = {self.state_stale_s} exceeds state_stop_s = {self.state_stop_s}"
        if self.fold_start >= 1.0:
            yield f"fold_start = {self.fold_start} must be below 1, where the limit reaches rated"
        # One limit stays in force for `drive_timeout_s` at most, which moves the filter by `share`
        # of its distance to effort². The fold keeps the mean square at or below rated² as long as
        # its steepest step does not overshoot.
        share = -math.expm1(-self.drive_timeout_s / self.rms_window_s)
        peak_ratio = float((self.peak_torque / self.rated_torque).max())
        if share * (peak_ratio**2 - self.fold_start) > 1.0 - self.fold_start:
            yield (
                f"drive_timeout_s = {self.drive_timeout_s} is long enough to overshoot the effort"
                f" budget; lengthen rms_window_s = {self.rms_window_s} or lower fold_start ="
                f" {self.fold_start}"
            )


_JOINT_FIELDS: Final = (
    "lower", "upper", "max_rate", "kp", "kd", "damp_kd", "rated_torque", "peak_torque",
)  # fmt: skip
_SCALAR_FIELDS: Final = (
    "rms_window_s", "fold_start", "budget_trip", "tilt_limit_rad", "hold_after_s", "damp_after_s",
    "state_stale_s", "state_stop_s", "drive_timeout_s", "arming_s", "max_target_step_s",
)  # fmt: skip


class SafetyGate:
    """One robot's gate; see the module for what it promises. For one thread, the drives' owner.

    Args:
        cfg: The limits it keeps.
    """

    def __init__(self, cfg: GateCfg) -> None:
        self.cfg = cfg
        n = cfg.joint_count
        self._state = SafetyState.DISARMED
        self._faults = _NO_FAULT
        self._conditions = _NO_FAULT  # faults that the newest measurement alone gives
        self._now_ns = 0
        self._observed_ns: int | None = None  # newest valid measurement
        self._command_ns = 0  # newest valid command, or the start of ACTIVE
        self._target_ns = 0  # when `_target` was applied
        self._ramp_ns = 0  # ARMING: time the gains have risen for, at the newest `step`
        self._ramp_at_ns = 0  # ARMING: when that was
        self._lower = cfg.target_lower
        self._upper = cfg.target_upper
        self._measured_pos = np.clip(np.zeros(n), self._lower, self._upper)
        self._target = self._measured_pos.copy()
        self._mean_square = np.zeros(n)  # filtered effort² over rated²

        self._hold_ns = _to_ns(cfg.hold_after_s)
        self._damp_ns = _to_ns(cfg.damp_after_s)
        self._stale_ns = _to_ns(cfg.state_stale_s)
        self._stop_ns = _to_ns(cfg.state_stop_s)
        self._arming_ns = _to_ns(cfg.arming_s)
        self._credit_ns = _to_ns(cfg.max_target_step_s)
        self._drive_timeout_ns = _to_ns(cfg.drive_timeout_s)
        self._min_up = math.cos(min(cfg.tilt_limit_rad, math.pi))
        self._range_lower = cfg.lower - cfg.range_margin_rad
        self._range_upper = cfg.upper + cfg.range_margin_rad
        self._inverse_rated = 1.0 / cfg.rated_torque
        self._effort_cap = _EFFORT_READING_CAP * cfg.peak_torque
        self._peak_over_rated = cfg.peak_torque - cfg.rated_torque
        self._no_kp = _frozen(np.zeros(n))

        # Scratch: the 100 Hz path writes here instead of allocating.
        self._sample = np.zeros((3, n))  # joint_pos, joint_vel, joint_effort
        self._finite = np.zeros((3, n), dtype=bool)
        self._wanted = np.zeros(n)
        self._bounded = np.zeros(n)
        self._reach = np.zeros(n)
        self._scratch = np.zeros(n)

    @property
    def state(self) -> SafetyState:
        """What the drives may do."""
        return self._state

    @property
    def faults(self) -> Fault:
        """Why the gate tripped; kept until the next `arm` or `reset`."""
        return self._faults

    @property
    def effort_rms(self) -> NDArray[np.float64]:
        """Filtered RMS effort [N·m], shape (n,)."""
        return np.sqrt(self._mean_square) * self.cfg.rated_torque

    @property
    def effort_budget_ratio(self) -> float:
        """RMS effort over rated torque of the joint that works hardest."""
        return math.sqrt(self._mean_square.max())

    @property
    def target(self) -> NDArray[np.float64]:
        """A copy of the target in force [rad], shape (n,)."""
        return self._target.copy()

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
        sample = self._sample
        sample[0] = joint_pos
        sample[1] = joint_vel
        sample[2] = joint_effort
        up = _up_component(*map(float, quat_wb))
        if not (np.isfinite(sample, out=self._finite).all() and math.isfinite(up)):
            self._supervise(now_ns)
            self._conditions = Fault.STATE_NONFINITE
        else:
            self._supervise(now_ns, Fault.STATE_GAP)
            late = (
                self._state is SafetyState.ARMING and self._state_age_ns(now_ns) >= self._stale_ns
            )
            self._take_in(now_ns if captured_ns is None else min(captured_ns, now_ns))
            self._conditions = self._judge(up)
            if late:
                self._begin_arming(now_ns)
        if self._conditions and was_live:
            self._trip(self._conditions)

    def command(self, joint_pos_target: ArrayLike, now_ns: int) -> GateResult:
        """Makes a command the target, as far as state, position and rate limits allow.

        Args:
            joint_pos_target: Wanted angles [rad], shape (n,). Anything else is refused.
            now_ns: The HAL's clock.
        """
        now_ns = self._advance(now_ns)
        self._supervise(now_ns)
        wanted = np.asarray(joint_pos_target)
        if wanted.shape != self._target.shape:
            return GateResult(
                CommandStatus.REJECTED_LENGTH,
                reason=f"{wanted.shape} angles for {self._target.size}",
            )
        if not np.isfinite(wanted).all():
            return GateResult(CommandStatus.REJECTED_NONFINITE, reason="non-finite angles")
        if self._state in _LIMP_BY_FAULT:
            return GateResult(
                CommandStatus.REJECTED_SAFETY,
                reason=f"{self._state.name}: {_REMEDY[self._state]}",
            )
        if not self._state.following:
            return GateResult(CommandStatus.NOT_ARMED)
        self._command_ns = now_ns
        self._supervise(now_ns)  # a command ends the hold that its absence began
        if self._state is SafetyState.HOLD:
            return GateResult(CommandStatus.HELD)
        self._wanted[:] = wanted
        return self._apply(now_ns)

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
                return GateReply(True, f"{self._state.name}")
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
            joint_pos = np.clip(self._measured_pos, self._lower, self._upper)
            mode, kp, kd = DriveMode.DAMP, self._no_kp, cfg.damp_kd
        elif self._state is SafetyState.ARMING:
            self._ramp_ns, self._ramp_at_ns = self._risen_ns(now_ns), now_ns
            share = self._ramp_ns / self._arming_ns
            joint_pos = self._target.copy()
            mode = DriveMode.POSITION
            kp = _frozen(cfg.kp * share)
            kd = _frozen(cfg.damp_kd + (cfg.kd - cfg.damp_kd) * share)
        else:
            joint_pos = self._target.copy()
            mode, kp, kd = DriveMode.POSITION, cfg.kp, cfg.kd
        return DriveCommand(mode, _frozen(joint_pos), kp, kd, _frozen(self._effort_limit()))

    def _advance(self, now_ns: int) -> int:
        """The gate's own time, which never runs backwards."""
        behind_ns = self._now_ns - now_ns
        if behind_ns <= 0:
            self._now_ns = now_ns
        elif behind_ns > _CLOCK_SLACK_NS:
            # Ages measured on a clock that stepped back would stay small for as long as the step:
            # a deadman that never strikes. Start over on the new time, limp.
            self._now_ns = now_ns
            self._observed_ns = None
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
        state_age_ns = self._state_age_ns(now_ns)
        if state_age_ns >= self._stop_ns:
            self._trip(missing)
            return
        if self._state is SafetyState.ARMING:
            if state_age_ns >= self._stale_ns:
                self._begin_rising(now_ns)
                return
            if self._risen_ns(now_ns) < self._arming_ns:
                return
            self._command_ns = self._target_ns = now_ns  # the deadman starts with the permission
        command_age_ns = now_ns - self._command_ns
        if command_age_ns >= self._damp_ns:
            self._trip(Fault.COMMAND_TIMEOUT)
        elif command_age_ns >= self._hold_ns or state_age_ns >= self._stale_ns:
            self._state = SafetyState.HOLD
        else:
            self._state = SafetyState.ACTIVE

    def _state_age_ns(self, now_ns: int) -> int:
        """Age of the newest valid measurement of a live robot."""
        # Live means measured: `arm` requires it, and a clock fault, which forgets it, trips.
        assert self._observed_ns is not None
        return now_ns - self._observed_ns

    def _begin_arming(self, now_ns: int) -> None:
        """From the newest measured pose, with gains from zero."""
        np.clip(self._measured_pos, self._lower, self._upper, out=self._target)
        self._begin_rising(now_ns)
        self._state = SafetyState.ARMING

    def _begin_rising(self, now_ns: int) -> None:
        """ARMING: the gains are zero now."""
        self._ramp_ns, self._ramp_at_ns = 0, now_ns

    def _risen_ns(self, now_ns: int) -> int:
        """ARMING: the time the gains have risen for; a late `step` is credited with a part."""
        return self._ramp_ns + min(now_ns - self._ramp_at_ns, self._credit_ns)

    def _take_in(self, captured_ns: int) -> None:
        """Makes the sample the newest measurement; one that comes again is no younger for it."""
        if self._observed_ns is not None:
            captured_ns = max(captured_ns, self._observed_ns)
        self._integrate_effort(self._sample[2], captured_ns)
        self._measured_pos[:] = self._sample[0]
        self._observed_ns = captured_ns

    def _apply(self, now_ns: int) -> GateResult:
        """Moves the target towards `_wanted` within position and rate limits."""
        wanted, bounded, reach = self._wanted, self._bounded, self._reach
        np.maximum(wanted, self._lower, out=bounded)
        np.minimum(bounded, self._upper, out=bounded)
        position_mask = _mask(wanted, bounded, self._scratch)
        # What the rate allows is an interval around the last target. That one is within the limits,
        # so cutting `bounded` to the interval keeps it there, rounding included.
        dt_s = min((now_ns - self._target_ns) * 1e-9, self.cfg.max_target_step_s)
        np.multiply(self.cfg.max_rate, dt_s, out=reach)
        np.subtract(self._target, reach, out=wanted)
        np.maximum(bounded, wanted, out=wanted)
        np.add(self._target, reach, out=reach)
        np.minimum(wanted, reach, out=self._target)
        self._target_ns = now_ns
        rate_mask = _mask(bounded, self._target, self._scratch)
        return GateResult(CommandStatus.APPLIED, position_mask, rate_mask)

    def _integrate_effort(self, effort: NDArray[np.float64], captured_ns: int) -> None:
        """First-order filter of effort² over rated², exact for an effort constant over the cycle.

        A gap beyond `drive_timeout_s`, or of unknown length, heats for that long, since drives
        without news fall limp, and cools no longer than that, since nobody saw them do so.
        """
        dt_ns = self._drive_timeout_ns
        if self._observed_ns is not None:
            dt_ns = min(captured_ns - self._observed_ns, dt_ns)
        share = -math.expm1(-dt_ns * 1e-9 / self.cfg.rms_window_s)
        square = self._scratch
        np.abs(effort, out=square)
        np.minimum(square, self._effort_cap, out=square)
        np.multiply(square, self._inverse_rated, out=square)
        np.multiply(square, square, out=square)
        np.subtract(square, self._mean_square, out=square)
        np.multiply(square, share, out=square)
        np.add(self._mean_square, square, out=self._mean_square)

    def _effort_limit(self) -> NDArray[np.float64]:
        """Peak torque, folding to rated as the mean square effort goes from `fold_start` to 1.

        At a mean square of 1 the limit is rated and the filter is at rest: the RMS approaches rated
        from below. `GateCfg` refuses a window so short that one `drive_timeout_s` overshoots.
        """
        room = (1.0 - self._mean_square) / (1.0 - self.cfg.fold_start)
        np.maximum(room, 0.0, out=room)
        np.minimum(room, 1.0, out=room)
        np.multiply(room, self._peak_over_rated, out=room)
        np.add(room, self.cfg.rated_torque, out=room)
        return room

    def _judge(self, up: float) -> Fault:
        """The faults that the newest valid measurement shows."""
        found = _NO_FAULT
        if up < self._min_up:
            found |= Fault.TILT
        pos = self._measured_pos
        if (pos < self._range_lower).any() or (pos > self._range_upper).any():
            found |= Fault.JOINT_RANGE
        if self.effort_budget_ratio > self.cfg.budget_trip:
            found |= Fault.EFFORT_BUDGET
        return found

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
        if self._observed_ns is None or now_ns - self._observed_ns >= self._stale_ns:
            return GateReply(False, "no fresh measurement; check that the HAL reads its drives")
        if self._conditions:
            names = _fault_names(self._conditions)
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


_LIMP_BY_FAULT: Final = (SafetyState.DAMP, SafetyState.ESTOP)
_REMEDY: Final = {
    SafetyState.DAMP: "arm again",
    SafetyState.ESTOP: "reset, then arm",
}
_BITS: Final = 1 << np.arange(63)


def _to_ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _frozen(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array.setflags(write=False)
    return array


def _fault_names(faults: Fault) -> str:
    return ", ".join(str(fault.name) for fault in Fault if fault in faults)


def _up_component(x: float, y: float, z: float, w: float) -> float:
    """The world's up along the base's own, the cosine of the tilt; NaN when this is no rotation."""
    norm_sq = x * x + y * y + z * z + w * w
    # An IMU that has not started reports zeros; a bit error reports anything.
    if not 0.8 < norm_sq < 1.2:
        return math.nan
    return 1.0 - 2.0 * (x * x + y * y) / norm_sq


def _mask(
    wanted: NDArray[np.float64], got: NDArray[np.float64], scratch: NDArray[np.float64]
) -> int:
    """Bit i is set where the two differ."""
    np.subtract(wanted, got, out=scratch)
    np.abs(scratch, out=scratch)
    if scratch.max() <= _CLAMP_REPORT_RAD:
        return 0
    return int(_BITS[: scratch.size] @ (scratch > _CLAMP_REPORT_RAD))
