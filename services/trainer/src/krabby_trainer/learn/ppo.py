"""PPO with what the teacher needs besides: adaptation, a velocity estimator, symmetry, bounds.

A subclass of rsl_rl's PPO that keeps its `update`. Hooks carry the additions:

- rsl_rl lets a symmetry extension widen each minibatch and add a term to its loss. `_Extension`
  stands in that place; besides the mirror image it adds the pull of the privileged code towards
  the history's, which has to be in the policy's loss for its weight to mean anything.
- After `update` the storage still holds the rollout, since clearing it only rewinds its cursor.
  The estimator and the history encoder are fitted to it then, with their own optimisers.
- The learning rate is a property with bounds, whatever the schedule of rsl_rl asks for.
- Of several processes, each minibatch sends gradients and divergence in one message; every process
  then draws the same conclusion about the learning rate.

Every `adaptation_interval`-th rollout acts on the history's code, and the update after it does too,
so the body learns to live with what the history encoder says, on its own data.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, Final

import torch
from rsl_rl.algorithms import PPO
from rsl_rl.utils import resolve_callable
from torch import nn

from krabby_trainer.errors import CheckpointError, ConfigError
from krabby_trainer.learn.sharing import average_gradients

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rsl_rl.env import VecEnv
    from rsl_rl.storage import RolloutStorage
    from tensordict import TensorDict
    from torch import Tensor

    from krabby_trainer.learn.networks import TeacherActor, TeacherCritic

__all__ = ["ParkourPPO"]

_LOWEST_RATE: Final = 1e-5
_HIGHEST_RATE: Final = 1e-2
"""Bounds of rsl_rl's own schedule, which ours lie within."""


class _Extension:
    """What is done to each minibatch; stands where rsl_rl expects its Symmetry."""

    use_mirror_loss = True
    mirror_loss_coeff = 1.0

    def __init__(self, actor: TeacherActor, symmetry_cfg: dict[str, Any] | None) -> None:
        cfg = dict(symmetry_cfg or {})
        self.actor = actor
        self.pull = 0.0
        """Weight of the privileged code's pull towards the history's, now."""
        self._env = cfg.get("env")
        self._mirror: Callable[..., Any] | None = (
            resolve_callable(
                cfg.get("data_augmentation_func", "krabby_trainer.learn.symmetry:mirror")
            )
            if cfg
            else None
        )
        self.use_data_augmentation = bool(cfg.get("use_data_augmentation", False))
        self._mirror_weight = (
            float(cfg.get("mirror_loss_coeff", 0.0)) if cfg.get("use_mirror_loss") else 0.0
        )
        self.keeps_divergence = False
        """Whether `divergence` is asked for."""
        self.divergence: Tensor | None = None
        """Mean KL divergence of the last minibatch's policy from the rollout's, ()."""
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    def augment_batch(self, batch: RolloutStorage.Batch, original_batch_size: int) -> None:
        """Append the mirror image."""
        if not self.use_data_augmentation or self._mirror is None:
            return
        batch.observations, batch.actions = self._mirror(
            env=self._env, obs=batch.observations, actions=batch.actions
        )
        for name in ("old_actions_log_prob", "values", "advantages", "returns"):
            setattr(batch, name, getattr(batch, name).repeat(2, 1))

    def compute_loss(
        self, actor: nn.Module, batch: RolloutStorage.Batch, original_batch_size: int
    ) -> Tensor:
        """What is added to the loss of a minibatch whose actions were just computed."""
        if self.keeps_divergence:
            new = tuple(p[:original_batch_size] for p in actor.output_distribution_params)  # type: ignore[union-attr, operator]
            with torch.inference_mode():
                kl = actor.get_kl_divergence(batch.old_distribution_params, new)  # type: ignore[operator]
                self.divergence = kl.mean()
        loss = torch.zeros((), device=batch.actions.device)  # type: ignore[union-attr]
        if self._mirror_weight:
            error = self._mirror_error(actor, batch, original_batch_size)
            loss = loss + self._mirror_weight * error
            self._note("mirror", error)
        if self.pull and self.actor.latent_source == "privileged":
            distance = self._distance(batch.observations)
            loss = loss + self.pull * distance
            self._note("regularisation", distance)
        self._batches += 1
        return loss

    def take_means(self) -> dict[str, float]:
        """Mean of each part since the last call."""
        means = {name: float(total) / self._batches for name, total in self._sums.items()}
        self._sums, self._batches = {}, 0
        return means

    def _mirror_error(self, actor: Any, batch: Any, size: int) -> Tensor:
        """How differently the actor acts in the mirror; its means are those of this minibatch."""
        means = actor.output_mean
        if self.use_data_augmentation:
            reflected = means[size:]
        else:
            seen, _ = self._mirror(env=self._env, obs=batch.observations, actions=None)  # type: ignore[misc]
            reflected = actor(seen[size:])
        _, wanted = self._mirror(env=self._env, obs=None, actions=means[:size].detach())  # type: ignore[misc]
        return nn.functional.mse_loss(reflected, wanted[size:])

    def _distance(self, obs: TensorDict) -> Tensor:
        """Mean distance of the privileged code from the history's; only the former moves."""
        with torch.no_grad():
            target = self.actor.history_latent(obs)
        return (self.actor.privileged_latent(obs) - target).norm(dim=-1).mean()

    def _note(self, name: str, value: Tensor) -> None:
        value = value.detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value


