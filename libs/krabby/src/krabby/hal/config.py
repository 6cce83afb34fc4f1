"""Configuration that every HAL has."""

import dataclasses

from krabby_proto import default_endpoints

from krabby.runtime.app import ServiceCfg
from krabby.runtime.config import check_range

__all__ = ["DEFAULT_ENDPOINTS", "HalCfg", "HalEndpointsCfg", "LockstepCfg"]

DEFAULT_ENDPOINTS = default_endpoints()
"""Stream name to endpoint on this host."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalEndpointsCfg:
    """Where a HAL's streams are: tcp://, ipc:// or inproc://."""

    state: str = DEFAULT_ENDPOINTS["state"]
    """Bound: what the robot measures."""
    camera: str = DEFAULT_ENDPOINTS["camera"]
    """Bound: depth images."""
    command: str = DEFAULT_ENDPOINTS["command"]
    """Bound: joint position targets, answered."""
    safety: str = DEFAULT_ENDPOINTS["safety"]
    """Bound: arm, disarm, estop, reset, status."""


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
class HalCfg(ServiceCfg):
    """HAL server over a back end that needs no configuration."""

    metrics_port: int = 9101
    """TCP port of the Prometheus exposition and of /healthz; 0 for none."""
    endpoints: HalEndpointsCfg = dataclasses.field(default_factory=HalEndpointsCfg)
