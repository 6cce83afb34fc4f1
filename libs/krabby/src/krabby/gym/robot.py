"""One robot behind the safety gate, in control periods: what `ParkourEnv` steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from krabby_proto import COMMAND, SafetyState

from krabby.benchmark.trial import local_message
from krabby.hal.backend import SimulatedClock, Slot
from krabby.hal.config import LockstepCfg
from krabby.hal.handler import GateHandler
from krabby.mujoco.backend import SLOT_NS, MujocoBackend
from krabby.mujoco.config import CameraCfg, MissionCfg, StageCfg
from krabby.mujoco.errors import PhysicsDiverged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.course.courses import Course
    from krabby.hal.measurement import Measurement
    from krabby.robot.description import RobotDescription
    from krabby.safety.gate import SafetyGate

__all__ = ["GatedRobot"]

_SLOTS: Final = 2
"""Of the HAL in a control period."""
_SETTLE_PERIODS: Final = 50
"""In the default pose, once the gains are up."""
_ANSWER_NS: Final = round(LockstepCfg().answer_delay_s * 1e9)


class _Backend(MujocoBackend):
    """Notes a fall; arming is up to the caller."""

    name = "gym"
    fell = False

    def judged(self, gate: SafetyGate, now_ns: int) -> None:
        if self.watch(now_ns, gate.target if gate.state.following else None):
            self.fell = True


class GatedRobot:
    """A robot that stands at the start of a course, armed, and follows joint targets.

    Args:
        desc: The robot.
        course: What it walks on.
        speed: Commanded walking speed [m/s].
        camera: Whether depth images are made.
        seed: Of the camera's noise, holes, lost images and latency.
    """

    def __init__(
        self, desc: RobotDescription, course: Course, *, speed: float, camera: bool, seed: int
    ) -> None:
        self._clock = SimulatedClock()
        cfg = StageCfg(
            seed=seed,
            spawn="standing",
            camera=CameraCfg(enabled=camera),
            mission=MissionCfg(speed=speed),
        )
        self.backend = _Backend(
            cfg, desc, course, clock_ns=self._clock, auto_arm=False, auto_reset=False
        )
        self._handler = GateHandler(self.backend, answer_delay_ns=_ANSWER_NS)
        self._sequence = 0
        self.diverged = False
        """Whether the physics gave numbers that are not finite; nothing moves any more."""
        self._stand(desc.default_joint_pos)

    def _stand(self, joint_pos: NDArray[np.float64]) -> None:
        """Arm and wait in the default pose."""
        now_ns = self._clock.now_ns
        self._handler.cycle(Slot(now_ns, now_ns, 0, 0))
        self._handler.gate.request("arm", now_ns)
        settled = 0
        while settled < _SETTLE_PERIODS and not self.failed:
            self.period(joint_pos)
            settled += self._handler.gate.state is SafetyState.ACTIVE

    @property
    def now_ns(self) -> int:
        """Simulated time [ns]."""
        return self._clock.now_ns

    @property
    def measured(self) -> Measurement:
        """What the sensors say; written anew in every period."""
        return self.backend.measured

    @property
    def target(self) -> NDArray[np.float64]:
        """Pose that the gate holds [rad], shape (18,)."""
        return self._handler.gate.target

    @property
    def failed(self) -> bool:
        """Whether it fell, or the gate does not follow commands any more."""
        state = self._handler.gate.state
        live = state is SafetyState.ARMING or state.following
        return self.backend.fell or self.diverged or not live

    def period(self, joint_pos: NDArray[np.float64]) -> int:
        """Let 10 ms pass with these targets [rad], shape (18,), as far as the gate lets them.

        Returns:
            Waypoints reached meanwhile.
        """
        if self.diverged:
            return 0
        backend, before = self.backend, self.backend.progress.index
        self._sequence += 1
        target = joint_pos.astype(np.float32)
        self._handler.on_command(local_message(COMMAND, target, self.now_ns, self._sequence))
        try:
            for index in range(_SLOTS):
                self._clock.now_ns += SLOT_NS
                self._handler.cycle(Slot(self.now_ns, self.now_ns, 1, 0))
                if index == 0 and backend.image_due(self.now_ns):
                    backend.expose(self.now_ns)
        except PhysicsDiverged:
            self.diverged = True
            return 0
        backend.control_tick(self.now_ns)
        return backend.progress.index - before
