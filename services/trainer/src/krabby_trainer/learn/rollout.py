"""Rollouts with the images that each robot received, so that the encoder can learn from them.

Images arrive irregularly, so they are kept by robot in the order of arrival, and every control step
has the index of the newest. T control steps, N robots, F images, B robots of a minibatch. An image
takes 10 kB; with room for one in every third step that is 3.4 kB per robot and step.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from krabby_trainer.learn.networks import SCAN_LATENT
from krabby_trainer.learn.student import DepthEncoder, Pictures, Sight
from krabby_trainer.learn.symmetry import reflections
from krabby_trainer.task.observations import EYE_SIZE, GROUP_SIZES, NUM_JOINTS, SCAN_SIZE
from krabby_trainer.vision.stream import mirror_image

__all__ = ["Footage", "Rollout"]

_PICTURE_EVERY: Final = 3
"""Least number of control steps between two images, at the highest camera rate."""
_SPARE_PICTURES: Final = 4


class Footage:
    """The pictures that came to each of N robots in T control steps.

    Args:
        steps: T.
        num_envs: N.
        memory: Size of the encoder's memory.
        device: Where all of it is.
        window: Gradients go back along the memory within windows of this many control steps,
            counted from the start of the rollout; 0: along all of it.
    """

    def __init__(
        self,
        steps: int,
        num_envs: int,
        memory: int,
        device: str | torch.device,
        *,
        window: int = 0,
    ) -> None:
        frames = steps // _PICTURE_EVERY + _SPARE_PICTURES
        self.steps, self.num_envs, self.frames = steps, num_envs, frames
        self.window = window

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        n = num_envs
        # One robot more than there are, for images that are not there.
        self.image: Tensor | None = None  # (F, N + 1, 58, 87), made when the first picture comes
        self.eye = zeros(frames, n + 1, EYE_SIZE)
        self.begins = zeros(frames, n + 1, dtype=torch.bool)
        """Whether a picture is the first of its episode: memory is empty before it."""
        self.cut = zeros(frames, n + 1, dtype=torch.bool)
        """Whether a picture is the first in its window: gradients end at the memory before it."""
        self.count = zeros(n + 1, dtype=torch.long)
        """Pictures that came."""
        self.memory = zeros(2, n, memory)
        """Of both streams, before the first picture."""
        self.code = zeros(2, n, SCAN_LATENT)
        self.newest = zeros(steps, n, dtype=torch.long)
        """1 + index of the newest picture at each step; 0 for the one before the rollout."""
        self.blind = zeros(steps, n, dtype=torch.bool)
        """No image so far in this episode."""
        self.step = 0
        self.used = frames
        """Images of a robot that are learned from, at most."""

    def begin(self, sight: Sight) -> None:
        """Start a new rollout from the robots' present memories."""
        self.count.zero_()
        self.memory.copy_(sight.memory)
        self.code.copy_(sight.code)

    def add_pictures(self, pictures: Pictures) -> None:
        """Keep images (M, ...)."""
        robots, image, eye, first = pictures
        if self.image is None:
            shape = (self.frames, self.num_envs + 1, *image.shape[1:])
            with torch.inference_mode(False):  # it is learned from
                self.image = torch.zeros(shape, dtype=image.dtype, device=image.device)
        where = self.count[robots].clamp(max=self.frames - 1)
        self.image[where, robots] = image
        self.eye[where, robots] = eye
        self.begins[where, robots] = first
        if self.window:
            # The newest picture of the last step of the window before; none before the first one.
            start = self.step // self.window * self.window
            before = self.newest[start - 1] if start else torch.zeros_like(self.newest[0])
            whose = robots.clamp(max=self.num_envs - 1)
            self.cut[where, robots] = (where == before[whose]) & (start > 0)
        self.count[robots] = where + 1

    def add_sight(self, sight: Sight) -> None:
        """Keep which picture is the newest in a control step."""
        self.newest[self.step] = self.count[:-1]
        self.blind[self.step] = ~sight.seen
        self.step += 1

    def finish(self) -> None:
        """Count the images that are learned from; waits for the device.

        In steps of four on CUDA, where kernels are recorded for each number.
        """
        most = int(self.count[:-1].max()) if self.image is not None else 0
        if self.count.is_cuda:
            most = min((most + 3) // 4 * 4, self.frames)
        self.used = most

    def encoded(
        self, encoder: DepthEncoder, robots: Tensor, stream: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the encoder along the images of `robots` (B,), with gradients.

        Args:
            encoder: As it is now.
            robots: Indices.
            stream: 1 for those whose images are mirrored, (B,).

        Returns:
            Codes (F + 1, B, 32) and memories (F + 1, B, h): before, and after each image.
        """
        size, flipped = len(robots), stream.bool()
        code, memory = self.code[stream, robots], self.memory[stream, robots]
        codes, memories = [code], [memory]
        count = self.count[robots]
        frames = self.used
        if frames:
            assert self.image is not None
            image = self.image[:frames, robots]
            image = torch.where(flipped[None, :, None, None], mirror_image(image), image)
            eye = self.eye[:frames, robots]
            eye = torch.where(flipped[None, :, None], reflections(eye.device)["eye"](eye), eye)
            seen = encoder.see(image.flatten(0, 1), eye.flatten(0, 1)).view(frames, size, -1)
            for i in range(frames):
                before = torch.where(self.begins[i, robots, None], 0.0, memory)
                if self.window:
                    before = torch.where(self.cut[i, robots, None], before.detach(), before)
                after = encoder.remember(seen[i], before)
                memory = torch.where((i < count)[:, None], after, memory)
                memories.append(memory)
            codes += [*encoder.head(torch.stack(memories[1:]))]
        return torch.stack(codes), torch.stack(memories)

    def at_steps(
        self, encoder: DepthEncoder, robots: Tensor, stream: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Codes (T, B, 32) and memories (T, B, h) at every control step; 0 without an image."""
        newest, columns = self.newest[:, robots], torch.arange(len(robots), device=robots.device)
        blind = self.blind[:, robots, None]
        code, memory = (
            torch.where(blind, 0.0, values[newest, columns])
            for values in self.encoded(encoder, robots, stream)
        )
        return code, memory


class Rollout(Footage):
    """What happened in T control steps to N robots: what a student is taught in distillation."""

    def __init__(self, steps: int, num_envs: int, memory: int, device: str | torch.device) -> None:
        super().__init__(steps, num_envs, memory, device)

        def zeros(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(steps, num_envs, size, dtype=dtype, device=device)

        self.age = zeros(1)[..., 0]
        self.history = zeros(GROUP_SIZES["history"])
        self.teacher_action = zeros(NUM_JOINTS)
        self.scan = zeros(SCAN_SIZE, dtype=torch.float16)
        self.velocity = zeros(3)

    def add_step(self, sight: Sight, groups: dict[str, Tensor], wanted: Tensor) -> None:
        """Keep a control step: observation groups, and the teacher's actions (N, 18)."""
        t = self.step
        self.age[t] = groups["sight"][:, -1]
        self.history[t] = groups["history"]
        self.teacher_action[t] = wanted
        self.scan[t] = groups["scan"]
        self.velocity[t] = groups["velocity"]
        self.add_sight(sight)
