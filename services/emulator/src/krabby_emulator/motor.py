"""Motor model of all drives: winding, encoder, protection, time-out.

Arrays have shape (n,), joint order, joint side; time is passed in. `law` and `torque_range` tell
the physics what to do in the next substep, `settle` takes the result.
"""

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from krabby.drivers.can import DriveFault, DriveMode
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import torque_speed_limit
from numpy.typing import NDArray

from krabby_emulator.config import DriveCfg, SupplyCfg

__all__ = ["DriveBank", "Law"]

_CAN_TIMEOUT, _OVER_TEMPERATURE, _UNDERVOLTAGE = (
    np.uint32(fault)
    for fault in (DriveFault.CAN_TIMEOUT, DriveFault.OVER_TEMPERATURE, DriveFault.UNDERVOLTAGE)
)
_RUN, _OFF = np.uint8(DriveMode.RUN), np.uint8(DriveMode.OFF)
_NEVER_NS = 1 << 62
_LEAST_SUPPLY_V = 1.0
"""Keeps divisions by the supply voltage finite."""


_Values = NDArray[np.float64] | float


class Law(NamedTuple):
    """Torque of every joint for a substep: kp (target - angle) - kd velocity + offset."""

    kp: NDArray[np.float64]
    kd: NDArray[np.float64]
    target: NDArray[np.float64]
    offset: NDArray[np.float64]


class Reported(NamedTuple):
    """What encoders and current sensors say, shape (n,)."""

    pos: NDArray[np.float64]
    """[rad]"""
    vel: NDArray[np.float64]
    """[rad/s]"""
    effort: NDArray[np.float64]
    """[N·m]"""


