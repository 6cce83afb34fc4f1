"""Rotations of torch tensors; quaternions are (x, y, z, w), base to world."""

from __future__ import annotations

import torch

__all__ = ["rotate", "rotate_inverse"]

Tensor = torch.Tensor


def rotate(quat: Tensor, vector: Tensor) -> Tensor:
    """Takes `vector` (..., 3) into the frame that `quat` (..., 4), xyzw, leads to."""
    xyz, w = quat[..., :3], quat[..., 3:]
    t = 2.0 * torch.linalg.cross(xyz, vector)
    return vector + w * t + torch.linalg.cross(xyz, t)


def rotate_inverse(quat: Tensor, vector: Tensor) -> Tensor:
    """Takes `vector` (..., 3) from the frame that `quat` (..., 4), xyzw, leads to, into its own."""
    xyz, w = quat[..., :3], quat[..., 3:]
    t = 2.0 * torch.linalg.cross(xyz, vector)
    return vector - w * t + torch.linalg.cross(xyz, t)
