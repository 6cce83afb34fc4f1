"""The loop: two substeps of physics every 5 ms, and frames from the buses in between.

Slots lie on the grid of CLOCK_MONOTONIC; missed ones are made up for. Their work avoids the HAL's
exchange, which begins where the slot does: when the HAL has its replies and computes, an image may
be rendered; right before the next exchange both substeps are taken and the IMU sends. One wake-up
in place of two saves a tenth of this process's time, most of which goes into cold caches.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from krabby.course.courses import make_course
from krabby.drivers.can.config import load_calibration, load_hardware
from krabby.drivers.imu import ImuMount
from krabby.drivers.imu.server import ImuServer
from krabby.drivers.imu.vectornav import QUAT_WN
from krabby.mujoco.colour import ColourProcess
from krabby.mujoco.depth_camera import DepthCamera
from krabby.mujoco.world import SUBSTEP_NS
from krabby.robot.description import RobotDescription
from krabby.runtime.app import Runtime
from krabby.runtime.metrics import (
    DEADLINE_MISSES,
    LOOP_LATENESS,
    LOOP_WORK,
    SKIPPED_CYCLES,
    Quantiles,
    children,
)
from krabby.runtime.realtime import IdleCollector
from krabby_proto import CAMERA, NAV, TRUTH, ControlServer, JsonObject, Publisher, make_hello

from krabby_emulator.can import CanSide
from krabby_emulator.config import EmulatorCfg
from krabby_emulator.faults import FaultRefused
from krabby_emulator.metrics import Exposition
from krabby_emulator.robot import EmulatedRobot

__all__ = ["RobotEmulator"]

log = structlog.get_logger(__name__)

_SUBSTEPS = 2
_SLOT_NS = _SUBSTEPS * SUBSTEP_NS
_PHASE_NS = 4_100_000
"""Where in a slot its substeps are taken."""
_IMAGE_NS = 1_600_000
"""Where in a slot an image may be rendered."""
_CATCH_UP = 4
"""Missed slots that are made up for at most; after a longer stall simulated time falls behind
instead of running off in a burst."""
_METRICS_SLOTS = 41
"""Slots between two updates of the gauges; a prime, so that it falls on every part of a period."""
_MISSION_SLOTS = 10
"""Slots between two walking commands of the mission."""
_WORK = children(LOOP_WORK, ("physics", "render"))


class RobotEmulator:
    """`krabby.runtime.Service` around an `EmulatedRobot`."""

    def __init__(self, cfg: EmulatorCfg) -> None:
        self._cfg = cfg
        desc = RobotDescription.load(Path(cfg.robot) if cfg.robot else None)
        course = make_course(cfg.course.name, cfg.course.difficulty, cfg.course.seed)
        hardware = load_hardware(cfg.can, desc)
        calibration = load_calibration(cfg.can, hardware)
        names = [bus.name for bus in hardware.buses]
        bus_of = [names.index(drive.bus) for drive in hardware.drives]
        self.robot = EmulatedRobot(cfg, desc, course, buses=names, bus_of=bus_of)
        self.can = CanSide(hardware, calibration, self.robot.bank, self.robot.board, seed=cfg.seed)
        self.imu: ImuServer | None = None
        self._mount = ImuMount(hardware.imu.mount_quat, QUAT_WN)
        self._publishers: list[Publisher] = []
        self._raw: Publisher | None = None
        self._truth: Publisher | None = None
        self._nav: Publisher | None = None
        self._control: ControlServer | None = None
        self._colour: ColourProcess | None = None
        self._exposition = Exposition(self.robot, self.can)
        self._lateness = Quantiles()
        self._skipped = 0
        self._imaged_ns = 0
        """Up to when images were taken and published."""
        self._started_s = time.monotonic()

    def startup(self) -> None:
        cfg = self._cfg
        self.can.open()
        self.imu = ImuServer(cfg.imu.listen, self._mount)
        self._truth = self._publisher(cfg.endpoints.truth, TRUTH)
        if cfg.camera.enabled:
            self._raw = self._publisher(cfg.endpoints.raw, CAMERA)
        if cfg.colour.enabled:
            places = cfg.endpoints
            self._colour = ColourProcess(
                cfg, cfg.colour, truth=places.truth, state=places.state, place=places.colour
            )
            self._colour.start()
        if cfg.mission.enabled:
            self._nav = self._publisher(cfg.endpoints.nav, NAV, bind=False)
        if cfg.endpoints.fault:
            hello = make_hello(
                service="robot-emulator",
                clock="monotonic",
                robot=self.robot.desc.identity,
                camera={},
                extra={"buses": self.can.describe()},
            )
            self._control = ControlServer(cfg.endpoints.fault, hello=hello)
        log.info(
            "emulating",
            robot=self.robot.desc.name,
            course=self.robot.course.name,
            buses=self.can.describe(),
            imu=self.imu.address,
            raw=self._raw.endpoint if self._raw is not None else None,
            fault=self._control.endpoint if self._control is not None else None,
        )

    def run(self, runtime: Runtime) -> None:
        collector = IdleCollector() if self._cfg.realtime.collect_when_idle else None
        self._started_s = time.monotonic()
        next_ns = (time.monotonic_ns() // _SLOT_NS + 1) * _SLOT_NS + _PHASE_NS
        with runtime.watched():
            while not runtime.stopping and not self._finished():
                now_ns = time.monotonic_ns()
                if now_ns < next_ns:
                    self._fill_slot(next_ns, now_ns)
                    continue
                missed = (now_ns - next_ns) // _SLOT_NS
                if (lost := missed - _CATCH_UP) > 0:
                    SKIPPED_CYCLES.inc(lost)
                    self._skipped += lost * _SUBSTEPS
                    next_ns += lost * _SLOT_NS
                    self.robot.bank.stood_still(lost * _SLOT_NS)
                if missed:
                    # It was this process that slept: what came meanwhile was in time for a drive.
                    self.can.serve(now_ns)
                LOOP_LATENESS.observe((now_ns - next_ns) * 1e-9)
                self._lateness.add((now_ns - next_ns) * 1e-9)
                self._end_slot(next_ns // _SLOT_NS, now_ns)
                next_ns += _SLOT_NS
                if time.monotonic_ns() > next_ns:
                    DEADLINE_MISSES.inc()
                if collector is not None:
                    collector.offer(next_ns)
                runtime.beat()

    def shutdown(self) -> Mapping[str, object]:
        camera = self.robot.camera
        summary = self.robot.summary() | {
            "real_time_factor": round(self._real_time_factor, 4),
            "substeps_lost": self._skipped,
            "frames": 0 if camera is None else camera.captured,
            "can_frames": self.can.totals(),
            **self._lateness.summary_ms("lateness"),
        }
        for each in (self._colour, *self._publishers, self._control, self.imu, self.can):
            if each is not None:
                each.close()
        return summary

    # --- parts of a slot -----------------------------------------------------------------------

    def _fill_slot(self, next_ns: int, now_ns: int) -> None:
        """Answer frames until `next_ns`; where there is a camera an image is rendered meanwhile."""
        image_ns = next_ns - _PHASE_NS + _IMAGE_NS
        if self._raw is None or self.robot.camera is None or self._imaged_ns >= image_ns:
            self.can.serve(next_ns)
        elif now_ns < image_ns:
            self.can.serve(image_ns)
        else:
            self._imaged_ns = image_ns
            self._render(self._raw, self.robot.camera, now_ns)

    def _end_slot(self, slot: int, now_ns: int) -> None:
        for left in reversed(range(_SUBSTEPS)):
            self.robot.substep(now_ns - left * SUBSTEP_NS)
        begins_period = slot % 2 == 1
        sample = self.robot.sense(now_ns, watched=begins_period)
        imu = self.imu
        if imu is not None:
            imu.poll() if sample is None else imu.publish(sample)
        if begins_period and self._truth is not None:
            self._truth.publish(self.robot.control_tick(now_ns), capture_ns=now_ns)
        _WORK["physics"].observe((time.monotonic_ns() - now_ns) * 1e-9)
        if not begins_period and self._control is not None:
            self._control.poll(0.0, self._operate)
        if slot % _MISSION_SLOTS == 0 and self._nav is not None:
            self._nav.publish(self.robot.nav().as_array(), capture_ns=now_ns)
        if slot % _METRICS_SLOTS == 0:
            self._exposition.update(self._real_time_factor)

    def _render(self, raw: Publisher, camera: DepthCamera, now_ns: int) -> None:
        """Publish the image whose latency has passed, and take the one that is due."""
        frame = camera.pop(now_ns)
        if frame is not None:
            raw.publish(frame.image, capture_ns=frame.capture_ns)
        if camera.due(now_ns):
            started_ns = time.monotonic_ns()
            self.robot.expose(now_ns)
            _WORK["render"].observe((time.monotonic_ns() - started_ns) * 1e-9)

    # --- faults on request ---------------------------------------------------------------------

    def _operate(self, request: JsonObject) -> Mapping[str, Any]:
        now_ns = time.monotonic_ns()
        op = request.get("op")
        try:
            if op == "fault":
                self._inject(request, now_ns)
            elif op == "clear":
                lifted = self.robot.board.clear(str(request.get("kind", "")))
                log.info("faults cleared", count=lifted)
            elif op == "put-back":
                self.robot.put_back(now_ns)
            elif op != "status":
                raise FaultRefused(
                    f"unknown op {str(op)[:40]!r}; use fault, clear, put-back or status"
                )
        except FaultRefused as error:
            return {"ok": False, "reason": str(error)}
        return {"ok": True, **self._status(now_ns)}

    def _inject(self, request: JsonObject, now_ns: int) -> None:
        value, for_s = request.get("value"), request.get("for_s", 0.0)
        if not isinstance(for_s, int | float) or not isinstance(value, int | float | None):
            raise FaultRefused(f"for_s {for_s!r} and value {value!r} must be numbers")
        kind, joint, bus = (str(request.get(name) or "") for name in ("kind", "joint", "bus"))
        self.robot.inject(kind, now_ns, joint=joint, bus=bus, for_s=for_s, value=value)

    def _status(self, now_ns: int) -> dict[str, Any]:
        robot, bank = self.robot, self.robot.bank
        return {
            "faults": robot.board.describe(now_ns),
            "now_ns": now_ns,
            "drives_running": bank.running,
            "supply_v": round(bank.supply_v, 2),
            "winding_max_c": round(float(bank.winding_c.max()), 1),
            "base_height_m": round(float(robot.world.base_pos_w[2]), 3),
            "distance_m": round(robot.progress.distance_m, 3),
            "falls": robot.falls,
            "imu": self.imu.address if self.imu is not None else "",
        }

    def _publisher(self, endpoint: str, stream: Any, *, bind: bool = True) -> Publisher:
        publisher = Publisher(endpoint, stream, bind=bind)
        self._publishers.append(publisher)
        return publisher

    def _finished(self) -> bool:
        duration_s = self._cfg.duration_s
        return duration_s > 0.0 and self.robot.world.sim_time_s >= duration_s

    @property
    def _real_time_factor(self) -> float:
        return self.robot.world.sim_time_s / max(time.monotonic() - self._started_s, 1e-9)

    def _hello(self) -> dict[str, Any]:
        return make_hello(
            service="robot-emulator",
            clock="monotonic",
            robot=self.robot.desc.identity,
            camera={},
            extra={"buses": self.can.describe()},
        )
