"""The depth camera of thousands of robots: what it sees, how it errs, when its images arrive.

`DepthCamera` is the geometry, the batched twin of sim-hal's renderer: a course is made of oriented
boxes, and for a pinhole camera the reciprocal of a plane's optical-axis distance is an affine
function of the pixel. A ray enters a box at the farthest of the faces turned to the eye and leaves
it at the nearest of the others, so a box is three affine functions to enter and at most six to
leave, and an image is the largest reciprocal over the boxes: exact, at any resolution. The loop
over boxes runs in torch, or on CUDA in one kernel (`krabby_trainer.vision.raycast`).

`DepthPreprocessor` is the batched twin of `krabby.policy.depth_image`, number for number.
`DepthErrors` spoils images as stereo does. `DepthStream` adds time: each robot exposes at a rate of
its own, loses frames, and gets the others late.

Shapes do not depend on values and nothing waits for the device, so that on CUDA a step can be
recorded (`krabby_trainer.graphs`). No matrix products: with TF32 allowed they would cost three
digits.
M images, T tiles, B boxes a tile, N robots. Metres, radians, seconds; quaternions xyzw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from krabby.course.courses import make_course
from krabby.policy.depth_image import COLUMN_WEIGHTS, CROP, FILL_PASSES, IMAGE_SHAPE, RAW_SHAPE
from torch.nn.functional import pad

from krabby_trainer.errors import ConfigError
from krabby_trainer.task.randomisation import uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from krabby.course.courses import Course
    from krabby.robot.description import CameraModel, RobotDescription

    from krabby_trainer.task.terrain import Terrain

__all__ = [
    "NO_IMAGE_S",
    "RANGE_M",
    "DepthCamera",
    "DepthErrors",
    "DepthErrorsCfg",
    "DepthPreprocessor",
    "DepthStream",
    "RayCaster",
    "cast_rays",
    "described",
    "fastest_caster",
    "flawless",
    "mirror_image",
]

Tensor = torch.Tensor

RANGE_M: Final = 15.0
"""Farthest distance reported [m]; beyond it there is no reading. As in sim-hal."""
NO_IMAGE_S: Final = 60.0
"""Age of the image while there is none."""

_EPS: Final = 1e-6
_ALWAYS: Final = 1e6
"""Reciprocal depth [1/m] that no visible face reaches: of faces that do not bound the way in."""
_MARGIN_M: Final = 1e-3
"""Boxes this far outside of the view are still looked at: rounding must not cull."""
_SOON_S: Final = 1e-5
"""Clocks count down in float32."""
_BLEED_PX: Final = 2
"""Farthest that an edge bleeds."""
_WINDOW_PX: Final = 4
"""Side of the windows in which a stereo camera's errors go together."""
_EDGE_REL: Final = 0.15
"""Two disparities that differ by more than this share of the larger belong to two things."""
_AT_ONCE: Final = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Pixels times boxes that torch casts at once: what a cache holds, or 128 MiB a temporary."""


class RayCaster(Protocol):
    """Evaluates boxes over images; `cast_rays` says what it means."""

    def __call__(self, planes: Tensor, count: Tensor, right: Tensor, down: Tensor) -> Tensor: ...


def cast_rays(planes: Tensor, count: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Largest reciprocal depth over the boxes of each image, in torch; (M, H, W) [1/m].

    Args:
        planes: (M, B, 9, 3); function f of a box is c0 * right + c1 * down + c2. A ray enters the
            box at the smallest of the first three and leaves it at the largest of the others; it
            hits if it enters before it leaves. Boxes in view come first.
        count: Boxes in view, (M,).
        right: Tangents of the pixel centres to the right, (W,).
        down: And downwards, (H,).
    """
    if planes.device.type == "cpu":  # elsewhere, to know the count would stop the device
        planes = planes[:, : int(count.max()) if len(count) else 0]
    images, boxes = planes.shape[:2]
    at_once = max(1, _AT_ONCE[planes.device.type] // max(1, boxes * len(right) * len(down)))
    out = planes.new_zeros(images, len(down), len(right))
    if boxes == 0:
        return out
    for first in range(0, images, at_once):
        part = planes[first : first + at_once]
        across = part[..., 0, None] * right  # (m, B, 9, W)
        along = part[..., 1, None] * down + part[..., 2, None]  # (m, B, 9, H)

        def function(i: int, across: Tensor = across, along: Tensor = along) -> Tensor:
            return across[:, :, i, None, :] + along[:, :, i, :, None]

        enter = function(0)
        for i in (1, 2):
            torch.minimum(enter, function(i), out=enter)
        leave = function(3)
        for i in range(4, 9):
            torch.maximum(leave, function(i), out=leave)
        enter *= enter > leave
        torch.amax(enter, dim=1, out=out[first : first + at_once])
    return out.clamp_(min=0.0)


def fastest_caster(device: str | torch.device) -> RayCaster:
    """One kernel on CUDA (`krabby_trainer.vision.raycast`), `cast_rays` elsewhere."""
    if torch.device(device).type == "cuda":
        try:
            from krabby_trainer.vision import raycast
        except ImportError:  # no Triton
            return cast_rays
        return raycast.cast_rays
    return cast_rays


class DepthCamera:
    """Exact depth of the boxes of a robot's own course, seen from the mount of `robot.toml`.

    Args:
        desc: For the camera.
        terrain: Its courses are rendered with a border of level ground round each, as the
            runtime's simulation has it: neighbouring tiles are not seen.
        device: Where poses come from and images go.
        border_m: Width of that border.
        caster: Does the work per pixel; the fastest there is by default.
    """

    def __init__(
        self,
        desc: RobotDescription,
        terrain: Terrain,
        device: str | torch.device,
        *,
        border_m: float = 2.0,
        caster: RayCaster | None = None,
    ) -> None:
        camera = desc.camera
        if (camera.height, camera.width) != RAW_SHAPE:
            raise ConfigError(
                f"robot.toml's camera has {camera.height} x {camera.width} pixels, policies see "
                f"{RAW_SHAPE[0]} x {RAW_SHAPE[1]}; change [camera] or krabby.policy.depth_image"
            )
        self.camera, self.device = camera, torch.device(device)
        self._cast = caster or fastest_caster(device)

        def constant(values: object) -> Tensor:
            array = np.asarray(values, np.float64)
            return torch.as_tensor(array, dtype=torch.float32, device=device)

        courses = [
            make_course(course.name, course.difficulty, course.seed, border_m=border_m)
            for row in terrain.courses
            for course in row
        ]
        center, half, axes = _boxes(courses)
        self._center, self._half, self._axes = constant(center), constant(half), constant(axes)
        self._corner = constant(
            [
                terrain.corner(level, column)
                for level in range(terrain.levels)
                for column in range(terrain.columns)
            ]
        )
        optical_axis, right, down = camera.axes_b
        self._mount_xyz = constant(camera.mount_xyz)
        self._optical_bc = constant(np.column_stack([right, down, optical_axis]))
        # Tangents of the pixel centres, which lie at whole numbers.
        self._right = constant((np.arange(camera.width) - camera.cx) / camera.fx)
        self._down = constant((np.arange(camera.height) - camera.cy) / camera.fy)
        left, top = -camera.cx / camera.fx, -camera.cy / camera.fy
        # Inward normals of the view, camera frame (right, down, optical axis): in front, and
        # within the left, right, upper and lower border, which lie symmetrically.
        self._view = constant(
            [[0, 0, 1], [1, 0, -left], [-1, 0, -left], [0, 1, -top], [0, -1, -top]]
        )

    @property
    def boxes(self) -> int:
        """The most boxes that a course has."""
        return self._half.shape[1]

    def render(
        self,
        tile: Tensor,
        base_pos_w: Tensor,
        base_quat_w: Tensor,
        mount_error: Tensor | None = None,
    ) -> Tensor:
        """Flawless depth (M, 60, 106) [m], 0 where nothing is within range.

        Args:
            tile: Whose course is seen, (M,), int64.
            base_pos_w: (M, 3) [m].
            base_quat_w: (M, 4).
            mount_error: By how much the camera is off its mount, (M, 6): see `inverse`.
        """
        inverse = self.inverse(tile, base_pos_w, base_quat_w, mount_error, crop=False)
        return _depth(inverse, 1.0 / RANGE_M, 1.0 / self.camera.near_m)

    def inverse(
        self,
        tile: Tensor,
        base_pos_w: Tensor,
        base_quat_w: Tensor,
        mount_error: Tensor | None = None,
        *,
        crop: bool = True,
    ) -> Tensor:
        """Reciprocal of the depth [1/m], 0 where there is nothing; (M, 58, 98), or (M, 60, 106).

        `crop` leaves out what the preprocessing leaves out. A mount error is x, y, z [m] in the
        base frame, then roll, pitch and yaw [rad] of the camera: positive where the right side
        sinks, the nose sinks, the nose turns left.
        """
        optical_bc, mount_xyz = self._optical_bc.expand(len(tile), 3, 3), self._mount_xyz
        if mount_error is not None:
            optical_bc = _matmul(optical_bc, _turned(*mount_error[:, 3:].unbind(-1)))
            mount_xyz = mount_xyz + mount_error[:, :3]
        base_wb = _to_matrix(base_quat_w)
        eye = base_pos_w - self._corner[tile] + (base_wb * mount_xyz[..., None, :]).sum(-1)
        planes, count = self._planes(tile, eye, _matmul(base_wb, optical_bc))
        rows, columns = CROP if crop else (slice(None), slice(None))
        return self._cast(planes, count, self._right[columns], self._down[rows])

    def _planes(self, tile: Tensor, eye: Tensor, optical: Tensor) -> tuple[Tensor, Tensor]:
        """What `cast_rays` takes, from the eye (M, 3) and the optical frame, course coordinates."""
        half, axes = self._half[tile], self._axes[tile]  # (M, B, 3), (M, B, 3, 3)
        offset = eye[:, None] - self._center[tile]
        # Rows: how fast a ray moves along each axis of the box, per metre of depth.
        direction = (axes[..., None] * optical[:, None, :, None, :]).sum(-3)  # (M, B, 3, 3)
        along = (axes * offset[..., None]).sum(-2)  # the eye in box coordinates, (M, B, 3)

        gap = along.abs() - half
        outside = gap > 0.0
        towards = -torch.sign(along) / gap.clamp(min=_EPS)
        away = -torch.sign(along) / (gap + 2.0 * half).clamp(min=_EPS)
        # Between two faces the ray may leave through either.
        leave_high = torch.where(outside, away, 1.0 / (half - along).clamp(min=_EPS))
        leave_low = torch.where(outside, away, -1.0 / (half + along).clamp(min=_EPS))
        enter = torch.where(outside, towards, 0.0)
        scale = torch.cat((enter, leave_high, leave_low), dim=-1)  # (M, B, 9)
        planes = scale[..., None] * direction.repeat(1, 1, 3, 1)
        planes[..., :3, 2] += torch.where(outside, 0.0, _ALWAYS)
        # An eye inside of a box sees nothing of it.
        visible = self._in_view(half, direction, offset, optical) & outside.any(-1)
        order = torch.argsort(visible.int(), dim=1, descending=True, stable=True)
        planes = torch.where(visible[..., None, None], planes, 0.0)
        index = order[..., None, None].expand(-1, -1, 9, 3)
        return planes.gather(1, index), visible.sum(-1)

    def _in_view(self, half: Tensor, direction: Tensor, offset: Tensor, optical: Tensor) -> Tensor:
        """Boxes that are not entirely behind one border of the view, or out of range; (M, B)."""
        center_c = -(offset[..., None] * optical[:, None]).sum(-2)  # (M, B, 3)
        arms_c = half[..., None] * direction  # half the box along each of its axes
        # The corner that reaches farthest along a normal.
        reach = (center_c[..., None, :] * self._view).sum(-1)
        reach = reach + (arms_c[..., None, :, :] * self._view[:, None]).sum(-1).abs().sum(-1)
        nearest = center_c[..., 2] - arms_c[..., 2].abs().sum(-1)
        return (reach > -_MARGIN_M).all(-1) & (nearest < RANGE_M + _MARGIN_M)


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


@dataclass
class DepthErrorsCfg:
    """What differs between cameras and frames.

    Ranges are [low, high]; every robot draws from them uniformly, once per episode.
    """

    enabled: bool = True
    """Off: flawless images at the rate and the mean latency of `robot.toml`."""
    noise_rel: list[float] = field(default_factory=lambda: [0.0, 0.02])
    """Standard deviation of a pixel's depth, as a share of it."""
    window_noise_rel: list[float] = field(default_factory=lambda: [0.0, 0.01])
    """The same of what all pixels of a small window share: matching compares windows."""
    scale_rel: list[float] = field(default_factory=lambda: [-0.02, 0.02])
    """By how much all depths are off, as a share of them."""
    hole_probability: list[float] = field(default_factory=lambda: [0.0, 0.05])
    """Share of pixels without a reading."""
    bleed_px: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """How far the two sides of an edge bleed into one another, standard deviation [px]."""
    edge_hole_probability: list[float] = field(default_factory=lambda: [0.0, 0.4])
    """Share of pixels without a reading among those that an edge bleeds into."""
    range_m: list[float] = field(default_factory=lambda: [5.0, RANGE_M])
    """Farther things give no reading."""
    drop_probability: list[float] = field(default_factory=lambda: [0.0, 0.1])
    """Of a frame never arriving."""
    outage_per_s: float = 0.02
    """How often all frames stop for a while ..."""
    outage_s: list[float] = field(default_factory=lambda: [0.2, 2.0])
    """... which is drawn for each."""
    rate_hz: list[float] = field(default_factory=lambda: [10.0, 30.0])
    """Exposures."""
    period_jitter: float = 0.1
    """Each period is this share shorter or longer at most."""
    latency_s: list[float] = field(default_factory=lambda: [0.04, 0.12])
    """From exposure to arrival, mean of the episode."""
    latency_jitter_s: float = 0.01
    """Each frame's is this much shorter or longer at most."""
    mount_angle_rad: float = math.radians(2.0)
    """Largest roll, pitch and yaw of the camera off its mount."""
    mount_pitch_rad: float = 0.0
    """Pitch of every camera off its mount besides; positive looks lower."""
    mount_xyz_m: float = 0.01
    """Largest offset along each axis."""


def described(camera: CameraModel) -> DepthErrorsCfg:
    """The flaws that `robot.toml` gives the camera, and none other: those sim-hal has."""
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
    """True images on time: the rate and the mean latency of `robot.toml` remain."""
    cfg = described(camera)
    cfg.noise_rel = cfg.hole_probability = cfg.drop_probability = [0.0, 0.0]
    cfg.latency_jitter_s = 0.0
    return cfg


class DepthErrors:
    """Spoils images as a stereo camera does, each robot's its own way for an episode.

    Edges bleed because stereo matches windows, not points: a pixel near an edge takes a disparity
    between those of both sides, or none. Where depth changes little, nothing bleeds.
    """

    def __init__(
        self, cfg: DepthErrorsCfg, camera: CameraModel, num_envs: int, device: str | torch.device
    ) -> None:
        self.cfg = cfg
        self._near_m = camera.near_m
        self._device = str(device)

        def parameter(*size: int) -> Tensor:
            return torch.zeros(num_envs, *size, device=device)

        self.noise_rel, self.window_noise_rel, self.scale = (parameter() for _ in range(3))
        self.hole_probability = parameter()
        self.bleed_px, self.edge_hole_probability, self.range_m = (parameter() for _ in range(3))
        self.mount_error = parameter(6)
        """As `DepthCamera.render` takes it, (N, 6)."""
        self.reset(torch.arange(num_envs, device=device))

    def reset(self, ids: Tensor) -> None:
        """Draw anew for the robots `ids`, int64."""
        cfg, size = self.cfg, (len(ids),)
        self.noise_rel[ids] = uniform(cfg.noise_rel, size, self._device)
        self.window_noise_rel[ids] = uniform(cfg.window_noise_rel, size, self._device)
        self.scale[ids] = 1.0 + uniform(cfg.scale_rel, size, self._device)
        self.hole_probability[ids] = uniform(cfg.hole_probability, size, self._device)
        self.bleed_px[ids] = uniform(cfg.bleed_px, size, self._device)
        self.edge_hole_probability[ids] = uniform(cfg.edge_hole_probability, size, self._device)
        self.range_m[ids] = uniform(cfg.range_m, size, self._device)
        xyz, angle = cfg.mount_xyz_m, cfg.mount_angle_rad
        self.mount_error[ids, :3] = uniform((-xyz, xyz), (*size, 3), self._device)
        self.mount_error[ids, 3:] = uniform((-angle, angle), (*size, 3), self._device)
        self.mount_error[ids, 4] += cfg.mount_pitch_rad

    def __call__(self, inverse: Tensor, ids: Tensor) -> Tensor:
        """What the cameras of robots `ids` (M,) report: depth (M, H, W) [m], 0 for no reading.

        `inverse` (M, H, W) is the true reciprocal depth [1/m].
        """
        cfg = self.cfg

        def own(parameter: Tensor) -> Tensor:
            return parameter[ids, None, None]

        lost = own(self.hole_probability)
        if max(cfg.bleed_px) > 0.0:
            inverse, edge = _bled(inverse, own(self.bleed_px))
            lost = lost + edge * own(self.edge_hole_probability)
        depth = _depth(inverse, 1.0 / own(self.range_m), 1.0 / self._near_m)
        factor = own(self.scale)
        if max(cfg.noise_rel) > 0.0:
            factor = factor + own(self.noise_rel) * torch.randn_like(depth)
        if max(cfg.window_noise_rel) > 0.0:
            factor = factor + own(self.window_noise_rel) * _window_noise(depth)
        depth = depth * factor
        if max(*cfg.hole_probability, *cfg.edge_hole_probability) > 0.0:
            depth = torch.where(torch.rand_like(depth) < lost, 0.0, depth)
        return depth


def _bled(inverse: Tensor, spread_px: Tensor) -> tuple[Tensor, Tensor]:
    """Blends of each pixel with one nearby across an edge, and where that was, bool (M, H, W)."""
    height, width = inverse.shape[-2:]

    def shift() -> Tensor:
        step = (spread_px * _window_noise(inverse)).round()
        return step.clamp_(-_BLEED_PX, _BLEED_PX).long()

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

    Call `step` once per control step, with the robots where they are; then read:

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
        _check(cfg, camera.camera)
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
        # One row more than there are slots: what nobody waits for is written there.
        self._frames = torch.zeros(
            num_envs * self.slots + 1, *IMAGE_SHAPE, dtype=dtype, device=device
        )
        self._arrives_s, self._since_s = zeros(self.slots), zeros(self.slots)
        self._head = zeros(dtype=torch.long)
        self._robots = torch.arange(num_envs, device=device)
        self.reset(self._robots)

    def reset(self, ids: Tensor) -> None:
        """Forget the frames of robots `ids` (int64), and give them other cameras."""
        cfg, size, device = self.cfg, (len(ids),), self._device
        self.errors.reset(ids)
        self._period_s[ids] = 1.0 / uniform(cfg.rate_hz, size, device)
        self._latency_s[ids] = uniform(cfg.latency_s, size, device)
        self._drop[ids] = uniform(cfg.drop_probability, size, device)
        self._next_s[ids] = self._period_s[ids] * torch.rand(size, device=device)
        self._arrives_s[ids] = torch.inf
        self._outage_s[ids] = 0.0
        self._newest_s[ids] = 0.0
        self.image[ids] = 0.5
        self.age_s[ids] = NO_IMAGE_S
        self.arrived[ids] = False

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
        longest = max(self.cfg.latency_s) + self.cfg.latency_jitter_s + 2.0 * self.step_s
        return math.floor(longest / shortest) + 1


def _check(cfg: DepthErrorsCfg, camera: CameraModel) -> None:
    shares = (
        "noise_rel",
        "window_noise_rel",
        "hole_probability",
        "edge_hole_probability",
        "drop_probability",
    )
    limits = {name: (0.0, 1.0) for name in shares} | {
        "scale_rel": (-0.5, 0.5),
        "bleed_px": (0.0, 1.0 * _BLEED_PX),
        "range_m": (camera.far_m, RANGE_M),
        "outage_s": (0.0, math.inf),
        "rate_hz": (1.0, 100.0),
        "latency_s": (0.0, 1.0),
    }
    for name, (least, most) in limits.items():
        bounds = getattr(cfg, name)
        if len(bounds) != 2 or not least <= bounds[0] <= bounds[1] <= most:
            raise ConfigError(
                f"depth.{name} = {list(bounds)}; give [low, high] within {least:g} to {most:g}"
            )
    singles = {
        "outage_per_s": 10.0,
        "period_jitter": 0.5,
        "latency_jitter_s": 0.5,
        "mount_angle_rad": 0.5,
        "mount_pitch_rad": 0.5,
        "mount_xyz_m": 0.5,
    }
    for name, most in singles.items():
        if not 0.0 <= getattr(cfg, name) <= most:
            raise ConfigError(
                f"depth.{name} = {getattr(cfg, name)}; give a number from 0 to {most:g}"
            )


def _boxes(courses: Sequence[Course]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres and half extents (T, B, 3), axes (T, B, 3, 3); missing ones lie behind any camera."""
    most = max(len(course.boxes) for course in courses)
    center = np.full((len(courses), most, 3), 1e4)
    half = np.full((len(courses), most, 3), 1e-3)
    axes = np.broadcast_to(np.eye(3), (len(courses), most, 3, 3)).copy()
    for tile, course in enumerate(courses):
        for i, box in enumerate(course.boxes):
            center[tile, i], half[tile, i] = box.center, box.half_extents
            axes[tile, i] = box.rotation
    return center, half, axes


def _depth(inverse: Tensor, low: float | Tensor, high: float) -> Tensor:
    """Depth [m] from its reciprocal; 0 unless that lies between `low` and `high`."""
    return torch.where((inverse > low) & (inverse < high), inverse.reciprocal(), 0.0)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of small matrices (..., 3, 3) in full precision, TF32 or not."""
    return (a[..., None] * b[..., None, :, :]).sum(-2)


def _matrix(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(tuple(row), dim=-1) for row in rows], dim=-2)


def _to_matrix(quat: Tensor) -> Tensor:
    """Base to world (..., 3, 3), as `krabby.robot.rotations.to_matrix`."""
    x, y, z, w = quat.unbind(-1)
    return _matrix(
        (
            (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
            (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
            (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
        )
    )


def _turned(roll: Tensor, pitch: Tensor, yaw: Tensor) -> Tensor:
    """Optical frame (right, down, axis) after yaw, pitch, roll, in its old coordinates."""
    sr, cr, sp, cp = torch.sin(roll), torch.cos(roll), torch.sin(pitch), torch.cos(pitch)
    sy, cy, zero, one = torch.sin(yaw), torch.cos(yaw), torch.zeros_like(yaw), torch.ones_like(yaw)
    about_down = _matrix(((cy, zero, -sy), (zero, one, zero), (sy, zero, cy)))
    about_right = _matrix(((one, zero, zero), (zero, cp, sp), (zero, -sp, cp)))
    about_axis = _matrix(((cr, -sr, zero), (sr, cr, zero), (zero, zero, one)))
    return _matmul(_matmul(about_down, about_right), about_axis)
