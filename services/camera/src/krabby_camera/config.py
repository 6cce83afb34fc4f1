"""Configuration of the camera service."""

import dataclasses
from typing import Literal

from krabby.policy.tensorrt.config import InferenceCfg
from krabby.runtime.app import ServiceCfg
from krabby.runtime.config import check, check_range
from krabby_proto import default_endpoints

__all__ = [
    "CameraCfg",
    "EncoderInferenceCfg",
    "EndpointsCfg",
    "RealSenseCfg",
    "ReplayCfg",
    "SelfCheckCfg",
    "ZedCfg",
]

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
    raw: str = "tcp://127.0.0.1:6020"
    """Bound, with a camera of this machine only: its depth, for the HAL to pass on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayCfg:
    """Only with source=replay."""

    path: str = ""
    """Recording (.mcap) that holds the stream `camera`."""
    loop: bool = False
    """Start again at the end; otherwise the service ends there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZedCfg:
    """Only with source=zed."""

    serial: int = 0
    """Serial number of the camera; 0 for the first one."""
    resolution: Literal["vga", "hd720"] = "vga"
    """vga is 672 x 376 and 87 x 56 deg; hd720 sees only 85 x 54 deg."""
    fps: int = 60
    """Exposures per second, 15, 30, 60 or 100 (vga); depth is computed at robot.toml's rate."""
    depth_mode: Literal["neural_light", "neural", "neural_plus"] = "neural_light"
    """The SDK's depth network."""
    measure_width: int = 336
    """Columns of the depth that the SDK scales on the GPU and copies [px]."""
    confidence: int = 95
    """Readings less certain than this are holes: 1 drops nearly all, 100 none."""
    texture_confidence: int = 100
    """The same for untextured areas."""
    frames_before_stamp: float = 2.0
    """Exposure to the SDK's time stamp, in frames; its documentation says two to three."""
    imu_listen: str = ""
    """Hand on the camera's IMU, tcp://address:port or pty, as jetson-hal's imu.port reads it;
    empty for not."""

    def __post_init__(self) -> None:
        check(
            self.fps in (15, 30, 60, 100),
            "fps",
            self.fps,
            "15, 30, 60 or, with resolution vga, 100",
        )
        check(
            self.fps < 100 or self.resolution == "vga",
            "fps",
            self.fps,
            "at most 60, since resolution is hd720",
        )
        check_range(self, "measure_width", minimum=106, maximum=1280)
        check_range(self, "confidence", minimum=1, maximum=100)
        check_range(self, "texture_confidence", minimum=1, maximum=100)
        check_range(self, "frames_before_stamp", minimum=0.0, maximum=10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealSenseCfg:
    """Only with source=realsense."""

    serial: str = ""
    """Serial number of the camera; empty for the first one."""
    width: int = 480
    """Columns of its depth [px]; width, height and fps must be one of its modes."""
    height: int = 270
    """Rows [px]."""
    fps: int = 60
    emitter: bool = True
    """Project the pattern that gives bare walls a texture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfCheckCfg:
    """Does the camera see flat ground where its mount says it must be?"""

    when: Literal["off", "start", "only"] = "start"
    """start: with a camera of this machine, at the first frames, and go on. only: with any source,
    and end, with status 1 if something is wrong: for bring-up."""
    frames: int = 15
    """Frames looked at."""
    state_wait_s: float = 3.0
    """How long the first frame waits for the HAL to say how the robot stands [s]; without that it
    is taken to be level."""
    max_pitch_deg: float = 2.0
    max_roll_deg: float = 2.0
    max_height_m: float = 0.05
    max_hfov_deg: float = 4.0

    def __post_init__(self) -> None:
        check_range(self, "frames", minimum=1, maximum=1000)
        for name in (
            "state_wait_s",
            "max_pitch_deg",
            "max_roll_deg",
            "max_height_m",
            "max_hfov_deg",
        ):
            check_range(self, name, minimum=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderInferenceCfg(InferenceCfg):
    """What runs the depth encoder."""

    budget_s: float = 0.01
    """An engine whose step takes longer than this at the 99th percentile is refused [s]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraCfg(ServiceCfg):
    """Depth source to policy depth image or encoder features."""

    metrics_port: int = 9102
    """TCP port of the Prometheus exposition and of /healthz; 0 for none."""
    source: Literal["hal", "replay", "zed", "realsense"] = "hal"
    """The HAL's stream, a recording played at its own pace, or a camera of this machine."""
    robot: str = ""
    """Path of robot.toml; empty for the one in the assets folder."""
    bundle: str = ""
    """Policy bundle, name or folder: its depth_encoder.onnx is run, if it has one.
    Otherwise, and when empty, images are published."""
    endpoints: EndpointsCfg = dataclasses.field(default_factory=EndpointsCfg)
    replay: ReplayCfg = dataclasses.field(default_factory=ReplayCfg)
    zed: ZedCfg = dataclasses.field(default_factory=ZedCfg)
    realsense: RealSenseCfg = dataclasses.field(default_factory=RealSenseCfg)
    self_check: SelfCheckCfg = dataclasses.field(default_factory=SelfCheckCfg)
    inference: EncoderInferenceCfg = dataclasses.field(default_factory=EncoderInferenceCfg)
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
