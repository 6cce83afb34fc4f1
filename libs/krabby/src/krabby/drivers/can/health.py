"""Faults that the readings show and drives do not report: silent, stuck, jumping, hot, sagging.

One pass of array arithmetic a cycle, without input and output; time is passed in.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from krabby.drivers.can.calibration import Mounting
from krabby.drivers.can.crossing import CrossingWatch
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.types import DriveFault, DriveMode, DriveReadings
from krabby.robot.description import RobotDescription

__all__ = ["DriveHealth", "HealthCfg"]

_BITS: Final = {fault: np.uint32(fault) for fault in DriveFault}
"""NumPy takes an IntFlag for a 64-bit number."""


@dataclass(frozen=True, kw_only=True)
class HealthCfg:
    """Thresholds."""

    no_reply_s: float = 0.04
    """Age of the newest reply at which a drive counts as silent."""
    stuck_travel_rad: float = 0.1
    """Reported speed, integrated, that a position must not ignore."""
    stuck_speed: float = 0.1
    """Slower than this is taken for rest [rad/s]."""
    stuck_torque_share: float = 0.5
    """Change of the commanded torque, over rated torque, that a position must not ignore."""
    stuck_carrying_share: float = 1.0
    """The same in a leg that carries load: six feet on the ground hold one another, and a leg that
    takes over load from its neighbours does not move."""
    stuck_after_s: float = 0.06
    """... for this long: a joint needs time to begin to move."""
    wrong_torque_share: float = 0.5
    """Difference of reported and commanded torque, over peak torque, root mean square. A walk has
    0.05; a drive that obeys the commands of the joint on the other side 0.4 after 50 ms and 0.8
    after 250."""
    wrong_torque_cycles: int = 50
    """Time constant of that mean."""
    jump_margin_rad: float = 0.1
    jump_speed_share: float = 1.5
    """Times the drive's fastest speed."""


