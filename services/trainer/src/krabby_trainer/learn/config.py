"""Configuration of networks and algorithms: plain values, defaults in the code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from msgspec import Meta

from krabby_trainer.fields import Count, NonNegative, Positive, Share, check

__all__ = [
    "OBS_GROUPS",
    "ActorCfg",
    "AlgorithmCfg",
    "CriticCfg",
    "DistillationCfg",
    "EncoderCfg",
    "FinetuningCfg",
    "SymmetryCfg",
]

OBS_GROUPS: Final = {
    "actor": ["proprio", "scan", "velocity", "privileged", "history"],
    "critic": ["proprio", "scan", "velocity", "privileged", "critic"],
}
"""Which of the environment's observation groups each network reads."""
_LOWEST_RATE: Final = 1e-5
_HIGHEST_RATE: Final = 1e-2
"""Bounds of rsl_rl's own adaptive schedule, which ours lie within."""

Dims = Annotated[list[Count], Meta(min_length=1)]
"""Sizes of hidden layers."""
# fmt: off
Activation = Literal[
    "elu", "selu", "relu", "crelu", "lrelu", "tanh", "sigmoid", "softplus", "gelu", "swish", "mish",
    "identity",
]
# fmt: on
"""As rsl-rl names them."""


@dataclass
class ActorCfg:
    """The teacher's policy network."""

    hidden_dims: Dims = field(default_factory=lambda: [512, 256, 128])
    activation: Activation = "elu"
    obs_normalization: bool = True
    init_std: float = 0.8
    """Standard deviation of the actions at the start of training."""
    min_std: float = 0.15
    max_std: float = 1.2
    """Exploration stays between the two."""

    def __post_init__(self) -> None:
        check(
            0.0 < self.min_std <= self.init_std <= self.max_std,
            "init_std",
            self.init_std,
            f"min_std to max_std, {self.min_std} to {self.max_std}, all above 0",
        )


@dataclass
class CriticCfg:
    """The value network, which reads privileged observations."""

    hidden_dims: Dims = field(default_factory=lambda: [512, 256, 128])
    activation: Activation = "elu"
    obs_normalization: bool = True


@dataclass
class SymmetryCfg:
    """Two ways to use the left-right symmetry."""

    use_data_augmentation: bool = False
    """Learn from every step's mirror image too; twice the work."""
    use_mirror_loss: bool = True
    """Penalise actions that differ from those in the mirror."""
    mirror_loss_coeff: NonNegative = 0.1


@dataclass
class AlgorithmCfg:
    """PPO, and what is fitted beside it."""

    num_learning_epochs: Count = 4
    num_mini_batches: Count = 4
    clip_param: Positive = 0.2
    gamma: Annotated[float, Meta(gt=0, le=1)] = 0.995
    lam: Share = 0.95
    value_loss_coef: NonNegative = 1.0
    use_clipped_value_loss: bool = True
    entropy_coef: NonNegative = 0.002
    learning_rate: Positive = 1e-3
    """At the start."""
    learning_rate_min: Positive = 1e-5
    learning_rate_max: Positive = 1e-3
    """The adaptive schedule stays between the two."""
    schedule: Literal["adaptive", "fixed"] = "adaptive"
    """`adaptive` follows the KL divergence, `fixed` stays."""
    desired_kl: Positive = 0.01
    max_grad_norm: Positive = 1.0
    regularisation_coef: NonNegative = 0.1
    """Weight of the privileged code's distance from the history's; it grows from zero ..."""
    regularisation_start: int = 500
    """... from this iteration ..."""
    regularisation_end: int = 1500
    """... to this one."""
    adaptation_interval: int = 20
    """Every how many iterations robots act on the history's code."""
    adaptation_epochs: Annotated[int, Meta(ge=0)] = 5
    """Passes over such a rollout to fit the history encoder."""
    adaptation_learning_rate: Positive = 1e-3
    """Of the history encoder."""
    history_mini_batches: Annotated[int, Meta(ge=0)] = 2
    """Minibatches of every other rollout to keep it fitted."""
    estimator_mini_batches: Annotated[int, Meta(ge=0)] = 4
    """Minibatches of every rollout to fit the velocity estimator."""
    estimator_learning_rate: Positive = 1e-3
    symmetry: SymmetryCfg = field(default_factory=SymmetryCfg)

    def __post_init__(self) -> None:
        low, high = self.learning_rate_min, self.learning_rate_max
        bounds = f"{_LOWEST_RATE:g} <= learning_rate_min <= learning_rate_max <= {_HIGHEST_RATE:g}"
        check(_LOWEST_RATE <= low <= high, "learning_rate_min", low, bounds)
        check(high <= _HIGHEST_RATE, "learning_rate_max", high, bounds)
        rate = self.learning_rate
        check(
            low <= rate <= high,
            "learning_rate",
            rate,
            f"learning_rate_min to learning_rate_max, {low:g} to {high:g}",
        )
        end = self.regularisation_end
        after = f"at least regularisation_start, {self.regularisation_start}, which is at least 0"
        check(0 <= self.regularisation_start <= end, "regularisation_end", end, after)
        interval = self.adaptation_interval
        check(interval >= 1, "adaptation_interval", interval, "1 (always) or more")


