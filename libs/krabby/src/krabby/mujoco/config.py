"""Configuration of every robot simulated in MuJoCo, whatever carries its commands."""

import dataclasses
from typing import Literal

from krabby.runtime.app import ServiceCfg
from krabby.runtime.config import check, check_range

__all__ = [
    "CameraCfg",
    "CourseCfg",
    "DegradeCfg",
    "MissionCfg",
    "StageCfg",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CourseCfg:
    """Which course the robot stands on."""

    name: str = "flat"
    """One of flat, steps, gap, hurdle, ramps, mixed, demo."""
    difficulty: float = 0.5
    """0 is easy, 1 the hardest of the published suite."""
    seed: int = 0
    """Layout of the course."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraCfg:
    """The virtual depth camera; its optics and flaws are in robot.toml."""

    enabled: bool = True
    """Render and publish depth images."""
    see_robot: bool = False
    """Show the robot's own legs, as a real camera does. Off, because policies are trained without;
    an image takes 0.2 ms more, 2 ms more with both front legs in view."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DegradeCfg:
    """In what the robot is worse than robot.toml says, without anybody having been told."""

    frame_drop: float | None = None
    """Share of depth frames that never arrive, in place of robot.toml's."""
    camera_latency_s: float | None = None
    """Mean time from exposure to publication [s], in place of robot.toml's; the jitter stays."""
    depth_noise: float = 1.0
    """Factor on the standard deviation of depth."""
    camera_tilt_deg: float = 0.0
    """How far the mount is off, nose down [deg]."""
    camera_rate_hz: float | None = None
    """Exposures per second, in place of robot.toml's."""
    mass_factor: float = 1.0
    """Factor on mass and inertia of every body."""
    motor_strength: float = 1.0
    """Factor on the torque that is there at every speed; gains stay."""
    payload_kg: float = 0.0
    """Carried by the body, spread like its own mass [kg]."""
    friction: float | None = None
    """Coulomb friction of the feet, in place of robot.toml's; of the body at most this."""

    def __post_init__(self) -> None:
        for key, maximum in (("frame_drop", 1.0), ("camera_latency_s", 1.0), ("friction", 3.0)):
            if getattr(self, key) is not None:
                check_range(self, key, minimum=0.0, maximum=maximum)
        if self.camera_rate_hz is not None:
            check_range(self, "camera_rate_hz", minimum=0.5, maximum=100.0)
        check_range(self, "mass_factor", minimum=0.1, maximum=5.0)
        check_range(self, "depth_noise", minimum=0.0, maximum=100.0)
        check_range(self, "camera_tilt_deg", minimum=-45.0, maximum=45.0)
        check_range(self, "motor_strength", minimum=0.01, maximum=2.0)
        check_range(self, "payload_kg", minimum=0.0, maximum=100.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MissionCfg:
    """The operator's stand-in, which drives the robot along the waypoints."""

    enabled: bool = True
    """Publish walking commands towards the next waypoint."""
    speed: float = 0.35
    """Walking speed asked for [m/s]."""
    repeat: bool = False
    """Put the robot back to the start when the course is completed, and go on."""
    reach_m: float = 0.25
    """A waypoint is reached within this distance [m]."""

    def __post_init__(self) -> None:
        check_range(self, "speed", minimum=0.0, maximum=2.0)
        check_range(self, "reach_m", minimum=0.05, maximum=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCfg(ServiceCfg):
    """What every simulated robot on a course is told, whatever carries its commands."""

    robot: str = ""
    """Path of robot.toml; empty for the one in the assets folder."""
    course: CourseCfg = dataclasses.field(default_factory=CourseCfg)
    seed: int = 0
    """Seed of the camera's noise, holes, drops and latency."""
    duration_s: float = 0.0
    """Simulated time to run [s]; 0 for ever."""
    spawn: Literal["lying", "standing"] = "lying"
    """Start and restart with folded legs on the belly, or in the default pose on the feet."""
    camera: CameraCfg = dataclasses.field(default_factory=CameraCfg)
    degrade: DegradeCfg = dataclasses.field(default_factory=DegradeCfg)
    mission: MissionCfg = dataclasses.field(default_factory=MissionCfg)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "duration_s", minimum=0.0)
        check(self.seed >= 0, "seed", self.seed, "a whole number from 0")
