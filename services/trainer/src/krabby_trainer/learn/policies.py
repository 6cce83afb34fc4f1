"""From a checkpoint to something that acts, whoever was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from krabby.robot.description import RobotDescription

from krabby_trainer.learn.networks import actor_of
from krabby_trainer.learn.student import StudentPolicy, is_student, picture_rate_hz, student_of
from krabby_trainer.run import checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    from tensordict import TensorDict
    from torch import Tensor

    from krabby_trainer.learn.networks import TeacherActor

__all__ = ["Policy", "TeacherPolicy", "load_policy"]


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


def load_policy(checkpoint: Path, device: str = "cpu") -> Policy:
    """What a checkpoint holds, ready to act.

    Raises:
        CheckpointError: The file cannot be read, or it holds no actor.
    """
    payload = checkpoints.load(checkpoint, device)
    if is_student(payload):
        rate_hz = picture_rate_hz(payload["config"] or {}, RobotDescription.load().camera)
        actor, encoder = student_of(payload, str(checkpoint))
        return StudentPolicy(actor, encoder, device, rate_hz=rate_hz)
    return TeacherPolicy(actor_of(payload, str(checkpoint)).to(device))
