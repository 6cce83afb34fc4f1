"""Trained networks as policies for N robots."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from krabby_trainer.learn.networks import TeacherActor
from krabby_trainer.learn.student import DepthEncoder, Sight, StudentActor
from krabby_trainer.vision.cameras import Vision

__all__ = ["Policy", "StudentPolicy", "TeacherPolicy"]


class Policy(Protocol):
    """Acts for N robots, step by step."""

    sees: bool
    """Whether it reads the groups that `krabby_trainer.vision.cameras.seen` adds."""
    rate_hz: float
    """Largest image rate that it uses [Hz]."""

    def __call__(self, obs: TensorDict) -> Tensor: ...


class TeacherPolicy:
    """A checkpoint's teacher; reads the groups proprio, scan and history."""

    sees = False
    rate_hz = 0.0

    def __init__(self, actor: TeacherActor) -> None:
        self._actor = actor

    def __call__(self, obs: TensorDict) -> Tensor:
        with torch.inference_mode():
            return self._actor(obs)


class StudentPolicy:
    """A checkpoint's student for N robots; call it with observation groups.

    It reads the groups of a teacher's policy, and `image` (N, 58, 87), `eye` (N, 48), `arrived`
    and `begins` (N, 1) bool, and `age` (N, 1) [s].
    """

    sees = True

    def __init__(
        self, actor: StudentActor, encoder: DepthEncoder, device: str, *, rate_hz: float = math.inf
    ) -> None:
        self.rate_hz = rate_hz
        """Largest image rate that it uses [Hz]."""
        self.actor = actor.to(device).eval()
        self.encoder = encoder.to(device).eval()
        self._device = device
        self._sight: Sight | None = None

    def __call__(self, obs: TensorDict) -> Tensor:
        with torch.inference_mode():
            if self._sight is None:
                self._sight = Sight(
                    self.encoder,
                    obs.batch_size[0],
                    self._device,
                    unseen_s=self.actor.oldest_s,
                )
            age = obs["age"][:, 0]
            self._sight.forget(obs["begins"][:, 0])
            self._sight.look(Vision(obs["arrived"][:, 0], obs["image"], obs["eye"], age))
            groups: dict[str, Any] = dict(obs.items())
            groups["sight"] = self._sight.group(age)
            return self.actor.mlp(self.actor.get_latent(groups))