@dataclass
class EncoderCfg:
    channels: Annotated[list[Count], Meta(min_length=3, max_length=3)] = field(
        default_factory=lambda: [16, 32, 48]
    )
    """Of the three convolutions."""
    picture: Count = 96
    """Size of an image's code before the memory."""
    memory: Count = 160
    """Size of the recurrent state."""
    remember: bool = True
    """False clears the memory before every image, for ablations."""


@dataclass
class DistillationCfg:
    """How the student learns from the teacher."""

    num_learning_epochs: Count = 2
    """Passes over the newest rollout."""
    replay_epochs: Annotated[int, Meta(ge=0)] = 0
    """Passes over older rollouts, in minibatches of one of them; 0 keeps none."""
    replay_rollouts: Count = 8
    """How many older ones are kept for that; they are not in checkpoints."""
    num_mini_batches: Count = 16
    """Parts of the robots per pass; memory is learned along a whole rollout of each."""
    learning_rate: Positive = 1e-3
    """At the start ..."""
    learning_rate_end: Positive = 1e-4
    """... and at the last iteration; a cosine between the two."""
    max_grad_norm: Positive = 1.0
    code_coef: NonNegative = 0.5
    """Weight of the code's distance from the teacher's."""
    scan_coef: NonNegative = 0.5
    """Weight of the decoded scan's distance from the true one."""
    teacher_iterations: Annotated[int, Meta(ge=0)] = 8
    """Iterations over which the share of robots that the teacher controls falls from 1 to 0."""
    action_noise: NonNegative = 0.1
    """Standard deviation of noise on the student's actions, for more varied states."""

    def __post_init__(self) -> None:
        end, start = self.learning_rate_end, self.learning_rate
        check(
            0.0 < end <= start,
            "learning_rate_end",
            end,
            f"above 0 and at most learning_rate, {start}",
        )


@dataclass
class FinetuningCfg:
    """What fine-tuning learns beside the actor, and what it begins with."""

    learn_encoder: bool = False
    """Depth encoder and memory learn from PPO's loss too, along the images of each rollout; a
    minibatch is then a share of the robots with all their steps."""
    window: Annotated[int, Meta(ge=0)] = 0
    """Gradients go back along the memory within windows of this many control steps; 0: along the
    whole rollout of `agent.num_steps_per_env`."""
    critic_iterations: Annotated[int, Meta(ge=0)] = 0
    """Iterations at the start in which only the critic learns."""
    imitation_coef: NonNegative = 0.0
    """Weight of the divergence from the teacher's actions; after those iterations it falls ..."""
    imitation_iterations: Count = 300
    """... to 0 in so many."""

    def __post_init__(self) -> None:
        whole = self.learn_encoder or self.window == 0
        check(whole, "window", self.window, "0, since learn_encoder=false learns no memory")

    def imitation(self, iteration: int) -> float:
        """Weight of the divergence from the teacher in an iteration."""
        done = (iteration - self.critic_iterations) / self.imitation_iterations
        return self.imitation_coef * min(max(1.0 - done, 0.0), 1.0)
