"""The draws of `RandomisationCfg`: what differs between robots, and what their sensors add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from krabby_trainer.task.observations import NUM_JOINTS, privileged

if TYPE_CHECKING:
    from krabby_trainer.task.config import RandomisationCfg

__all__ = ["NOMINAL_DELAY", "Bodies", "SensorErrors", "uniform"]

Tensor = torch.Tensor

NOMINAL_DELAY = 0.8
"""From observation to the drive, in control steps: what the runtime measures."""


def uniform(
    bounds: list[float] | tuple[float, float], size: tuple[int, ...], device: str
) -> Tensor:
    """Uniform in [low, high)."""
    low, high = bounds
    return low + (high - low) * torch.rand(size, device=device)


@dataclass
class Bodies:
    """How each robot differs from `robot.toml`, for as long as the environment lives."""

    friction: Tensor
    """(N, 1)."""
    added_mass_kg: Tensor
    """(N, 1), on the base."""
    com_offset_m: Tensor
    """(N, 3)."""
    kp_factor: Tensor
    """(N, 18)."""
    kd_factor: Tensor
    """(N, 18)."""
    command_delay: Tensor
    """(N, 1), control steps."""
    motor_strength: Tensor
    """(N, 1), share of the torque-speed envelope."""
    mass_factor: Tensor
    """(N, 1), on mass and inertia of every body."""

    @classmethod
    def draw(cls, cfg: RandomisationCfg, num_envs: int, device: str, *, friction: float) -> Bodies:
        """One robot a row; `friction` is that of `robot.toml`, for when nothing is randomised."""
        if not cfg.enabled:
            return cls(
                friction=torch.full((num_envs, 1), friction, device=device),
                added_mass_kg=torch.zeros(num_envs, 1, device=device),
                com_offset_m=torch.zeros(num_envs, 3, device=device),
                kp_factor=torch.ones(num_envs, NUM_JOINTS, device=device),
                kd_factor=torch.ones(num_envs, NUM_JOINTS, device=device),
                command_delay=torch.full((num_envs, 1), NOMINAL_DELAY, device=device),
                motor_strength=torch.ones(num_envs, 1, device=device),
                mass_factor=torch.ones(num_envs, 1, device=device),
            )
        return cls(
            friction=uniform(cfg.friction, (num_envs, 1), device),
            added_mass_kg=uniform(cfg.added_mass_kg, (num_envs, 1), device),
            com_offset_m=uniform(cfg.com_offset_m, (num_envs, 3), device),
            kp_factor=uniform(cfg.gain_factor, (num_envs, NUM_JOINTS), device),
            kd_factor=uniform(cfg.gain_factor, (num_envs, NUM_JOINTS), device),
            command_delay=uniform(cfg.command_delay, (num_envs, 1), device),
            motor_strength=uniform(cfg.motor_strength, (num_envs, 1), device),
            mass_factor=uniform(cfg.mass_factor, (num_envs, 1), device),
        )

    def copy_(self, other: Bodies) -> None:
        """Become `other`, in the same memory."""
        for key, value in vars(other).items():
            getattr(self, key).copy_(value)

    def privileged(self, described_mass_kg: float) -> Tensor:
        """As the networks see it, (N, 42).

        They are told by how much a robot's mass differs from the described one, and not where.
        """
        return privileged(
            friction=self.friction,
            added_mass_kg=self.added_mass_kg + (self.mass_factor - 1.0) * described_mass_kg,
            com_offset_m=self.com_offset_m,
            kp_factor=self.kp_factor,
            kd_factor=self.kd_factor,
            command_delay=self.command_delay,
        )


class SensorErrors:
    """Bias per robot and noise per reading, added to what the simulation knows."""

    def __init__(self, cfg: RandomisationCfg, num_envs: int, device: str) -> None:
        self._cfg = cfg

        def bias(largest: float, size: int) -> Tensor:
            return uniform((-largest, largest), (num_envs, size), device)

        self._on = cfg.enabled
        self._joint_pos = bias(cfg.joint_pos_bias, NUM_JOINTS)
        self._gyro = bias(cfg.gyro_bias, 3)
        self._scan = bias(cfg.scan_bias_m, 1)

    def joint_pos(self, true: Tensor) -> Tensor:
        """Encoders (N, 18) [rad]."""
        return self._noisy(true, self._joint_pos, self._cfg.joint_pos_noise)

    def joint_vel(self, true: Tensor) -> Tensor:
        """Speeds of the joints (N, 18) [rad/s]."""
        return self._noisy(true, None, self._cfg.joint_vel_noise)

    def gyro(self, true: Tensor) -> Tensor:
        """Angular velocity (N, 3) [rad/s]."""
        return self._noisy(true, self._gyro, self._cfg.gyro_noise)

    def gravity(self, true: Tensor) -> Tensor:
        """Direction of gravity (N, 3)."""
        return self._noisy(true, None, self._cfg.gravity_noise)

    def scan(self, true: Tensor) -> Tensor:
        """Heights (N, 325) [m]."""
        return self._noisy(true, self._scan, self._cfg.scan_noise_m)

    def _noisy(self, true: Tensor, bias: Tensor | None, noise: float) -> Tensor:
        if not self._on:
            return true
        reading = true if bias is None else true + bias
        return reading if noise == 0.0 else reading + noise * torch.randn_like(reading)
