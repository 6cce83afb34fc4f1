"""From a real camera's depth to the image that `robot.toml`'s camera would have taken.

Both are pinholes looking along the same axis, so a pixel of one is a pixel of the other, at any
distance: only focal lengths and principal points differ. Depth along the optical axis stays as
it is. Each pixel takes the nearest reading: training renders points too, and a mean across an edge
would invent a distance at which there is nothing.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from krabby.policy.depth_image import CROP
from krabby.robot.description import CameraModel
from numpy.typing import NDArray

from krabby_camera.errors import CameraError

__all__ = ["FAR_READING_M", "ColourResampler", "Intrinsics", "Resampler"]

FAR_READING_M = 15.0
"""What "too far to measure" becomes [m]: beyond every policy's far clip, and finite on the wire."""
_MAX_UNCOVERED = 0.04
"""Share of the pixels a policy reads that may lie outside: two of 58 rows, which the tolerance of
a principal point costs. They are holes."""


class Intrinsics(NamedTuple):
    """A pinhole camera, rectified; pixel centres at whole numbers."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    @property
    def fov_deg(self) -> tuple[float, float]:
        """Horizontal and vertical field of view [deg]."""
        return _fov_deg(self.width, self.fx, self.cx), _fov_deg(self.height, self.fy, self.cy)


class Resampler:
    """Makes images of the robot's `camera` from those of the real one, `source`."""

    def __init__(self, source: Intrinsics, camera: CameraModel) -> None:
        self._shape = (source.height, source.width)
        self._index, covered = _pixels(source, camera)
        self._outside = None if covered.all() else ~covered
        uncovered = 1.0 - float(covered[CROP].mean())
        if uncovered > _MAX_UNCOVERED:
            seen, wanted = (
                source.fov_deg,
                (np.degrees(camera.hfov_rad), np.degrees(camera.vfov_rad)),
            )
            raise CameraError(
                f"the camera sees {seen[0]:.1f} x {seen[1]:.1f} deg, robot.toml's camera "
                f"{wanted[0]:.1f} x {wanted[1]:.1f}: {uncovered:.0%} of the pixels that a policy "
                "reads lie outside. Choose a resolution with a wider view (ZED Mini: vga), or "
                "train for this camera"
            )

    def __call__(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """The robot camera's image (60, 106) [m] from the real one's depth (height, width) [m].

        No reading is 0, as from the simulator: NaN (hidden from one eye), -inf (too near) and
        what lies outside. +inf (too far) is `FAR_READING_M`, so that "far" stays a reading.
        """
        if depth.shape != self._shape:
            raise CameraError(
                f"the camera gave a depth image of {depth.shape}, its calibration is for "
                f"{self._shape}; update the SDK"
            )
        image = depth.reshape(-1)[self._index].astype(np.float32)
        image[~(image > 0.0)] = 0.0  # NaN is not greater either
        np.minimum(image, np.float32(1e3), out=image)
        image[image >= 1e3] = FAR_READING_M
        if self._outside is not None:
            image[self._outside] = 0.0
        return image


class ColourResampler:
    """Makes colour images in the view of the robot's `camera` from those of the real one, `source`.

    What the real one does not cover is black; a colour sensor may see less than depth does.
    """

    def __init__(self, source: Intrinsics, camera: CameraModel, scale: int) -> None:
        size = {"width": scale * camera.width, "height": scale * camera.height}
        self._shape = (source.height, source.width)
        self._index, covered = _pixels(source, dataclasses.replace(camera, **size))
        self._outside = ~covered
        self.covered = float(covered.mean())
        """Share of the pixels that the real camera covers."""

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Picture (scale * 60, scale * 106, 3) from the real one's (height, width, 3), sRGB."""
        if picture.shape != (*self._shape, 3):
            raise CameraError(
                f"the camera gave a colour image of {picture.shape}, its calibration is for "
                f"{self._shape}; update the SDK"
            )
        seen = picture.reshape(-1, 3)[self._index]
        seen[self._outside] = 0
        return seen


def _pixels(source: Intrinsics, camera: CameraModel) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Pixel of `source`, counted by rows, under each of `camera`'s, and whether there is one."""
    columns, in_columns = _nearest(
        camera.width, camera.fx, camera.cx, source.fx, source.cx, source.width
    )
    rows, in_rows = _nearest(
        camera.height, camera.fy, camera.cy, source.fy, source.cy, source.height
    )
    return rows[:, None] * source.width + columns, in_rows[:, None] & in_columns


def _nearest(
    count: int, f: float, c: float, source_f: float, source_c: float, source_count: int
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Source pixel under the centre of each of `count` pixels, and whether there is one."""
    position = source_c + source_f * (np.arange(count) - c) / f
    inside = (position >= -0.5) & (position < source_count - 0.5)
    return np.clip(np.rint(position), 0, source_count - 1).astype(np.intp), inside


def _fov_deg(count: int, f: float, c: float) -> float:
    return float(np.degrees(np.arctan((c + 0.5) / f) + np.arctan((count - 0.5 - c) / f)))
