"""Pictures as the stream `colour` carries them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

__all__ = ["QUALITY", "from_jpeg", "to_jpeg"]

QUALITY = 85
"""Of JPEG, 1 to 95: an image of 424 x 240 from a simulation has 4 to 10 kB."""


def to_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3), sRGB, row 0 on top, as one JPEG file."""
    # Pillow loads in 50 ms, and a process that publishes no pictures does without.
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def from_jpeg(content: bytes) -> NDArray[np.uint8]:
    """The picture (height, width, 3), sRGB, of one JPEG file; raises `OSError` when it is none."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB"))
