"""sim-hal: the HAL loop around the crab in MuJoCo."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from krabby.course.courses import make_course
from krabby.hal.backend import SimulatedClock
from krabby.hal.loop import HalLoop
from krabby.robot.description import RobotDescription
from krabby.runtime.tracing import make_tracer

from krabby_sim_hal.backend import Simulator
from krabby_sim_hal.config import SimHalCfg
from krabby_sim_hal.metrics import Exposition

__all__ = ["SimHal"]


class SimHal(HalLoop):
    """`krabby.runtime.Service` around a `Simulator`."""

    def __init__(self, cfg: SimHalCfg) -> None:
        desc = RobotDescription.load(Path(cfg.robot) if cfg.robot else None)
        course = make_course(cfg.course.name, cfg.course.difficulty, cfg.course.seed)
        clock_ns = SimulatedClock() if cfg.speed == 0.0 else time.monotonic_ns
        self.sim = Simulator(cfg, desc, course, clock_ns=clock_ns)
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
