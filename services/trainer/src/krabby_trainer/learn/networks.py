"""Teacher networks: actor and critic.

The actor's body reads four things: proprioception, a code of the terrain around the robot, an
estimate of the base's velocity, and a code of what cannot be sensed (friction, masses, gains,
delay). The last comes from one of two encoders that are trained to agree: `privileged` reads the
true values, `history` the last ten frames of proprioception. Rollouts use the first, every k-th
iteration and everything outside training the second, so no true value is ever needed to act.
The velocity estimate and the history encoder learn from targets, never from the policy's loss.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeVar

import msgspec
import torch
from krabby.policy.bundle import LATENT_SIZE
from krabby.policy.observation import ObservationLayout, standard_term
from rsl_rl.models import MLPModel
from rsl_rl.modules import MLP, EmpiricalNormalization
from tensordict import TensorDict
from torch import Tensor, nn

from krabby_trainer.errors import ConfigError, ExportError, unfit
from krabby_trainer.learn.config import OBS_GROUPS
from krabby_trainer.task.observations import (
    GROUP_SIZES,
    HISTORY,
    PROPRIO,
    PROPRIO_SIZE,
    SCAN_SIZE,
)

__all__ = [
    "ACTOR_GROUPS",
    "BUNDLE_OBSERVATION",
    "CRITIC_GROUPS",
    "SIZES",
    "DeployedActor",
    "HistoryEncoder",
    "LatentSource",
    "TeacherActor",
    "TeacherCritic",
    "actor_of",
    "bundle_observation",
    "check_groups",
    "example_observations",
]

A = TypeVar("A", bound="TeacherActor")
LatentSource = Literal["privileged", "history"]

SCAN_LATENT: Final = LATENT_SIZE
"""Numbers in the code of the terrain, the teacher's as the student's."""
SIZES: Final[Mapping[str, int]] = {**GROUP_SIZES, "sight": 2 * SCAN_LATENT + 1}
"""Of the environment's groups, and of the student's `sight`: the depth encoder's code, its code of
the mirrored images, and the age of the newest image [s]."""
LATENT: Final = 20
"""Numbers in the code of what cannot be sensed."""
_PRIVILEGED_SIZE: Final = GROUP_SIZES["privileged"]
_VELOCITY_SIZE: Final = GROUP_SIZES["velocity"]

ACTOR_GROUPS: Final = tuple(OBS_GROUPS["actor"])
CRITIC_GROUPS: Final = tuple(OBS_GROUPS["critic"])

BUNDLE_OBSERVATION: Final = ObservationLayout(
    (
        *(msgspec.structs.replace(term, history=HISTORY) for term in PROPRIO.terms),
        standard_term("height_scan"),
    )
)
"""The observation of an exported teacher: each term with its history, then the height scan."""

DISTRIBUTION: Final[Mapping[str, Any]] = {
    "class_name": "GaussianDistribution",
    "init_std": 0.8,
    "std_range": (0.15, 1.2),
    "std_type": "log",
}
"""Exploration: a standard deviation learned per joint within a range."""


class HistoryEncoder(nn.Module):
    """Code of what cannot be sensed, from ten frames of proprioception."""

    def __init__(self, frame_size: int = PROPRIO_SIZE, frames: int = HISTORY) -> None:
        super().__init__()
        self.per_frame = nn.Sequential(nn.Linear(frame_size, 30), nn.ELU())
        self.over_time = nn.Sequential(
            nn.Conv1d(30, 20, kernel_size=4, stride=2),
            nn.ELU(),
            nn.Conv1d(20, 10, kernel_size=2, stride=1),
            nn.ELU(),
        )
        steps = (frames - 4) // 2 + 1 - 1
        self.head = nn.Sequential(nn.Linear(10 * steps, LATENT), nn.ELU())

    def forward(self, frames: Tensor) -> Tensor:
        """Code (N, 20) of `frames` (N, 10, 69), oldest first."""
        values = self.per_frame(frames)
        for layer in self.over_time:
            values = _convolved(layer, values) if isinstance(layer, nn.Conv1d) else layer(values)
        return self.head(values.transpose(1, 2).flatten(1))


def _convolved(layer: nn.Conv1d, values: Tensor) -> Tensor:
    """`layer` along the steps of `values` (N, steps, channels), channels last as they are.

    As one matrix product: for 49,152 rows cuDNN takes 2.5 ms for the gradient of these weights on
    an H200, and its result differs from call to call.
    """
    size, stride = layer.kernel_size[0], layer.stride[0]
    starts = range(0, values.shape[1] - size + 1, stride)
    windows = torch.stack([values[:, i : i + size].flatten(1) for i in starts], dim=1)
    return nn.functional.linear(windows, layer.weight.transpose(1, 2).flatten(1), layer.bias)


class TeacherActor(MLPModel):
    """Actor with a terrain encoder, a velocity estimator and two encoders of the unsensed."""

    groups: ClassVar[tuple[str, ...]] = ACTOR_GROUPS
    """What it reads."""
    observation: ClassVar[ObservationLayout] = BUNDLE_OBSERVATION
    """What it reads in a bundle."""
    sight_size: ClassVar[int] = SCAN_LATENT
    """Numbers in which the body learns of the terrain."""

    def __init__(
        self,
        obs: TensorDict,
        obs_groups: Mapping[str, Sequence[str]],
        obs_set: str,
        output_dim: int,
        hidden_dims: Sequence[int] = (512, 256, 128),
        activation: str = "elu",
        obs_normalization: bool = True,
        distribution_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        check_groups(obs, obs_groups, obs_set, self.groups)
        distribution = dict(DISTRIBUTION if distribution_cfg is None else distribution_cfg)
        super().__init__(
            obs,
            {obs_set: list(obs_groups[obs_set])},
            obs_set,
            output_dim,
            list(hidden_dims),
            activation,
            obs_normalization=False,
            distribution_cfg=distribution,
        )
        self.architecture: dict[str, Any] = {
            "output_dim": output_dim,
            "hidden_dims": list(hidden_dims),
            "activation": activation,
            "obs_normalization": obs_normalization,
            "distribution_cfg": _plain(distribution),
        }
        """Arguments that rebuild this network, plain values."""
        self.obs_normalization = obs_normalization
        self.latent_source: LatentSource = "privileged"
        """Which encoder the body listens to."""
        self.proprio_normalizer = _normalizer(PROPRIO_SIZE, obs_normalization)
        self.privileged_normalizer = _normalizer(_PRIVILEGED_SIZE, obs_normalization)
        self._build_sight(activation, obs_normalization)
        self.privileged_encoder = MLP(_PRIVILEGED_SIZE, LATENT, (64,), activation, activation)
        self.history_encoder = HistoryEncoder()
        self.estimator = MLP(GROUP_SIZES["history"], _VELOCITY_SIZE, (128, 64), activation)
        _start_small(self.mlp)

    def get_latent(
        self,
        obs: Mapping[str, Tensor] | TensorDict,
        masks: Tensor | None = None,
        hidden_state: object = None,
    ) -> Tensor:
        """What the body reads: proprioception, terrain code, velocity, code of the unsensed."""
        frames = self.frames(obs)
        with torch.no_grad():
            velocity = self.velocity(frames)
        if self.latent_source == "privileged":
            latent = self.privileged_latent(obs)
        else:
            with torch.no_grad():
                latent = self.history_encoder(frames)
        return self.joined(obs, velocity, latent)

    def joined(
        self, obs: Mapping[str, Tensor] | TensorDict, velocity: Tensor, latent: Tensor
    ) -> Tensor:
        """What the body reads, with estimate (N, 3) and code of the unsensed (N, 20) computed."""
        proprio = self.proprio_normalizer(obs["proprio"])
        return torch.cat((proprio, self.sight(obs), velocity, latent), dim=-1)

    def sight(self, obs: Mapping[str, Tensor] | TensorDict) -> Tensor:
        """What the body learns of the terrain, (N, `sight_size`)."""
        return self.scan_encoder(self.scan_normalizer(obs["scan"]))

    def frames(self, obs: Mapping[str, Tensor] | TensorDict) -> Tensor:
        return self.proprio_normalizer(obs["history"].view(-1, HISTORY, PROPRIO_SIZE))

    def velocity(self, frames: Tensor) -> Tensor:
        """Estimate of the base's linear velocity in its frame [m/s], (N, 3), from `frames`."""
        return self.estimator(frames.flatten(1))

    def privileged_latent(self, obs: Mapping[str, Tensor] | TensorDict) -> Tensor:
        """Code (N, 20) of the true values."""
        return self.privileged_encoder(self.privileged_normalizer(obs["privileged"]))

    @property
    def std(self) -> Tensor:
        """Standard deviation of each action, (18,); learned."""
        distribution: Any = self.distribution
        if distribution.std_type == "log":
            return distribution.log_std_param.clamp(*distribution.log_std_range).exp()
        return distribution.std_param.clamp(*distribution.std_range)

    @torch.no_grad()
    def clamp_std(self) -> None:
        """Bring the learned deviation back into its range.

        rsl_rl clamps what it uses, whose gradient is zero beyond the range: a parameter that left
        the range would never return.
        """
        distribution: Any = self.distribution
        if distribution.std_type == "log":
            distribution.log_std_param.clamp_(*distribution.log_std_range)
        else:
            distribution.std_param.clamp_(*distribution.std_range)

    def update_normalization(self, obs: TensorDict) -> None:
        _update(self.proprio_normalizer, obs["proprio"])
        _update(self.privileged_normalizer, obs["privileged"])
        if "scan" in self.groups:
            _update(self.scan_normalizer, obs["scan"])

    def as_onnx(self, verbose: bool = False) -> nn.Module:
        return DeployedActor(self)

    def as_jit(self) -> nn.Module:
        """Refused: bundles hold ONNX."""
        raise ExportError(
            "policies are exported as ONNX alone; use `python -m krabby_trainer export`"
        )

    def deployed_sight(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a bundle's observation has of the terrain, as observation groups."""
        return {"scan": terms["height_scan"]}

    def _build_sight(self, activation: str, obs_normalization: bool) -> None:
        self.scan_normalizer = _normalizer(SCAN_SIZE, obs_normalization)
        self.scan_encoder = MLP(SCAN_SIZE, SCAN_LATENT, (128, 64), activation, "tanh")

    def _get_latent_dim(self) -> int:
        return PROPRIO_SIZE + self.sight_size + _VELOCITY_SIZE + LATENT


class DeployedActor(nn.Module):
    """An actor as a bundle runs it: one vector in, actions out, nothing privileged.

    Args:
        actor: Is copied.
    """

    def __init__(self, actor: TeacherActor) -> None:
        super().__init__()
        self.actor = copy.deepcopy(actor).cpu().eval()
        self.actor.latent_source = "history"

    def forward(self, obs: Tensor) -> Tensor:
        """Actions (1, 18) for `obs` (1, k), laid out as the actor's `observation`."""
        where = self.actor.observation.slices
        frames = torch.cat(
            [obs[:, where[term.name]].reshape(-1, HISTORY, term.size) for term in PROPRIO.terms],
            dim=2,
        )
        groups = {"proprio": frames[:, -1], "history": frames.flatten(1)}
        groups |= self.actor.deployed_sight({name: obs[:, part] for name, part in where.items()})
        return self.actor.mlp(self.actor.get_latent(groups))


def bundle_observation(history: Tensor, scan: Tensor) -> Tensor:
    """Observation groups `history` (N, 690) and `scan` (N, 325) as an exported teacher reads them.

    Returns:
        (N, 1015): `history` is sorted by frame, a bundle's observation by term.
    """
    frames = history.reshape(-1, HISTORY, PROPRIO_SIZE)
    terms = [frames[:, :, where].flatten(1) for where in PROPRIO.slices.values()]
    return torch.cat((*terms, scan), dim=1)


class TeacherCritic(MLPModel):
    """Critic with its own terrain encoder and privileged groups; arguments as the actor's."""

    def __init__(
        self,
        obs: TensorDict,
        obs_groups: Mapping[str, Sequence[str]],
        obs_set: str,
        output_dim: int,
        hidden_dims: Sequence[int] = (512, 256, 128),
        activation: str = "elu",
        obs_normalization: bool = True,
        distribution_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        check_groups(obs, obs_groups, obs_set, CRITIC_GROUPS)
        if distribution_cfg is not None:
            raise ConfigError("the critic has no distribution; drop critic.distribution_cfg")
        super().__init__(
            obs,
            {obs_set: list(obs_groups[obs_set])},
            obs_set,
            output_dim,
            list(hidden_dims),
            activation,
            obs_normalization=False,
        )
        self.obs_normalization = obs_normalization
        self.scan_normalizer = _normalizer(SCAN_SIZE, obs_normalization)
        self.scan_encoder = MLP(SCAN_SIZE, SCAN_LATENT, (128, 64), activation, "tanh")
        self.rest_normalizer = _normalizer(_CRITIC_REST_SIZE, obs_normalization)

    def get_latent(
        self, obs: TensorDict, masks: Tensor | None = None, hidden_state: object = None
    ) -> Tensor:
        """What the body reads: terrain code, then all other groups."""
        scan = self.scan_encoder(self.scan_normalizer(obs["scan"]))
        return torch.cat((scan, self.rest_normalizer(_rest(obs))), dim=-1)

    def update_normalization(self, obs: TensorDict) -> None:
        _update(self.scan_normalizer, obs["scan"])
        _update(self.rest_normalizer, _rest(obs))

    def _get_latent_dim(self) -> int:
        return SCAN_LATENT + _CRITIC_REST_SIZE


_CRITIC_REST: Final = tuple(group for group in CRITIC_GROUPS if group != "scan")
_CRITIC_REST_SIZE: Final = sum(GROUP_SIZES[group] for group in _CRITIC_REST)


def _rest(obs: TensorDict) -> Tensor:
    return torch.cat([obs[group] for group in _CRITIC_REST], dim=-1)


_NORMALISER_EPS: Final = 0.1
"""Added to the standard deviation. Groups are scaled to about one, and a number that hardly varied
in training (a sideways command) must not be amplified a hundredfold."""


class Normalizer(EmpiricalNormalization):
    """rsl_rl's, whose statistics stay in their tensors and need no host: recordings read them."""

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in values (N, k), as many in every process."""
        if not self.training:
            return
        var, mean = torch.var_mean(x, dim=0, correction=0, keepdim=True)
        count = len(x)
        if torch.distributed.is_initialized():
            world = torch.distributed.get_world_size()
            moments = torch.stack((mean, var)).double()
            moments[1] += moments[0].square()
            moments /= world
            torch.distributed.all_reduce(moments)
            mean, var = moments[0].float(), (moments[1] - moments[0].square()).float()
            count *= world
        self.count += count
        rate = count / self.count
        delta = mean - self._mean
        self._mean += rate * delta
        self._var += rate * (var - self._var + delta * (mean - self._mean))
        torch.sqrt(self._var, out=self._std)


def _normalizer(size: int, enabled: bool) -> nn.Module:
    return Normalizer(size, eps=_NORMALISER_EPS) if enabled else nn.Identity()


def _update(normalizer: nn.Module, values: Tensor) -> None:
    if isinstance(normalizer, Normalizer):
        normalizer.update(values)


def _start_small(body: nn.Sequential) -> None:
    """Small first actions: an untrained robot stands, apart from exploration noise."""
    last: Any = body[-1]
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.zero_()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def check_groups(
    obs: TensorDict,
    obs_groups: Mapping[str, Sequence[str]],
    obs_set: str,
    wanted: Sequence[str],
) -> None:
    """Refuse observations that a network does not read.

    Raises:
        ConfigError: Other groups, a missing one, or one of another size.
    """
    given = obs_groups.get(obs_set, ())
    if set(given) != set(wanted):
        raise ConfigError(
            f"obs_groups.{obs_set} is {list(given)}; this network reads {list(wanted)}"
        )
    for group in wanted:
        if group not in obs.keys():  # noqa: SIM118 - a TensorDict iterates over its batch
            raise ConfigError(f"the environment gives no observation group {group!r}")
        if obs[group].shape[1:] != (SIZES[group],):
            raise ConfigError(
                f"observation group {group!r} has shape {tuple(obs[group].shape)}; this network "
                f"reads (N, {SIZES[group]})"
            )


def example_observations(num_envs: int = 1, device: str = "cpu") -> TensorDict:
    """Zeros for every observation group: enough to build networks without an environment."""
    groups = {name: torch.zeros(num_envs, size, device=device) for name, size in SIZES.items()}
    return TensorDict(groups, batch_size=[num_envs], device=device)


def actor_of(payload: Mapping[str, Any], source: str) -> TeacherActor:
    """The teacher in a checkpoint's payload, ready to act: evaluation mode, code from the history.

    Raises:
        CheckpointError: There is none; `source` is what the message calls the checkpoint.
    """
    with unfit(
        f"{source} holds no teacher that this software can build ({{reason}}); take a checkpoint "
        "of `python -m krabby_trainer train task=teacher` of this version"
    ):
        return rebuilt(TeacherActor, payload["algorithm"])


def rebuilt(cls: type[A], algorithm: Mapping[str, Any]) -> A:
    """An actor from the `algorithm` part of a checkpoint, ready to act."""
    groups = {"actor": list(cls.groups)}
    architecture = algorithm["actor_architecture"]
    actor = cls(example_observations(), groups, "actor", **architecture)
    actor.load_state_dict(algorithm["actor_state_dict"])
    actor.latent_source = "history"
    return actor.eval()
