"""Student networks: what a robot can run. Depth images and proprioception, nothing else.

Two networks work at two rates. `DepthEncoder` makes a code of each picture that arrives and of what
it remembers; it runs where the camera is. `StudentActor` is the teacher's actor with that code in
the place of the teacher's code of the terrain scan, so it can begin with the teacher's weights. It
is told how old the picture is and lives with a late one.

Left and right are kept alike without asking the encoder to be symmetrical: a second stream of it
sees every picture mirrored, so what the actor would see in the mirror is known, not guessed.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import msgspec
import torch
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.policy.observation import ObservationLayout, standard_term
from rsl_rl.modules import MLP
from tensordict import TensorDict
from torch import nn

from krabby_trainer.errors import CheckpointError
from krabby_trainer.learn.networks import (
    ACTOR_GROUPS,
    SCAN_LATENT,
    TeacherActor,
    example_observations,
)
from krabby_trainer.learn.symmetry import reflections
from krabby_trainer.run.config import EncoderCfg
from krabby_trainer.task.observations import (
    EYE_INDEX,
    EYE_SIZE,
    HISTORY,
    PROPRIO,
    PROPRIO_SIZE,
    SCAN_SIZE,
)
from krabby_trainer.vision.depth import mirror_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from krabby.robot.description import CameraModel
    from torch import Tensor

__all__ = [
    "STUDENT_GROUPS",
    "STUDENT_OBSERVATION",
    "DeployedEncoder",
    "DeployedStudent",
    "DepthEncoder",
    "Pictures",
    "ScanDecoder",
    "Sight",
    "StudentActor",
    "StudentPolicy",
    "Vision",
    "asked_to_stand",
    "is_student",
    "mirrored_too",
    "picture_rate_hz",
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


class Vision(Protocol):
    """The cameras of N robots, as the environment steps them; tensors are rewritten every step."""

    arrived: Tensor
    """Whose newest picture came in this step, (N,), bool."""
    image: Tensor
    """The newest picture that came, (N, 58, 87)."""
    eye: Tensor
    """`EYE` of the moment it was taken, (N, 48)."""
    age: Tensor
    """Time since that moment [s], (N,)."""


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
        """What is left of pictures (M, 58, 87) and poses (M, 48) before memory, (M, k)."""
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
    """The terrain scan as memory has it: trains the memory, is not deployed."""

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.net = MLP(memory, SCAN_SIZE, (256,), "elu")

    def forward(self, state: Tensor) -> Tensor:
        """Scan (M, 325) [m] from memory (M, h)."""
        return self.net(state)


class StudentActor(TeacherActor):
    """The teacher's actor that sees by a depth encoder; reads the group `sight`."""

    groups: ClassVar[tuple[str, ...]] = STUDENT_GROUPS
    sight_size: ClassVar[int] = SCAN_LATENT + 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.latent_source = "history"

    def sight(self, obs: Mapping[str, Tensor] | TensorDict) -> Tensor:
        """Code and age of the newest picture, (N, 33)."""
        seen = obs["sight"]
        return torch.cat((seen[..., :SCAN_LATENT], seen[..., -1:] * _AGE_SCALE), dim=-1)

    def _build_sight(self, activation: str, obs_normalization: bool) -> None:
        """The encoder is a network of its own."""

    def begin_as(self, teacher: TeacherActor) -> None:
        """Take the teacher's weights; the age counts for nothing yet."""
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


class Pictures:
    """Pictures that came in one step: of which robots, in both streams."""

    def __init__(self, vision: Vision) -> None:
        self.robots = vision.arrived.nonzero().squeeze(-1)
        """Whose, (M,)."""
        self.image = vision.image[self.robots]
        self.eye = vision.eye[self.robots]

    def both(self) -> tuple[Tensor, Tensor]:
        """Pictures and poses followed by their mirror images, (2M, ...)."""
        return mirrored_too(self.image, self.eye)


