"""Exact depth images of the courses, for thousands of robots at once.

`DepthCamera` is the batched twin of sim-hal's renderer: a course is made of oriented boxes, and for
a pinhole camera the reciprocal of a plane's optical-axis distance is an affine function of the
pixel. A ray enters a box at the farthest of the faces turned to the camera and leaves it at the
nearest of the others, so a box is three affine functions to enter and at most six to leave, and an
image is the largest reciprocal over the boxes: exact, at any resolution. The loop over boxes runs
in torch, or on CUDA in one kernel (`krabby_trainer.vision.raycast`).

Shapes do not depend on values and nothing waits for the device, so on CUDA a step can be recorded
(`krabby_trainer.graphs`). There are no matrix products: TF32 would cost them three digits.
M images, T tiles, B boxes per tile, N robots. Metres, radians, seconds; quaternions xyzw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from krabby.course.courses import Course, make_course
from krabby.policy.depth_image import CROP, RAW_SHAPE
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from numpy.typing import NDArray

from krabby_trainer.errors import ConfigError
from krabby_trainer.vision.config import RANGE_M

__all__ = ["DepthCamera", "RayCaster", "Tiles", "cast_rays", "depth_of", "fastest_caster"]

Tensor = torch.Tensor

_EPS: Final = 1e-6
_ALWAYS: Final = 1e6
"""Reciprocal depth [1/m] above that of any visible face: for faces that do not bound the entry."""
_MARGIN_M: Final = 1e-3
"""Boxes this far outside the view are kept: rounding must not cull."""
_AT_ONCE: Final = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Pixels times boxes that torch casts at once: a processor's cache, or 128 MiB per temporary."""


class Tiles(Protocol):
    """Courses laid out in the world, tile by tile."""

    @property
    def placed(self) -> Sequence[tuple[Course, NDArray[np.float64]]]:
        """Course and its origin in the world (3,) [m] of every tile."""
        ...


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
        terrain: Tiles,
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
            for course, _ in terrain.placed
        ]
        center, half, axes = _boxes(courses)
        self._center, self._half, self._axes = constant(center), constant(half), constant(axes)
        self._corner = constant([corner for _, corner in terrain.placed])
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
        return depth_of(inverse, 1.0 / RANGE_M, 1.0 / self.camera.near_m)

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
        base_wb = _matrix(rotations.matrix_rows(*base_quat_w.unbind(-1)))
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


def depth_of(inverse: Tensor, low: float | Tensor, high: float) -> Tensor:
    """Depth [m] from its reciprocal; 0 unless that lies between `low` and `high`."""
    return torch.where((inverse > low) & (inverse < high), inverse.reciprocal(), 0.0)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of small matrices (..., 3, 3) in full precision, TF32 or not."""
    return (a[..., None] * b[..., None, :, :]).sum(-2)


def _matrix(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(tuple(row), dim=-1) for row in rows], dim=-2)


def _turned(roll: Tensor, pitch: Tensor, yaw: Tensor) -> Tensor:
    """Optical frame (right, down, axis) after yaw, pitch, roll, in its old coordinates."""
    sr, cr, sp, cp = torch.sin(roll), torch.cos(roll), torch.sin(pitch), torch.cos(pitch)
    sy, cy, zero, one = torch.sin(yaw), torch.cos(yaw), torch.zeros_like(yaw), torch.ones_like(yaw)
    about_down = _matrix(((cy, zero, -sy), (zero, one, zero), (sy, zero, cy)))
    about_right = _matrix(((one, zero, zero), (zero, cp, sp), (zero, -sp, cp)))
    about_axis = _matrix(((cr, -sr, zero), (sr, cr, zero), (zero, zero, one)))
    return _matmul(_matmul(about_down, about_right), about_axis)
