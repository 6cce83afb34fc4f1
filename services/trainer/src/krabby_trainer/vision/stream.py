"""Policy images as depth cameras deliver them: spoiled, late, now and then lost.

`DepthPreprocessor` is the batched twin of `krabby.policy.depth_image`, number for number.
`DepthErrors` adds the errors of a stereo camera. `DepthStream` adds time: each robot has its own
exposure rate, latency and losses. Shapes do not depend on values, as in
`krabby_trainer.vision.depth`. M images, N robots.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from krabby.policy.depth_image import COLUMN_WEIGHTS, CROP, FILL_PASSES, IMAGE_SHAPE, RAW_SHAPE
from krabby.robot.description import CameraModel
from torch.nn.functional import pad

from krabby_trainer.sampling import uniform
from krabby_trainer.vision.config import (
    BLEED_PX,
    DepthErrorsCfg,
    check_errors,
    flawless,
    longest_latency_s,
)
from krabby_trainer.vision.depth import DepthCamera, depth_of

__all__ = ["NO_IMAGE_S", "DepthErrors", "DepthPreprocessor", "DepthStream", "mirror_image"]

Tensor = torch.Tensor

NO_IMAGE_S: Final = 60.0
"""Age of the image before the first one has arrived."""

_SOON_S: Final = 1e-5
"""Clocks count down in float32."""
_WINDOW_PX: Final = 4
"""Side of the windows in which a stereo camera's errors are correlated."""
_EDGE_REL: Final = 0.15
"""Two disparities that differ by more than this share of the larger belong to two objects."""


class DepthPreprocessor:
    """Makes policy images; the same steps and numbers as `krabby.policy.depth_image`."""

    def __init__(self, camera: CameraModel, device: str | torch.device) -> None:
        self._near_m, self._far_m = camera.near_m, camera.far_m
        # At most three columns weigh on each output: they are gathered and added.
        weights = COLUMN_WEIGHTS / np.float32(camera.far_m)
        count = int((weights > 0).sum(axis=0).max())
        first = np.minimum((weights > 0).argmax(axis=0), len(weights) - count)
        self._columns = torch.as_tensor(first + np.arange(count)[:, None], device=device)
        taken = np.take_along_axis(weights, first + np.arange(count)[:, None], axis=0)
        self._weights = torch.as_tensor(taken, device=device)

    def __call__(self, depth: Tensor) -> Tensor:
        """Policy images (..., 58, 87) of `depth` [m], (..., 60, 106) or cropped (..., 58, 98)."""
        if depth.shape[-2:] == RAW_SHAPE:
            depth = depth[..., *CROP]
        image = torch.where(depth >= self._near_m, depth, -1.0)  # false for NaN
        for _ in range(FILL_PASSES):
            padded = pad(image, (1, 1), value=-1.0)
            farther = torch.maximum(padded[..., :-2], padded[..., 2:])
            image = torch.where(image < 0.0, farther, image)
        image = torch.where(image < 0.0, self._far_m, image).clamp_(max=self._far_m)
        out = image.new_full((*image.shape[:-1], IMAGE_SHAPE[1]), -0.5)
        for columns, weights in zip(self._columns, self._weights, strict=True):
            out += image[..., columns] * weights
        return out.clamp_(max=0.5)


def mirror_image(image: Tensor) -> Tensor:
    """What the robot in a mirror sees: images (..., W) with left and right exchanged."""
    return image.flip(-1)


_PER_ROBOT: Final = (
    *("noise_rel", "window_noise_rel", "scale_rel", "hole_probability", "bleed_px"),
    *("edge_hole_probability", "range_m"),
)
"""What each robot draws for an episode, in this order."""


