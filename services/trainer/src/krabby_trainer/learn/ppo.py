"""PPO with adaptation, a velocity estimator, symmetry and bounds of the learning rate.

A subclass of rsl_rl's PPO that keeps its `update`. Hooks carry the additions:

- rsl_rl lets a symmetry extension widen each minibatch and add a term to its loss. `_Extension`
  takes that place and also adds the privileged code's distance from the history's, which has to be
  in the policy's loss for its weight to have a meaning.
- After `update` the storage still holds the rollout, since clearing it only rewinds its cursor.
  The estimator and the history encoder are fitted to it then, with their own optimisers.
- The learning rate is a property with bounds, which rsl_rl's schedule cannot leave.
- Of several processes, each minibatch sends gradients and divergence in one message; every process
  then draws the same conclusion about the learning rate.

Every `adaptation_interval`-th rollout acts on the history's code, and the update after it does too,
so the body learns to act on the history encoder's code, on its own data.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from rsl_rl.algorithms import PPO
from rsl_rl.env import VecEnv
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict
from torch import Tensor, nn

from krabby_trainer.errors import UNFIT_RESUME, unfit
from krabby_trainer.learn.config import AlgorithmCfg
from krabby_trainer.learn.networks import TeacherActor, TeacherCritic
from krabby_trainer.learn.sharing import average_gradients
from krabby_trainer.learn.symmetry import mirror

__all__ = ["ParkourPPO"]


class _Extension:
    """Augmentation and additional losses of each minibatch, in place of rsl_rl's Symmetry."""

    use_mirror_loss = True
    mirror_loss_coeff = 1.0

    def __init__(self, actor: TeacherActor, symmetry_cfg: dict[str, Any] | None) -> None:
        cfg = symmetry_cfg or {}
        self.actor = actor
        self.pull = 0.0
        """Weight of the privileged code's distance from the history's, now."""
        self.use_data_augmentation = bool(cfg.get("use_data_augmentation", False))
        self._mirror_weight = (
            float(cfg.get("mirror_loss_coeff", 0.0)) if cfg.get("use_mirror_loss") else 0.0
        )
        self.keeps_divergence = False
        """Whether `divergence` is wanted."""
        self.divergence: Tensor | None = None
        """Mean KL divergence of the last minibatch's policy from the rollout's, ()."""
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    def augment_batch(self, batch: RolloutStorage.Batch, original_batch_size: int) -> None:
        if not self.use_data_augmentation:
            return
        batch.observations, batch.actions = mirror(batch.observations, batch.actions)
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
            seen: Any = mirror(batch.observations, None)[0]
            reflected = actor(seen[size:])
        wanted: Any = mirror(None, means[:size].detach())[1]
        return nn.functional.mse_loss(reflected, wanted[size:])

    def _distance(self, obs: TensorDict) -> Tensor:
        """Mean distance of the privileged code from the history's; only the former moves."""
        with torch.no_grad():
            target = self.actor.history_latent(obs)
        return (self.actor.privileged_latent(obs) - target).norm(dim=-1).mean()

    def _note(self, name: str, value: Tensor) -> None:
        value = value.detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value


_PPO: Final = (
    *("num_learning_epochs", "num_mini_batches", "clip_param", "gamma", "lam", "value_loss_coef"),
    *("use_clipped_value_loss", "entropy_coef", "learning_rate", "schedule", "desired_kl"),
    *("max_grad_norm", "use_mixed_precision"),
)
"""What rsl_rl's PPO takes of an `AlgorithmCfg`."""


