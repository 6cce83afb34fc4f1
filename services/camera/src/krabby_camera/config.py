"""Configuration of the camera service."""

from typing import Annotated, Literal

from krabby.config import Config, NonNegative, Port, Share, check
from krabby.policy.tensorrt.config import InferenceCfg
from krabby.runtime.config import ServiceCfg
from krabby_proto import FEATURES, default_endpoints, runtime_folder
from msgspec import Meta

__all__ = [
    "CameraCfg",
    "ColourCfg",
    "EncoderInferenceCfg",
    "EndpointsCfg",
    "RealSenseCfg",
    "ReplayCfg",
    "SelfCheckCfg",
    "ZedCfg",
]

_ENDPOINTS = default_endpoints()


class EndpointsCfg(Config, frozen=True, kw_only=True):
    """Endpoints of the streams: ipc:///path, or tcp://127.0.0.1:PORT."""

    camera: str = _ENDPOINTS["camera"]
    """Connected: raw depth from the HAL."""
    state: str = _ENDPOINTS["state"]
    """Connected only when a depth encoder has a memory or wants to know the robot's state."""
    features: str = _ENDPOINTS["features"]
    """Bound: what the game loop reads."""
    raw: str = f"ipc://{runtime_folder()}/raw"
    """Bound, with a camera of this machine only: its depth, for the HAL to pass on."""
    colour: str = _ENDPOINTS["colour"]
    """Bound with colour.enabled: JPEG images."""


class ReplayCfg(Config, frozen=True, kw_only=True):
    """Only with source=replay."""

    path: str = ""
    """Recording (.mcap) that holds the stream `camera`."""
    loop: bool = False
    """Start again at the end; otherwise the service ends there."""


class ColourCfg(Config, frozen=True, kw_only=True):
    """Colour images of a camera of this machine, for people and recordings."""

    enabled: bool = False
    """Offer the stream `colour`; images are made only while it is read."""
    rate_hz: Annotated[float, Meta(ge=0.2, le=30)] = 5.0
    """Images per second, at most."""
    scale: Literal[2, 4, 6] = 4
    """Pixels for each pixel of robot.toml's depth image along both sides: 4 makes 424 x 240."""


class ZedCfg(Config, frozen=True, kw_only=True):
    """Only with source=zed."""

    serial: int = 0
    """Serial number of the camera; 0 for the first one."""
    resolution: Literal["vga", "hd720"] = "vga"
    """vga is 672 x 376 and 87 x 56 deg; hd720 sees only 85 x 54 deg."""
    fps: int = 60
    """Exposures per second, 15, 30, 60 or 100 (vga); depth is computed at robot.toml's rate."""
    depth_mode: Literal["neural_light", "neural", "neural_plus"] = "neural_light"
    """The SDK's depth network."""
    measure_width: Annotated[int, Meta(ge=106, le=1280)] = 336
    """Columns of the depth that the SDK scales on the GPU and copies [px]."""
    confidence: Annotated[int, Meta(ge=1, le=100)] = 95
    """Readings less certain than this are holes: 1 drops nearly all, 100 none."""
    texture_confidence: Annotated[int, Meta(ge=1, le=100)] = 100
    """The same for untextured areas."""
    frames_before_stamp: Annotated[float, Meta(ge=0, le=10)] = 2.0
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


class RealSenseCfg(Config, frozen=True, kw_only=True):
    """Only with source=realsense."""

    serial: str = ""
    """Serial number of the camera; empty for the first one."""
    width: int = 480
    """Columns of its depth [px]; width, height and fps must be one of its modes."""
    height: int = 270
    """Rows [px]."""
    fps: int = 60
    colour_width: int = 424
    """Columns of its colour images [px], with colour.enabled; with colour_height and fps a mode."""
    colour_height: int = 240
    """Rows [px]."""
    emitter: bool = True
    """Project the pattern that gives bare walls a texture."""


class SelfCheckCfg(Config, frozen=True, kw_only=True):
    """Does the camera see flat ground where its mount says it must be?"""

    when: Literal["off", "start", "only"] = "start"
    """start: with a camera of this machine, at the first frames. only: with any source,
    and end, with status 1 if something is wrong: for bring-up."""
    frames: Annotated[int, Meta(ge=1, le=1000)] = 15
    """Frames looked at."""
    state_wait_s: NonNegative = 3.0
    """How long the first frame waits for the HAL to say how the robot stands [s]; without that it
    is taken to be level."""
    max_pitch_deg: NonNegative = 2.0
    max_roll_deg: NonNegative = 2.0
    max_height_m: NonNegative = 0.05
    max_hfov_deg: NonNegative = 4.0


class EncoderInferenceCfg(InferenceCfg, frozen=True, kw_only=True):
    """What runs the depth encoder."""

    budget_s: Annotated[float, Meta(ge=1e-5, le=1)] = 0.01


class CameraCfg(ServiceCfg, frozen=True, kw_only=True):
    """Depth source to policy depth image or encoder features."""

    metrics_port: Port = 9102
    source: Literal["hal", "replay", "zed", "realsense"] = "hal"
    """The HAL's stream, a recording played at its own pace, or a camera of this machine."""
    robot: str = ""
    """Path of robot.toml; empty for the one in the assets folder."""
    bundle: str = ""
    """Policy bundle, name or folder: its depth_encoder.onnx is run, if it has one.
    Otherwise, and when empty, images are published."""
    endpoints: EndpointsCfg = EndpointsCfg()
    replay: ReplayCfg = ReplayCfg()
    zed: ZedCfg = ZedCfg()
    realsense: RealSenseCfg = RealSenseCfg()
    colour: ColourCfg = ColourCfg()
    self_check: SelfCheckCfg = SelfCheckCfg()
    inference: EncoderInferenceCfg = EncoderInferenceCfg()
    silent_after_s: Annotated[float, Meta(ge=0.01, le=60)] = FEATURES.max_age_s
    """Warn when no frame came for this long [s]; features older than this are not used."""
    frozen_after_s: Annotated[float, Meta(ge=0, le=60)] = 0.5
    """Withhold frames whose content has not changed for this long [s]; 0 lets them through."""
    min_valid_ratio: Share = 0.02
    """Withhold frames with a smaller share of pixels that see something: neither without a reading
    nor right at the lens."""
    warn_valid_ratio: Share = 0.5
    """Warn below this share of valid pixels."""

    def __post_init__(self) -> None:
        check(
            self.source != "replay" or self.replay.path != "",
            "replay.path",
            self.replay.path,
            "the path of a recording, since source is replay",
        )
        check(
            not self.colour.enabled or self.source in ("zed", "realsense"),
            "colour.enabled",
            self.colour.enabled,
            f"false, since source is {self.source}: depth comes without colour from there. A "
            "simulator offers colour itself (sim-hal: colour.enabled=true)",
        )