class DepthErrors:
    """Adds a stereo camera's errors to images, with parameters drawn per robot and episode.

    Edges bleed because stereo matches windows, not points: a pixel near an edge takes a disparity
    between those of both sides, or none. Where depth changes little, nothing bleeds.
    """

    def __init__(
        self, cfg: DepthErrorsCfg, camera: CameraModel, num_envs: int, device: str | torch.device
    ) -> None:
        self.cfg = cfg
        self._near_m = camera.near_m
        self._device = str(device)
        self.drawn = {name: torch.zeros(num_envs, device=device) for name in _PER_ROBOT}
        """Parameters by name, each (N,)."""
        self.mount_error = torch.zeros(num_envs, 6, device=device)
        """As `DepthCamera.render` takes it, (N, 6)."""
        self.reset(torch.ones(num_envs, dtype=torch.bool, device=device))

    def reset(self, which: Tensor) -> None:
        """Draw new parameters for the robots in `which`, (N,) bool."""
        cfg, size = self.cfg, which.shape
        for name, values in self.drawn.items():
            drawn = uniform(getattr(cfg, name), size, self._device)
            values.copy_(torch.where(which, drawn, values))
        xyz, angle = cfg.mount_xyz_m, cfg.mount_angle_rad
        error = torch.cat(
            (
                uniform((-xyz, xyz), (*size, 3), self._device),
                uniform((-angle, angle), (*size, 3), self._device),
            ),
            dim=-1,
        )
        error[:, 4] += cfg.mount_pitch_rad
        self.mount_error.copy_(torch.where(which[:, None], error, self.mount_error))

    def __call__(self, inverse: Tensor, ids: Tensor) -> Tensor:
        """What the cameras of robots `ids` (M,) report: depth (M, H, W) [m], 0 for no reading.

        `inverse` (M, H, W) is the true reciprocal depth [1/m].
        """
        cfg = self.cfg
        own = {name: values[ids, None, None] for name, values in self.drawn.items()}
        lost = own["hole_probability"]
        if max(cfg.bleed_px) > 0.0:
            inverse, edge = _bled(inverse, own["bleed_px"])
            lost = lost + edge * own["edge_hole_probability"]
        depth = depth_of(inverse, 1.0 / own["range_m"], 1.0 / self._near_m)
        factor = 1.0 + own["scale_rel"]
        if max(cfg.noise_rel) > 0.0:
            factor = factor + own["noise_rel"] * torch.randn_like(depth)
        if max(cfg.window_noise_rel) > 0.0:
            factor = factor + own["window_noise_rel"] * _window_noise(depth)
        depth = depth * factor
        if max(*cfg.hole_probability, *cfg.edge_hole_probability) > 0.0:
            depth = torch.where(torch.rand_like(depth) < lost, 0.0, depth)
        return depth


def _bled(inverse: Tensor, spread_px: Tensor) -> tuple[Tensor, Tensor]:
    """Blends of each pixel with one nearby across an edge, and where that was, bool (M, H, W)."""
    height, width = inverse.shape[-2:]

    def shift() -> Tensor:
        step = (spread_px * _window_noise(inverse)).round()
        return step.clamp_(-BLEED_PX, BLEED_PX).long()

    rows = torch.arange(height, device=inverse.device)[:, None]
    columns = torch.arange(width, device=inverse.device)
    row, column = (rows + shift()).clamp_(0, height - 1), (columns + shift()).clamp_(0, width - 1)
    index = row * width + column
    other = inverse.flatten(1).gather(1, index.flatten(1)).view_as(inverse)
    edge = (inverse - other).abs() > _EDGE_REL * torch.maximum(inverse, other)
    blend = torch.lerp(inverse, other, torch.rand_like(inverse))
    return torch.where(edge, blend, inverse), edge


def _window_noise(images: Tensor) -> Tensor:
    """Standard normal numbers in the shape of `images` (M, H, W), the same throughout a window."""
    height, width = images.shape[-2:]
    size = (len(images), math.ceil(height / _WINDOW_PX), math.ceil(width / _WINDOW_PX))
    drawn = torch.randn(size, device=images.device)[:, :, None, :, None]
    spread = drawn.expand(-1, -1, _WINDOW_PX, -1, _WINDOW_PX)
    return spread.flatten(3, 4).flatten(1, 2)[:, :height, :width]


