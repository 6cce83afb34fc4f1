"""Domain randomisation: properties that differ between robots, and errors of their sensors."""

from __future__ import annotations

import torch
from krabby.isaac import robots

from krabby_trainer.sampling import uniform
from krabby_trainer.task.config import RandomisationCfg
from krabby_trainer.task.observations import NUM_JOINTS, privileged

__all__ = ["NOMINAL_DELAY", "Bodies", "SensorErrors"]

Tensor = torch.Tensor

NOMINAL_DELAY = 0.8
"""From observation to the drive, in control steps: what the runtime measures."""


class Bodies(robots.Bodies):
    """Differences of each robot from `robot.toml`, constant while the environment exists."""

    @classmethod
    def draw(cls, cfg: RandomisationCfg, num_envs: int, device: str, *, friction: float) -> Bodies:
        """One robot per row; without randomisation as described, with the given friction."""
        ranges = {
            "friction": (cfg.friction, friction, 1),
            "added_mass_kg": (cfg.added_mass_kg, 0.0, 1),
            "com_offset_m": (cfg.com_offset_m, 0.0, 3),
            "kp_factor": (cfg.gain_factor, 1.0, NUM_JOINTS),
            "kd_factor": (cfg.gain_factor, 1.0, NUM_JOINTS),
            "command_delay": (cfg.command_delay, NOMINAL_DELAY, 1),
            "motor_strength": (cfg.motor_strength, 1.0, 1),
            "mass_factor": (cfg.mass_factor, 1.0, 1),
        }
        drawn = {
            name: uniform(bounds, (num_envs, size), device)
            if cfg.enabled
            else torch.full((num_envs, size), nominal, device=device)
            for name, (bounds, nominal, size) in ranges.items()
        }
        return cls(**drawn)

    def copy_(self, other: Bodies) -> None:
        """Copy `other` into the same memory."""
        for key, value in vars(other).items():
            getattr(self, key).copy_(value)

    def privileged(self, described_mass_kg: float) -> Tensor:
        """As the networks see it, (N, 42).

        The mass is the difference of the whole robot from the described one.
        """
        total = self.added_mass_kg + (self.mass_factor - 1.0) * described_mass_kg
        return privileged(**(vars(self) | {"added_mass_kg": total}))


class SensorErrors:
    """Bias per robot and noise per reading, added to what the simulation knows."""

    def __init__(self, cfg: RandomisationCfg, num_envs: int, device: str) -> None:
        def bias(largest: float, size: int) -> Tensor:
            return uniform((-largest, largest), (num_envs, size), device)

        self._on = cfg.enabled
        self._errors: dict[str, tuple[Tensor | None, float]] = {
            "joint_pos": (bias(cfg.joint_pos_bias, NUM_JOINTS), cfg.joint_pos_noise),
            "gyro": (bias(cfg.gyro_bias, 3), cfg.gyro_noise),
            "scan": (bias(cfg.scan_bias_m, 1), cfg.scan_noise_m),
            "joint_vel": (None, cfg.joint_vel_noise),
            "gravity": (None, cfg.gravity_noise),
        }

    def joint_pos(self, true: Tensor) -> Tensor:
        """Encoders (N, 18) [rad]."""
        return self._noisy(true, "joint_pos")

    def joint_vel(self, true: Tensor) -> Tensor:
        """Joint velocities (N, 18) [rad/s]."""
        return self._noisy(true, "joint_vel")

    def gyro(self, true: Tensor) -> Tensor:
        """Angular velocity (N, 3) [rad/s]."""
        return self._noisy(true, "gyro")

    def gravity(self, true: Tensor) -> Tensor:
        """Direction of gravity (N, 3)."""
        return self._noisy(true, "gravity")

    def scan(self, true: Tensor) -> Tensor:
        """Heights (N, 325) [m]."""
        return self._noisy(true, "scan")

    def _noisy(self, true: Tensor, sensor: str) -> Tensor:
        if not self._on:
            return true
        bias, noise = self._errors[sensor]
        reading = true if bias is None else true + bias
        return reading if noise == 0.0 else reading + noise * torch.randn_like(reading)