def mirrored_too(image: Tensor, eye: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (M, 58, 87) and poses (M, 48), followed by what they are in the mirror."""
    other = reflections(eye.device)["eye"](eye)
    return torch.cat((image, mirror_image(image))), torch.cat((eye, other))


class Sight:
    """What N robots have seen: codes and memories of both streams, from picture to picture.

    Args:
        encoder: Runs without gradients here.
        num_envs: N.
        device: Of everything.
    """

    def __init__(self, encoder: DepthEncoder, num_envs: int, device: str | torch.device) -> None:
        self.encoder = encoder
        memory = encoder.cfg.memory
        self.code = torch.zeros(2, num_envs, SCAN_LATENT, device=device)
        """Newest code of the pictures, and of the mirrored ones."""
        self.memory = torch.zeros(2, num_envs, memory, device=device)
        self.seen = torch.zeros(num_envs, dtype=torch.bool, device=device)
        """Who has seen anything in this episode."""

    def forget(self, begins: Tensor) -> None:
        """Robots (N,) bool whose episode begins have seen nothing."""
        keep = ~begins
        self.code *= keep[None, :, None]
        self.memory *= keep[None, :, None]
        self.seen &= keep

    @torch.no_grad()
    def look(self, vision: Vision) -> Pictures:
        """Take in the pictures that came."""
        pictures = Pictures(vision)
        robots = pictures.robots
        if len(robots):
            image, eye = pictures.both()
            code, memory = self.encoder(image, eye, self.memory[:, robots].flatten(0, 1))
            self.code[:, robots] = code.view(2, len(robots), -1)
            self.memory[:, robots] = memory.view(2, len(robots), -1)
            self.seen[robots] = True
        return pictures

    def group(self, age: Tensor) -> Tensor:
        """The observation group `sight`, (N, 65); `age` is (N,) [s]."""
        return torch.cat((self.code[0], self.code[1], (age * self.seen)[:, None]), dim=-1)


class StudentPolicy:
    """A checkpoint's student for N robots; call it with observation groups.

    Besides the groups of a teacher's policy it wants `image` (N, 58, 87), `eye` (N, 48), `arrived`
    and `begins` (N, 1) bool, and `age` (N, 1) [s].
    """

    sees = True

    def __init__(
        self, actor: StudentActor, encoder: DepthEncoder, device: str, *, rate_hz: float = math.inf
    ) -> None:
        self.rate_hz = rate_hz
        """The most pictures a second that it looks at."""
        self.actor = actor.to(device).eval()
        self.encoder = encoder.to(device).eval()
        self._device = device
        self._sight: Sight | None = None

    def __call__(self, obs: TensorDict) -> Tensor:
        """Deterministic actions (N, 18)."""
        with torch.inference_mode():
            if self._sight is None:
                self._sight = Sight(self.encoder, obs.batch_size[0], self._device)
            age = obs["age"][:, 0]
            self._sight.forget(obs["begins"][:, 0])
            self._sight.look(_Given(obs["arrived"][:, 0], obs["image"], obs["eye"], age))
            groups: dict[str, Any] = dict(obs.items())
            groups["sight"] = self._sight.group(age)
            return self.actor.mlp(self.actor.get_latent(groups))


@dataclass
class _Given:
    arrived: Tensor
    image: Tensor
    eye: Tensor
    age: Tensor


class DeployedEncoder(nn.Module):
    """The encoder as a bundle runs it, one picture at a time."""

    def __init__(self, encoder: DepthEncoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).cpu().eval()

    def forward(self, image: Tensor, proprio: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Code (1, 32) and memory from `image` (1, 1, 58, 87), `proprio` (1, 48) and memory."""
        return self.encoder(image[:, 0], proprio, memory)


class DeployedStudent(nn.Module):
    """The actor as a bundle runs it: one vector in, actions out."""

    def __init__(self, actor: StudentActor) -> None:
        super().__init__()
        self.actor = copy.deepcopy(actor).cpu().eval()

    def forward(self, obs: Tensor) -> Tensor:
        """Actions (1, 18) for `obs` (1, 723), laid out as `STUDENT_OBSERVATION`."""
        where = STUDENT_OBSERVATION.slices
        frames = torch.cat(
            [obs[:, where[term.name]].reshape(-1, HISTORY, term.size) for term in PROPRIO.terms],
            dim=2,
        )
        age = obs[:, where["features_age"]] / _AGE_SCALE
        groups = {
            "proprio": frames[:, -1],
            "sight": torch.cat((obs[:, where["features"]], age), dim=1),
            "history": frames.flatten(1),
        }
        return self.actor.mlp(self.actor.get_latent(groups))


def teach(encoder: DepthEncoder, actor: StudentActor, teacher: TeacherActor) -> None:
    """Begin as the teacher, as far as that goes."""
    actor.begin_as(teacher)
    normalizer: Any = teacher.proprio_normalizer
    if hasattr(normalizer, "mean"):
        index = EYE_INDEX.to(normalizer.mean.device)
        encoder.eye_mean.copy_(normalizer.mean[..., index].flatten())
        encoder.eye_std.copy_(normalizer.std[..., index].flatten() + normalizer.eps)


def student_of(payload: Mapping[str, Any], source: str) -> tuple[StudentActor, DepthEncoder]:
    """Actor and encoder in what `checkpoints.load` gave; `source` is what errors call it."""
    try:
        algorithm = payload["algorithm"]
        encoder = DepthEncoder(EncoderCfg(**algorithm["encoder_architecture"]))
        encoder.load_state_dict(algorithm["encoder_state_dict"])
        actor = StudentActor(
            example_observations(),
            {"actor": list(STUDENT_GROUPS)},
            "actor",
            **algorithm["actor_architecture"],
        )
        actor.load_state_dict(algorithm["actor_state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{source} holds no student that this software can build ({reason}); take a "
            "checkpoint of `python -m krabby_trainer train task=distill` or task=student of this "
            "version"
        ) from error
    return actor.eval(), encoder.eval()


def picture_rate_hz(config: Mapping[str, Any], camera: CameraModel) -> float:
    """Pictures a second for a student trained as `config` says: the highest rate it knows."""
    errors = config.get("env", {}).get("camera", {}).get("errors", {})
    return min(camera.rate_hz, max(errors.get("rate_hz", [camera.rate_hz])))


def asked_to_stand(config: Mapping[str, Any]) -> bool:
    """Whether training asked for no motion now and then; who was never asked walks on."""
    return config.get("env", {}).get("command", {}).get("pause_share", 0.0) > 0.0


def is_student(payload: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds a student."""
    return "encoder_state_dict" in (payload["algorithm"] or {})