class DriveBank:
    """All drives: what they were told, what they do, what they would report."""

    def __init__(
        self, desc: RobotDescription, drive: DriveCfg, supply: SupplyCfg, *, seed: int = 0
    ) -> None:
        """Every drive is off, cold and knows no time-out: power has just been switched on."""
        count = len(desc.joint_names)
        self._desc, self._cfg, self._supply = desc, drive, supply
        self._random = np.random.default_rng(seed)
        self.on = np.zeros(count, bool)
        """Drives that are switched on."""
        self.faults = np.zeros(count, np.uint32)
        """Latched `DriveFault` bits, kept until they are cleared."""
        self.timeout_ns = np.zeros(count, np.int64)
        """Silence after which a drive switches itself off; 0 for never."""
        self.torque_limit = desc.peak_torque.copy()
        """What a parameter write allowed [N·m]."""
        self.command_ns = np.zeros(count, np.int64)
        """When a drive last heard a command."""
        self.ready_ns = np.zeros(count, np.int64)
        """A drive that reboots is deaf and mute until then."""
        self.rebooted = list(range(count))
        """Drives that woke up and have not counted their turns yet; the reader empties it."""
        self.winding_c = np.full(count, drive.ambient_c)
        self.housing_c = np.full(count, drive.ambient_c)
        self.supply_v = supply.voltage
        """At the drives."""
        self.supply_a = 0.0
        """Drawn by all drives; negative while they brake into the battery."""
        self.target_pos = np.zeros(count)
        self._target_vel = np.zeros(count)
        self.kp = np.zeros(count)
        self._kd = np.zeros(count)
        self._torque = np.zeros(count)
        self._stuck = np.zeros(count, bool)
        self._stuck_at = np.zeros(count)
        self._effort = np.zeros(count)
        self._law: Law | None = None
        self._limit = self.torque_limit.copy()
        self._true = np.zeros(count), np.zeros(count)
        """Angles and speeds after the last substep [rad, rad/s]."""
        self._reported: Reported | None = None
        self.powered = True
        """Whether there is a supply."""
        self.wrapped: dict[int, int] = defaultdict(int)
        """Whole turns by which drives count wrong from now on; the reader empties it."""
        self.trips = 0
        """Times that a drive switched itself off, time-outs included."""

    # --- what the wire says --------------------------------------------------------------------

    def command(
        self,
        joints: int | list[int] | NDArray[np.intp],
        pos: _Values,
        vel: _Values,
        kp: _Values,
        kd: _Values,
        torque: _Values,
        now_ns: int,
    ) -> None:
        """Command frames; a drive that is off stores them too."""
        self.command_ns[joints] = now_ns
        self.target_pos[joints] = pos
        self._target_vel[joints] = vel
        self.kp[joints] = kp
        self._kd[joints] = kd
        self._torque[joints] = torque
        self._law = None

    def enable(self, joint: int, now_ns: int) -> bool:
        """Switch on, limp until the first command; refused while a fault is latched."""
        if self.faults[joint]:
            return False
        if not self.on[joint]:
            self._forget_targets(joint)
            self.command_ns[joint] = now_ns
        self.on[joint] = True
        return True

    def disable(self, joint: int, *, clear: bool = False) -> None:
        """Switch off; `clear` forgets the faults as well, those that last come back at once."""
        self.on[joint] = False
        self._law = None
        if clear:
            self.faults[joint] = 0

    def limit_torque(self, joint: int, torque: float) -> None:
        """Give no more than this from now on [N·m]."""
        self.torque_limit[joint] = torque
        self._law = None

    def reboot(self, joint: int, now_ns: int) -> None:
        """Lose power for a moment: off, mute while booting, volatile parameters forgotten."""
        self.disable(joint, clear=True)
        self.timeout_ns[joint] = 0
        self.torque_limit[joint] = self._desc.peak_torque[joint]
        self._forget_targets(joint)
        self.rebooted.append(joint)
        self.ready_ns[joint] = now_ns + round(self._cfg.boot_s * 1e9)

    def supply(self, powered: bool, now_ns: int) -> None:
        """Take the supply away, or give it back: every drive then boots."""
        if powered == self.powered:
            return
        self.powered = powered
        for joint in range(len(self.on)):
            self.reboot(joint, now_ns)
            if not powered:
                self.ready_ns[joint] = _NEVER_NS

    def brown_out(self, now_ns: int) -> None:
        """The supply dips: every other drive reboots, the others trip."""
        for joint in range(0, len(self.on), 2):
            self.reboot(joint, now_ns)
        self.trips += int(self.on[1::2].sum())
        self.faults[1::2] |= _UNDERVOLTAGE
        self.on[1::2] = False
        self._law = None

    def _forget_targets(self, joint: int) -> None:
        for values in (self._target_vel, self.kp, self._kd, self._torque):
            values[joint] = 0.0
        self._law = None

    # --- around a substep ----------------------------------------------------------------------

    def protect(self, now_ns: int) -> None:
        """Switch off where the time-out passed, the winding is too hot or the supply too low."""
        hot = self.winding_c > self._cfg.winding_limit_c
        low = self.supply_v < self._supply.undervoltage
        deaf = self.on & (self.timeout_ns > 0)
        deaf &= self.command_ns + self.timeout_ns < now_ns
        tripped = deaf | hot | low
        if not tripped.any():
            return
        self.faults[deaf] |= _CAN_TIMEOUT
        self.faults[hot] |= _OVER_TEMPERATURE
        if low:
            self.faults |= _UNDERVOLTAGE
        self.trips += int((tripped & self.on).sum())
        self.on &= ~tripped
        self._law = None

    def stood_still(self, lost_ns: int) -> None:
        """The emulator slept for so long: no time passed for the drives, so none was silent."""
        self.command_ns += lost_ns

    def law(self, joint_pos: NDArray[np.float64], stuck: NDArray[np.bool_]) -> Law:
        """What every drive does until the next substep; the same object until that changes.

        `joint_pos` are the true angles [rad], `stuck` the encoders that stand still.
        """
        if stuck is not self._stuck:
            began = stuck & ~self._stuck
            self._stuck_at[began] = joint_pos[began]
            self._stuck = stuck
            self._law = None
        if self._law is None:
            self._law = self._new_law()
            self._limit = np.where(self.on, self.torque_limit, self._desc.peak_torque)
        return self._law

    def _new_law(self) -> Law:
        kp = np.where(self.on, self.kp, 0.0)
        kd = np.where(self.on, self._kd, self._cfg.off_damping)
        offset = np.where(self.on, self._kd * self._target_vel + self._torque, 0.0)
        blind = self._stuck & self.on
        if blind.any():
            offset[blind] += kp[blind] * (self.target_pos - self._stuck_at)[blind]
            kp[blind] = 0.0
            kd[blind] = 0.0
        return Law(kp, kd, self.target_pos.copy(), offset)

    def torque_range(
        self, joint_vel: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and largest available torque [N·m] at `joint_vel` [rad/s], after `law`."""
        # The no-load speed follows the voltage, so the same torque is had at a lower speed.
        share = max(self.supply_v, _LEAST_SUPPLY_V) / self._supply.voltage
        low, high = torque_speed_limit(self._desc, joint_vel / share)
        return np.maximum(low, -self._limit), np.minimum(high, self._limit)

    def settle(
        self,
        effort: NDArray[np.float64],
        joint_pos: NDArray[np.float64],
        joint_vel: NDArray[np.float64],
        dt_s: float,
        *,
        heat_c: NDArray[np.float64] | None = None,
        sag_v: float = 0.0,
    ) -> None:
        """Take in a substep of `dt_s`: heat, supply and what will be reported.

        `effort` is what the joints got [N·m]. Injected: windings are at least `heat_c` hot, NaN for
        no fault, and the supply loses `sag_v`.
        """
        cfg = self._cfg
        mechanical = effort * joint_vel
        copper = (effort / cfg.motor_constant) ** 2
        # A drive that is off brakes by its own shorted winding: all of it stays there as heat.
        heat = np.where(self.on, copper, np.abs(mechanical))
        to_housing = (self.winding_c - self.housing_c) / cfg.winding_to_housing
        to_air = (self.housing_c - cfg.ambient_c) / cfg.housing_to_air
        heat_s = dt_s * cfg.heat_speed
        self.winding_c += (heat - to_housing) * (heat_s / cfg.winding_capacity)
        self.housing_c += (to_housing - to_air) * (heat_s / cfg.housing_capacity)
        if heat_c is not None:
            np.fmax(self.winding_c, heat_c, out=self.winding_c)
        power = float((mechanical + copper)[self.on].sum()) + self._supply.idle_power
        self.supply_a = power / max(self.supply_v, _LEAST_SUPPLY_V)
        self.supply_v = max(
            self._supply.voltage - self._supply.resistance * self.supply_a - sag_v, 0.0
        )
        self._effort = np.where(self.on, effort, 0.0)
        self.report(joint_pos, joint_vel)

    def report(self, joint_pos: NDArray[np.float64], joint_vel: NDArray[np.float64]) -> None:
        """From now on encoders and current sensors measure this."""
        self._true = joint_pos, joint_vel
        self._reported = None

    @property
    def reported(self) -> Reported:
        """What encoders and current sensors say; sampled when it is asked for, once a substep."""
        if self._reported is None:
            self._reported = self._sampled()
        return self._reported

    def _sampled(self) -> Reported:
        cfg, (joint_pos, joint_vel) = self._cfg, self._true
        noise = self._random.standard_normal((3, len(joint_pos)))
        step = 2.0 * math.pi / cfg.encoder_counts
        pos = np.rint((joint_pos + cfg.position_noise * noise[0]) / step) * step
        vel = joint_vel + cfg.velocity_noise * noise[1]
        effort = self._effort + cfg.effort_noise * noise[2]
        if self._stuck.any():
            pos[self._stuck] = self._stuck_at[self._stuck]
            vel[self._stuck] = 0.0
        return Reported(pos, vel, effort)

    @property
    def mode(self) -> NDArray[np.uint8]:
        """`DriveMode` of every drive, as it reports it."""
        return np.where(self.on, _RUN, _OFF)

    @property
    def running(self) -> int:
        """How many drives are switched on."""
        return int(self.on.sum())

    @property
    def holding(self) -> NDArray[np.bool_]:
        """Drives that hold a position."""
        return self.on & (self.kp > 0.0)
