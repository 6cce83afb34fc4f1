"""Student networks, which run on the robot: depth images and proprioception alone.

`DepthEncoder` is recurrent: it computes a code from each image that arrives and its memory; it runs
in the camera service. `StudentActor` is the teacher's actor with that code in place of the code of
the terrain scan, so it can start with the teacher's weights; it also reads the image's age. Beyond
the age `oldest_s` it reads the no-picture token in place of both: a code of zeros of that age. The
token is the actor's part because in an outage the camera service sends nothing.

A second stream of the encoder sees every image mirrored. So the actor's input in the mirror is
known, and its symmetry can be trained without a symmetric encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple

import msgspec
import torch
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.policy.observation import ObservationLayout, standard_term
from rsl_rl.modules import MLP
from tensordict import TensorDict
from torch import Tensor, nn

from krabby_trainer.errors import unfit
from krabby_trainer.learn.config import EncoderCfg
from krabby_trainer.learn.networks import ACTOR_GROUPS, SCAN_LATENT, TeacherActor, rebuilt
from krabby_trainer.learn.symmetry import reflections
from krabby_trainer.task.observations import (
    EYE_INDEX,
    EYE_SIZE,
    HISTORY,
    PROPRIO,
    PROPRIO_SIZE,
    SCAN_SIZE,
)
from krabby_trainer.vision.cameras import Vision
from krabby_trainer.vision.stream import mirror_image

__all__ = [
    "STUDENT_GROUPS",
    "STUDENT_OBSERVATION",
    "DeployedEncoder",
    "DepthEncoder",
    "Pictures",
    "ScanDecoder",
    "Sight",
    "StudentActor",
    "mirrored_too",
    "student_of",
    "teach",
]

STUDENT_GROUPS: Final = tuple("sight" if name == "scan" else name for name in ACTOR_GROUPS)

_AGE_SCALE: Final = 10.0
"""As of the observation term `features_age`."""

STUDENT_OBSERVATION: Final = ObservationLayout(
    (
        *(msgspec.structs.replace(term, history=HISTORY) for term in PROPRIO.terms),
        standard_term("features", size=SCAN_LATENT),
        standard_term("features_age"),
    )
)
"""The observation of an exported student: each term with its history, the code, its age."""


class DepthEncoder(nn.Module):
    """Code of the terrain from a picture, the robot's pose in that moment and memory.

    Args:
        cfg: Its size.
    """

    eye_mean: Tensor
    eye_std: Tensor

    def __init__(self, cfg: EncoderCfg) -> None:
        super().__init__()
        self.cfg = cfg
        rows, columns = IMAGE_SHAPE
        stages: list[nn.Module] = []
        before = 1
        for channels, kernel in zip(cfg.channels, (5, 3, 3), strict=True):
            stages += [nn.Conv2d(before, channels, kernel, stride=2), nn.ELU()]
            rows, columns = (rows - kernel) // 2 + 1, (columns - kernel) // 2 + 1
            before = channels
        self.picture = nn.Sequential(
            *stages, nn.Flatten(), nn.Linear(before * rows * columns, cfg.picture), nn.ELU()
        )
        self.memory = nn.GRUCell(cfg.picture + EYE_SIZE, cfg.memory)
        self.head = nn.Sequential(nn.Linear(cfg.memory, SCAN_LATENT), nn.Tanh())
        self.register_buffer("eye_mean", torch.zeros(EYE_SIZE))
        self.register_buffer("eye_std", torch.ones(EYE_SIZE))

    def see(self, image: Tensor, eye: Tensor) -> Tensor:
        """Codes (M, k) of images (M, 58, 87) and states (M, 48), before the memory."""
        weight: Any = self.picture[0].weight
        picture = self.picture(image.to(weight.dtype).unsqueeze(1))
        return torch.cat((picture, (eye - self.eye_mean) / self.eye_std), dim=-1)

    def remember(self, seen: Tensor, state: Tensor) -> Tensor:
        """The memory (M, h) after what was seen (M, k)."""
        return self.memory(seen, state if self.cfg.remember else torch.zeros_like(state))

    def forward(self, image: Tensor, eye: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Code (M, 32) and memory (M, h) after a picture."""
        state = self.remember(self.see(image, eye), state)
        return self.head(state), state


