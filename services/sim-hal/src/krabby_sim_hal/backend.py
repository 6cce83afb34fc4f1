"""The crab in MuJoCo as a back end of the HAL loop: the stage, and drives that obey the gate.

Time is passed in, except where the clock is asked for the moment an actuator write returned; so a
test drives it with a clock of its own, and lock-step with simulated time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import TYPE_CHECKING, Any

import mujoco
import structlog
from krabby.hal.backend import Image, Reading, SimBackend, limp
from krabby.mujoco.actuation_delay import DriveLine
from krabby.mujoco.camera_faults import answer_fault_request
from krabby.mujoco.stage import Stage
from krabby.mujoco.world import SUBSTEP_NS
from krabby_proto import ControlServer

from krabby_sim_hal.auto_arm import AutoArm

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from krabby.course.courses import Course
    from krabby.hal.backend import Slot
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand, SafetyGate
    from numpy.typing import NDArray

    from krabby_sim_hal.config import SimHalCfg

__all__ = ["Simulator"]

log = structlog.get_logger(__name__)

_SUBSTEPS_PER_SLOT = 2
"""Physics runs at 400 Hz, gate and state at 200."""


class Simulator(Stage, SimBackend):
    """One robot on one course."""

    name = "sim-hal"
    stage = "physics"

    def __init__(
        self,
        cfg: SimHalCfg,
        desc: RobotDescription,
        course: Course,
        *,
        clock_ns: Callable[[], int],
    ) -> None:
        super().__init__(cfg, desc, course, tilt_limit_rad=desc.safety.tilt_limit_rad)
        self.rate_hz = 1e9 / (_SUBSTEPS_PER_SLOT * SUBSTEP_NS)
        self.clock_ns = clock_ns
        self.camera_model = dataclasses.asdict(desc.camera) if cfg.camera.enabled else None
        self._auto_arm = AutoArm(enabled=cfg.auto_arm)
        self._line = DriveLine(desc.latency.command_s, limp(desc))
        self._just_reset = False
        self._lap_begins = False
        self._hash = hashlib.sha256()
        self._fault_endpoint = cfg.endpoints.fault
        self._fault_requests: ControlServer | None = None
        self._started_s: float | None = None

    @property
    def drive(self) -> DriveCommand:
        """What the drives do now."""
        return self._line.current

    @property
    def sim_time_s(self) -> float:
        return self.world.sim_time_s

    @property
    def real_time_factor(self) -> float:
        """Simulated over real time since the first slot; 0 before it."""
        if self._started_s is None:
            return 0.0
        return self.sim_time_s / max(time.monotonic() - self._started_s, 1e-9)

    def start(self) -> None:
        if self._fault_endpoint:
            self._fault_requests = ControlServer(self._fault_endpoint, hello=self.hello())
        log.info(
            "simulating",
            course=self.course.name,
            boxes=len(self.course.boxes),
            waypoints=self.progress.count,
        )

    def close(self) -> None:
        if self._fault_requests is not None:
            self._fault_requests.close()

    # --- a slot ------------------------------------------------------------------------------

    def read(self, slot: Slot) -> Reading:
        """Let the world catch up with the slot, then measure."""
        if self._started_s is None:
            self._started_s = time.monotonic()
        self.reset_if_due(slot.woke_ns)
        substeps = slot.slots * _SUBSTEPS_PER_SLOT
        begin_ns = slot.scheduled_ns - substeps * SUBSTEP_NS
        for index in range(substeps):
            self.world.substep(self._line.at(begin_ns + index * SUBSTEP_NS))
        self.world.measure(self._measured)
        was_reset, self._just_reset = self._just_reset, False
        return Reading(self._measured, slot.woke_ns, was_reset=was_reset)

    def write(self, drive: DriveCommand, now_ns: int) -> int:
        self._line.write(drive, now_ns)
        return self.clock_ns()

    def judged(self, gate: SafetyGate, now_ns: int) -> None:
        """Make a robot that fell or begins a new lap limp; arm one that waits for commands."""
        fell = self.watch(now_ns, gate.target if gate.state.following else None)
        if fell or self._lap_begins:
            self._lap_begins = False
            gate.request("disarm", now_ns)
        if self._reset_at_ns is None and self._auto_arm.due(now_ns, gate.state):
            reply = gate.request("arm", now_ns)
            log.info("armed by itself", ok=reply.ok, reason=reply.reason)

    def commanded(self, now_ns: int) -> None:
        self._auto_arm.command(now_ns)

    def operated(self, op: str, *, granted: bool) -> None:
        self._auto_arm.operator(op, granted=granted)

    def control_tick(self, now_ns: int) -> NDArray[np.float32]:
        """Once per control period: account for what was walked, return the `truth` payload.

        The array is reused by the next call.
        """
        self._hash.update(self.world.state_bytes())
        truth = super().control_tick(now_ns)
        if self._fault_requests is not None:
            self._fault_requests.poll(
                0.0, lambda request: answer_fault_request(self.camera, request, now_ns)
            )
        return truth

    def mission(self) -> NDArray[np.float32]:
        return self.nav().as_array()

    # --- the camera --------------------------------------------------------------------------

    def frame(self, now_ns: int) -> Image | None:
        """The image whose latency has passed, None when there is none."""
        frame = None if self.camera is None else self.camera.pop(now_ns)
        return None if frame is None else Image(frame.image, frame.capture_ns)

    def image_due(self, now_ns: int) -> bool:
        return self.camera is not None and self.camera.due(now_ns)

    def picture(self, now_ns: int) -> Image | None:
        return None if self.camera is None else Image(self.depth(), now_ns)

    # --- what is said about it ---------------------------------------------------------------

    def extra(self) -> dict[str, Any]:
        course = self.course
        return {
            "simulator": f"mujoco {mujoco.__version__}",
            "course": {
                "name": course.name,
                "difficulty": course.difficulty,
                "seed": course.seed,
                "hash": course.content_hash,
                "spawn": course.spawn,
                "waypoints": course.waypoints.round(4).tolist(),
            },
        }

    def summary(self) -> dict[str, Any]:
        """What the run came to, for the last log line."""
        camera = self.camera
        return super().summary() | {
            "trajectory_hash": self._hash.hexdigest(),
            "real_time_factor": round(self.real_time_factor, 4),
            "frames": 0 if camera is None else camera.captured,
            "frames_dropped": 0 if camera is None else camera.dropped,
        }

    def _put_back(self, now_ns: int, *, new_lap: bool) -> None:
        self._lap_begins = new_lap
        self._auto_arm.reset()
        self._just_reset = True
