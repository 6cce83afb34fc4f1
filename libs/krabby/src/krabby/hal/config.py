"""Configuration that every HAL has."""

import dataclasses

from krabby_proto import default_endpoints

__all__ = ["DEFAULT_ENDPOINTS", "HalEndpointsCfg"]

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
