"""The cameras of a student's robots: pictures as they arrive, and the pose that belongs to each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from krabby.policy.depth_image import IMAGE_SHAPE
from tensordict import TensorDict

from krabby_trainer.task.observations import EYE_INDEX, EYE_SIZE
from krabby_trainer.vision.depth import DepthCamera, DepthStream

if TYPE_CHECKING:
    from krabby.robot.description import RobotDescription

    from krabby_trainer.learn.student import Vision
    from krabby_trainer.task.terrain import Terrain
    from krabby_trainer.vision.depth import DepthErrorsCfg

__all__ = ["Cameras", "seen"]

Tensor = torch.Tensor

_STEP_S: Final = 0.01
_POSES: Final = 40
"""Control steps that poses are kept for: longer than any picture is on its way."""


def seen(obs: TensorDict, vision: Vision, begins: Tensor) -> TensorDict:
    """Observation groups with what a `StudentPolicy` wants besides; `begins` is (N,) bool."""
    groups: dict[str, Any] = dict(obs.items())
    groups |= {
        "image": vision.image,
        "eye": vision.eye,
        "arrived": vision.arrived[:, None],
        "age": vision.age[:, None],
        "begins": begins[:, None],
    }
    return TensorDict(groups, batch_size=obs.batch_size, device=obs.device)


class Cameras:
    """Eyes (`krabby_trainer.learn.student.Vision`) of N robots; `step` changes state in place.

    Args:
        desc: For the camera.
        terrain: What is seen.
        errors: How badly.
        num_envs: N.
        device: Of everything.
    """

    def __init__(
        self,
        desc: RobotDescription,
        terrain: Terrain,
        errors: DepthErrorsCfg,
        num_envs: int,
        device: str | torch.device,
    ) -> None:
        camera = DepthCamera(desc, terrain, device)
        self._stream = DepthStream(camera, errors, num_envs, step_s=_STEP_S)
        self._poses = torch.zeros(_POSES, num_envs, EYE_SIZE, device=device)
        self._index = EYE_INDEX.to(device)
        self._robots = torch.arange(num_envs, device=device)
        self.arrived = self._stream.arrived
        self.image = self._stream.image
        self.age = self._stream.age_s
        self.eye = torch.zeros(num_envs, EYE_SIZE, device=device)
        assert self.image.shape[1:] == IMAGE_SHAPE

    def reset(self, ids: Tensor) -> None:
        """Robots `ids` (int64) get other cameras, and forget what they saw."""
        self._stream.reset(ids)

    def step(self, frame: Tensor, tile: Tensor, base_pos_w: Tensor, base_quat_w: Tensor) -> None:
        """One control step on, with the robots where they are now.

        Args:
            frame: `PROPRIO` as sensed now, (N, 69).
            tile: Where each robot is, (N,).
            base_pos_w: (N, 3) [m].
            base_quat_w: (N, 4), xyzw.
        """
        self._poses.copy_(torch.cat((self._poses[1:], frame[None, :, self._index])))
        self._stream.step(tile, base_pos_w, base_quat_w)
        steps = (self.age / _STEP_S).round().long().clamp(0, _POSES - 1)
        then = self._poses[_POSES - 1 - steps, self._robots]
        self.eye.copy_(torch.where(self.arrived[:, None], then, self.eye))