class ParkourPPO(PPO):
    """PPO for the teacher."""

    kind = "teacher"
    """What its checkpoints hold."""
    actor: TeacherActor  # type: ignore[assignment]
    critic: TeacherCritic  # type: ignore[assignment]
    _raw_actor: TeacherActor

    def __init__(
        self,
        actor: TeacherActor,
        critic: TeacherCritic,
        storage: RolloutStorage,
        *,
        symmetry_cfg: dict[str, Any] | None = None,
        device: str = "cpu",
        multi_gpu_cfg: dict[str, Any] | None = None,
        rnd_cfg: None = None,
        **algorithm: Any,
    ) -> None:
        cfg = AlgorithmCfg(**algorithm)
        self._learning_rate_range = (cfg.learning_rate_min, cfg.learning_rate_max)
        super().__init__(
            actor,
            critic,
            storage,
            device=device,
            multi_gpu_cfg=multi_gpu_cfg,
            **{name: getattr(cfg, name) for name in _PPO},
        )
        self._cfg = cfg
        self.iteration = 0
        """Updates done, over all runs that were resumed."""
        self._extension = _Extension(self._raw_actor, symmetry_cfg)
        self.symmetry = self._extension  # type: ignore[assignment]
        if self.is_multi_gpu and self.schedule == "adaptive" and self.desired_kl is not None:
            self.schedule = "with the gradients"  # rsl_rl's is off then
            self._extension.keeps_divergence = True
        self._estimator_optimizer = torch.optim.Adam(
            self._raw_actor.estimator.parameters(), lr=cfg.estimator_learning_rate
        )
        self._history_optimizer = torch.optim.Adam(
            self._raw_actor.history_encoder.parameters(), lr=cfg.adaptation_learning_rate
        )
        self.optimizer.register_step_post_hook(lambda *_: self._raw_actor.clamp_std())
        self._choose_latent()

    @staticmethod
    def construct_algorithm(
        obs: TensorDict, env: VecEnv, cfg: dict[str, Any], device: str
    ) -> ParkourPPO:
        """As rsl_rl's, which prints; standard output is for the summary."""
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
        return (self.iteration + 1) % self._cfg.adaptation_interval == 0

    @property
    def regularisation(self) -> float:
        """Weight of the privileged code's pull towards the history's, now."""
        coefficient = self._cfg.regularisation_coef
        start, end = self._cfg.regularisation_start, self._cfg.regularisation_end
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
        with unfit(
            f"{source} holds no teacher of this shape ({{reason}}); take a checkpoint of a run "
            "with task=teacher and the same agent.actor and critic"
        ):
            self._raw_actor.load_state_dict(payload["algorithm"]["actor_state_dict"])
            self._raw_critic.load_state_dict(payload["algorithm"]["critic_state_dict"])

    def save(self) -> dict[str, Any]:
        return super().save() | {
            "actor_architecture": self._raw_actor.architecture,
            **{
                f"{name}_optimizer_state_dict": o.state_dict()
                for name, o in self._optimizers().items()
            },
            "learning_rate": self.learning_rate,
            "updates": self.iteration,
        }

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"estimator": self._estimator_optimizer, "history": self._history_optimizer}

    def load(self, loaded_dict: dict, load_cfg: dict | None = None, strict: bool = True) -> bool:
        """Take over what `save` gave; `load_cfg` chooses parts as in rsl_rl.

        Raises:
            CheckpointError: It does not fit these networks.
        """
        wants_optimizer = load_cfg is None or load_cfg.get("optimizer", False)
        with unfit(UNFIT_RESUME):
            takes_iteration = super().load(loaded_dict, load_cfg, strict)
            if wants_optimizer:
                for name, optimizer in self._optimizers().items():
                    optimizer.load_state_dict(loaded_dict[f"{name}_optimizer_state_dict"])
                self.learning_rate = loaded_dict["learning_rate"]
            if takes_iteration:
                self.iteration = loaded_dict["updates"]
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

        batches = self._mini_batches(("history", "velocity"), self._cfg.estimator_mini_batches)
        return self._fit(batches, loss, self._estimator_optimizer)

    def _fit_history_encoder(self) -> float:
        actor = self._raw_actor

        def loss(batch: TensorDict) -> Tensor:
            with torch.no_grad():
                target = actor.privileged_latent(batch)
                frames = actor.frames(batch)
            return nn.functional.mse_loss(actor.history_encoder(frames), target)

        count = (
            self._cfg.adaptation_epochs * self.num_mini_batches
            if self.adapting
            else self._cfg.history_mini_batches
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
