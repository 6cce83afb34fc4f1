"""Depth pictures against the attitude: the ground that the camera sees is level.

1/depth of a plane is affine in the pixel, so each tile of a picture gives the normal of what it
shows by a linear fit. Courses, floors and treads are mostly level: their normals, taken to the base
by the described mount, must be the attitude's up. A pitch that all of them share is the mount's
error. A mirrored picture rolls against the body from step to step; slopes to the side change more
slowly and are left out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krabby.diagnosis.findings import Finding
from krabby.robot import rotations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.diagnosis.log import Frames, RunLog
    from krabby.robot.description import CameraModel, RobotDescription

__all__ = ["check_camera"]

_TILES_ACROSS: Final = 7
_NEAR_M, _FAR_M = 0.15, 3.5
_FILLED: Final = 0.8
"""Least share of a tile's pixels with a reading."""
_FLAT: Final = 0.03
"""Largest deviation of a tile from its plane, as a share of depth."""
_LEVEL_RAD: Final = math.radians(22.0)
"""Steepest surface that may be level ground seen from a wrong mount."""
_PITCH_LIMIT_RAD: Final = math.radians(2.0)
_SWAYS_RAD: Final = math.radians(0.05)
"""A body that sways less says nothing about left and right (standard deviation)."""
_SWAY: Final = 15
"""Pictures, half a second, over whose mean a body sways with its steps."""
_CLOSER: Final = 0.7
"""Pictures must be closer to the opposite of the body's sway than to the sway by this factor
(median). Sound runs have 1.47 and more, the least on ramps at 10 pictures a second ..."""
_AGAINST: Final = 0.3
"""... and have at least this correlation with the opposite. Sound runs have at most -0.36."""
_LEAST_TILES: Final = 300
_LEAST_FRAMES: Final = 60


def check_camera(log: RunLog, desc: RobotDescription) -> list[Finding]:
    """Pitch of the mount, left and right."""
    frames, camera = log.frames, desc.camera
    if frames is None or frames.depth[0].size != camera.height * camera.width:
        return []
    at = np.searchsorted(log.time_s, frames.time_s).clip(0, len(log.time_s) - 1)
    walks = log.following[at]
    if walks.sum() < _LEAST_FRAMES:
        walks = np.ones(len(at), bool)
    up_b = -rotations.projected_gravity(log.base_quat_w[at[walks]])
    depth = frames.depth[walks].reshape(-1, camera.height, camera.width)
    normal_b, good = tile_normals(depth, camera)
    if not good.any():
        return []
    level = good & ((normal_b * up_b[:, None]).sum(2) > math.cos(_LEVEL_RAD))
    return _pitch(normal_b, up_b, level, camera, frames) + _mirrored(normal_b, up_b, level)


