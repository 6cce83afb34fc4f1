"""From the camera's depth to the image a policy sees; training and robot share every number.

Raw: optical-axis distance [m], 60 rows x 106 columns. Policy image: 58 x 87, value / far - 0.5, so
-0.5 at the lens and +0.5 at the far clip and beyond. The steps, in this order:

1. Crop 4 columns on either side and 2 rows at the bottom: stereo matching is worst there.
2. Holes. A reading is valid if it is at least `near`; zero, NaN, -inf and too near are holes,
   anything from `far` to +inf is simply far. In each of three passes a hole takes the farther of
   its two neighbours in its row; what is still a hole then becomes far. Why so: single missing
   pixels, the common case, must not turn into pits. The shadow that stereo throws beside an edge
   belongs to what lies behind, hence the farther one. Large areas have no reading because nothing
   reflects within range, and the neighbours' depth must not spread over them: an object against
   the sky would fill its rows. Rows alone, because shadows lie along them and rows are contiguous.
3. Resize 98 columns to 87 by a triangle filter as wide as the step (bilinear with antialiasing);
   58 rows stay. Its weights are positive and add up to one, so no output leaves the range of the
   pixels under it. Bicubic would ring at every edge of an obstacle, which is where a foot is
   going to be put.
4. Cut to [0, far] and normalise.

A torch version takes `CROP`, `FILL_PASSES` and `COLUMN_WEIGHTS` from here.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from krabby.robot.description import CameraModel
from krabby.robot.errors import DepthError

__all__ = [
    "COLUMN_WEIGHTS",
    "CROP",
    "FILL_PASSES",
    "IMAGE_SHAPE",
    "RAW_SHAPE",
    "DepthError",
    "DepthPreprocessor",
    "column_weights",
]

RAW_SHAPE: Final = (60, 106)
"""Rows and columns of the camera's image."""
IMAGE_SHAPE: Final = (58, 87)
"""Rows and columns of the policy's image."""
CROP: Final = (slice(0, 58), slice(4, 102))
"""Rows and columns of the raw image that are kept."""
FILL_PASSES: Final = 3
"""Holes up to twice this wide close from their sides [px]."""

_CROPPED_COLUMNS: Final = CROP[1].stop - CROP[1].start
_HOLE: Final = np.float32(-1.0)
"""Below every reading, so that the farther of two neighbours is never a hole if one is not."""


def column_weights(source: int, target: int) -> NDArray[np.float64]:
    """Weights (source, target) of a row resize: row_resized = row @ weights.

    Pixel i of either image covers [i, i + 1). A triangle of half width source / target stands over
    the centre of each output pixel; weights that fall off the image are shared by the rest.
    """
    step = source / target
    centres = (np.arange(target) + 0.5) * step
    distance = np.abs(np.arange(source)[:, None] + 0.5 - centres)
    weights = np.maximum(0.0, 1.0 - distance / max(step, 1.0))
    return weights / weights.sum(axis=0)


COLUMN_WEIGHTS: Final = column_weights(_CROPPED_COLUMNS, IMAGE_SHAPE[1]).astype(np.float32)
"""Resize of the cropped columns, shape (98, 87), at most three weights per output."""
COLUMN_WEIGHTS.setflags(write=False)


class DepthPreprocessor:
    """Makes policy images.

    Args:
        camera: Where the depth comes from, for its clip planes.
    """

    def __init__(self, camera: CameraModel) -> None:
        if (camera.height, camera.width) != RAW_SHAPE:
            raise DepthError(
                f"the camera has {camera.height} x {camera.width} pixels, the preprocessing is for "
                f"{RAW_SHAPE[0]} x {RAW_SHAPE[1]}; resample the camera's image or change both"
            )
        self._near = np.float32(camera.near_m)
        self._far = np.float32(camera.far_m)
        self.valid_ratio = 0.0
        """Share of valid readings in the newest call's cropped images."""
        self._taps = _taps(COLUMN_WEIGHTS / self._far)

    def __call__(self, depth: NDArray[np.floating]) -> NDArray[np.float32]:
        """Policy images, shape (..., 58, 87), float32, from `depth` (..., 60, 106) [m]."""
        if depth.shape[-2:] != RAW_SHAPE:
            raise DepthError(
                f"a depth image of shape {depth.shape} came; expected (..., {RAW_SHAPE[0]}, "
                f"{RAW_SHAPE[1]}), rows first"
            )
        cropped = depth[..., *CROP].astype(np.float32)
        valid = cropped >= self._near  # false for NaN
        missing = valid.size - int(np.count_nonzero(valid))
        self.valid_ratio = 1.0 - missing / max(valid.size, 1)
        if missing:
            cropped[~valid] = _HOLE
            _fill_holes(cropped, self._far)
        np.minimum(cropped, self._far, out=cropped)
        return self._resize(cropped)

    def _resize(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sums few gathered columns: BLAS would start threads for so dense a product of zeros."""
        out = np.full((*image.shape[:-1], IMAGE_SHAPE[1]), -0.5, dtype=np.float32)
        for columns, weights in self._taps:
            gathered = image[..., columns]
            gathered *= weights
            out += gathered
        return np.minimum(out, np.float32(0.5), out=out)  # weights add up to one but for rounding


def _fill_holes(image: NDArray[np.float32], far: np.float32) -> None:
    for _ in range(FILL_PASSES):
        farther = np.full_like(image, _HOLE)
        farther[..., 1:] = image[..., :-1]
        np.maximum(farther[..., :-1], image[..., 1:], out=farther[..., :-1])
        np.copyto(image, farther, where=image < 0.0)
    image[image < 0.0] = far


def _taps(weights: NDArray[np.float32]) -> list[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """The same weights as pairs of column index and weight, each of shape (target,)."""
    first = (weights > 0).argmax(axis=0)
    count = int((weights > 0).sum(axis=0).max())
    columns = np.minimum(first + np.arange(count)[:, None], len(weights) - 1)
    taps = np.take_along_axis(weights, columns, axis=0)
    # The last column is named again where fewer are needed; it counts once.
    taps[1:][columns[1:] == columns[:-1]] = 0.0
    return list(zip(columns, taps, strict=True))
