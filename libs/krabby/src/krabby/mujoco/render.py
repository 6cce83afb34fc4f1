"""Pictures of a MuJoCo scene by casting rays: no OpenGL, no display, no GPU.

Good for documentation, run strips and headless machines, where MuJoCo's own renderer has no
context to draw in. Lambert shading, one sun with shadows, an optional sky of many small lights
(soft shadows under and between the legs), floor tiles, a little haze. The sky's lights are points
far away rather than directions, because MuJoCo casts rays fastest from one common origin.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from krabby.mujoco.model import TERRAIN_GROUP, VISUAL_GROUP

__all__ = ["Picture", "View", "contact_sheet", "render_rays", "save_animation", "save_picture"]

FloatArray = NDArray[np.float64]
Picture = NDArray[np.uint8]
"""(H, W, 3) sRGB, row 0 at the top."""

_SUN_DIRECTION = np.array([0.35, -0.52, 0.78]) / np.linalg.norm([0.35, -0.52, 0.78])
"""Towards the sun, world frame."""
_SUN_COLOUR = np.array([1.0, 0.93, 0.82]) * 2.3
_SKY_COLOUR = np.array([0.66, 0.80, 1.0]) * 0.75
_BOUNCE_COLOUR = np.array([0.55, 0.48, 0.42]) * 0.30
"""Light from below, off the ground."""
_HORIZON = np.array([1.15, 1.50, 1.95])
_ZENITH = np.array([0.30, 0.66, 1.45])
_EXPOSURE = 0.46
_HAZE_M = 45.0
"""Distance at which a surface is two thirds lost in haze."""
_LIGHT_DISTANCE_M = 60.0
_SHADOW_BIAS_M = 2e-3
_LABEL_PX = 18
_LABEL_COLOUR = (60, 64, 70)
_TILE_M = 0.5
_TILE_JOINT_M = 0.008
_TILE_FADE_M = 30.0


@dataclass(frozen=True, kw_only=True)
class View:
    """A camera that looks from `eye` at `target`, upright."""

    eye: tuple[float, float, float]
    """World frame [m]."""
    target: tuple[float, float, float]
    """World frame [m]; appears in the middle of the picture."""
    fov_rad: float = 0.6
    """Vertical field of view [rad]; a small one from far away is nearly orthographic."""


def render_rays(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    view: View,
    *,
    width: int = 640,
    height: int = 360,
    supersample: int = 2,
    sky_samples: int = 0,
    groups: Sequence[int] = (TERRAIN_GROUP, VISUAL_GROUP),
    background: ArrayLike | None = None,
) -> Picture:
    """Picture of the scene as `data` has it (after `mj_forward` or `mj_step`).

    Args:
        model: The compiled model.
        data: Its state; only geom poses are read.
        view: Where to look from.
        width: Of the picture [px].
        height: Of the picture [px].
        supersample: Rays per pixel and axis; 1 is fast and jagged.
        sky_samples: Lights that make up the sky, shared among the rays of a pixel; 0 shades the
            sky by direction only, 32 to 64 add soft shadows.
        groups: Geom groups to draw; by default terrain and the robot's visuals.
        background: Plain sRGB colour (3,) in 0..1 instead of sky and haze.
    """
    scene = _Scene(model, data, groups)
    directions, origin = _camera_rays(view, width * supersample, height * supersample)
    hit = scene.cast(origin, directions)
    colour = _sky(directions)
    if hit.mask.any():
        points = origin + directions[hit.mask] * hit.distance[hit.mask, None]
        strata = _strata(width, height, supersample)[hit.mask]
        shaded = _shade(scene, hit, points, directions[hit.mask], view, strata, sky_samples)
        haze = np.exp(-((hit.distance[hit.mask] / _HAZE_M) ** 2))[:, None]
        if background is not None:
            haze = np.ones_like(haze)
        colour[hit.mask] = shaded * haze + _HORIZON * (1.0 - haze)
    display = _to_display(colour)
    if background is not None:
        display[~hit.mask] = background
    display = display.reshape(height, supersample, width, supersample, 3).mean(axis=(1, 3))
    return np.round(display * 255.0).astype(np.uint8)


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture in the format of the suffix, as small as it gets without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, optimize=True)


def save_animation(pictures: Sequence[Picture], path: Path, *, fps: float) -> None:
    """Write an endless loop as .webp (small) or .gif (works everywhere)."""
    if not pictures:
        raise ValueError("an animation needs at least one picture")
    frames = [Image.fromarray(picture) for picture in pictures]
    options: dict[str, Any] = (
        {"quality": 70, "method": 4} if path.suffix == ".webp" else {"optimize": True}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=round(1000.0 / fps),
        loop=0,
        **options,
    )


def contact_sheet(
    pictures: Sequence[Picture], *, columns: int, labels: Sequence[str] = (), gap: int = 4
) -> Picture:
    """Pictures of one size in rows of `columns`, white between them and where one is missing.

    `labels`, if given, are written into the pictures' upper left corners.
    """
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1:
        raise ValueError(f"a contact sheet needs pictures of one size, not {sorted(shapes)}")
    if labels and len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures need as many labels, not {len(labels)}")
    height, width, _ = shapes.pop()
    rows = -(-len(pictures) // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_LABEL_PX)
    for i, picture in enumerate(pictures):
        left, top = i % columns * (width + gap), i // columns * (height + gap)
        sheet.paste(Image.fromarray(picture), (left, top))
        if labels:
            draw.text((left + 10, top + 6), labels[i], fill=_LABEL_COLOUR, font=font)
    return np.asarray(sheet)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Hit:
    """What rays met first."""

    mask: NDArray[np.bool_]
    """(N,) whether anything."""
    geom: NDArray[np.int32]
    distance: FloatArray
    normal: FloatArray
    """(N, 3) world frame; meaningless where nothing was hit."""


class _Scene:
    """The model as rays see it."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, groups: Sequence[int]) -> None:
        self._model = _with_loose_bounds(model, data)
        self._data = data
        self._groups = np.zeros(6, dtype=np.uint8)
        self._groups[list(groups)] = 1
        material = model.geom_matid
        rgba = np.where(
            material[:, None] >= 0,
            model.mat_rgba[np.maximum(material, 0)] if model.nmat else model.geom_rgba,
            model.geom_rgba,
        )
        self.albedo: FloatArray = _to_linear(rgba[:, :3].astype(np.float64))
        self.tiled: NDArray[np.bool_] = model.geom_group == TERRAIN_GROUP

    def cast(self, origin: FloatArray, directions: FloatArray) -> _Hit:
        """First hits of rays from `origin` (3,) along unit `directions` (N, 3)."""
        count = len(directions)
        geom = np.full(count, -1, dtype=np.int32)
        distance = np.full(count, -1.0)
        normal = np.zeros((count, 3))
        mujoco.mj_multiRay(
            self._model,
            self._data,
            origin,
            np.ascontiguousarray(directions).reshape(-1),
            self._groups,
            1,
            -1,
            geom,
            distance,
            normal.reshape(-1),
            count,
            mujoco.mjMAXVAL,
        )
        return _Hit(mask=geom >= 0, geom=geom, distance=distance, normal=normal)

    def lit(self, light: FloatArray, points: FloatArray) -> NDArray[np.bool_]:
        """Which points (N, 3) a light at `light` (3,) reaches."""
        offset = points - light
        distance = np.linalg.norm(offset, axis=-1)
        hit = self.cast(light, offset / distance[:, None])
        return ~hit.mask | (hit.distance > distance - _SHADOW_BIAS_M)


