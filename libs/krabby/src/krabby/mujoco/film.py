"""Pictures of a scene in a tenth of the rays that `render_rays` casts: for films.

Every third pixel in both directions is asked first. Where four of them see one flat face, those
between them do too, and their distance follows from the plane. Only pixels at edges are asked
several times. Soft light of the sky is left out.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, Final, NamedTuple

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from krabby.mujoco.model import TERRAIN_GROUP, VISUAL_GROUP
from krabby.mujoco.rays import (
    HAZE_M,
    HORIZON,
    FloatArray,
    Picture,
    Scene,
    Surface,
    View,
    camera_rays,
    colours,
    dot,
    sky,
    sunlit,
    surface_of,
    to_display,
)

__all__ = ["FilmCamera", "beside"]

_GROUPS: Final = (TERRAIN_GROUP, VISUAL_GROUP)
_STEP: Final = 3
"""Pixels between two that are asked first; one less below `_WIDE`, where a leg is 4 pixels wide."""
_WIDE: Final = 320
_EDGE: Final = 0.05
"""Step of brightness between neighbours, of 0 to 1, that makes both of them edges."""
_NORMAL_STEPS: Final = 64
_SUBPIXELS: Final = ((0.27, -0.09), (-0.23, 0.25))
"""Places of the further rays of a pixel at an edge, from its middle [px]."""


def beside(base_pos_w: ArrayLike) -> View:
    """From the side of a base (3,) [m] and a little ahead; it follows and does not turn."""
    x, y, z = np.asarray(base_pos_w, dtype=np.float64).tolist()
    y *= 0.5
    return View(eye=(x + 2.4, y - 3.8, z + 1.7), target=(x + 0.15, y, z - 0.25), fov_rad=0.62)


class FilmCamera:
    """Draws a model in one size, again and again.

    Args:
        model: The compiled model.
        width: Of the pictures, even [px].
        height: Of the pictures, even [px].
        unseen_body: Body that is left out, such as what the camera is built into; -1 for none.
    """

    def __init__(
        self, model: mujoco.MjModel, width: int, height: int, *, unseen_body: int = -1
    ) -> None:
        self._model = model
        self._unseen_body = unseen_body
        self._width, self._height = width, height
        step = _STEP if width >= _WIDE else _STEP - 1
        self._corners = _corners(width, height, step)
        row, column = np.divmod(np.arange(width * height), width)
        self._coarse = (row % step == 0) & (column % step == 0)
        self._between = ~self._coarse

    def draw(self, data: mujoco.MjData, view: View) -> Picture:
        """Picture (height, width, 3) of the model in the state of `data`, after `mj_forward`."""
        scene = _Shot(Scene(self._model, data, _GROUPS, self._unseen_body), view)
        directions, origin = camera_rays(view, self._width, self._height)
        seen = self._look(scene, origin, directions)
        lit = self._light(scene, seen)
        shown = scene.display(directions, seen.mask, seen.surface, lit[seen.mask])
        edges = self._edges(seen.key * 2 + lit, shown)
        if len(edges):
            shown[edges] += self._further(scene, origin, directions, edges)
            shown[edges] /= 1 + len(_SUBPIXELS)
        picture = np.round(shown * 255.0).astype(np.uint8)
        return picture.reshape(self._height, self._width, 3)

    def _look(self, scene: _Shot, origin: FloatArray, directions: FloatArray) -> _Seen:
        """What every pixel sees."""
        count = len(directions)
        geom = np.full(count, -1, dtype=np.int32)
        distance, normal = np.zeros(count), np.zeros((count, 3))
        key = np.full(count, -1, dtype=np.int64)

        def ask(pixels: NDArray[Any]) -> None:
            hit = scene.scene.cast(origin, directions[pixels])
            geom[pixels], distance[pixels], normal[pixels] = hit.geom, hit.distance, hit.normal
            face = np.round(hit.normal * _NORMAL_STEPS).astype(np.int64) + _NORMAL_STEPS
            code = (face[:, 0] << 16) + (face[:, 1] << 8) + face[:, 2]
            key[pixels] = np.where(hit.mask, (hit.geom.astype(np.int64) << 24) + code, -1)

        ask(np.flatnonzero(self._coarse))
        corners = self._corners
        one = key[corners[0]]
        same = self._between & (corners[0] != corners[3])
        for corner in corners[1:]:
            same &= key[corner] == one
        pixels, source = np.flatnonzero(same), corners[0][same]
        geom[pixels], normal[pixels], key[pixels] = geom[source], normal[source], key[source]
        plane = dot(normal[source], directions[source]) * distance[source]
        slope = dot(normal[source], directions[pixels])
        distance[pixels] = plane / np.where(slope == 0.0, 1.0, slope)
        ask(np.flatnonzero(self._between & ~same))
        mask = geom >= 0
        surface = scene.surface(geom, distance, normal, mask, origin, directions)
        return _Seen(mask, key, same, surface)

    def _light(self, scene: _Shot, seen: _Seen) -> NDArray[np.bool_]:
        """Which pixels see something in the sun."""
        place = np.cumsum(seen.mask) - 1
        lit = np.zeros(len(seen.mask), dtype=bool)

        def ask(pixels: NDArray[Any]) -> None:
            lit[pixels] = sunlit(scene.scene, seen.surface.of(place[pixels]), scene.centre)

        ask(np.flatnonzero(self._coarse & seen.mask))
        one = lit[self._corners[0]]
        same = seen.same.copy()
        for corner in self._corners[1:]:
            same &= lit[corner] == one
        lit[same] = one[same]
        ask(np.flatnonzero(self._between & ~same & seen.mask))
        return lit & seen.mask

    def _edges(self, key: NDArray[np.int64], shown: FloatArray) -> NDArray[np.int64]:
        """Pixels beside another face, or a step of brightness."""
        shape = (self._height, self._width)
        keys = key.reshape(shape)
        bright = ((shown[:, 0] + shown[:, 1] + shown[:, 2]) / 3.0).reshape(shape)
        edge = np.zeros(shape, dtype=bool)
        for one, other in (
            (np.s_[:, :-1], np.s_[:, 1:]),
            (np.s_[:-1, :], np.s_[1:, :]),
        ):
            step = (keys[one] != keys[other]) & (np.abs(bright[one] - bright[other]) > _EDGE)
            step |= np.abs(bright[one] - bright[other]) > 2.0 * _EDGE
            edge[one] |= step
            edge[other] |= step
        return np.flatnonzero(edge)

    def _further(
        self, scene: _Shot, origin: FloatArray, directions: FloatArray, pixels: NDArray[np.int64]
    ) -> FloatArray:
        """Sum of what further rays of these pixels show, (N, 3)."""
        total = np.zeros((len(pixels), 3))
        right = directions[1] - directions[0]
        down = directions[self._width] - directions[0]
        for x, y in _SUBPIXELS:
            rays = directions[pixels] + x * right + y * down
            rays /= np.sqrt(dot(rays, rays))[:, None]
            hit = scene.scene.cast(origin, rays)
            chosen = rays[hit.mask]
            points = origin + chosen * hit.distance[hit.mask, None]
            surface = surface_of(hit, points, chosen)
            lit = sunlit(scene.scene, surface, scene.centre)
            total += scene.display(rays, hit.mask, surface, lit)
        return total


class _Seen(NamedTuple):
    mask: NDArray[np.bool_]
    """Pixels that see something."""
    key: NDArray[np.int64]
    """Alike for pixels that see one face; -1 for the sky."""
    same: NDArray[np.bool_]
    """Pixels that were not asked."""
    surface: Surface
    """Of the pixels in `mask`."""


class _Shot:
    """A scene under its sun, looked at from one place."""

    def __init__(self, scene: Scene, view: View) -> None:
        self.scene = scene
        self.centre = np.array(view.target, dtype=np.float64)

    def surface(
        self,
        geom: NDArray[np.int32],
        distance: FloatArray,
        normal: FloatArray,
        mask: NDArray[np.bool_],
        origin: FloatArray,
        directions: FloatArray,
    ) -> Surface:
        rays = directions[mask]
        facing = normal[mask]
        facing[dot(facing, rays) > 0.0] *= -1.0
        points = origin + rays * distance[mask, None]
        return Surface(geom[mask], facing, points, distance[mask], rays)

    def display(
        self,
        directions: FloatArray,
        mask: NDArray[np.bool_],
        seen: Surface,
        lit: NDArray[np.bool_],
    ) -> FloatArray:
        """SRGB in 0..1, (N, 3), of all rays; `seen` and `lit` are of those in `mask`."""
        colour = np.empty((len(directions), 3))
        colour[~mask] = sky(directions[~mask])
        haze = np.exp(-((seen.distance / HAZE_M) ** 2))[:, None]
        colour[mask] = colours(self.scene, seen, lit) * haze + HORIZON * (1.0 - haze)
        return to_display(colour)


def _corners(width: int, height: int, step: int) -> tuple[NDArray[np.int64], ...]:
    """The four pixels that are asked first around each pixel, as places in the picture.

    Pixels near the last row and column have no such four; theirs are all the first pixel.
    """
    row, column = np.divmod(np.arange(width * height, dtype=np.int64), width)
    above, left = row - row % step, column - column % step
    below, right = above + step * (row > above), left + step * (column > left)
    outside = (below >= height) | (right >= width)
    places = [r * width + c for r in (above, below) for c in (left, right)]
    return tuple(np.where(outside, 0, place) for place in places)
