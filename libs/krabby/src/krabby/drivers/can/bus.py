"""All drives of the robot as one object, over python-can.

Every cycle sends all commands back to back and then gathers the replies. `wire` has the frames and
what drives owe, `setup` what happens before drives are switched on, `effort` and `health` what a
cycle limits and checks.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from krabby.drivers.can.calibration import Calibration, Mounting
from krabby.drivers.can.codec import Codec, Command, Kind, Parameter, Scale
from krabby.drivers.can.effort import commanded_torque, fold
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.health import DriveHealth, HealthCfg
from krabby.drivers.can.plan import AUX_EVERY, check_representable
from krabby.drivers.can.setup import DriveSetup, find_turns
from krabby.drivers.can.types import DriveFault, DriveMode, DriveReadings, DriveTargets
from krabby.drivers.can.wire import Bus, BusCfg, Wire
from krabby.drivers.errors import DriveError
from krabby.robot.description import JOINTS_PER_LEG, RobotDescription

__all__ = ["BusCfg", "CanJointBus"]

_BUS_OFF: Final = np.uint32(DriveFault.BUS_OFF)
_TORQUE_STEP: Final = 2.0
"""The drive's own torque limit follows in steps of this [N·m]."""


class _Group(NamedTuple):
    """Drives of one make, translated in one pass."""

    codec: Codec
    joints: NDArray[np.intp]
    can_ids: NDArray[np.uint32]
    scale: Scale


