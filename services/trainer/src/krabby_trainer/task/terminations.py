"""Terminations: which robots have failed, in which way. Shapes: N robots; SI units."""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["TERMINATIONS", "fallen", "left_lane"]

Tensor = torch.Tensor

TERMINATIONS: Final = {
    "fell": ("fallen", False),
    "sunk": ("sunk", False),
    "left_lane": ("left_lane", False),
    "grounded": ("grounded", False),
    "crossed": ("crossed", False),
    "completed": ("completed", True),
    "time_out": ("time_out", True),
}
"""Attribute of the environment's state by termination, and whether the value is bootstrapped as
after a time-out. The environment judges a step at the first of them."""


def fallen(gravity_b: Tensor, tilt_limit_rad: float) -> Tensor:
    """Which robots tilt more than the safety gate allows; `gravity_b` is (N, 3)."""
    return torch.acos((-gravity_b[:, 2]).clamp(-1.0, 1.0)) > tilt_limit_rad


def left_lane(base_pos_w: Tensor, lane_y: Tensor, half_width_m: Tensor | float) -> Tensor:
    """Which robots' bases (N, 3) are outside their lane."""
    return (base_pos_w[:, 1] - lane_y).abs() > half_width_m
