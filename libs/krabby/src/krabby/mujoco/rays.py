"""Rays through a MuJoCo scene and the light that they meet: what pictures are made of.

Lambert shading, one sun with shadows, an optional sky of many small lights (soft shadows under and
between the legs), floor tiles, a little haze. The sky's lights are points far away rather than
directions, because MuJoCo casts rays fastest from one common origin.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from krabby.mujoco.model import TERRAIN_GROUP

__all__ = [
    "HAZE_M",
    "HORIZON",
    "LIGHT_DISTANCE_M",
    "SHADOW_BIAS_M",
    "SUN_DIRECTION",
    "FloatArray",
    "Hit",
    "Picture",
    "Scene",
    "Surface",
    "View",
    "camera_rays",
    "colours",
    "dot",
    "shade",
    "sky",
    "strata_of",
    "sunlit",
    "surface_of",
    "to_display",
]

FloatArray = NDArray[np.float64]
Picture = NDArray[np.uint8]
"""(H, W, 3) sRGB, row 0 at the top."""

SUN_DIRECTION = np.array([0.35, -0.52, 0.78]) / np.linalg.norm([0.35, -0.52, 0.78])
"""Towards the sun, world frame."""
_SUN_COLOUR = np.array([1.0, 0.93, 0.82]) * 2.3
_SKY_COLOUR = np.array([0.66, 0.80, 1.0]) * 0.75
_BOUNCE_COLOUR = np.array([0.55, 0.48, 0.42]) * 0.30
"""Light from below, off the ground."""
HORIZON = np.array([1.15, 1.50, 1.95])
_ZENITH = np.array([0.30, 0.66, 1.45])
_EXPOSURE = 0.46
HAZE_M = 45.0
"""Distance at which a surface is two thirds lost in haze."""
LIGHT_DISTANCE_M = 60.0
SHADOW_BIAS_M = 2e-3
_TILE_M = 0.5
_TILE_JOINT_M = 0.008
_TILE_FADE_M = 30.0


@dataclass(frozen=True, kw_only=True)
class View:
    """A camera that looks from `eye` at `target`."""

    eye: tuple[float, float, float]
    """World frame [m]."""
    target: tuple[float, float, float]
    """World frame [m]; appears in the middle of the picture."""
    fov_rad: float = 0.6
    """Vertical field of view [rad]; a small one from far away is nearly orthographic."""
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """World direction that is upwards in the picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Hit:
    """What rays met first."""

    mask: NDArray[np.bool_]
    """(N,) whether anything."""
    geom: NDArray[np.int32]
    distance: FloatArray
    normal: FloatArray
    """(N, 3) world frame; meaningless where nothing was hit."""


