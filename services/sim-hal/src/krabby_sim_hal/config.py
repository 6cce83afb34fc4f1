"""Configuration of sim-hal: defaults in code, overridden by one TOML file and the command line."""

import dataclasses

from krabby.hal.config import DEFAULT_ENDPOINTS, HalEndpointsCfg
from krabby.mujoco.config import StageCfg
from krabby.runtime.config import check, check_range

__all__ = ["EndpointsCfg", "LockstepCfg", "SimHalCfg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointsCfg(HalEndpointsCfg):
    """Where the streams are: tcp://, ipc:// or inproc://. All are bound but nav."""

    truth: str = DEFAULT_ENDPOINTS["truth"]
    """Bound: what only a simulator knows; for evaluation."""
    nav: str = DEFAULT_ENDPOINTS["nav"]
    """Connected: where the game loop listens for walking commands."""
    fault: str = ""
    """Bound if not empty: requests that break the camera while it runs, for tests."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LockstepCfg:
    """Only with speed=0."""

    start_timeout_s: float = 30.0
    """How long to wait for the game loop's first command [s, wall clock]."""
    answer_timeout_s: float = 10.0
    """How long to wait for each further one [s, wall clock]."""
    answer_delay_s: float = 0.0025
    """Simulated time between a state and the command that answers it [s]: what the loop takes in
    real time, so that the robot walks alike in both."""

    def __post_init__(self) -> None:
        check_range(self, "start_timeout_s", minimum=0.1, maximum=3600.0)
        check_range(self, "answer_timeout_s", minimum=0.1, maximum=3600.0)
        check_range(self, "answer_delay_s", minimum=0.0, maximum=0.01)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimHalCfg(StageCfg):
    """HAL server over MuJoCo."""

    metrics_port: int = 9101
    """TCP port of the Prometheus exposition and of /healthz; 0 for none."""
    speed: float = 1.0
    """1 is real time; 0 is lock-step, as fast as the game loop answers, and repeats exactly."""
    auto_arm: bool = True
    """Arm by itself while commands arrive. An operator's disarm or e-stop outlasts it until an
    operator arms again."""
    endpoints: EndpointsCfg = dataclasses.field(default_factory=EndpointsCfg)
    lockstep: LockstepCfg = dataclasses.field(default_factory=LockstepCfg)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.speed in (0.0, 1.0),
            "speed",
            self.speed,
            "1 for real time or 0 for lock-step (ages and timeouts are wall-clock time in "
            "between, so any other speed would change the robot's behaviour)",
        )
