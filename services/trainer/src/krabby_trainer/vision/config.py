"""Settings of the depth cameras' errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from krabby.robot.description import CameraModel

from krabby_trainer.errors import ConfigError

__all__ = [
    "BLEED_PX",
    "RANGE_M",
    "DepthErrorsCfg",
    "check_errors",
    "described",
    "flawless",
    "longest_latency_s",
]

RANGE_M: Final = 15.0
"""Farthest distance reported [m], as in sim-hal; beyond it there is no reading."""
BLEED_PX: Final = 2
"""Farthest that an edge bleeds [px]."""


@dataclass
class DepthErrorsCfg:
    """What differs between cameras and frames.

    Ranges are [low, high]; every robot draws from them uniformly, once per episode.
    """

    enabled: bool = True
    """False: flawless images at the rate and the mean latency of `robot.toml`."""
    noise_rel: list[float] = field(default_factory=lambda: [0.0, 0.02])
    """Standard deviation of a pixel's depth, as a share of it."""
    window_noise_rel: list[float] = field(default_factory=lambda: [0.0, 0.01])
    """The same, common to all pixels of a small window: matching compares windows."""
    scale_rel: list[float] = field(default_factory=lambda: [-0.02, 0.02])
    """Error of scale of all depths, as a share."""
    hole_probability: list[float] = field(default_factory=lambda: [0.0, 0.05])
    """Share of pixels without a reading."""
    bleed_px: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """How far the two sides of an edge bleed into one another, standard deviation [px]."""
    edge_hole_probability: list[float] = field(default_factory=lambda: [0.0, 0.4])
    """Share of pixels without a reading among those that an edge bleeds into."""
    range_m: list[float] = field(default_factory=lambda: [5.0, RANGE_M])
    """Farther things give no reading."""
    drop_probability: list[float] = field(default_factory=lambda: [0.0, 0.1])
    """Probability that a frame is lost."""
    outage_per_s: float = 0.02
    """Rate of outages, in which all frames are lost ..."""
    outage_s: list[float] = field(default_factory=lambda: [0.2, 2.0])
    """... and their lengths."""
    oldest_s: float = 0.0
    """Students act on an image up to this age [s]; on an older one, and before the first, they
    read the no-picture token: a code of zeros of this age. 0: they act on any."""
    rate_hz: list[float] = field(default_factory=lambda: [10.0, 30.0])
    """Rate of exposures."""
    period_jitter: float = 0.1
    """Each period is this share shorter or longer at most."""
    latency_s: list[float] = field(default_factory=lambda: [0.04, 0.12])
    """From exposure to arrival, mean of the episode."""
    latency_jitter_s: float = 0.01
    """Each frame's is this much shorter or longer at most."""
    mount_angle_rad: float = math.radians(2.0)
    """Largest roll, pitch and yaw of the camera off its mount."""
    mount_pitch_rad: float = 0.0
    """Additional pitch of every camera; positive looks lower."""
    mount_xyz_m: float = 0.01
    """Largest offset along each axis."""


def described(camera: CameraModel) -> DepthErrorsCfg:
    """The errors that `robot.toml` gives the camera, as in sim-hal, and no others."""
    return DepthErrorsCfg(
        noise_rel=[camera.noise_rel] * 2,
        window_noise_rel=[0.0, 0.0],
        scale_rel=[0.0, 0.0],
        hole_probability=[camera.hole_probability] * 2,
        bleed_px=[0.0, 0.0],
        edge_hole_probability=[0.0, 0.0],
        range_m=[RANGE_M, RANGE_M],
        drop_probability=[camera.drop_probability] * 2,
        outage_per_s=0.0,
        rate_hz=[camera.rate_hz] * 2,
        period_jitter=0.0,
        latency_s=[camera.latency_s] * 2,
        latency_jitter_s=camera.latency_jitter_s,
        mount_angle_rad=0.0,
        mount_xyz_m=0.0,
    )


def flawless(camera: CameraModel) -> DepthErrorsCfg:
    """True images, at the rate and the mean latency of `robot.toml`."""
    cfg = described(camera)
    cfg.noise_rel = cfg.hole_probability = cfg.drop_probability = [0.0, 0.0]
    cfg.latency_jitter_s = 0.0
    return cfg


_RANGES: Final = {
    "scale_rel": (-0.5, 0.5),
    "bleed_px": (0.0, 1.0 * BLEED_PX),
    "outage_s": (0.0, math.inf),
    "rate_hz": (1.0, 100.0),
} | {
    name: (0.0, 1.0)
    for name in (
        *("noise_rel", "window_noise_rel", "hole_probability", "edge_hole_probability"),
        *("drop_probability", "latency_s"),
    )
}
_LARGEST: Final = {"outage_per_s": 10.0, "oldest_s": 10.0} | dict.fromkeys(
    ("period_jitter", "latency_jitter_s", "mount_angle_rad", "mount_pitch_rad", "mount_xyz_m"), 0.5
)


def longest_latency_s(cfg: DepthErrorsCfg) -> float:
    """From exposure to arrival at most."""
    return max(cfg.latency_s) + cfg.latency_jitter_s


def check_errors(cfg: DepthErrorsCfg, camera: CameraModel) -> None:
    """Refuse values outside their ranges.

    Raises:
        ConfigError: Names the key and its range.
    """
    for name, (least, most) in {**_RANGES, "range_m": (camera.far_m, RANGE_M)}.items():
        bounds = getattr(cfg, name)
        if len(bounds) != 2 or not least <= bounds[0] <= bounds[1] <= most:
            raise ConfigError(
                f"env.camera.errors.{name} = {list(bounds)}; give [low, high] within "
                f"{least:g} to {most:g}"
            )
    for name, most in _LARGEST.items():
        if not 0.0 <= getattr(cfg, name) <= most:
            raise ConfigError(
                f"env.camera.errors.{name} = {getattr(cfg, name)}; give a number from 0 to {most:g}"
            )