def tile_normals(
    depth: NDArray[np.float32], camera: CameraModel
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Upward normals of the tiles' planes in the base frame, (F, P, 3), and which are planes."""
    size = camera.width // _TILES_ACROSS
    rows, columns = camera.height // size, _TILES_ACROSS
    focal = 0.5 * camera.width / math.tan(0.5 * camera.hfov_rad)
    right = (np.arange(columns * size) + 0.5 - 0.5 * camera.width) / focal
    down = (np.arange(rows * size) + 0.5 - 0.5 * camera.height) / focal

    def tiles(image: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        cut = image[..., : rows * size, : columns * size]
        cut = cut.reshape(*cut.shape[:-2], rows, size, columns, size)
        return np.moveaxis(cut, -3, -2).reshape(*cut.shape[:-4], rows * columns, size * size)

    y, x = np.meshgrid(down, right, indexing="ij")
    pixels = np.stack([tiles(x), tiles(y), np.ones((rows * columns, size * size))], axis=-1)
    z = tiles(depth.astype(np.float64))
    seen = (z > _NEAR_M) & (z < _FAR_M)
    weight = np.where(seen, z * z, 0.0)  # noise is a share of depth
    inverse = np.where(seen, 1.0 / np.where(seen, z, 1.0), 0.0)
    outer = np.einsum("pni,pnj->pnij", pixels, pixels)
    squares = np.einsum("fpn,pnij->fpij", weight, outer, optimize=True)
    moments = np.einsum("fpn,pni->fpi", weight * inverse, pixels, optimize=True)
    good = seen.mean(2) > _FILLED
    squares[~good] = np.eye(3)
    moments[~good] = (0.0, 0.0, 1.0)
    plane = np.linalg.solve(squares, moments[..., None])[..., 0]
    deviation = inverse - np.einsum("pni,fpi->fpn", pixels, plane, optimize=True)
    rms = np.sqrt((weight * deviation**2).sum(2) / np.maximum(seen.sum(2), 1))
    good &= rms < _FLAT
    optical, to_right, to_down = camera.axes_b
    frame = np.stack([to_right, to_down, optical])
    normal = -plane @ frame / np.linalg.norm(plane, axis=2, keepdims=True)
    return normal, good


def _pitch(
    normal_b: NDArray[np.float64],
    up_b: NDArray[np.float64],
    level: NDArray[np.bool_],
    camera: CameraModel,
    frames: Frames,
) -> list[Finding]:
    if level.sum() < _LEAST_TILES:
        return []
    seen = np.arctan2(normal_b[..., 0], normal_b[..., 2])
    expected = np.arctan2(up_b[:, 0], up_b[:, 2])[:, None]
    # Level ground seen by a camera that is turned nose down appears to rise: its normal leans back.
    errors = (expected - seen)[level]
    error = _mode(errors)
    agreeing = float((np.abs(errors - error) < math.radians(1.0)).mean())
    if abs(error) < _PITCH_LIMIT_RAD or agreeing < 0.3:
        return []
    way = "down" if error > 0.0 else "up"
    return [
        Finding(
            kind="camera-pitch",
            where=(way,),
            term="camera",
            score=abs(error) / _PITCH_LIMIT_RAD * 4.0,
            evidence=f"the ground in {len(frames.time_s)} pictures is tilted by "
            f"{math.degrees(error):+.1f} degrees against the attitude in {agreeing:.0%} of their "
            f"level parts: the camera looks further {way} than "
            f"{math.degrees(camera.mount_pitch_rad):.0f} degrees",
        )
    ]


def _mode(values: NDArray[np.float64]) -> float:
    """Where values lie densest, to a tenth of a degree."""
    bins = np.arange(-_LEVEL_RAD, _LEVEL_RAD, math.radians(0.1))
    counts, edges = np.histogram(values, bins)
    smooth = np.convolve(counts, np.ones(15), "same")
    middle = edges[int(smooth.argmax())] + math.radians(0.05)
    near = values[np.abs(values - middle) < math.radians(1.5)]
    return float(np.median(near)) if len(near) else middle


def _mirrored(
    normal_b: NDArray[np.float64], up_b: NDArray[np.float64], level: NDArray[np.bool_]
) -> list[Finding]:
    rolls = np.arctan2(normal_b[..., 1], normal_b[..., 2])
    enough = level.sum(1) >= 3
    if enough.sum() < _LEAST_FRAMES:
        return []
    seen = _sway(np.nanmedian(np.where(level, rolls, np.nan)[enough], axis=1))
    body = _sway(np.arctan2(up_b[:, 1], up_b[:, 2])[enough])
    if float(body.std()) < _SWAYS_RAD or float(seen.std()) == 0.0:
        return []
    along, against = (float(np.median(np.abs(seen - way * body))) for way in (1.0, -1.0))
    correlation = float(np.corrcoef(seen, body)[0, 1])
    if against > _CLOSER * along or -correlation < _AGAINST:
        return []
    return [
        Finding(
            kind="camera-mirrored",
            term="camera",
            score=20.0 * min(along / max(against, 1e-9), 2.0),
            evidence=f"the ground in {int(enough.sum())} pictures rolls against the body "
            f"(correlation {correlation:+.2f}): from step to step they are "
            f"{math.degrees(along):.2f} degrees apart, with left and right exchanged "
            f"{math.degrees(against):.2f}",
        )
    ]


def _sway(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations from the mean of the `_SWAY` values around each; shorter by `_SWAY` - 1."""
    half = _SWAY // 2
    return values[half:-half] - np.convolve(values, np.full(_SWAY, 1.0 / _SWAY), "valid")