def _with_loose_bounds(model: mujoco.MjModel, data: mujoco.MjData) -> mujoco.MjModel:
    """Copy of `model` whose body bounds enclose the visuals too.

    `mj_multiRay` skips a body when a ray misses the bounds of its collision shapes, so a visual
    that reaches beyond those would be cut off.
    """
    copied = copy.copy(model)
    for body in np.flatnonzero(model.body_bvhadr >= 0):
        first = model.body_geomadr[body]
        geoms = slice(first, first + model.body_geomnum[body])
        bounds = copied.bvh_aabb[model.body_bvhadr[body]]
        centre = data.xipos[body] + data.ximat[body].reshape(3, 3) @ bounds[:3]
        reach = np.linalg.norm(data.geom_xpos[geoms] - centre, axis=-1) + model.geom_rbound[geoms]
        # Read as a sphere around the box, so a cube of the right diagonal will do.
        bounds[3:] = np.maximum(bounds[3:], reach.max() / np.sqrt(3.0))
    return copied


def _camera_rays(view: View, columns: int, rows: int) -> tuple[FloatArray, FloatArray]:
    """Unit directions (rows * columns, 3) and the common origin (3,)."""
    eye = np.array(view.eye, dtype=np.float64)
    forward = np.array(view.target, dtype=np.float64) - eye
    forward /= np.linalg.norm(forward)
    # Looking straight down, the top of the picture is world x.
    up = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.999 else np.array([1.0, 0.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    half = np.tan(0.5 * view.fov_rad)
    y = half * (1.0 - (2.0 * np.arange(rows) + 1.0) / rows)
    x = half * columns / rows * ((2.0 * np.arange(columns) + 1.0) / columns - 1.0)
    directions = forward + x[None, :, None] * right + y[:, None, None] * up
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return directions.reshape(-1, 3), eye


def _shade(
    scene: _Scene,
    hit: _Hit,
    points: FloatArray,
    directions: FloatArray,
    view: View,
    strata: NDArray[np.int64],
    sky_samples: int,
) -> FloatArray:
    """Linear colour (N, 3) of the points that were hit."""
    geom, normal = hit.geom[hit.mask], hit.normal[hit.mask]
    # Rays that start inside a shape meet its far side.
    normal = np.where(np.sum(normal * directions, axis=-1, keepdims=True) > 0.0, -normal, normal)
    albedo = _tiles(scene, geom, points, normal, hit.distance[hit.mask])
    centre = np.array(view.target, dtype=np.float64)
    lifted = points + _SHADOW_BIAS_M * normal

    facing = np.clip(normal @ _SUN_DIRECTION, 0.0, None)
    sunlit = np.zeros(len(points), dtype=bool)
    towards = facing > 0.0
    sunlit[towards] = scene.lit(centre + _LIGHT_DISTANCE_M * _SUN_DIRECTION, lifted[towards])
    light = (facing * sunlit)[:, None] * _SUN_COLOUR

    sky = 0.5 + 0.5 * normal[:, 2]
    if sky_samples:
        sky = _sky_share(scene, lifted, normal, centre, strata, sky_samples)
    light += sky[:, None] * _SKY_COLOUR
    light += (0.5 - 0.5 * normal[:, 2])[:, None] * _BOUNCE_COLOUR
    return albedo * light + _gloss(scene, geom, normal, directions, sunlit)[:, None]


def _sky_share(
    scene: _Scene,
    points: FloatArray,
    normal: FloatArray,
    centre: FloatArray,
    strata: NDArray[np.int64],
    samples: int,
) -> FloatArray:
    """Share of the sky's light that reaches each point, (N,), 1 on open level ground.

    The lights are dealt out among the rays of a pixel: each ray asks for its own few, and the
    pixel's mean has asked for all of them.
    """
    groups = int(strata.max()) + 1
    samples = -(-samples // groups) * groups
    # A golden spiral, so that any number of lights is spread evenly over the hemisphere.
    i = np.arange(samples) + 0.5
    z = i / samples
    angle = np.pi * (3.0 - np.sqrt(5.0)) * i
    ring = np.sqrt(1.0 - z * z)
    lights = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=-1)
    total = np.zeros(len(points))
    for k, towards in enumerate(lights):
        facing = np.clip(normal @ towards, 0.0, None)
        asking = np.flatnonzero((facing > 0.0) & (strata == k % groups))
        lit = scene.lit(centre + _LIGHT_DISTANCE_M * towards, points[asking])
        total[asking] += facing[asking] * lit / z[k % groups :: groups].sum()
    return total


def _strata(width: int, height: int, supersample: int) -> NDArray[np.int64]:
    """Which of its pixel's rays each ray is, (rays,)."""
    one = np.arange(supersample**2).reshape(supersample, supersample)
    return np.tile(one, (height, width)).reshape(-1)


def _tiles(
    scene: _Scene,
    geom: NDArray[np.int32],
    points: FloatArray,
    normal: FloatArray,
    distance: FloatArray,
) -> FloatArray:
    """Albedo (N, 3): terrain that faces up gets half-metre tiles, a scale to judge sizes by."""
    albedo = scene.albedo[geom]
    flat = scene.tiled[geom] & (normal[:, 2] > 0.7)
    xy = points[flat, :2] / _TILE_M
    to_joint = np.abs(xy - np.round(xy)).min(axis=-1) * _TILE_M
    checker = (np.floor(xy).sum(axis=-1) % 2.0) - 0.5
    fade = np.clip(1.0 - distance[flat] / _TILE_FADE_M, 0.0, 1.0)
    tone = 1.0 + 0.10 * checker * fade - 0.35 * (to_joint < _TILE_JOINT_M) * fade
    albedo[flat] *= tone[:, None]
    return albedo


def _gloss(
    scene: _Scene,
    geom: NDArray[np.int32],
    normal: FloatArray,
    directions: FloatArray,
    sunlit: NDArray[np.bool_],
) -> FloatArray:
    """Highlight of the sun on the robot (N,); terrain is matt."""
    half = _SUN_DIRECTION - directions
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    shine = np.clip(np.sum(normal * half, axis=-1), 0.0, None) ** 48
    return 0.45 * shine * sunlit * ~scene.tiled[geom]


def _sky(directions: FloatArray) -> FloatArray:
    height = np.clip(directions[:, 2:3], 0.0, 1.0) ** 0.55
    return _HORIZON * (1.0 - height) + _ZENITH * height


def _to_linear(srgb: FloatArray) -> FloatArray:
    return np.clip(srgb, 0.0, 1.0) ** 2.2


def _to_display(linear: FloatArray) -> FloatArray:
    """Filmic curve (the ACES fit): contrast in the middle, highlights roll off; then gamma."""
    x = linear * _EXPOSURE
    curve = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)
    return np.clip(curve, 0.0, 1.0) ** (1.0 / 2.2)
