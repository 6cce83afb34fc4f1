"""The cameras of a student's robots: images as they arrive, and the robot's state at exposure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from krabby.robot.description import RobotDescription
from tensordict import TensorDict

from krabby_trainer.vision.config import DepthErrorsCfg, longest_latency_s
from krabby_trainer.vision.depth import DepthCamera, Tiles
from krabby_trainer.vision.stream import DepthStream

__all__ = ["Cameras", "Vision", "seen"]

Tensor = torch.Tensor

_STEP_S: Final = 0.01


@dataclass
class Vision:
    """What the cameras of N robots delivered; an environment rewrites the tensors every step."""

    arrived: Tensor
    """Whose newest image arrived in this step, (N,), bool."""
    image: Tensor
    """The newest image that arrived, (N, 58, 87)."""
    eye: Tensor
    """The robot's state (`EYE`) at its exposure, (N, 48)."""
    age: Tensor
    """Time since its exposure [s], (N,)."""
    oldest_s: float = 0.0
    """Age from which on a student has no picture [s]; see `DepthErrorsCfg`."""


def seen(obs: TensorDict, vision: Vision, begins: Tensor) -> TensorDict:
    """`obs` with the groups that only a student's policy reads; `begins` is (N,) bool."""
    groups: dict[str, Any] = dict(obs.items())
    groups |= {
        "image": vision.image,
        "eye": vision.eye,
        "arrived": vision.arrived[:, None],
        "age": vision.age[:, None],
        "begins": begins[:, None],
    }
    return TensorDict(groups, batch_size=obs.batch_size, device=obs.device)


class Cameras(Vision):
    """Depth cameras of N robots; `step` can be recorded: state stays in the same memory.

    Args:
        desc: For the camera.
        terrain: What is seen.
        errors: How badly.
        num_envs: N.
        device: Of everything.
        index: Which numbers of an observation frame are the robot's state for the encoder, (48,).
    """

    def __init__(
        self,
        desc: RobotDescription,
        terrain: Tiles,
        errors: DepthErrorsCfg,
        num_envs: int,
        device: str | torch.device,
        index: Tensor,
    ) -> None:
        stream = DepthStream(DepthCamera(desc, terrain, device), errors, num_envs, step_s=_STEP_S)
        eye = torch.zeros(num_envs, len(index), device=device)
        super().__init__(stream.arrived, stream.image, eye, stream.age_s, errors.oldest_s)
        self._stream = stream
        # As far back as an image that arrives can have been exposed, both ends rounded to steps.
        self._steps = math.ceil(longest_latency_s(stream.cfg) / _STEP_S) + 2
        self._poses = torch.zeros(self._steps, *eye.shape, device=device)
        self._index = index.to(device)
        self._robots = torch.arange(num_envs, device=device)

    def reset(self, which: Tensor) -> None:
        """Draw new cameras for the robots in `which` (N,), bool, and drop their images."""
        self._stream.reset(which)

    def step(self, frame: Tensor, tile: Tensor, base_pos_w: Tensor, base_quat_w: Tensor) -> None:
        """Advance by one control step.

        Args:
            frame: Proprioception as sensed now, (N, 69).
            tile: Of each robot, (N,).
            base_pos_w: (N, 3) [m].
            base_quat_w: (N, 4), xyzw.
        """
        self._poses.copy_(torch.cat((self._poses[1:], frame[None, :, self._index])))
        self._stream.step(tile, base_pos_w, base_quat_w)
        steps = (self.age / _STEP_S).round().long().clamp(0, self._steps - 1)
        then = self._poses[self._steps - 1 - steps, self._robots]
        self.eye.copy_(torch.where(self.arrived[:, None], then, self.eye))
