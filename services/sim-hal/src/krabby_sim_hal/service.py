"""sim-hal: the HAL loop around the crab in a simulator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import structlog
from krabby.course.courses import make_course
from krabby.hal.backend import SimulatedClock
from krabby.hal.loop import HalLoop
from krabby.isaac.environment import require_isaaclab, require_physics
from krabby.isaac.errors import IsaacUnavailable
from krabby.mujoco.colour import ColourProcess
from krabby.mujoco.world import World
from krabby.robot.description import RobotDescription
from krabby.runtime.app import Runtime
from krabby.runtime.tracing import make_tracer

from krabby_sim_hal.backend import Simulator
from krabby_sim_hal.config import SimHalCfg
from krabby_sim_hal.metrics import Exposition

__all__ = ["SimHal"]

log = structlog.get_logger(__name__)


class SimHal(HalLoop):
    """`krabby.runtime.Service` around a `Simulator`."""

    def __init__(self, cfg: SimHalCfg) -> None:
        self._cfg = cfg
        desc = RobotDescription.load(Path(cfg.robot) if cfg.robot else None)
        course = make_course(cfg.course.name, cfg.course.difficulty, cfg.course.seed)
        clock_ns = SimulatedClock() if cfg.speed == 0.0 else time.monotonic_ns
        self.sim = Simulator(cfg, desc, course, clock_ns=clock_ns, make_world=_world(cfg))
        self._colour = _colour(cfg) if cfg.colour.enabled else None
        endpoints = msgspec.structs.asdict(cfg.endpoints)
        if not cfg.mission.enabled:
            del endpoints["nav"]
        super().__init__(
            self.sim,
            endpoints,
            collect_when_idle=cfg.realtime.collect_when_idle,
            duration_s=cfg.duration_s,
            lockstep=cfg.lockstep,
            update_metrics=Exposition(self.sim).update,
            tracer=make_tracer(cfg.tracing, "sim-hal"),
        )

    def prepare(self, runtime: Runtime) -> None:
        """Let the simulator build what it needs."""
        world = self.sim.world
        if not world.has_to_be_built:
            return
        if self._cfg.isaac.physics == "isaacsim":
            log.warning(
                "never run: PhysX inside Isaac Sim was written against Isaac Lab's interface alone",
                instead="isaac.physics=physx is the same engine as a library",
            )
        began_s = time.monotonic()
        runtime.doing(f"building the scene in {world.simulator}")
        world.start()
        runtime.doing("")
        log.info(
            "scene built", simulator=world.simulator, took_s=round(time.monotonic() - began_s, 1)
        )

    def startup(self) -> None:
        """Bind the sockets; beside them let colour images be drawn."""
        super().startup()
        if self._colour is not None:
            self._colour.start()

    def shutdown(self) -> Mapping[str, object]:
        """End all, the drawing first."""
        if self._colour is not None:
            self._colour.close()
        return super().shutdown()


def _colour(cfg: SimHalCfg) -> ColourProcess:
    """What draws colour images beside the loop."""
    return ColourProcess(
        cfg,
        cfg.colour,
        truth=cfg.endpoints.truth,
        state=cfg.endpoints.state,
        place=cfg.endpoints.colour,
        lockstep=cfg.speed == 0.0,
    )


def _world(cfg: SimHalCfg) -> Callable[..., World]:
    """What builds the world of a configuration."""
    if cfg.backend == "mujoco":
        return World
    require_isaaclab("backend=isaaclab", IsaacUnavailable)
    require_physics(cfg.isaac.physics)
    # Loads torch, which MuJoCo does not need.
    from krabby.isaac.world import IsaacWorld

    return partial(IsaacWorld, cfg=cfg.isaac)
