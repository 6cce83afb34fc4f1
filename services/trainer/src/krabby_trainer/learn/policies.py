"""From a checkpoint to something that acts, whoever was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from tensordict import TensorDict
    from torch import Tensor

    from krabby_trainer.learn.networks import TeacherActor

__all__ = ["Policy", "TeacherPolicy"]


class Policy(Protocol):
    """Acts for N robots, step by step."""

    sees: bool
    """Whether it wants the groups that `krabby_trainer.vision.cameras.seen` adds."""
    rate_hz: float
    """The most pictures a second that it looks at."""

    def __call__(self, obs: TensorDict) -> Tensor:
        """Deterministic actions (N, 18)."""
        ...


class TeacherPolicy:
    """A checkpoint's teacher; reads the groups proprio, scan and history."""

    sees = False
    rate_hz = 0.0

    def __init__(self, actor: TeacherActor) -> None:
        self._actor = actor

    def __call__(self, obs: TensorDict) -> Tensor:
        """Deterministic actions (N, 18)."""
        with torch.inference_mode():
            return self._actor(obs)
