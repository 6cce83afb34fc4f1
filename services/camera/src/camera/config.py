"""Configuration of the camera service."""

import dataclasses
from typing import Literal

from krabby_proto import default_endpoints
from krabby_service.app import ServiceCfg
from krabby_service.config import check, check_range

__all__ = ["CameraCfg", "EndpointsCfg", "ReplayCfg"]

_ENDPOINTS = default_endpoints()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointsCfg:
    """Where the streams are: tcp://, ipc:// or inproc://."""

    camera: str = _ENDPOINTS["camera"]
    """Connected: raw depth from the HAL."""
    state: str = _ENDPOINTS["state"]
    """Connected only when a depth encoder has a memory or wants to know the robot's state."""
    features: str = _ENDPOINTS["features"]
    """Bound: what the game loop reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayCfg:
    """Only with source=replay."""

    path: str = ""
    """Recording (.mcap) that holds the stream `camera`."""
    loop: bool = False
    """Start again at the end; otherwise the service ends there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraCfg(ServiceCfg):
    """Depth source to policy depth image or encoder features."""

    metrics_port: int = 9102
    """TCP port of the Prometheus exposition and of /healthz; 0 for none."""
    source: Literal["hal", "replay"] = "hal"
    """The HAL's stream, or a recording played at its own pace."""
    robot: str = ""
    """Path of robot.toml; empty for the one in the assets folder."""
    bundle: str = ""
    """Policy bundle, name or folder: its depth_encoder.onnx is run, if it has one.
    Otherwise, and when empty, images are published."""
    endpoints: EndpointsCfg = dataclasses.field(default_factory=EndpointsCfg)
    replay: ReplayCfg = dataclasses.field(default_factory=ReplayCfg)
    silent_after_s: float = 0.15
    """Warn when no frame came for this long [s]; features older than this are not used."""
    frozen_after_s: float = 0.5
    """Withhold frames whose content has not changed for this long [s]; 0 lets them through."""
    min_valid_ratio: float = 0.02
    """Withhold frames with a smaller share of pixels that see something: neither without a reading
    nor right at the lens."""
    warn_valid_ratio: float = 0.5
    """Warn below this share of valid pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "silent_after_s", minimum=0.01, maximum=60.0)
        check_range(self, "frozen_after_s", minimum=0.0, maximum=60.0)
        check_range(self, "min_valid_ratio", minimum=0.0, maximum=1.0)
        check_range(self, "warn_valid_ratio", minimum=0.0, maximum=1.0)
        check(
            self.source != "replay" or self.replay.path != "",
            "replay.path",
            self.replay.path,
            "the path of a recording, since source is replay",
        )
