"""`krabby_trainer.vision.depth.cast_rays` as one kernel: each pixel walks over the boxes in view.

In torch every face of a box is a pass over all images through the GPU's memory; here the images are
written once. Triton comes with torch wherever torch knows CUDA; import this where it is there.
"""
# ruff: noqa: ANN001, ANN202 - Triton reads annotations: those of kernels are its own or none.

from __future__ import annotations

from typing import Any, Final

import torch
import triton
from triton import language as tl

__all__ = ["cast_rays"]

_PIXELS: Final = 1024
"""Of one image that one block of threads casts."""


@triton.jit
def _affine(plane, right, down):
    return tl.load(plane) * right + (tl.load(plane + 1) * down + tl.load(plane + 2))


@triton.jit
def _cast(planes, count, right, down, out, boxes, width, pixels, block: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    inside = pixel < pixels
    r = tl.load(right + pixel % width, mask=inside, other=0.0)
    d = tl.load(down + pixel // width, mask=inside, other=0.0)
    nearest = tl.full((block,), 0.0, tl.float32)
    plane = planes + image * boxes * 27  # nine functions of three coefficients
    left = tl.load(count + image)
    while left > 0:
        enter = tl.minimum(_affine(plane, r, d), _affine(plane + 3, r, d))
        enter = tl.minimum(enter, _affine(plane + 6, r, d))
        leave = tl.maximum(_affine(plane + 9, r, d), _affine(plane + 12, r, d))
        leave = tl.maximum(leave, _affine(plane + 15, r, d))
        leave = tl.maximum(leave, _affine(plane + 18, r, d))
        leave = tl.maximum(leave, _affine(plane + 21, r, d))
        leave = tl.maximum(leave, _affine(plane + 24, r, d))
        nearest = tl.maximum(nearest, tl.where(enter > leave, enter, 0.0))
        plane += 27
        left -= 1
    tl.store(out + image * pixels + pixel, nearest, mask=inside)


def cast_rays(
    planes: torch.Tensor, count: torch.Tensor, right: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """The same as `krabby_trainer.vision.depth.cast_rays`, on CUDA."""
    images, boxes = planes.shape[:2]
    out = planes.new_empty(images, len(down), len(right))
    pixels = len(down) * len(right)
    grid = (images, triton.cdiv(pixels, _PIXELS))
    block: Any = _PIXELS
    _cast[grid](planes, count, right, down, out, boxes, len(right), pixels, block=block)
    return out
