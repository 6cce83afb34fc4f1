"""The real robot as a back end of the HAL loop: drives, IMU, estimation, faults.

`write` stores, and `read` exchanges with the drives what was written last:

    targets to the drives -> replies -> faults -> estimate

So a command that comes between two cycles goes out with the next exchange.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import structlog
from krabby.drivers.can import DriveMode, DriveReadings, DriveTargets
from krabby.drivers.errors import DriveError, ImuError
from krabby.drivers.imu import ImuSample
from krabby.drivers.imu.check import ImuCheck, ImuFault, ImuLimits
from krabby.hal.backend import HalBackend, Image, Reading, Slot, limp
from krabby.robot import rotations
from krabby.robot.contact import ContactCfg
from krabby.robot.description import JOINTS_PER_LEG, RobotDescription
from krabby.runtime.metrics import Quantiles
from krabby.runtime.provenance import provenance
from krabby.safety.gate import DriveCommand, GateCfg, SafetyGate
from krabby_proto import SAFETY_STATES, Fault, SafetyState, fault_names
from numpy.typing import NDArray
from prometheus_client import Histogram

from krabby_jetson_hal.camera_relay import CameraRelay
from krabby_jetson_hal.config import JetsonHalCfg
from krabby_jetson_hal.devices import Devices
from krabby_jetson_hal.estimation import Estimator
from krabby_jetson_hal.estop import GpioEstop
from krabby_jetson_hal.fault_monitor import Watch

__all__ = ["Robot"]

log = structlog.get_logger(__name__)

_AT_REST = 0.05
"""Speed of the fastest joint below which a limp robot lies still [rad/s]."""
_SINK_STEP_S = 0.005
_STILL_STEPS = 40
"""Damped exchanges in a row that find the robot at rest before its drives are switched off."""
_LISTEN_STEP_S = 0.005
_COMES_TO_REST_S = 4.0
"""A limp robot that falls lies still after so long [s]."""
_LONGEST_REPLY = 0.8
"""Share of a slot that is waited for replies at most."""
_NO_FAULT = Fault(0)
_BUS_PERIOD = Histogram(
    "krabby_bus_period_seconds",
    "Time between the begins of two exchanges with the drives",
    buckets=[ms * 1e-3 for ms in (1, 2, 3, 4, 4.5, 4.8, 4.9, 5.1, 5.2, 5.5, 6, 7, 8, 10, 15, 20)],
)


class Robot(HalBackend):
    """One robot. One thread uses it."""

    name = "jetson-hal"
    stage = "exchange"
    buffered = True

    def __init__(
        self,
        cfg: JetsonHalCfg,
        desc: RobotDescription,
        devices: Devices,
        estop: GpioEstop | None = None,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is opened yet; `start` does that.

        `estop` is an open input in place of the one that `cfg` names; `wait` sleeps [s].
        """
        self.desc, self.rate_hz, self.clock_ns = desc, devices.rate_hz, clock_ns
        self.camera_model = dataclasses.asdict(desc.camera) if cfg.endpoints.raw else None
        self.watch = Watch(desc.joint_names, devices.bus_of_joint, devices.rate_hz)
        self.imu_check = ImuCheck(
            min(devices.imu_rate_hz, devices.rate_hz),
            ImuLimits(silent_after_s=cfg.imu.silent_after_s),
        )
        contacts = ContactCfg(on_n=cfg.contacts.on_n, off_n=cfg.contacts.off_n)
        self.estimator = Estimator(desc, contacts)
        self.bus, self.imu = devices.bus, devices.imu
        self.buses = tuple(dict.fromkeys(devices.bus_of_joint))
        """Names of the buses."""
        self.readings: DriveReadings | None = None
        """What the drives reported last; None before they were probed."""
        self.sample: ImuSample | None = None
        """What the IMU measured last."""
        self.drive = limp(desc)
        """What the drives were told in the last exchange."""
        self.relay: CameraRelay | None = None
        """The camera process's images; None before the start, or when there is none."""
        self._cfg = cfg
        self._calibrated = devices.calibrated
        self._estop, self._wait = estop, wait
        self._fresh_ns = round(cfg.cycle.fresh_s * 1e9)
        self._reply_ns = round(min(cfg.cycle.reply_s, _LONGEST_REPLY / devices.rate_hz) * 1e9)
        self._written = self.drive
        self._next_exchange_ns = 0
        self._exchanged_ns: int | None = None
        self._period = Quantiles()
        self._enabled = self._revive = self._estop_was_pressed = False
        self._not_back = ""
        """Why the last reset did not bring the drives back; empty when it did."""
        self._logged_state = SafetyState.DISARMED

    # --- start and end -----------------------------------------------------------------------

    def start(self) -> None:
        """Open IMU and buses, ask every drive whether it is there, and switch them on, limp.

        Raises:
            DeviceError: A device is missing, fails or is implausible; the message names it.
        """
        cfg = self._cfg
        if self._estop is None and cfg.estop.chip:
            self._estop = GpioEstop(cfg.estop)
        if not self._calibrated:
            log.warning(
                "not calibrated: every joint is taken to sit as hardware.toml has it, which only "
                "an emulated robot does; any other is not armed",
                remedy="calibrate this robot and set can.calibration",
            )
        self.imu.open()
        self.bus.open()
        self.readings = self.bus.probe()
        self._report()
        self._check_imu(cfg.imu.settle_s)
        self.relay = CameraRelay(cfg.endpoints.raw) if cfg.endpoints.raw else None
        self.bus.enable(self.readings)
        self._enabled = True
        log.info("drives on and limp; arm with krabby arm", bus_load=self._rounded_load())

    def _check_imu(self, settle_s: float) -> None:
        """Listen to the IMU for a while; longer to a body that still falls, as after a crash."""
        began_ns = self.clock_ns()
        while faults := self._heard_in(settle_s):
            heard_s = (self.clock_ns() - began_ns) * 1e-9
            comes_to_rest = faults == (ImuFault.GRAVITY,) and self.imu_check.moved
            if not comes_to_rest or heard_s >= _COMES_TO_REST_S:
                break
            log.info("the body moves; gravity is averaged anew", heard_s=round(heard_s, 2))
            self.imu_check.average_anew()
        if faults or self.sample is None:
            names = ", ".join(map(str, faults)) or "no sample"
            remedy = self.imu_check.detail or "check its wiring and mount"
            if self.imu_check.moved or not self.imu_check.detail:
                remedy += "; keep the robot still, then start again"
            heard_s = (self.clock_ns() - began_ns) * 1e-9
            raise ImuError(f"the IMU cannot be believed: {names} after {heard_s:.2g} s; {remedy}")

    def _heard_in(self, settle_s: float) -> tuple[ImuFault, ...]:
        """Faults of the IMU after it was listened to for a time."""
        end_ns = self.clock_ns() + round(settle_s * 1e9)
        while self.clock_ns() < end_ns:
            self._wait(_LISTEN_STEP_S)
            self.sample = self.imu.latest()
            self.imu_check.observe(self.sample, self.clock_ns())
        return self.imu_check.faults

    def close(self) -> None:
        """Let the robot sink, switch its drives off and close all devices."""
        try:
            self._sink()
        finally:
            self._enabled = False
            try:
                self.bus.disable()
            finally:
                for device in (self.bus, self.imu, self._estop, self.relay):
                    try:
                        if device is not None:
                            device.close()
                    except Exception:
                        log.exception("device does not close", device=type(device).__name__)

    def _sink(self) -> None:
        """Damped exchanges, in spite of any fault, until the robot lies still or time is over."""
        if not self._enabled:
            return
        targets = DriveTargets.limp(len(self.desc.joint_names), self.desc.safety.damp_kd)
        end_ns = self.clock_ns() + round(self._cfg.cycle.damp_on_exit_s * 1e9)
        still = 0
        while self.clock_ns() < end_ns and still < _STILL_STEPS:
            begin_ns = self.clock_ns()
            readings = self.bus.exchange(targets, begin_ns + self._reply_ns)
            fastest = np.nanmax(np.abs(readings.joint_vel), initial=0.0)
            still = still + 1 if fastest < _AT_REST else 0
            self._wait(max(0.0, _SINK_STEP_S - (self.clock_ns() - begin_ns) * 1e-9))

    # --- a cycle -----------------------------------------------------------------------------

    def read(self, slot: Slot) -> Reading:
        """Exchange with the drives; look for faults and estimate.

        The capture time is when the exchange began, before any drive measured.
        """
        self._note_period(slot)
        faults = self._bring_back() if self._revive else _NO_FAULT
        self.drive = self._written
        self.bus.set_effort_limits(self.drive.effort_limit)
        capture_ns = self.clock_ns()
        readings = self.bus.exchange(_targets(self.drive), capture_ns + self._reply_ns)
        self.readings, self.sample = readings, self.imu.latest()
        faults |= self._find_faults(readings, self.clock_ns())
        is_fresh = capture_ns - int(readings.stamp_ns.min()) <= self._fresh_ns
        if not is_fresh or self.imu_check.faults:
            return Reading(None, capture_ns, faults)
        assert self.sample is not None, "the IMU was believed"
        down = self.estimator.update(readings, self.sample, capture_ns)
        self.bus.set_carrying(np.repeat(down, JOINTS_PER_LEG))
        return Reading(self.estimator.measured, capture_ns, faults)

    def write(self, drive: DriveCommand, now_ns: int) -> int:
        """Nothing is sent at once: the next exchange carries it out."""
        self._written = drive
        return max(self._next_exchange_ns, now_ns)

    def judged(self, gate: SafetyGate, now_ns: int) -> None:
        """Log the gate's state, except for holding and recovering, which can be often."""
        state = gate.state
        if state is self._logged_state or state is SafetyState.HOLD:
            return
        self._logged_state = state
        log.info("gate", state=SAFETY_STATES[state], faults=fault_names(int(gate.faults)))

    def obstacle(self, op: str, gate: SafetyGate) -> str:
        """Why a request is refused before the gate; empty when it is not."""
        if op in ("arm", "reset") and self._pressed():
            return "the emergency stop is pressed; release it, then reset"
        if op != "arm" or gate.state.live:
            return ""
        if self.watch.findings:
            remedy = "reset first" if self._needs_reviving() else "mend that first"
            why = f" ({self._not_back})" if self._not_back else ""
            return f"not while there is {self.watch.describe()}{why}; {remedy}"
        if self._needs_reviving():
            why = f" ({self._not_back})" if self._not_back else ""
            return f"{', '.join(self._not_running())} switched off{why}; reset first"
        return self.bus.unconfirmed or self._tilted()

    def operated(self, op: str, *, granted: bool) -> None:
        """Switch drives on again after a reset, where they are off."""
        if op == "reset" and granted and self._needs_reviving():
            self._revive = True

    def frame(self, now_ns: int) -> Image | None:
        """The newest image of the camera process that came since the last call."""
        return None if self.relay is None else self.relay.newest()

    def extra(self) -> dict[str, Any]:
        return {
            "rate_hz": self.rate_hz,
            "calibrated": self._calibrated,
            "config": msgspec.to_builtins(self._cfg),
            **provenance("krabby"),
        }

    def summary(self) -> dict[str, Any]:
        """Facts for the last log line."""
        frames = 0 if self.relay is None else self.relay.forwarded
        facts: dict[str, Any] = {"frames": frames, "bus_load": self._rounded_load()}
        if self.readings is not None:
            facts["replies_missed"] = int(self.readings.missed.sum())
        return facts | self._period.summary_ms("bus_period")

    # --- parts -------------------------------------------------------------------------------

    def _report(self) -> None:
        """Log what a probe found: drives, joints outside their range, whether all is confirmed."""
        readings = self.readings
        assert readings is not None
        log.info(
            "drives answer",
            drives=readings.count,
            hottest_c=_rounded(readings.temperature_c, np.nanmax),
            supply_v=_rounded(readings.voltage_v, np.nanmin),
        )
        _report_ranges(readings, self.desc)
        if self.bus.unconfirmed:
            log.warning("the robot cannot be armed", reason=self.bus.unconfirmed)

    def _tilted(self) -> str:
        """Why the body's attitude forbids arming, and what a wrong mount has to do with it."""
        if self.sample is None:
            return ""
        tilt = float(rotations.tilt(self.sample.quat_wb))
        if tilt <= self.desc.safety.tilt_limit_rad:
            return ""
        return (
            f"the IMU says that the body is tilted by {np.degrees(tilt):.0f} degrees; put the "
            "robot on its feet. If it is level, mount_quat in hardware.toml does not say how the "
            "sensor is mounted"
        )

    def _rounded_load(self) -> dict[str, float]:
        return {bus: round(load, 3) for bus, load in self.bus.bus_load.items()}

    def _note_period(self, slot: Slot) -> None:
        self._next_exchange_ns = slot.deadline_ns
        if self._exchanged_ns is not None:
            period_s = (slot.woke_ns - self._exchanged_ns) * 1e-9
            _BUS_PERIOD.observe(period_s)
            self._period.add(period_s)
        self._exchanged_ns = slot.woke_ns

    def _pressed(self) -> bool:
        return self._estop is not None and self._estop.pressed()

    def _needs_reviving(self) -> bool:
        faulty = self.readings is not None and self.readings.faults.any()
        return bool(self._not_running() or faulty)

    def _not_running(self) -> list[str]:
        """Joints whose drives do not follow command frames."""
        if self.readings is None:
            return list(self.desc.joint_names)
        off = np.flatnonzero(self.readings.mode != DriveMode.RUN)
        return [self.desc.joint_names[joint] for joint in off]

    def _bring_back(self) -> Fault:
        """After a reset: what a start does, as power, adapters or drives may have been away.

        Drives stay limp: the gate grants a reset only where it is limp itself, and is not armed
        before they are back.
        """
        self._revive, self._not_back = False, ""
        self.imu_check.average_anew()
        try:
            self.readings = self.bus.recover(self.beat)
        except DriveError as error:
            self._not_back = str(error)
            log.error("drives do not come back", reason=self._not_back)
            return Fault.DRIVE
        self._report()
        log.info("drives switched on again")
        return _NO_FAULT

    def _find_faults(self, readings: DriveReadings, now_ns: int) -> Fault:
        imu_faults = self.imu_check.observe(self.sample, now_ns)
        found = self.watch.judge(readings, imu_faults, now_ns, self.imu_check.detail)
        was_pressed, self._estop_was_pressed = self._estop_was_pressed, self._pressed()
        if self._estop_was_pressed:
            if not was_pressed:
                log.error("emergency stop pressed")
            found |= Fault.ESTOP
        return found


def _targets(drive: DriveCommand) -> DriveTargets:
    """The gate's decision as drives take it; its modes differ in stiffness alone."""
    nothing = np.zeros_like(drive.joint_pos)
    return DriveTargets(drive.joint_pos, nothing, drive.kp, drive.kd, nothing)


def _report_ranges(readings: DriveReadings, desc: RobotDescription) -> None:
    """Log which joint stands outside its range."""
    margin, angles = GateCfg.from_description(desc).range_margin_rad, readings.joint_pos
    outside = (angles < desc.joint_lower - margin) | (angles > desc.joint_upper + margin)
    for joint in np.flatnonzero(outside):
        log.warning(
            "joint measured outside its range; it cannot be armed so",
            joint=desc.joint_names[joint],
            angle=round(float(angles[joint]), 3),
            lower=float(desc.joint_lower[joint]),
            upper=float(desc.joint_upper[joint]),
            remedy="calibrate this robot, or move the joint by hand",
        )


def _rounded(
    values: NDArray[np.float64], reduce: Callable[[NDArray[np.float64]], np.float64]
) -> float | None:
    """One number of those that are known, for a log line."""
    known = values[np.isfinite(values)]
    return round(float(reduce(known)), 1) if known.size else None
