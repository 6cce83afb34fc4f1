"""The robot behind the wire: drives, IMU, estimation, faults and the safety gate.

Everything but sockets, pacing and metrics. One cycle:

    gate.step -> exchange with the drives -> faults -> estimate -> gate.observe -> state

and between two cycles commands and operators' requests, which the next exchange carries out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import structlog
from krabby.drivers.can import DriveMode, DriveTargets
from krabby.drivers.errors import DriveError
from krabby.drivers.imu.check import ImuCheck, ImuLimits
from krabby.hal.handler import GateHandler
from krabby.hal.measurement import Measurement, StatePayload
from krabby.robot.contact import ContactCfg, FootContacts
from krabby.robot.description import JOINTS_PER_LEG
from krabby.safety.gate import Fault, GateCfg, SafetyGate, SafetyState
from krabby_proto import SAFETY_STATES, fault_names

from krabby_jetson_hal.errors import ImuNotSane
from krabby_jetson_hal.fault_monitor import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from krabby.drivers.can import DriveReadings
    from krabby.drivers.imu import ImuSample
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand
    from krabby_proto import CommandOutcome, Message, SafetyOutcome
    from numpy.typing import NDArray

    from krabby_jetson_hal.config import JetsonHalCfg
    from krabby_jetson_hal.devices import Devices
    from krabby_jetson_hal.estop import EstopInput

__all__ = ["Robot"]

log = structlog.get_logger(__name__)

_AT_REST = 0.05
"""Speed of the fastest joint below which a limp robot lies still [rad/s]."""


class Robot:
    """One robot; implements `krabby_proto.HalHandler`. One thread uses it."""

    def __init__(
        self,
        cfg: JetsonHalCfg,
        desc: RobotDescription,
        devices: Devices,
        estop: EstopInput,
        *,
        clock_ns: Callable[[], int],
    ) -> None:
        """Nothing is opened yet; `bring_up` does that.

        Args:
            cfg: cycle, imu and contacts are used.
            desc: the robot.
            devices: its hardware.
            estop: the emergency stop's input, open.
            clock_ns: CLOCK_MONOTONIC.
        """
        self.desc = desc
        self.gate = SafetyGate(GateCfg.from_description(desc))
        self.handler = GateHandler(self.gate, clock_ns=clock_ns, actuate=self._actuate)
        self.watch = Watch(desc.joint_names, devices.bus_of_joint, devices.rate_hz)
        self.imu_check = ImuCheck(
            min(devices.imu_rate_hz, devices.rate_hz),
            ImuLimits(silent_after_s=cfg.imu.silent_after_s),
        )
        self.measured = Measurement(len(desc.joint_names), len(desc.leg_names))
        self.bus, self.imu = devices.bus, devices.imu
        self.readings: DriveReadings | None = None
        """What the drives said last; None before they were probed."""
        self.sample: ImuSample | None = None
        """What the IMU said last."""
        self.drive: DriveCommand = self.gate.step(clock_ns())
        """What the drives were last told."""
        self.next_exchange_ns = 0
        """When the next exchange begins, as far as its owner knows; answers to commands say it."""
        self._contacts = FootContacts(
            desc, ContactCfg(on_n=cfg.contacts.on_n, off_n=cfg.contacts.off_n)
        )
        self._payload = StatePayload()
        self._estop = estop
        self._clock_ns = clock_ns
        self._fresh_ns = round(cfg.cycle.fresh_s * 1e9)
        self._enabled = False
        self._revive = False
        self._logged_state = self.gate.state

    @property
    def foot_load_n(self) -> NDArray[np.float64]:
        """Load of every foot in the last complete measurement [N], shape (6,)."""
        return self._contacts.load_n

    # --- start and end -----------------------------------------------------------------------

    def open(self) -> None:
        """Open IMU and buses, and ask every drive whether it is there; all of them stay limp.

        Raises:
            DeviceError: something is missing; the message names it.
        """
        self.imu.open()
        self.bus.open()
        self.readings = self.bus.probe()
        self._report(self.readings)

    def check_imu(self, wait: Callable[[float], None], settle_s: float) -> None:
        """Listen to the IMU for a while.

        Raises:
            ImuNotSane: what it sends cannot be believed.
        """
        end_ns = self._clock_ns() + round(settle_s * 1e9)
        faults: tuple[str, ...] = ()
        while self._clock_ns() < end_ns:
            wait(0.005)
            self.sample = self.imu.latest()
            faults = tuple(self.imu_check.observe(self.sample, self._clock_ns()))
        if faults or self.sample is None:
            raise ImuNotSane(
                f"the IMU cannot be believed: {', '.join(map(str, faults)) or 'no sample'} after "
                f"{settle_s:g} s; keep the robot still, check its wiring and mount, then start "
                "again"
            )

    def enable(self) -> None:
        """Switch the drives on, limp: they damp from now on, and stiffen when the gate is armed.

        Raises:
            DriveError: a drive does not do what it was told.
        """
        assert self.readings is not None, "open comes first"
        self.bus.enable(self.readings)
        self._enabled = True

    def sink(self, reply_by_ns: int) -> bool:
        """One damped exchange, whatever else is broken; says whether the robot lies still."""
        if not self._enabled:
            return True
        count = len(self.desc.joint_names)
        limp = DriveTargets.limp(count, self.desc.safety.damp_kd)
        readings = self.bus.exchange(limp, reply_by_ns)
        return bool(np.nanmax(np.abs(readings.joint_vel), initial=0.0) < _AT_REST)

    def close(self) -> None:
        """Switch the drives off and let go of everything; safe in any state."""
        self._enabled = False
        try:
            self.bus.disable()
        finally:
            for device in (self.bus, self.imu, self._estop):
                try:
                    device.close()
                except Exception:
                    log.exception("device does not close", device=type(device).__name__)

    # --- a cycle -----------------------------------------------------------------------------

    def cycle(self, reply_by_ns: int) -> tuple[NDArray[np.float32], int] | None:
        """Exchange with the drives and let the gate judge what was measured.

        Args:
            reply_by_ns: When to go on without the replies that are missing.

        Returns:
            The `state` payload, reused by the next call, and its capture time: when the exchange
            began, before any drive measured. None while the measurement is incomplete.
        """
        if self._revive:
            self._bring_back()
        now_ns = self._clock_ns()
        self.drive = self.gate.step(now_ns)
        self.bus.set_effort_limits(self.drive.effort_limit)
        capture_ns = self._clock_ns()
        self.readings = self.bus.exchange(_targets(self.drive), reply_by_ns)
        now_ns = self._clock_ns()
        self.sample = self.imu.latest()
        self._find_faults(self.readings, now_ns)
        self._log_state()
        if not self._is_complete(self.readings, capture_ns):
            return None
        self._estimate(self.readings, self.sample, capture_ns)
        measured = self.measured
        self.gate.observe(
            measured.joint_pos,
            measured.joint_vel,
            measured.joint_effort,
            measured.base_quat_w,
            now_ns,
            capture_ns,
        )
        return self._payload.fill(measured), capture_ns

    def on_command(self, message: Message) -> CommandOutcome:
        """Give a valid command to the gate; the next exchange carries it out."""
        return self.handler.on_command(message)

    def on_safety(self, op: str, by: str) -> SafetyOutcome:
        """Carry out what an operator asked for, or say what stands in the way."""
        obstacle = self._obstacle(op)
        if obstacle:
            log.info("operator", op=op, by=by, ok=False, reason=obstacle)
            return self.handler.answer(False, obstacle)
        outcome = self.handler.on_safety(op, by)
        if op == "reset" and outcome.ok and self._needs_reviving():
            self._revive = True
        return outcome

    # --- parts -------------------------------------------------------------------------------

    def _obstacle(self, op: str) -> str:
        """Why the gate is not even asked; empty when it is."""
        if op in ("arm", "reset") and self._estop.pressed():
            return "the emergency stop is pressed; release it, then reset"
        if op != "arm" or self.gate.state.live:
            return ""
        if self.watch.findings:
            remedy = "reset first" if self._needs_reviving() else "mend that first"
            return f"not while there is {self.watch.describe()}; {remedy}"
        if self._needs_reviving():
            return f"{', '.join(self._not_running())} switched off; reset first"
        return ""

    def _needs_reviving(self) -> bool:
        return bool(self._not_running()) or bool(
            self.readings is not None and self.readings.faults.any()
        )

    def _not_running(self) -> list[str]:
        """Joints whose drives do not follow command frames."""
        if self.readings is None:
            return list(self.desc.joint_names)
        off = np.flatnonzero(self.readings.mode != DriveMode.RUN)
        return [self.desc.joint_names[joint] for joint in off]

    def _bring_back(self) -> None:
        """After a reset: clear what the drives hold against us and switch them on again, limp."""
        self._revive = False
        assert self.readings is not None
        try:
            self.bus.enable(self.readings)
        except DriveError as error:
            log.error("drives do not come back", reason=str(error))
            self.gate.raise_fault(Fault.DRIVE, self._clock_ns())
        else:
            log.info("drives switched on again")

    def _find_faults(self, readings: DriveReadings, now_ns: int) -> None:
        imu_faults = self.imu_check.observe(self.sample, now_ns)
        found = self.watch.judge(readings, imu_faults, now_ns)
        if self._estop.pressed():
            if Fault.ESTOP not in self.gate.faults:
                log.error("emergency stop pressed")
            found |= Fault.ESTOP
        if found:
            self.gate.raise_fault(found, now_ns)

    def _log_state(self) -> None:
        """Say what the gate came to; not how it holds and goes on, which can be often."""
        state = self.gate.state
        if state is self._logged_state or state is SafetyState.HOLD:
            return
        self._logged_state = state
        log.info("gate", state=SAFETY_STATES[state], faults=fault_names(int(self.gate.faults)))

    def _is_complete(self, readings: DriveReadings, capture_ns: int) -> bool:
        """Whether every joint has been heard of lately, and the IMU can be believed."""
        oldest_ns = int(readings.stamp_ns.min())
        return capture_ns - oldest_ns <= self._fresh_ns and not self.imu_check.faults

    def _estimate(self, readings: DriveReadings, sample: ImuSample | None, capture_ns: int) -> None:
        assert sample is not None, "the IMU was believed"
        measured = self.measured
        measured.base_quat_w[:] = sample.quat_wb
        measured.base_quat_w /= np.linalg.norm(sample.quat_wb)
        measured.base_ang_vel_b[:] = sample.ang_vel_b
        measured.base_lin_acc_b[:] = sample.lin_acc_b
        measured.joint_pos[:] = readings.joint_pos
        measured.joint_vel[:] = readings.joint_vel
        measured.joint_effort[:] = readings.joint_effort
        down = self._contacts.update(
            measured.joint_pos,
            measured.joint_vel,
            measured.joint_effort,
            measured.base_quat_w,
            capture_ns,
        )
        measured.foot_contact[:] = down
        self.bus.set_carrying(np.repeat(down, JOINTS_PER_LEG))

    def _actuate(self, drive: DriveCommand, now_ns: int) -> int:
        """Nothing is sent out of turn: the next exchange asks the gate and carries it out."""
        return max(self.next_exchange_ns, now_ns)

    def _report(self, readings: DriveReadings) -> None:
        """Say what was found, and which joint stands where it cannot."""
        log.info(
            "drives answer",
            drives=readings.count,
            hottest_c=_rounded(readings.temperature_c, np.nanmax),
            supply_v=_rounded(readings.voltage_v, np.nanmin),
        )
        margin = self.gate.cfg.range_margin_rad
        outside = (readings.joint_pos < self.desc.joint_lower - margin) | (
            readings.joint_pos > self.desc.joint_upper + margin
        )
        for joint in np.flatnonzero(outside):
            log.warning(
                "joint measured outside its range; it cannot be armed so",
                joint=self.desc.joint_names[joint],
                angle=round(float(readings.joint_pos[joint]), 3),
                lower=float(self.desc.joint_lower[joint]),
                upper=float(self.desc.joint_upper[joint]),
                remedy="calibrate this robot, or move the joint by hand",
            )


def _targets(drive: DriveCommand) -> DriveTargets:
    """The gate's decision as drives take it; its modes differ in stiffness alone."""
    nothing = np.zeros_like(drive.joint_pos)
    return DriveTargets(drive.joint_pos, nothing, drive.kp, drive.kd, nothing)


def _rounded(
    values: NDArray[np.float64], reduce: Callable[[NDArray[np.float64]], np.float64]
) -> float | None:
    """One number of those that are known, for a log line."""
    known = values[np.isfinite(values)]
    return round(float(reduce(known)), 1) if known.size else None
