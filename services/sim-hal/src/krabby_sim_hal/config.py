"""Configuration of sim-hal: defaults in code, overridden by one TOML file and the command line."""

from typing import Literal

from krabby.config import Port, check
from krabby.hal.config import DEFAULT_ENDPOINTS, HalEndpointsCfg, LockstepCfg
from krabby.isaac.config import IsaacCfg
from krabby.mujoco.config import ColourCfg, PlantedCfg, StageCfg
from krabby.runtime.tracing import TracingCfg

__all__ = ["EndpointsCfg", "SimHalCfg"]


class EndpointsCfg(HalEndpointsCfg, frozen=True, kw_only=True):
    """Endpoints of the streams: ipc:///path, or tcp://127.0.0.1:PORT. All are bound but nav."""

    truth: str = DEFAULT_ENDPOINTS["truth"]
    """Bound: what only a simulator knows; for evaluation."""
    nav: str = DEFAULT_ENDPOINTS["nav"]
    """Connected: where the game loop listens for walking commands."""
    colour: str = DEFAULT_ENDPOINTS["colour"]
    """Bound with colour.enabled: what the camera sees in colour."""
    fault: str = ""
    """Bound if not empty: requests that break the camera while it runs, for tests."""


class SimHalCfg(StageCfg, frozen=True, kw_only=True):
    """HAL server over a simulator."""

    metrics_port: Port = 9101
    backend: Literal["mujoco", "isaaclab"] = "mujoco"
    """Whose physics: MuJoCo, or Isaac Lab's with the scene of training, which needs the trainer's
    environment (make train-setup) and a minute to start."""
    isaac: IsaacCfg = IsaacCfg()
    speed: float = 1.0
    """1 is real time; 0 is lock-step, as fast as the game loop answers, and repeats exactly."""
    auto_arm: bool = True
    """Arm by itself while commands arrive. An operator's disarm or e-stop outlasts it until an
    operator arms again."""
    planted: PlantedCfg = PlantedCfg()
    colour: ColourCfg = ColourCfg()
    endpoints: EndpointsCfg = EndpointsCfg()
    lockstep: LockstepCfg = LockstepCfg()
    tracing: TracingCfg = TracingCfg()

    def __post_init__(self) -> None:
        check(
            self.speed in (0.0, 1.0),
            "speed",
            self.speed,
            "1 for real time or 0 for lock-step (ages and timeouts are wall-clock time in "
            "between, so any other speed would change the robot's behaviour)",
        )
        if self.colour.enabled:
            expected = "mujoco, since colour.enabled is true: it draws with MuJoCo's rays"
            check(self.backend == "mujoco", "backend", self.backend, expected)
        self.colour.check_endpoint(self.endpoints.colour)