class DepthStream:
    """The newest policy image of every robot, as its camera delivers it. All state is in place.

    Call `step` once per control step, with the robots' present poses; then read:

    - `arrived` (N,) bool: whose image came with this step.
    - `image` (N, 58, 87): the newest that arrived; 0.5 (far) all over while there is none.
    - `age_s` (N,): since its exposure; `NO_IMAGE_S` while there is none.

    With a `capacity`, as by default on CUDA, that many images are rendered in every step: shapes
    must not depend on values. Should more robots be due, which the default makes rare, those that
    have waited longest go first.
    """

    def __init__(
        self,
        camera: DepthCamera,
        cfg: DepthErrorsCfg,
        num_envs: int,
        *,
        step_s: float = 0.01,
        dtype: torch.dtype = torch.float16,
        capacity: int | None = None,
    ) -> None:
        check_errors(cfg, camera.camera)
        device = camera.device
        self.cfg = cfg if cfg.enabled else flawless(camera.camera)
        self.camera, self.num_envs, self.step_s = camera, num_envs, step_s
        self.errors = DepthErrors(self.cfg, camera.camera, num_envs, device)
        self.preprocess = DepthPreprocessor(camera.camera, device)
        self._device = str(device)
        if capacity is None and device.type != "cpu":
            capacity = self._usual_capacity()
        self.capacity = capacity
        self.slots = self._slots()
        """Frames of one robot that can be on their way."""

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(num_envs, *size, dtype=dtype, device=device)

        self.image = zeros(*IMAGE_SHAPE, dtype=dtype)
        self.age_s = zeros()
        self.arrived = zeros(dtype=torch.bool)
        self.exposures, self.lost = zeros(dtype=torch.long), zeros(dtype=torch.long)
        """Of each robot since it was made: frames taken, and those that never arrived."""
        self._period_s, self._latency_s, self._drop = zeros(), zeros(), zeros()
        self._next_s, self._outage_s, self._newest_s = zeros(), zeros(), zeros()
        # One row more than there are slots, for frames that are dropped.
        self._frames = torch.zeros(
            num_envs * self.slots + 1, *IMAGE_SHAPE, dtype=dtype, device=device
        )
        self._arrives_s, self._since_s = zeros(self.slots), zeros(self.slots)
        self._head = zeros(dtype=torch.long)
        self._robots = torch.arange(num_envs, device=device)
        self.reset(torch.ones_like(self.arrived))

    def reset(self, which: Tensor) -> None:
        """Draw new cameras for the robots in `which` (N,), bool, and drop their images."""
        cfg, size, device = self.cfg, which.shape, self._device
        self.errors.reset(which)
        period = 1.0 / uniform(cfg.rate_hz, size, device)
        for values, drawn in (
            (self._period_s, period),
            (self._latency_s, uniform(cfg.latency_s, size, device)),
            (self._drop, uniform(cfg.drop_probability, size, device)),
            (self._next_s, period * torch.rand(size, device=device)),
        ):
            values.copy_(torch.where(which, drawn, values))
        self._arrives_s.masked_fill_(which[:, None], torch.inf)
        self._outage_s.masked_fill_(which, 0.0)
        self._newest_s.masked_fill_(which, 0.0)
        self.image.masked_fill_(which[:, None, None], 0.5)
        self.age_s.masked_fill_(which, NO_IMAGE_S)
        self.arrived.masked_fill_(which, False)

    def step(self, tile: Tensor, base_pos_w: Tensor, base_quat_w: Tensor) -> None:
        """One control step on: tiles (N,), poses (N, 3) [m] and (N, 4) of all robots now."""
        dt = self.step_s
        for clock in (self._next_s, self._arrives_s, self._newest_s, self._outage_s):
            clock -= dt
        self._since_s += dt
        if self.cfg.outage_per_s > 0.0:
            begins = torch.rand_like(self._outage_s) < self.cfg.outage_per_s * dt
            length = uniform(self.cfg.outage_s, (self.num_envs,), self._device)
            self._outage_s.copy_(torch.where(begins, length, self._outage_s))
        self._expose(tile, base_pos_w, base_quat_w)
        self._deliver()

    def _expose(self, tile: Tensor, base_pos_w: Tensor, base_quat_w: Tensor) -> None:
        ids, due = self._due()
        if len(ids) == 0:
            return
        cfg, size = self.cfg, (len(ids),)
        inverse = self.camera.inverse(
            tile[ids], base_pos_w[ids], base_quat_w[ids], self.errors.mount_error[ids]
        )
        image = self.preprocess(self.errors(inverse, ids))
        jitter, late = cfg.period_jitter, cfg.latency_jitter_s
        period = self._period_s[ids] * uniform((1.0 - jitter, 1.0 + jitter), size, self._device)
        # Keep the grid; what could not be kept is not made up for.
        following = (self._next_s[ids] + period).clamp(min=0.0)
        latency = self._latency_s[ids] + uniform((-late, late), size, self._device)
        lost = (torch.rand(size, device=self._device) < self._drop[ids]) | (self._outage_s[ids] > 0)
        kept = due & ~lost
        arrives = torch.maximum(latency, self._newest_s[ids])  # cameras deliver in order

        slot = ids * self.slots + self._head[ids]
        nowhere = self.num_envs * self.slots
        self._frames.index_copy_(0, torch.where(kept, slot, nowhere), image.to(self._frames.dtype))
        for clock, value in (
            (self._arrives_s, arrives),
            (self._since_s, torch.zeros_like(arrives)),
        ):
            flat = clock.view(-1)
            flat[slot] = torch.where(kept, value, flat[slot])
        self._newest_s[ids] = torch.where(kept, arrives, self._newest_s[ids])
        self._head[ids] = torch.where(kept, (self._head[ids] + 1) % self.slots, self._head[ids])
        self._next_s[ids] = torch.where(due, following, self._next_s[ids])
        self.exposures[ids] += due.long()
        self.lost[ids] += (due & lost).long()

    def _due(self) -> tuple[Tensor, Tensor]:
        """Robots whose exposure it is (C,), and which of them are meant, bool (C,)."""
        due = self._next_s <= _SOON_S
        if self.capacity is None:
            ids = due.nonzero()[:, 0]
            return ids, due[ids]
        if self.capacity >= self.num_envs:
            return self._robots, due
        ids = torch.topk(self._next_s, self.capacity, largest=False, sorted=False).indices
        return ids, due[ids]

    def _deliver(self) -> None:
        here = self._arrives_s <= _SOON_S
        age, slot = torch.where(here, self._since_s, torch.inf).min(dim=1)
        torch.any(here, dim=1, out=self.arrived)
        self._arrives_s.masked_fill_(here, torch.inf)
        rows = self._frames[self._robots * self.slots + slot]
        self.image.copy_(torch.where(self.arrived[:, None, None], rows, self.image))
        self.age_s.copy_(torch.where(self.arrived, age, self.age_s + self.step_s))

    def _usual_capacity(self) -> int:
        """Robots that may expose in one step: ten in a hundred and five deviations above usual."""
        share = min(1.0, self.step_s * sum(self.cfg.rate_hz) / 2.0)
        return min(self.num_envs, math.ceil(1.1 * share * self.num_envs + 5.0 * self.num_envs**0.5))

    def _slots(self) -> int:
        """The most frames within the longest latency, both ends rounded to control steps."""
        shortest = max(self.step_s, (1.0 - self.cfg.period_jitter) / max(self.cfg.rate_hz))
        longest = longest_latency_s(self.cfg) + 2.0 * self.step_s
        return math.floor(longest / shortest) + 1