class DriveHealth:
    """Watches readings; sets fault bits and how much of the effort limit is left."""

    def __init__(
        self,
        hardware: HardwareDescription,
        mounting: Mounting,
        desc: RobotDescription,
        cfg: HealthCfg | None = None,
    ) -> None:
        """Limits come from the drives' models and from `[supply]`."""
        self.cfg = HealthCfg() if cfg is None else cfg
        models = [drive.model for drive in hardware.drives]
        count = len(models)
        self._derate_from_c = np.array([model.derate_from_c for model in models])
        self._derate_to_c = np.array([model.derate_to_c for model in models])
        self._supply = hardware.supply
        speed = np.array([model.velocity_range for model in models]) / np.abs(mounting.ratio)
        self._jump_per_ns = self.cfg.jump_speed_share * speed * 1e-9
        self._stuck_torque = self.cfg.stuck_torque_share * desc.rated_torque
        self._stuck_carrying = self.cfg.stuck_carrying_share * desc.rated_torque
        self.carrying = np.zeros(count, np.bool_)
        """Joints of legs that carry load, shape (n,); to be set from outside."""
        self.effort_share: NDArray[np.float64] = np.ones(count)
        """Share of the effort limit that temperature and voltage leave, shape (n,)."""
        self._crossing = CrossingWatch(count)
        self._wrong_square = (self.cfg.wrong_torque_share * desc.peak_torque) ** 2
        self._torque_square = np.zeros(count)
        """Mean square of what reported and commanded torques differ by [N²·m²]."""
        self._commanded = np.zeros(count)
        """Torque asked for a cycle ago: a reply has the torque before its command took effect."""
        self._latched = np.zeros(count, np.uint32)
        self._pos = np.full(count, np.nan)
        self._stamp_ns = np.zeros(count, np.int64)
        self._moved_ns = np.zeros(count, np.int64)
        self._torque_then = np.zeros(count)
        self._free_ns = np.zeros(count, np.int64)
        """When it last moved, was limp, or its leg last carried load."""
        self._free_torque = np.zeros(count)
        """What it was told to give when it stopped, or then."""
        self._travel = np.zeros(count)
        self._was_moving = np.zeros(count, np.bool_)

    def reset(self) -> None:
        """Forget latched faults and start watching anew."""
        self._latched[:] = 0
        self._crossing.reset()
        self._torque_square[:] = 0.0
        self._pos[:] = np.nan

    def update(
        self,
        readings: DriveReadings,
        torque: NDArray[np.float64],
        enabled: NDArray[np.bool_],
        holding: NDArray[np.bool_],
        target: NDArray[np.float64],
        now_ns: int,
    ) -> None:
        """Add to `readings.faults` what this reading shows.

        `torque` is the commanded one [N·m]; `enabled` drives were switched on, `holding` ones were
        told to hold a position, `target` [rad]; all of shape (n,).
        """
        self._watch_position(readings, torque, holding)
        self._watch_crossing(readings, target, holding)
        self._watch_torque(readings, torque, holding)
        dropped = enabled & (readings.mode == DriveMode.OFF)
        self._latched[dropped] |= _BITS[DriveFault.DROPPED_OUT]
        faults = readings.faults
        faults |= self._latched
        silent = now_ns - readings.stamp_ns > self.cfg.no_reply_s * 1e9
        faults[silent] |= _BITS[DriveFault.NO_REPLY]
        self._derate(readings)

    def _watch_crossing(
        self,
        readings: DriveReadings,
        target: NDArray[np.float64],
        holding: NDArray[np.bool_],
    ) -> None:
        self._crossing.update(readings.joint_pos, target, holding)
        if self._crossing.pairs:
            readings.crossed = self._crossing.pairs
            for pair in self._crossing.pairs:
                self._latched[list(pair)] |= _BITS[DriveFault.CROSSED]

    def _watch_torque(
        self,
        readings: DriveReadings,
        torque: NDArray[np.float64],
        holding: NDArray[np.bool_],
    ) -> None:
        """Find drives that do something else than they were told."""
        differs = readings.joint_effort - self._commanded
        self._commanded = torque
        differs *= differs
        obeys = holding & (readings.mode == DriveMode.RUN) & (differs == differs)
        differs = np.where(obeys, differs, 0.0)
        self._torque_square += (differs - self._torque_square) / self.cfg.wrong_torque_cycles
        wrong = self._torque_square > self._wrong_square
        if wrong.any():
            self._latched[wrong] |= _BITS[DriveFault.WRONG_TORQUE]

    def _watch_position(
        self,
        readings: DriveReadings,
        torque: NDArray[np.float64],
        holding: NDArray[np.bool_],
    ) -> None:
        pos, stamp = readings.joint_pos, readings.stamp_ns
        elapsed = stamp - self._stamp_ns
        news = elapsed > 0
        first = news & np.isnan(self._pos)
        step = np.abs(pos - self._pos)
        jumped = news & (step > self._jump_per_ns * elapsed + self.cfg.jump_margin_rad)
        self._latched[jumped] |= _BITS[DriveFault.POSITION_JUMP]
        moved = first | (news & (step > 0.0))
        self._moved_ns[moved] = stamp[moved]
        self._free_ns[moved] = stamp[moved]
        self._travel[moved] = 0.0
        still = news & ~moved
        if still.any():
            self._watch_still(still, elapsed, readings, torque, holding)
        self._was_moving[news] = moved[news]
        self._pos[news] = pos[news]
        self._stamp_ns[news] = stamp[news]

    def _watch_still(
        self,
        still: NDArray[np.bool_],
        elapsed_ns: NDArray[np.int64],
        readings: DriveReadings,
        torque: NDArray[np.float64],
        holding: NDArray[np.bool_],
    ) -> None:
        """Find among joints that stand `still` to the last bit those that ought to have moved."""
        stamp = readings.stamp_ns
        # While it moves, the torque answers to where it was a reading ago: count from its stop.
        stopped = still & self._was_moving
        self._torque_then[stopped] = torque[stopped]
        # A loaded leg is held by the ground, and one that was just released may lie on it
        # already: count from when it last did or was.
        held = still & (self.carrying | ~holding)
        self._free_torque[held | stopped] = torque[held | stopped]
        self._free_ns[held] = stamp[held]
        # Signed, and without what a drive says at rest: zero itself lies between two words.
        vel = np.where(np.abs(readings.joint_vel) > self.cfg.stuck_speed, readings.joint_vel, 0.0)
        self._travel[still] += vel[still] * elapsed_ns[still] * 1e-9
        runs = readings.mode == DriveMode.RUN
        ignored = (np.abs(self._travel) > self.cfg.stuck_travel_rad) | (
            runs & (np.abs(torque - self._torque_then) > self._stuck_carrying)
        )
        pushed = runs & (np.abs(torque - self._free_torque) > self._stuck_torque)
        after_ns = self.cfg.stuck_after_s * 1e9
        stuck = (ignored & (stamp - self._moved_ns > after_ns)) | (
            pushed & (stamp - self._free_ns > after_ns)
        )
        self._latched[still & stuck] |= _BITS[DriveFault.STUCK_ENCODER]

    def _derate(self, readings: DriveReadings) -> None:
        supply, faults = self._supply, readings.faults
        hot, volts = readings.temperature_c, readings.voltage_v
        heat = (self._derate_to_c - hot) / (self._derate_to_c - self._derate_from_c)
        sag = (volts - supply.derate_to) / (supply.derate_from - supply.derate_to)
        # fmin leaves out what is not known.
        share = np.fmin(np.fmin(heat, sag), 1.0)
        np.maximum(share, 0.0, out=self.effort_share)
        faults[hot >= self._derate_to_c] |= _BITS[DriveFault.TOO_HOT]
        faults[volts <= supply.derate_to] |= _BITS[DriveFault.VOLTAGE_LOW]
        faults[volts > supply.high] |= _BITS[DriveFault.VOLTAGE_HIGH]