class Scene:
    """The model as rays see it.

    Args:
        model: The compiled model.
        data: Its state.
        groups: Geom groups that are seen.
        unseen_body: One whose geoms are not seen, such as what a camera is built into; -1 for none.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        groups: Sequence[int],
        unseen_body: int = -1,
    ) -> None:
        self._model = _with_loose_bounds(model, data)
        self._data = data
        self._unseen_body = unseen_body
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

    def cast(self, origin: FloatArray, directions: FloatArray) -> Hit:
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
            self._unseen_body,
            geom,
            distance,
            normal.reshape(-1),
            count,
            mujoco.mjMAXVAL,
        )
        return Hit(mask=geom >= 0, geom=geom, distance=distance, normal=normal)

    def lit(self, light: FloatArray, points: FloatArray) -> NDArray[np.bool_]:
        """Which points (N, 3) a light at `light` (3,) reaches."""
        offset = points - light
        distance = np.sqrt(dot(offset, offset))
        hit = self.cast(light, offset / distance[:, None])
        return ~hit.mask | (hit.distance > distance - SHADOW_BIAS_M)


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


def camera_rays(view: View, columns: int, rows: int) -> tuple[FloatArray, FloatArray]:
    """Unit directions (rows * columns, 3) and the common origin (3,)."""
    eye = np.array(view.eye, dtype=np.float64)
    forward = np.array(view.target, dtype=np.float64) - eye
    forward /= np.linalg.norm(forward)
    up = np.array(view.up, dtype=np.float64)
    if abs(forward @ up) > 0.999:  # looking straight down, the top of the picture is world x
        up = np.array([1.0, 0.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    half = np.tan(0.5 * view.fov_rad)
    y = half * (1.0 - (2.0 * np.arange(rows) + 1.0) / rows)
    x = half * columns / rows * ((2.0 * np.arange(columns) + 1.0) / columns - 1.0)
    directions = (forward + x[None, :, None] * right + y[:, None, None] * up).reshape(-1, 3)
    directions /= np.sqrt(dot(directions, directions))[:, None]
    return directions, eye


def dot(one: FloatArray, other: FloatArray) -> FloatArray:
    """Row by row, (N,)."""
    return np.einsum("ij,ij->i", one, other)


def shade(
    scene: Scene,
    hit: Hit,
    points: FloatArray,
    directions: FloatArray,
    view: View,
    strata: NDArray[np.int64],
    sky_samples: int,
) -> FloatArray:
    """Linear colour (N, 3) of the points that were hit."""
    seen = surface_of(hit, points, directions)
    centre = np.array(view.target, dtype=np.float64)
    above = None
    if sky_samples:
        lifted = points + SHADOW_BIAS_M * seen.normal
        above = sky_share(scene, lifted, seen.normal, centre, strata, sky_samples)
    return colours(scene, seen, sunlit(scene, seen, centre), above)


class Surface(NamedTuple):
    """What N rays see."""

    geom: NDArray[np.int32]
    """(N,)"""
    normal: FloatArray
    """(N, 3), world frame, towards the viewer."""
    points: FloatArray
    """(N, 3), world frame [m]."""
    distance: FloatArray
    """(N,) [m]"""
    directions: FloatArray
    """(N, 3), unit vectors of the rays."""

    def of(self, chosen: NDArray[Any]) -> Surface:
        """Some of them, by mask or index."""
        return Surface(
            self.geom[chosen],
            self.normal[chosen],
            self.points[chosen],
            self.distance[chosen],
            self.directions[chosen],
        )


def surface_of(hit: Hit, points: FloatArray, directions: FloatArray) -> Surface:
    """The surface of the rays that hit; `points` and `directions` (N, 3) are of those alone."""
    normal = hit.normal[hit.mask]
    # Rays that start inside a shape meet its far side.
    normal[dot(normal, directions) > 0.0] *= -1.0
    return Surface(hit.geom[hit.mask], normal, points, hit.distance[hit.mask], directions)


def sunlit(scene: Scene, seen: Surface, centre: FloatArray) -> NDArray[np.bool_]:
    """Which points the sun reaches, (N,); `centre` (3,) is where it stands overhead [m]."""
    lit = seen.normal @ SUN_DIRECTION > 0.0
    lifted = seen.points[lit] + SHADOW_BIAS_M * seen.normal[lit]
    lit[lit] = scene.lit(centre + LIGHT_DISTANCE_M * SUN_DIRECTION, lifted)
    return lit


def colours(
    scene: Scene, seen: Surface, lit: NDArray[np.bool_], above: FloatArray | None = None
) -> FloatArray:
    """Linear colour (N, 3).

    Args:
        scene: What is seen.
        seen: The surface.
        lit: Which points the sun reaches, (N,).
        above: Share of the sky's light that reaches each point, (N,); by its slope alone if None.
    """
    geom, normal = seen.geom, seen.normal
    albedo = _tiles(scene, geom, seen.points, normal, seen.distance)
    light = (np.clip(normal @ SUN_DIRECTION, 0.0, None) * lit)[:, None] * _SUN_COLOUR
    if above is None:
        above = 0.5 + 0.5 * normal[:, 2]
    light += above[:, None] * _SKY_COLOUR
    light += (0.5 - 0.5 * normal[:, 2])[:, None] * _BOUNCE_COLOUR
    return albedo * light + _gloss(scene, geom, normal, seen.directions, lit)[:, None]


def sky_share(
    scene: Scene,
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
        lit = scene.lit(centre + LIGHT_DISTANCE_M * towards, points[asking])
        total[asking] += facing[asking] * lit / z[k % groups :: groups].sum()
    return total


def strata_of(width: int, height: int, supersample: int) -> NDArray[np.int64]:
    """Which of its pixel's rays each ray is, (rays,)."""
    one = np.arange(supersample**2).reshape(supersample, supersample)
    return np.tile(one, (height, width)).reshape(-1)


def _tiles(
    scene: Scene,
    geom: NDArray[np.int32],
    points: FloatArray,
    normal: FloatArray,
    distance: FloatArray,
) -> FloatArray:
    """Albedo (N, 3): terrain that faces up gets half-metre tiles, a scale to judge sizes by."""
    albedo = scene.albedo[geom]
    flat = scene.tiled[geom] & (normal[:, 2] > 0.7)
    x, y = points[flat, 0] / _TILE_M, points[flat, 1] / _TILE_M
    to_joint = np.minimum(np.abs(x - np.round(x)), np.abs(y - np.round(y))) * _TILE_M
    checker = ((np.floor(x) + np.floor(y)) % 2.0) - 0.5
    fade = np.clip(1.0 - distance[flat] / _TILE_FADE_M, 0.0, 1.0)
    tone = 1.0 + 0.10 * checker * fade - 0.35 * (to_joint < _TILE_JOINT_M) * fade
    albedo[flat] *= tone[:, None]
    return albedo


def _gloss(
    scene: Scene,
    geom: NDArray[np.int32],
    normal: FloatArray,
    directions: FloatArray,
    sunlit: NDArray[np.bool_],
) -> FloatArray:
    """Highlight of the sun on the robot (N,); terrain is matt."""
    gloss = np.zeros(len(geom))
    shines = np.flatnonzero(sunlit & ~scene.tiled[geom])
    half = SUN_DIRECTION - directions[shines]
    towards = np.clip(dot(normal[shines], half), 0.0, None) / np.sqrt(dot(half, half))
    gloss[shines] = 0.45 * towards**48
    return gloss


def sky(directions: FloatArray) -> FloatArray:
    """Linear colour (N, 3) of the sky in these directions (N, 3)."""
    height = np.clip(directions[:, 2:3], 0.0, 1.0) ** 0.55
    return HORIZON * (1.0 - height) + _ZENITH * height


def _to_linear(srgb: FloatArray) -> FloatArray:
    return np.clip(srgb, 0.0, 1.0) ** 2.2


def to_display(linear: FloatArray) -> FloatArray:
    """Filmic curve (the ACES fit): contrast in the middle, highlights roll off; then gamma."""
    x = linear * _EXPOSURE
    curve = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)
    return np.clip(curve, 0.0, 1.0) ** (1.0 / 2.2)
