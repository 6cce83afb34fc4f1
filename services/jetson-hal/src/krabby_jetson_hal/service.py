"""jetson-hal: the HAL loop around the real robot."""

from pathlib import Path

import msgspec
from krabby.hal.loop import HalLoop
from krabby.robot.description import RobotDescription
from krabby.runtime.tracing import make_tracer

from krabby_jetson_hal.backend import Robot
from krabby_jetson_hal.config import JetsonHalCfg
from krabby_jetson_hal.devices import Devices, load_devices
from krabby_jetson_hal.metrics import Exposition

__all__ = ["JetsonHal"]


class JetsonHal(HalLoop):
    """`krabby.runtime.Service` around a `Robot`."""

    def __init__(self, cfg: JetsonHalCfg, devices: Devices | None = None) -> None:
        """Nothing is opened; `devices` is hardware in place of what the configuration names."""
        desc = RobotDescription.load(Path(cfg.robot) if cfg.robot else None)
        self.robot = Robot(cfg, desc, load_devices(cfg, desc) if devices is None else devices)
        super().__init__(
            self.robot,
            msgspec.structs.asdict(cfg.endpoints),
            collect_when_idle=cfg.realtime.collect_when_idle,
            update_metrics=Exposition(self.robot).update,
            tracer=make_tracer(cfg.tracing, "jetson-hal"),
        )
