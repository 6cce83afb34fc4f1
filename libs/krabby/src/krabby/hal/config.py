"""Configuration that every HAL has."""

from typing import Annotated

from krabby_proto import default_endpoints
from msgspec import Meta

from krabby.config import Config, Port
from krabby.runtime.config import ServiceCfg

__all__ = ["DEFAULT_ENDPOINTS", "HalCfg", "HalEndpointsCfg", "LockstepCfg"]

DEFAULT_ENDPOINTS = default_endpoints()
"""Stream name to endpoint on this host."""


class HalEndpointsCfg(Config, frozen=True, kw_only=True):
    """Endpoints of a HAL's streams: ipc:///path, or tcp://127.0.0.1:PORT."""

    state: str = DEFAULT_ENDPOINTS["state"]
    """Bound: measurements of the robot."""
    camera: str = DEFAULT_ENDPOINTS["camera"]
    """Bound: depth images."""
    command: str = DEFAULT_ENDPOINTS["command"]
    """Bound: joint position targets, each with a reply."""
    safety: str = DEFAULT_ENDPOINTS["safety"]
    """Bound: arm, disarm, estop, reset, status."""
    trace: str = ""
    """Bound: requests and their answers, for recorders; empty for the socket `trace` beside
    `command`, or for none where that is no Unix socket."""


class LockstepCfg(Config, frozen=True, kw_only=True):
    """Only with speed=0."""

    start_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 30.0
    """Longest wait for the game loop's first command [s, wall clock]."""
    answer_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 10.0
    """Longest wait for each later command [s, wall clock]."""
    answer_delay_s: Annotated[float, Meta(ge=0, le=0.01)] = 0.0025
    """Simulated time between a state and the command that answers it [s]: the delay of the game
    loop in real time, so that the robot walks alike in both."""


class HalCfg(ServiceCfg, frozen=True, kw_only=True):
    """HAL server over a back end that needs no configuration."""

    metrics_port: Port = 9101
    endpoints: HalEndpointsCfg = HalEndpointsCfg()
