"""The robot behind sim-hal: trajectory hash and requests that break the camera."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import structlog
from krabby.course.courses import Course
from krabby.hal.backend import Reading, Slot
from krabby.mujoco.backend import MujocoBackend
from krabby.mujoco.camera_faults import answer_fault_request
from krabby.mujoco.world import World
from krabby.robot.description import RobotDescription
from krabby.runtime.provenance import provenance
from krabby_proto import ControlServer
from numpy.typing import NDArray

from krabby_sim_hal.config import SimHalCfg

__all__ = ["Simulator"]

log = structlog.get_logger(__name__)


class Simulator(MujocoBackend):
    """One robot on one course."""

    name = "sim-hal"

    def __init__(
        self,
        cfg: SimHalCfg,
        desc: RobotDescription,
        course: Course,
        *,
        clock_ns: Callable[[], int],
        make_world: Callable[..., World] = World,
    ) -> None:
        super().__init__(
            cfg, desc, course, clock_ns=clock_ns, auto_arm=cfg.auto_arm, make_world=make_world
        )
        self._config = msgspec.to_builtins(cfg)
        if cfg.planted.kind:
            self.plant(cfg.planted)
        self._colour = _colour_facts(cfg, desc)
        self._hash = hashlib.sha256()
        self._fault_endpoint = cfg.endpoints.fault
        self._fault_requests: ControlServer | None = None
        self._started_s: float | None = None

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
            simulator=self.world.simulator,
            course=self.course.name,
            boxes=len(self.course.boxes),
            waypoints=self.progress.count,
        )

    def close(self) -> None:
        if self._fault_requests is not None:
            self._fault_requests.close()
        self.world.close()

    def read(self, slot: Slot) -> Reading:
        if self._started_s is None:
            self._started_s = time.monotonic()
        return super().read(slot)

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

    def extra(self) -> dict[str, Any]:
        course = self.course
        colour = {"colour": self._colour} if self._colour else {}
        return {
            "simulator": self.world.simulator,
            "course": {
                "name": course.name,
                "difficulty": course.difficulty,
                "seed": course.seed,
                "hash": course.content_hash,
                "spawn": course.spawn,
                "waypoints": course.waypoints.round(4).tolist(),
            },
            "config": self._config,
            **colour,
            **provenance("krabby", "mujoco"),
        }

    def summary(self) -> dict[str, Any]:
        """What the run came to, for the last log line."""
        return super().summary() | {
            "trajectory_hash": self._hash.hexdigest(),
            "real_time_factor": round(self.real_time_factor, 4),
        }


def _colour_facts(cfg: SimHalCfg, desc: RobotDescription) -> dict[str, Any]:
    """Of the stream `colour`, for the hello; empty when it is not offered."""
    if not cfg.colour.enabled:
        return {}
    camera, scale = desc.camera, cfg.colour.scale
    return {
        "width": scale * camera.width,
        "height": scale * camera.height,
        "rate_hz": cfg.colour.rate_hz,
    }
