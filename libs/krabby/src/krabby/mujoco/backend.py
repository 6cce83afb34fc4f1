"""The robot in MuJoCo as a back end of the HAL: physics, drives that obey the gate, the camera.

Time is passed in, except where the clock is asked for the moment an actuator write returned; so a
test drives it with its own clock, and lock-step with simulated time.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import structlog

from krabby.config import to_dict
from krabby.hal.backend import Image, Reading, SimBackend, limp
from krabby.mujoco.actuation_delay import DriveLine
from krabby.mujoco.auto_arm import AutoArm
from krabby.mujoco.planted import PlantedFault
from krabby.mujoco.stage import Stage
from krabby.mujoco.world import SUBSTEP_NS, World

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from krabby.course.courses import Course
    from krabby.hal.backend import Slot
    from krabby.mujoco.config import PlantedCfg, StageCfg
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import DriveCommand, SafetyGate

__all__ = ["SLOT_NS", "MujocoBackend"]

log = structlog.get_logger(__name__)

SLOT_NS = 5_000_000
"""Gate and state run at 200 Hz, physics in steps of which a whole number fits a slot."""


class MujocoBackend(Stage, SimBackend):
    """One robot on one course, behind a gate that belongs to the caller."""

    stage = "physics"
    rate_hz = 1e9 / SLOT_NS

    def __init__(
        self,
        cfg: StageCfg,
        desc: RobotDescription,
        course: Course,
        *,
        clock_ns: Callable[[], int],
        auto_arm: bool = True,
        auto_reset: bool = True,
        substep_ns: int = SUBSTEP_NS,
        box_half_extents: tuple[float, float, float] | None = None,
        make_world: Callable[..., World] = World,
    ) -> None:
        """Put the robot down where the course begins, limp.

        Args:
            cfg: seed, camera, spawn and mission are used.
            desc: the robot.
            course: what it stands on.
            clock_ns: the clock of slots, commands and stamps.
            auto_arm: arm by itself while commands arrive.
            auto_reset: put a robot that fell back 2 s later, or leave it there.
            substep_ns: step of the integrator, a whole number of them in a slot [ns].
            box_half_extents: of the world's movable box [m]; None for no box.
            make_world: builds the world, as `krabby.mujoco.world.World` does.
        """
        super().__init__(
            cfg,
            desc,
            course,
            tilt_limit_rad=desc.safety.tilt_limit_rad,
            auto_reset=auto_reset,
            substep_ns=substep_ns,
            box_half_extents=box_half_extents,
            make_world=make_world,
        )
        self.clock_ns = clock_ns
        self.camera_model = dataclasses.asdict(desc.camera) if cfg.camera.enabled else None
        self._auto_arm = AutoArm(enabled=auto_arm)
        self._line = DriveLine(desc.latency.command_s, limp(desc))
        self._just_reset = False
        self._lap_begins = False
        self._fault: PlantedFault | None = None
        self._fault_cfg: PlantedCfg | None = None

    def plant(self, cfg: PlantedCfg) -> None:
        """Put a fault between the robot and its HAL; before the first slot.

        Raises:
            ConfigError: the fault does not fit the robot.
        """
        self._fault, self._fault_cfg = PlantedFault(cfg, self.desc), cfg
        delay_s = self.desc.latency.command_s + self._fault.command_delay_s
        self._line = DriveLine(delay_s, limp(self.desc))
        if cfg.kind == "camera-mirrored" and self.camera is not None:
            self.camera.break_down("camera-mirrored")
        log.warning("fault planted", **to_dict(cfg))

    @property
    def drive(self) -> DriveCommand:
        """What the drives do now."""
        return self._line.current

    @property
    def sim_time_s(self) -> float:
        """Simulated time since the start [s]."""
        return self.world.sim_time_s

    # --- a slot ------------------------------------------------------------------------------

    def read(self, slot: Slot) -> Reading:
        """Let the world catch up with the slot, then measure."""
        self.reset_if_due(slot.woke_ns)
        world, step_ns = self.world, self.world.substep_ns
        begin_ns = slot.scheduled_ns - slot.slots * SLOT_NS
        for elapsed_ns in range(0, slot.slots * SLOT_NS, step_ns):
            world.substep(self._line.at(begin_ns + elapsed_ns))
        world.measure(self._measured)
        was_reset, self._just_reset = self._just_reset, False
        measured, fault = self._measured, self._fault
        if fault is not None:
            measured = fault.measurement(measured, slot.woke_ns)
        return Reading(measured, slot.woke_ns, was_reset=was_reset)

    def write(self, drive: DriveCommand, now_ns: int) -> int:
        """Hand over what the drives do, after the delay of the bus."""
        self._line.write(drive if self._fault is None else self._fault.drive(drive), now_ns)
        return self.clock_ns()

    def judged(self, gate: SafetyGate, now_ns: int) -> None:
        """Make a robot that fell or begins a new lap limp; arm one that waits for commands."""
        fell = self.watch(now_ns, gate.target if gate.state.following else None)
        if fell or self._lap_begins:
            self._lap_begins = False
            gate.request("disarm", now_ns)
        if self._reset_at_ns is None:
            self._arm_if_due(gate, now_ns)

    def _arm_if_due(self, gate: SafetyGate, now_ns: int) -> None:
        if self._auto_arm.due(now_ns, gate.state):
            reply = gate.request("arm", now_ns)
            log.info("armed by itself", ok=reply.ok, reason=reply.reason)

    def commanded(self, now_ns: int) -> None:
        """A valid command came."""
        self._auto_arm.command(now_ns)

    def operated(self, op: str, *, granted: bool) -> None:
        """An operator asked for something, and the gate granted it or not."""
        self._auto_arm.operator(op, granted=granted)

    def mission(self) -> NDArray[np.float32]:
        """The walking command towards the next waypoint."""
        return self.nav().as_array()

    # --- the camera --------------------------------------------------------------------------

    def frame(self, now_ns: int) -> Image | None:
        """The image whose latency has passed, None when there is none."""
        frame = None if self.camera is None else self.camera.pop(now_ns)
        return None if frame is None else Image(frame.image, frame.capture_ns)

    def image_due(self, now_ns: int) -> bool:
        """Whether an exposure is due."""
        return self.camera is not None and self.camera.due(now_ns)

    def picture(self, now_ns: int) -> Image | None:
        """What a flawless camera sees now."""
        return None if self.camera is None else Image(self.depth(), now_ns)

    # --- what is said about it ---------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What the run came to, for the last log line."""
        camera, planted = self.camera, self._fault_cfg
        return super().summary() | {
            "planted": None if planted is None else to_dict(planted),
            "frames": 0 if camera is None else camera.captured,
            "frames_dropped": 0 if camera is None else camera.dropped,
        }

    def _put_back(self, now_ns: int, *, new_lap: bool) -> None:
        self._lap_begins = new_lap
        self._auto_arm.reset()
        self._just_reset = True