class ParkourPPO(PPO):
    """PPO for the teacher.

    Args:
        actor: A `TeacherActor`.
        critic: A `TeacherCritic`.
        storage: Where rollouts are kept.
        learning_rate: At the start; the adaptive schedule moves it between the two bounds.
        learning_rate_min: At least 1e-5.
        learning_rate_max: At most 1e-2.
        regularisation_coef: Weight of the privileged code's pull towards the history's, in the end.
        regularisation_start: Iterations before the weight begins to grow from zero.
        regularisation_end: Iterations after which it has grown.
        adaptation_interval: Every how many iterations the rollout acts on the history's code.
        adaptation_epochs: Passes over such a rollout to fit the history encoder.
        history_mini_batches: Minibatches of every other rollout to keep it fitted.
        adaptation_learning_rate: Of the history encoder.
        estimator_mini_batches: Minibatches of every rollout to fit the velocity estimator.
        estimator_learning_rate: Of the velocity estimator.
        symmetry_cfg: rsl_rl's: use_data_augmentation, use_mirror_loss, mirror_loss_coeff,
            data_augmentation_func (`trainer.symmetry:mirror` if left out). None: no symmetry.
        ppo: Everything else that rsl_rl's PPO takes.
    """

    actor: TeacherActor  # type: ignore[assignment]
    critic: TeacherCritic  # type: ignore[assignment]
    _raw_actor: TeacherActor

    def __init__(
        self,
        actor: TeacherActor,
        critic: TeacherCritic,
        storage: RolloutStorage,
        *,
        learning_rate: float = 1e-3,
        learning_rate_min: float = 1e-5,
        learning_rate_max: float = 1e-3,
        regularisation_coef: float = 0.1,
        regularisation_start: int = 500,
        regularisation_end: int = 1500,
        adaptation_interval: int = 20,
        adaptation_epochs: int = 5,
        history_mini_batches: int = 2,
        adaptation_learning_rate: float = 1e-3,
        estimator_mini_batches: int = 4,
        estimator_learning_rate: float = 1e-3,
        symmetry_cfg: dict[str, Any] | None = None,
        **ppo: Any,
    ) -> None:
        if not _LOWEST_RATE <= learning_rate_min <= learning_rate_max <= _HIGHEST_RATE:
            raise ConfigError(
                f"learning_rate_min = {learning_rate_min} and learning_rate_max = "
                f"{learning_rate_max}; give {_LOWEST_RATE:g} <= min <= max <= {_HIGHEST_RATE:g}"
            )
        if not learning_rate_min <= learning_rate <= learning_rate_max:
            raise ConfigError(
                f"learning_rate = {learning_rate} is outside its own range, {learning_rate_min:g} "
                f"to {learning_rate_max:g}"
            )
        if not 0 <= regularisation_start <= regularisation_end:
            raise ConfigError(
                f"regularisation_start = {regularisation_start} and regularisation_end = "
                f"{regularisation_end}; the weight grows from the first to the second"
            )
        if adaptation_interval < 1:
            raise ConfigError(
                f"adaptation_interval = {adaptation_interval}; give 1 (always) or more"
            )
        self._learning_rate_range = (learning_rate_min, learning_rate_max)
        super().__init__(actor, critic, storage, learning_rate=learning_rate, **ppo)  # type: ignore[arg-type]
        self.iteration = 0
        """Updates done, over all runs that were resumed."""
        self._regularisation = (regularisation_coef, regularisation_start, regularisation_end)
        self._adaptation_interval = adaptation_interval
        self._adaptation_epochs = adaptation_epochs
        self._history_mini_batches = history_mini_batches
        self._estimator_mini_batches = estimator_mini_batches
        self._extension = _Extension(self._raw_actor, symmetry_cfg)
        self.symmetry = self._extension  # type: ignore[assignment]
        if self.is_multi_gpu and self.schedule == "adaptive" and self.desired_kl is not None:
            self.schedule = "with the gradients"  # rsl_rl's is off then
            self._extension.keeps_divergence = True
        self._estimator_optimizer = torch.optim.Adam(
            self._raw_actor.estimator.parameters(), lr=estimator_learning_rate
        )
        self._history_optimizer = torch.optim.Adam(
            self._raw_actor.history_encoder.parameters(), lr=adaptation_learning_rate
        )
        self.optimizer.register_step_post_hook(lambda *_: self._raw_actor.clamp_std())
        self._choose_latent()

    @staticmethod
    def construct_algorithm(
        obs: TensorDict, env: VecEnv, cfg: dict[str, Any], device: str
    ) -> ParkourPPO:
        """As rsl_rl's, without what it prints: standard output is for whoever called."""
        with contextlib.redirect_stdout(io.StringIO()):
            return PPO.construct_algorithm(obs, env, cfg, device)  # type: ignore[return-value]

    @property
    def learning_rate(self) -> float:
        """Rate of the policy's optimiser; what is set is brought within the bounds."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        lowest, highest = self._learning_rate_range
        self._learning_rate = min(max(value, lowest), highest)

    @property
    def adapting(self) -> bool:
        """Whether this iteration's rollout acts on the history's code."""
        return (self.iteration + 1) % self._adaptation_interval == 0

    @property
    def regularisation(self) -> float:
        """Weight of the privileged code's pull towards the history's, now."""
        coefficient, start, end = self._regularisation
        if self.iteration >= end:
            return coefficient
        return coefficient * max(self.iteration - start, 0) / max(end - start, 1)

    def update(self) -> dict[str, float]:
        """PPO's update, then estimator and history encoder; mean losses by name."""
        self._extension.pull = self.regularisation
        losses = super().update()
        del losses["symmetry"]
        losses |= self._extension.take_means()
        losses["estimator"] = self._fit_estimator()
        losses["adaptation"] = self._fit_history_encoder()
        self.iteration += 1
        self._choose_latent()
        return losses

    def reduce_parameters(self) -> None:
        """Average gradients and divergence over the processes, and adapt the learning rate to it.

        By the rule of rsl_rl's adaptive schedule.
        """
        parameters = [*self.actor.parameters(), *self.critic.parameters()]
        kl = average_gradients(parameters, self.gpu_world_size, self._extension.divergence)
        if kl is None or self.desired_kl is None:
            return
        divergence = float(kl)
        if divergence > 2.0 * self.desired_kl:
            self.learning_rate /= 1.5
        elif 0.0 < divergence < 0.5 * self.desired_kl:
            self.learning_rate *= 1.5
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate

    def train_mode(self) -> None:
        """Networks as rollouts and updates need them."""
        super().train_mode()
        self._choose_latent()

    def eval_mode(self) -> None:
        """Networks as they act outside training: the code comes from the history."""
        super().eval_mode()
        self._raw_actor.latent_source = "history"

    def begin_with(self, payload: Mapping[str, Any], source: str) -> None:
        """Take a teacher's networks.

        Raises:
            CheckpointError: They are not in `payload`.
        """
        try:
            self._raw_actor.load_state_dict(payload["algorithm"]["actor_state_dict"])
            self._raw_critic.load_state_dict(payload["algorithm"]["critic_state_dict"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{source} holds no teacher of this shape ({_first_line(error)}); take a "
                "checkpoint of a run with task=teacher and the same agent.actor and critic"
            ) from error

    def save(self) -> dict[str, Any]:
        """All that a resumed run needs, plain values and tensors."""
        return super().save() | {
            "actor_architecture": self._raw_actor.architecture,
            "estimator_optimizer_state_dict": self._estimator_optimizer.state_dict(),
            "history_optimizer_state_dict": self._history_optimizer.state_dict(),
            "learning_rate": self.learning_rate,
            "updates": self.iteration,
        }

    def load(self, loaded_dict: dict, load_cfg: dict | None = None, strict: bool = True) -> bool:
        """Take over what `save` gave; `load_cfg` chooses parts as in rsl_rl.

        Raises:
            CheckpointError: It does not fit these networks.
        """
        wants_optimizer = load_cfg is None or load_cfg.get("optimizer", False)
        try:
            takes_iteration = super().load(loaded_dict, load_cfg, strict)
            if wants_optimizer:
                self._estimator_optimizer.load_state_dict(
                    loaded_dict["estimator_optimizer_state_dict"]
                )
                self._history_optimizer.load_state_dict(loaded_dict["history_optimizer_state_dict"])
                self.learning_rate = loaded_dict["learning_rate"]
            if takes_iteration:
                self.iteration = loaded_dict["updates"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this training ({_first_line(error)}); resume with "
                "the configuration it was made with, or start afresh"
            ) from error
        self._choose_latent()
        return takes_iteration

    def _choose_latent(self) -> None:
        self._raw_actor.latent_source = "history" if self.adapting else "privileged"

    def _fit_estimator(self) -> float:
        actor = self._raw_actor

        def loss(batch: TensorDict) -> Tensor:
            with torch.no_grad():
                frames = actor.frames(batch)
            return nn.functional.mse_loss(actor.velocity(frames), batch["velocity"])

        batches = self._mini_batches(("history", "velocity"), self._estimator_mini_batches)
        return self._fit(batches, loss, self._estimator_optimizer)

    def _fit_history_encoder(self) -> float:
        actor = self._raw_actor

        def loss(batch: TensorDict) -> Tensor:
            with torch.no_grad():
                target = actor.privileged_latent(batch)
                frames = actor.frames(batch)
            return nn.functional.mse_loss(actor.history_encoder(frames), target)

        count = (
            self._adaptation_epochs * self.num_mini_batches
            if self.adapting
            else self._history_mini_batches
        )
        batches = self._mini_batches(("history", "privileged"), count)
        return self._fit(batches, loss, self._history_optimizer)

    def _mini_batches(self, groups: tuple[str, ...], count: int) -> Iterator[TensorDict]:
        """`count` shuffled minibatches of the rollout, in as many passes over it as that takes."""
        rollout = self.storage.observations.select(*groups).flatten(0, 1)
        total = rollout.batch_size[0]
        size = total // self.num_mini_batches
        order = torch.empty(0)
        for i in range(count):
            part = i % self.num_mini_batches
            if part == 0:
                order = torch.randperm(total, device=self.device)
            yield rollout[order[part * size : (part + 1) * size]]

    def _fit(
        self,
        batches: Iterator[TensorDict],
        loss_of: Callable[[TensorDict], Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> float:
        """One optimiser step a minibatch; the mean loss."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        losses = []
        for batch in batches:
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            if self.is_multi_gpu:
                average_gradients(parameters, self.gpu_world_size)
            nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            optimizer.step()
            losses.append(loss.detach())
        optimizer.zero_grad()
        return float(torch.stack(losses).mean()) if losses else 0.0


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].strip() if lines else type(error).__name__