class ScanDecoder(nn.Module):
    """Decodes the terrain scan from memory: trains the memory, is not deployed."""

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.net = MLP(memory, SCAN_SIZE, (256,), "elu")

    def forward(self, state: Tensor) -> Tensor:
        """Scan (M, 325) [m] from memory (M, h)."""
        return self.net(state)


class StudentActor(TeacherActor):
    """The teacher's actor with a depth encoder's code; reads the group `sight`."""

    groups: ClassVar[tuple[str, ...]] = STUDENT_GROUPS
    observation: ClassVar[ObservationLayout] = STUDENT_OBSERVATION
    sight_size: ClassVar[int] = SCAN_LATENT + 1

    def __init__(self, *args: Any, oldest_s: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.latent_source = "history"
        self.tolerate(oldest_s)

    def tolerate(self, oldest_s: float) -> None:
        """Read the no-picture token from this age of the image on [s]; 0: never."""
        self.oldest_s = oldest_s
        self.architecture["oldest_s"] = oldest_s

    def sight(self, obs: Mapping[str, Tensor] | TensorDict) -> Tensor:
        code, age = obs["sight"][..., :SCAN_LATENT], obs["sight"][..., -1:]
        if self.oldest_s:
            fresh = age < self.oldest_s
            code, age = torch.where(fresh, code, 0.0), torch.where(fresh, age, self.oldest_s)
        return torch.cat((code, age * _AGE_SCALE), dim=-1)

    def deployed_sight(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Code and age of the newest image, as the group `sight`."""
        age = terms["features_age"] / _AGE_SCALE
        return {"sight": torch.cat((terms["features"], age), dim=1)}

    def _build_sight(self, activation: str, obs_normalization: bool) -> None:
        """The encoder is a separate network."""

    def begin_as(self, teacher: TeacherActor) -> None:
        """Take the teacher's weights; that of the age is 0."""
        own = self.state_dict()
        first = "mlp.0.weight"
        for name, value in teacher.state_dict().items():
            if name == first:
                end = PROPRIO_SIZE + SCAN_LATENT
                own[name].copy_(
                    torch.cat(
                        (value[:, :end], torch.zeros_like(value[:, :1]), value[:, end:]), dim=1
                    )
                )
            elif name in own:
                own[name].copy_(value)


class Pictures(NamedTuple):
    """Images that arrived in one step."""

    robots: Tensor
    """Whose, (M,); the number of robots where there is none."""
    image: Tensor
    """(M, 58, 87)."""
    eye: Tensor
    """The robot's state at exposure, (M, 48)."""
    first: Tensor
    """Whether it is the first of an episode, (M,) bool."""


def mirrored_too(image: Tensor, eye: Tensor) -> tuple[Tensor, Tensor]:
    """Images (M, 58, 87) and states (M, 48), followed by their mirror images."""
    other = reflections(eye.device)["eye"](eye)
    return torch.cat((image, mirror_image(image))), torch.cat((eye, other))


class Sight:
    """Codes and memories of N robots, of both streams of the encoder.

    Args:
        encoder: Runs without gradients here.
        num_envs: N.
        device: Of everything.
        unseen_s: Age that robots read before their first image [s]: that of the no-picture token.
    """

    def __init__(
        self,
        encoder: DepthEncoder,
        num_envs: int,
        device: str | torch.device,
        *,
        unseen_s: float = 0.0,
    ) -> None:
        self.encoder = encoder
        self.unseen_s = unseen_s
        self.capacity: int | None = None
        """Images encoded in a step at most, others in the next; None for all, which the host
        counts."""
        # The last place is written for images that are not there.
        self._code = torch.zeros(2, num_envs + 1, SCAN_LATENT, device=device)
        self._memory = torch.zeros(2, num_envs + 1, encoder.cfg.memory, device=device)
        self._seen = torch.zeros(num_envs + 1, dtype=torch.bool, device=device)
        self.code = self._code[:, :num_envs]
        """Newest code of the pictures, and of the mirrored ones."""
        self.memory = self._memory[:, :num_envs]
        self.seen = self._seen[:num_envs]
        """Which robots have had an image in this episode."""
        self._waits = torch.zeros_like(self.seen)
        self._most = torch.zeros((), dtype=torch.long, device=device)
        self._robots = torch.arange(num_envs, device=device)

    @classmethod
    def of(cls, env: Any, encoder: DepthEncoder, device: str | torch.device) -> Sight:
        """Of the robots of `env`, with the no-picture token that its cameras ask for."""
        vision = env.unwrapped.vision
        unseen_s = 0.0 if vision is None else vision.oldest_s
        return cls(encoder, env.num_envs, device, unseen_s=unseen_s)

    def forget(self, begins: Tensor) -> None:
        """Clear the memories of robots (N,) bool whose episode begins."""
        keep = ~begins
        self.code *= keep[None, :, None]
        self.memory *= keep[None, :, None]
        self.seen &= keep
        self._waits &= keep

    @torch.no_grad()
    def look(self, vision: Vision) -> Pictures:
        """Encode the images that arrived."""
        self._waits |= vision.arrived
        self._most.copy_(torch.maximum(self._most, self._waits.sum()))
        robots = self._next()
        there = robots.clamp(max=len(self._robots) - 1)
        pictures = Pictures(robots, vision.image[there], vision.eye[there], ~self._seen[robots])
        if len(robots):
            image, eye = mirrored_too(pictures.image, pictures.eye)
            code, memory = self.encoder(image, eye, self._memory[:, robots].flatten(0, 1))
            self._code[:, robots] = code.view(2, len(robots), -1)
            self._memory[:, robots] = memory.view(2, len(robots), -1)
            self._seen.index_fill_(0, robots, True)
        return pictures

    def fit_capacity(self) -> None:
        """On CUDA, choose the capacity by the steps since the last call; waits for the device."""
        if self._most.is_cuda:
            self.capacity = min(int(self._most) * 5 // 4 + 16, len(self._robots))
            self._most.zero_()

    def _next(self) -> Tensor:
        """Robots whose image is encoded now."""
        waits = self._waits
        if self.capacity is None:
            robots = waits.nonzero().squeeze(-1)
            waits.zero_()
            return robots
        place = waits.cumsum(0) - 1
        taken = waits & (place < self.capacity)
        place = torch.where(taken, place, self.capacity)
        robots = place.new_full((self.capacity + 1,), len(place))
        robots.scatter_(0, place, self._robots)
        waits &= ~taken
        return robots[: self.capacity]

    def group(self, age: Tensor) -> Tensor:
        """The observation group `sight`, (N, 65); `age` is (N,) [s]."""
        known = torch.where(self.seen, age, self.unseen_s)
        return torch.cat((self.code[0], self.code[1], known[:, None]), dim=-1)


class DeployedEncoder(nn.Module):
    """The encoder as a bundle runs it, one picture at a time."""

    def __init__(self, encoder: DepthEncoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).cpu().eval()

    def forward(self, image: Tensor, proprio: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Code (1, 32) and memory from `image` (1, 1, 58, 87), `proprio` (1, 48) and memory."""
        return self.encoder(image[:, 0], proprio, memory)


def teach(encoder: DepthEncoder, actor: StudentActor, teacher: TeacherActor) -> None:
    """Take over the teacher's weights and its statistics of proprioception."""
    actor.begin_as(teacher)
    normalizer: Any = teacher.proprio_normalizer
    if hasattr(normalizer, "mean"):
        index = EYE_INDEX.to(normalizer.mean.device)
        encoder.eye_mean.copy_(normalizer.mean[..., index].flatten())
        encoder.eye_std.copy_(normalizer.std[..., index].flatten() + normalizer.eps)


def student_of(payload: Mapping[str, Any], source: str) -> tuple[StudentActor, DepthEncoder]:
    """Actor and encoder in a checkpoint's payload, ready to act.

    Raises:
        CheckpointError: There are none; `source` is what the message calls the checkpoint.
    """
    with unfit(
        f"{source} holds no student that this software can build ({{reason}}); take a checkpoint "
        "of `python -m krabby_trainer train task=distill` or task=student of this version"
    ):
        algorithm = payload["algorithm"]
        encoder = DepthEncoder(EncoderCfg(**algorithm["encoder_architecture"]))
        encoder.load_state_dict(algorithm["encoder_state_dict"])
        return rebuilt(StudentActor, algorithm), encoder.eval()
