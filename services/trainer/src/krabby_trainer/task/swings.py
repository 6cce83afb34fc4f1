"""Swings of feet: when each touches down, how high it rose, how long it has been in the air."""

from __future__ import annotations

import torch

__all__ = ["Swings"]

Tensor = torch.Tensor


class Swings:
    """Of N robots with six feet; written in place."""

    def __init__(self, num_envs: int, device: str, dt: float) -> None:
        self._dt = dt
        self.landed = torch.zeros(num_envs, 6, dtype=torch.bool, device=device)
        """Which feet touched down in the last step, (N, 6)."""
        self.rise_m = torch.zeros(num_envs, 6, device=device)
        """Of the swing that ended, above the higher of lift-off and touchdown, (N, 6) [m]."""
        self.air_s = torch.zeros_like(self.rise_m)
        """Since each foot last touched the ground, (N, 6) [s]."""
        self._contact = torch.zeros_like(self.landed)
        self._lift_m, self._top_m = torch.zeros_like(self.rise_m), torch.zeros_like(self.rise_m)

    def step(self, contact: Tensor, height_m: Tensor) -> None:
        """Take in which feet touch the ground (N, 6), and their heights (N, 6) [m]."""
        self.landed.copy_(contact & ~self._contact)
        top = torch.maximum(self._top_m, height_m)
        self.rise_m.copy_(top - torch.maximum(self._lift_m, height_m))
        self._lift_m.copy_(torch.where(contact, height_m, self._lift_m))
        self._top_m.copy_(torch.where(contact, height_m, top))
        self.air_s.copy_(torch.where(contact, 0.0, self.air_s + self._dt))
        self._contact.copy_(contact)