class CanJointBus:
    """All drives over SocketCAN, UDP multicast or python-can's virtual buses; one thread uses it.

    Order of calls: `open`, `probe`, `enable`, then `exchange` every cycle; `disable` and `close`
    are safe in any state. Failures raise `DriveError`, except in `exchange`, which does not raise
    for what drives or buses do: `DriveReadings.faults` has it.
    """

    def __init__(
        self,
        hardware: HardwareDescription,
        calibration: Calibration,
        desc: RobotDescription,
        *,
        cfg: BusCfg | None = None,
        health: HealthCfg | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Checks that the plan fits and that the drives can represent what the robot needs."""
        self._desc, self._clock_ns = desc, clock_ns
        self._cfg = BusCfg() if cfg is None else cfg
        self.calibration = calibration
        self.mounting = Mounting(hardware, calibration)
        """Between joints and shafts, whole turns found by `probe` included."""
        check_representable(hardware, self.mounting, desc)
        count = len(hardware.drives)
        self.readings = DriveReadings(count)
        """The object that every call writes to."""
        self.wire = Wire(hardware, self.readings, self._cfg, clock_ns)
        self._setup = DriveSetup(hardware, self.wire, self._cfg)
        self._health = DriveHealth(hardware, self.mounting, desc, health)
        self._order = _interleaved(list(self.wire.buses.values()))
        self._groups = _make_groups(hardware)
        models = [drive.model for drive in hardware.drives]
        self._most_torque = np.array([model.torque_range for model in models]) * np.abs(
            self.mounting.ratio
        )
        self._limits = np.minimum(desc.peak_torque, self._most_torque)
        self._sink = self._cfg.sink_share * desc.rated_torque
        self.effort_limits = self._limits.copy()
        """What is in force after derating [N·m], shape (n,)."""
        self._torque_told = np.full(count, np.nan)
        """The limit written into each drive [N·m at the joint]; NaN before."""
        self._frame_ids = np.zeros(count, np.uint32)
        self._frame_data = np.zeros((count, 8), np.uint8)
        """The command frames of this cycle."""
        self._drive_faults = np.zeros(count, np.uint32)
        self._enabled = np.zeros(count, np.bool_)
        self._any_enabled = False
        self._cycle = 0

    @property
    def bus_load(self) -> Mapping[str, float]:
        """Share of the bit rate with every possible stuff bit, over the last second."""
        return {name: bus.load for name, bus in self.wire.buses.items()}

    def set_effort_limits(self, limits: NDArray[np.float64]) -> None:
        """Largest torque magnitude of each joint [N·m], shape (n,); cut to what the drive gives."""
        np.minimum(limits, self._most_torque, out=self._limits)

    def set_carrying(self, joints: NDArray[np.bool_]) -> None:
        """Which joints are of legs that carry load, shape (n,): the ground may hold them still."""
        self._health.carrying[:] = joints

    def open(self) -> None:
        """Open every bus."""
        self.wire.open()

    def close(self) -> None:
        """Close every bus."""
        self.wire.close()

    # --- setting up ------------------------------------------------------------------------

    def probe(self) -> DriveReadings:
        """Ask every drive and leave all limp; those that count from another turn are corrected."""
        self.wire.forget()
        self.wire.ids.reset()
        problem = self._setup.find_drives(self._clock_ns)
        self._decode()
        self.readings.conflicts = self.wire.ids.conflicts
        self._setup.refuse_conflicts(problem)
        if problem:
            raise DriveError(problem)
        self.mounting.offset += find_turns(self.readings.joint_pos, self.mounting, self._desc)
        self._decode()
        return self.readings

    @property
    def identities(self) -> tuple[str, ...]:
        """Unique numbers of the drives, hexadecimal, as of the last probe; "" where unknown."""
        return tuple(self.wire.identities)

    @property
    def unconfirmed(self) -> str:
        """Why it is not certain which drive moves which joint, and the remedy; else empty."""
        return self.calibration.unconfirmed(self.wire.identities)

    def recover(self, beat: Callable[[], None] = lambda: None) -> DriveReadings:
        """What a start does, for a robot whose power, adapter or drive was away.

        Every bus is opened anew, every drive asked, whole turns are counted again, and limits and
        time-outs written. Raises as those do; then no drive is switched on. Some 200 requests, each
        of which may take `BusCfg.answer_s`: `beat` is called at every one.
        """
        self._enabled[:] = False
        self._any_enabled = False
        self._setup.beat = beat
        self.wire.reopen()
        readings = self.probe()
        self.enable(readings)
        return readings

    def enable(self, readings: DriveReadings) -> None:
        """Clear faults, arm the drives' own time-out, switch on at the measured pose, leg by leg.

        After a failure all drives are switched off again.
        """
        self._health.reset()
        self.readings.crossed = ()
        self.wire.ids.reset()
        self.wire.reported[:] = 0
        count = self.readings.count
        try:
            for first in range(0, count, JOINTS_PER_LEG):
                self._enable_leg(range(first, min(first + JOINTS_PER_LEG, count)), readings)
            self.readings.conflicts = self.wire.ids.conflicts
            self._setup.refuse_conflicts()
            # A drive may have said that it was off while it was being switched on.
            self._health.reset()
        except Exception:
            self.disable()
            raise

    def _enable_leg(self, leg: range, readings: DriveReadings) -> None:
        for joint in leg:
            limit = float(min(self._desc.peak_torque[joint], self._most_torque[joint]))
            self._setup.configure(joint, limit / abs(float(self.mounting.ratio[joint])))
            self._torque_told[joint] = limit
        for joint in leg:
            self._setup.ask(joint, Kind.ENABLE)
            self._enabled[joint] = self._any_enabled = True
        # The first commands: no stiffness, the measured pose as target. The legs before this one
        # get theirs too, which keeps their time-outs from running out.
        targets = DriveTargets.limp(self.readings.count, self._desc.safety.damp_kd)._replace(
            joint_pos=readings.joint_pos.copy()
        )
        for _ in range(self._cfg.tries):
            self.exchange(targets, self._clock_ns() + round(self._cfg.answer_s * 1e9))
            if all(readings.mode[joint] == DriveMode.RUN for joint in leg):
                break
        self._setup.check_running(leg, readings, self._drive_faults | self.wire.reported)

    def disable(self) -> None:
        """Switch every drive off; tries all of them."""
        self._enabled[:] = False
        self._any_enabled = False
        waiting = list(range(self.readings.count))
        for _ in range(self._cfg.tries):
            unheard = set(self._setup.ask_state(waiting, self._cfg.answer_s))
            self._decode()
            running = self.readings.mode == DriveMode.RUN
            waiting = [joint for joint in waiting if joint in unheard or running[joint]]
            if not waiting:
                break
        self.wire.forget()

    # --- the cycle -------------------------------------------------------------------------

    def exchange(self, targets: DriveTargets, deadline_ns: int) -> DriveReadings:
        """Send all targets, gather replies until all are in or until `deadline_ns`.

        Drives that are not enabled are only asked for their state.
        """
        readings, wire = self.readings, self.wire
        share = self._health.effort_share
        limits = np.maximum(self._limits * share, np.minimum(self._limits, self._sink))
        self.effort_limits = limits
        torque = self._encode(targets, limits)
        self._cycle += 1
        wire.begin_cycle()
        self._send_all()
        wire.gather(deadline_ns)
        self._decode()
        wire.account()
        np.bitwise_or(self._drive_faults, wire.reported, out=readings.faults)
        for bus in wire.buses.values():
            if bus.state == "off":
                readings.faults[list(bus.joints)] |= _BUS_OFF
        wire.ids.mark(readings.faults)
        readings.conflicts = wire.ids.conflicts
        self._health.update(
            readings,
            torque,
            self._enabled,
            targets.kp > 0.0,
            targets.joint_pos,
            self._clock_ns(),
        )
        return readings

    def _encode(self, targets: DriveTargets, limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fill in the frames; returns the torque they ask for at the newest reading."""
        readings = self.readings
        good = np.isfinite(sum(targets))
        if not good.all():  # the gate never asks for that, a bug might: those joints go limp
            targets = DriveTargets(*(np.where(good, values, 0.0) for values in targets))
        targets = fold(targets, readings.joint_pos, readings.joint_vel, limits)
        command = self.mounting.command(targets)
        for group in self._groups:
            part = Command(*(values[group.joints] for values in command))
            ids, data = group.codec.encode_commands(group.can_ids, group.scale, part)
            self._frame_ids[group.joints], self._frame_data[group.joints] = ids, data
        torque = commanded_torque(targets, readings.joint_pos, readings.joint_vel)
        return np.nan_to_num(torque, copy=False)

    def _send_all(self) -> None:
        wire, polls = self.wire, not self._any_enabled
        wire.hold()
        enabled = self._enabled.tolist()
        joints = [
            joint for joint in self._order if (polls or enabled[joint]) and not wire.owes(joint)
        ]
        if polls:
            for joint in joints:
                wire.send(joint, self._setup.poll[joint])
        else:
            wire.send_commands(joints, self._frame_ids, self._frame_data)
        if not polls and self._cycle % AUX_EVERY == 0:
            for bus in wire.buses.values():
                self._send_aux(bus)
        wire.release()

    def _send_aux(self, bus: Bus) -> None:
        """Besides the commands, one request to one drive of this bus."""
        parameters, wire = bus.codec.parameters, self.wire
        bus.aux_cycle += 1
        # Every other time a torque limit may go first, so that voltages are read all the same.
        if bus.aux_cycle % 2 and Parameter.TORQUE_LIMIT in parameters:
            # Only to drives that owe nothing from before: the answer looks like any feedback.
            owing_nothing = [joint for joint in bus.joints if len(wire.pending[joint]) == 1]
            wanting = max(owing_nothing, key=self._torque_to_tell, default=None)
            if wanting is not None and self._torque_to_tell(wanting) > _TORQUE_STEP:
                limit = float(self.effort_limits[wanting])
                at_drive = limit / abs(float(self.mounting.ratio[wanting]))
                message = wire.request(wanting, Kind.WRITE, Parameter.TORQUE_LIMIT, at_drive)
                wire.send(wanting, message, answers=bus.codec.write_answers_with_feedback)
                self._torque_told[wanting] = limit
                return
        if Parameter.VOLTAGE in parameters:
            bus.voltage_turn = (bus.voltage_turn + 1) % len(bus.joints)
            joint = bus.joints[bus.voltage_turn]
            wire.send(joint, wire.request(joint, Kind.READ, Parameter.VOLTAGE), answers=False)

    def _torque_to_tell(self, joint: int) -> float:
        return abs(float(self.effort_limits[joint] - self._torque_told[joint]))

    def _decode(self) -> None:
        readings, mounting = self.readings, self.mounting
        raw_ids = np.array(self.wire.raw_ids, np.uint32)
        drive = (readings.joint_pos, readings.joint_vel, readings.joint_effort)
        for group in self._groups:
            at = group.joints
            values = group.codec.decode_feedbacks(group.scale, raw_ids[at], self.wire.raw_rows[at])
            for into, out in zip(drive, values[:3], strict=True):
                into[at] = out
            readings.temperature_c[at] = values.temperature_c
            readings.mode[at] = values.mode
            self._drive_faults[at] = values.faults
        for into, out in zip(drive, mounting.joint_side(*drive), strict=True):
            into[:] = out
        if not all(self.wire.known):
            unknown = ~np.array(self.wire.known)
            for array in (*drive, readings.temperature_c):
                array[unknown] = np.nan
            readings.mode[unknown] = DriveMode.UNKNOWN
            self._drive_faults[unknown] = 0


def _make_groups(hardware: HardwareDescription) -> list[_Group]:
    by_make: dict[Codec, list[int]] = {}
    for joint, drive in enumerate(hardware.drives):
        by_make.setdefault(hardware.codec_of(drive.bus), []).append(joint)
    return [
        _Group(
            codec,
            np.array(joints),
            np.array([hardware.drives[joint].can_id for joint in joints], np.uint32),
            Scale.of([hardware.drives[joint].model for joint in joints]),
        )
        for codec, joints in by_make.items()
    ]


def _interleaved(buses: list[Bus]) -> list[int]:
    """Joints in the order of sending: one of each bus in turn, so that all buses work at once."""
    turns = itertools.zip_longest(*(bus.joints for bus in buses))
    return [joint for turn in turns for joint in turn if joint is not None]
