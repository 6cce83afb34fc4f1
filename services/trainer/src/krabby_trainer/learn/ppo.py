"""PPO with adaptation, a velocity estimator, symmetry and bounds of the learning rate.

A subclass of rsl_rl's PPO: networks, storage and checkpoints are its own. The update has the same
losses and draws the same minibatches, and is built for a device that never waits for the host:

- Each minibatch is one `GradientStep`, recorded on CUDA. The learning rate follows the divergence
  of the policies on the device, within bounds. Losses are added up there and read once an update.
- Velocity estimate and history code get no gradient from the policy's losses, so they are computed
  once for the rollout instead of in every minibatch.
- The loss also has the symmetry of actions, and the privileged code's distance from the history's.
- After PPO's minibatches the estimator and the history encoder are fitted to the same rollout, with
  their own optimisers.

Every `adaptation_interval`-th rollout acts on the history's code, and the update after it does too,
so the body learns to act on the history encoder's code, on its own data.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

import torch
from rsl_rl.algorithms import PPO
from rsl_rl.env import VecEnv
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from krabby_trainer.errors import UNFIT_RESUME, unfit
from krabby_trainer.graphs import Replayed
from krabby_trainer.learn.config import AlgorithmCfg
from krabby_trainer.learn.gradients import GradientStep, Sums, adam, adam_state, load_adam
from krabby_trainer.learn.networks import CRITIC_GROUPS, LATENT, TeacherActor, TeacherCritic
from krabby_trainer.learn.symmetry import action_reflection, mirror, reflections

__all__ = ["ParkourPPO"]

_PPO: Final = (
    *("num_learning_epochs", "num_mini_batches", "clip_param", "gamma", "lam", "value_loss_coef"),
    *("use_clipped_value_loss", "entropy_coef", "learning_rate", "schedule", "desired_kl"),
    "max_grad_norm",
)
"""What rsl_rl's PPO takes of an `AlgorithmCfg`."""
_POLICY: Final = ("value", "surrogate", "entropy", "mirror", "regularisation", "kl")
"""What every minibatch of the policy adds to the sums."""


class ParkourPPO(PPO):
    """PPO for the teacher."""

    kind = "teacher"
    """What its checkpoints hold."""
    actor: TeacherActor  # type: ignore[assignment]
    critic: TeacherCritic  # type: ignore[assignment]
    _raw_actor: TeacherActor
    optimizer: torch.optim.Adam

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
        cuda_graphs: bool = True,
        **algorithm: Any,
    ) -> None:
        cfg = AlgorithmCfg(**algorithm)
        self._learning_rate_range = (cfg.learning_rate_min, cfg.learning_rate_max)
        self._rate = torch.zeros((), dtype=torch.float64, device=device)
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
        self.figures: dict[str, float] = {}
        """Of the last update: `kl`, `learning_rate` and `action_std`."""
        symmetry = symmetry_cfg or {}
        self._augments = bool(symmetry.get("use_data_augmentation", False))
        self._mirror_weight = (
            float(symmetry.get("mirror_loss_coeff", 0.0))
            if symmetry.get("use_mirror_loss")
            else 0.0
        )
        self._pull = torch.zeros((), device=device)
        """Weight of the privileged code's distance from the history's, now."""
        self._pulls = False
        """Whether that weight counts: code and history's code are both at hand."""
        beside = ("action_std", "rate", "estimator", "adaptation", "imitation")
        self._sums = Sums((*_POLICY, *beside), device)
        self._recorded: dict[Hashable, Replayed] = {}
        self._cuda_graphs = cuda_graphs
        self._pool = torch.cuda.graph_pool_handle() if torch.device(device).type == "cuda" else None
        self._place_rollout()
        self._build_steps()
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
        self._rate.fill_(self._learning_rate)

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

    # A rollout

    def act(self, obs: TensorDict) -> Tensor:
        """Sample actions, which stay valid until the next call; keep the rest for the rollout."""
        self._see(obs)
        self._replay(self._act, self._raw_actor.latent_source)
        for name, value in self._acted.items():
            setattr(self.transition, name, value)
        self.transition.distribution_params = self._distribution
        self.transition.hidden_states = (None, None)
        self.transition.observations = self._seen
        return self._acted["actions"]

    def compute_returns(self, obs: TensorDict) -> None:
        """Returns and normalised advantages of the rollout that ends in `obs`."""
        self._see(obs)
        self._replay(self._compute_returns)

    def _see(self, obs: TensorDict) -> None:
        given = dict(obs.items())  # after the rollout, without what `act` adds for the actor
        seen = {name: place for name, place in self._seen.items() if name in given}
        torch._foreach_copy_(list(seen.values()), [given[name] for name in seen])  # type: ignore[attr-defined]

    def _act(self) -> None:
        actor, critic = self._raw_actor, self._raw_critic
        with torch.no_grad():
            mean, std = actor(self._seen), actor.std
            actions = mean + std * torch.randn_like(mean)
            self._acted["actions"].copy_(actions)
            self._acted["values"].copy_(critic(self._seen))
            log_prob = Normal(mean, std, validate_args=False).log_prob(actions).sum(dim=-1)
            self._acted["actions_log_prob"].copy_(log_prob)
            for place, value in zip(self._distribution, (mean, std), strict=True):
                place.copy_(value)

    def _compute_returns(self) -> None:
        st = self.storage
        with torch.no_grad():
            following = self._raw_critic(self._seen)
            advantage = torch.zeros_like(following)
            for step in reversed(range(st.num_transitions_per_env)):
                goes_on = 1.0 - st.dones[step].float()
                delta = st.rewards[step] + goes_on * self.gamma * following - st.values[step]
                advantage = delta + goes_on * self.gamma * self.lam * advantage
                following = st.values[step]
                st.returns[step] = advantage + following
            advantages = st.returns - st.values
            st.advantages.copy_((advantages - advantages.mean()) / (advantages.std() + 1e-8))

    # An update

    def update(self) -> dict[str, float]:
        """PPO's update, then estimator and history encoder; mean losses by name."""
        cfg, source = self._cfg, self._raw_actor.latent_source
        self._pull.fill_(self.regularisation)
        self._pulls = self.regularisation > 0.0 and source == "privileged"
        variant = (source, self._pulls, *self._variant())
        self._replay(self._encode, variant)
        order = self._shuffled()
        for _ in range(self.num_learning_epochs):
            self._step_along(order, lambda: self._policy_step.descend(variant))
        observations = self.storage.observations.flatten(0, 1)
        self._raw_critic.update_normalization(observations)
        self._learn_beside(observations)
        self.storage.clear()
        steps = dict.fromkeys(_POLICY, self.num_learning_epochs * self.num_mini_batches)
        steps |= {"estimator": cfg.estimator_mini_batches, "adaptation": self._history_steps}
        steps |= {"imitation": steps["kl"]}
        self._sums.add("rate", self._rate)
        self._sums.add("action_std", self._raw_actor.std.mean())
        means = {
            name: value / max(steps.get(name, 1), 1) for name, value in self._sums.take().items()
        }
        self._learning_rate = means.pop("rate")
        self.figures = {name: means.pop(name) for name in ("kl", "action_std")}
        self.figures["learning_rate"] = self.learning_rate
        unused = (
            ("mirror", self._mirror_weight),
            ("regularisation", self._pulls),
            ("imitation", self._imitates),
        )
        for name, is_used in unused:
            if not is_used:
                del means[name]
        self.iteration += 1
        self._choose_latent()
        return means

    @property
    def _history_steps(self) -> int:
        cfg = self._cfg
        adapts = self.adapting
        return cfg.adaptation_epochs * self.num_mini_batches if adapts else cfg.history_mini_batches

    @property
    def _imitates(self) -> bool:
        """Whether this update's loss has the divergence from a teacher."""
        return False

    def _variant(self) -> tuple[Hashable, ...]:
        """What else decides which kernels this update has."""
        return ()

    def _shuffled(self) -> Tensor:
        """Rows of the rollout in the order in which minibatches take them."""
        return torch.randperm(self.num_mini_batches * len(self._index), device=self.device)

    def _learn_beside(self, observations: TensorDict) -> None:
        """What the actor learns of the rollout otherwise than by the policy's loss."""
        self._raw_actor.update_normalization(observations)
        self._fit_estimator()
        self._fit_history_encoder()

    def _fit_estimator(self) -> None:
        self._fit(self._estimator_step, self._cfg.estimator_mini_batches)

    def _fit_history_encoder(self) -> None:
        self._fit(self._history_step, self._history_steps)

    def _fit(self, step: GradientStep, count: int) -> None:
        """`count` steps on shuffled minibatches, in as many passes over the rollout as needed."""
        total = len(self._rollout["actions"])
        while count > 0:
            order = torch.randperm(total, device=self.device)
            size = len(self._index) * min(count, self.num_mini_batches)
            self._step_along(order[:size], step.descend)
            count -= self.num_mini_batches

    def _step_along(self, order: Tensor, step: Callable[[], None]) -> None:
        for part in order.split(len(self._index)):
            self._index.copy_(part)
            step()

    def _encode(self) -> None:
        """What the rollout's history says, and its mirror image: the same in all minibatches."""
        actor, flip = self._raw_actor, reflections(self.device)["history"]
        size, needs_code = len(self._index), self._pulls or actor.latent_source == "history"
        with torch.no_grad():
            for side in range(self._sides):
                places = (each[side].split(size) for each in (self._velocity, self._code))
                history = self._rollout["history"].split(size)
                for own, velocity, code in zip(history, *places, strict=True):
                    frames = actor.frames({"history": flip(own) if side else own})
                    velocity.copy_(actor.velocity(frames))
                    if needs_code:
                        code.copy_(actor.history_encoder(frames))

    def _policy_loss(self) -> Tensor:
        """PPO's loss of the minibatch, with those of symmetry and regularisation."""
        actor, size = self._raw_actor, len(self._index)
        learned = (2 if self._augments else 1) * size
        seen = batch = self._batch()
        if self._augments:
            batch = seen = mirror(batch)
        elif self._mirror_weight:
            seen = mirror({name: batch[name] for name in self._read_by_actor})
        values, returns, advantages, old_log_prob = (
            self._rows(name).repeat(learned // size)
            for name in ("values", "returns", "advantages", "actions_log_prob")
        )
        velocity, history_code = (
            each.index_select(1, self._index).flatten(0, 1) for each in (self._velocity, self._code)
        )
        privileged = actor.latent_source == "privileged"
        code = actor.privileged_latent(seen) if privileged else history_code
        mean, std = actor.mlp(actor.joined(seen, velocity, code)), actor.std
        policy = Normal(mean[:learned], std, validate_args=False)

        ratio = torch.exp(policy.log_prob(batch["actions"]).sum(dim=-1) - old_log_prob)
        clipped = ratio.clamp(1.0 - self.clip_param, 1.0 + self.clip_param)
        surrogate = torch.max(-advantages * ratio, -advantages * clipped).mean()
        value = self._value_loss(self._raw_critic(batch).squeeze(-1), values, returns)
        entropy = Normal(torch.zeros_like(std), std, validate_args=False).entropy().sum()
        loss = surrogate + self.value_loss_coef * value - self.entropy_coef * entropy
        self._note(value=value, surrogate=surrogate, entropy=entropy)
        if self._mirror_weight:
            wanted = action_reflection(self.device)(mean[:size].detach())
            error = nn.functional.mse_loss(mean[size:], wanted)
            loss = loss + self._mirror_weight * error
            self._note(mirror=error)
        if self._pulls:
            distance = (code[:learned] - history_code[:learned]).norm(dim=-1).mean()
            loss = loss + self._pull * distance
            self._note(regularisation=distance)
        if self._imitates:
            loss = loss + self._imitation_loss(mean[:size], std)
        with torch.no_grad():
            before = Normal(self._rows("mean"), self._rows("std"), validate_args=False)
            now = Normal(mean[:size].detach(), std.detach(), validate_args=False)
            kl = kl_divergence(before, now).sum(dim=-1).mean()
            self._note(kl=kl)
            self._policy_step.number.copy_(kl)
        return loss

    def _batch(self) -> dict[str, Tensor]:
        """What actor and critic read, and the actions, of the minibatch."""
        return {name: self._rows(name) for name in self._read}

    def _imitation_loss(self, mean: Tensor, std: Tensor) -> Tensor:
        """Weighted divergence of actions `mean` (M, 18) from a teacher's, where there is one."""
        raise NotImplementedError

    def _value_loss(self, values: Tensor, before: Tensor, returns: Tensor) -> Tensor:
        error = (values - returns).square()
        if self.use_clipped_value_loss:
            near = before + (values - before).clamp(-self.clip_param, self.clip_param)
            error = torch.max(error, (near - returns).square())
        return error.mean()

    def _estimator_loss(self) -> Tensor:
        actor = self._raw_actor
        with torch.no_grad():
            frames = actor.frames({"history": self._rows("history")})
        loss = nn.functional.mse_loss(actor.velocity(frames), self._rows("velocity"))
        self._note(estimator=loss)
        return loss

    def _history_loss(self) -> Tensor:
        actor = self._raw_actor
        with torch.no_grad():
            target = actor.privileged_latent({"privileged": self._rows("privileged")})
            frames = actor.frames({"history": self._rows("history")})
        loss = nn.functional.mse_loss(actor.history_encoder(frames), target)
        self._note(adaptation=loss)
        return loss

    def _rows(self, name: str) -> Tensor:
        """Of the rollout, in the minibatch."""
        return self._rollout[name].index_select(0, self._index)

    def _note(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums.add(name, value)

    def _adapt(self) -> None:
        """rsl_rl's adaptive schedule, on the device."""
        rate, kl = self._rate, self._policy_step.number[0]
        if self.schedule == "adaptive" and self.desired_kl is not None:
            is_far, is_near = kl > 2.0 * self.desired_kl, (kl < 0.5 * self.desired_kl) & (kl > 0.0)
            changed = torch.where(is_far, rate / 1.5, torch.where(is_near, rate * 1.5, rate))
            rate.copy_(changed.clamp(*self._learning_rate_range))
        for group in self.optimizer.param_groups:
            group["lr"].copy_(rate)

    # Memory and recordings

    def _place_rollout(self) -> None:
        """Everything that recordings read and write, in its place."""
        st, device = self.storage, self.device
        steps, robots = st.actions.shape[:2]
        groups: dict[str, Any] = dict(st.observations.items())
        self._seen = TensorDict(
            {name: torch.zeros_like(group[0]) for name, group in groups.items()},
            batch_size=[robots],
            device=device,
        )
        """Observations that were acted on last."""
        self._acted = {
            "actions": torch.zeros_like(st.actions[0]),
            "values": torch.zeros_like(st.values[0]),
            "actions_log_prob": torch.zeros(robots, device=device),
        }
        self._distribution = tuple(torch.zeros_like(st.actions[0]) for _ in range(2))
        st.distribution_params = tuple(torch.zeros_like(st.actions) for _ in range(2))
        self._rollout = {name: group.flatten(0, 1) for name, group in groups.items()}
        self._rollout |= {"actions": st.actions.flatten(0, 1)}
        self._rollout |= {
            name: getattr(st, name).flatten()
            for name in ("values", "returns", "advantages", "actions_log_prob")
        }
        for name, values in zip(("mean", "std"), st.distribution_params, strict=True):
            self._rollout[name] = values.flatten(0, 1)
        self._sides = 2 if self._augments or self._mirror_weight else 1
        total = steps * robots
        self._velocity = torch.zeros(self._sides, total, 3, device=device)
        self._code = torch.zeros(self._sides, total, LATENT, device=device)
        self._index = torch.zeros(self._minibatch_rows, dtype=torch.long, device=device)
        """Rows of the rollout that make the minibatch."""
        read = {*self._raw_actor.groups, *CRITIC_GROUPS} - {"history"}
        self._read = (*sorted(read), "actions")
        self._read_by_actor = sorted({*self._raw_actor.groups} - {"history", "velocity"})

    @property
    def _minibatch_rows(self) -> int:
        steps, robots = self.storage.actions.shape[:2]
        return steps * robots // self.num_mini_batches

    def _heads(self) -> list[list[nn.Parameter]]:
        """Parameters of the policy's optimiser; the gradients of each part are clipped together."""
        return [list(each.parameters()) for each in (self._raw_actor, self._raw_critic)]

    def _build_steps(self) -> None:
        cfg, actor = self._cfg, self._raw_actor
        heads = self._heads()
        self.optimizer = adam([p for head in heads for p in head], self.learning_rate, self.device)
        self.optimizer.register_step_post_hook(lambda *_: actor.clamp_std())
        estimator, history = (
            list(actor.estimator.parameters()),
            list(actor.history_encoder.parameters()),
        )
        self._estimator_optimizer = adam(estimator, cfg.estimator_learning_rate, self.device)
        self._history_optimizer = adam(history, cfg.adaptation_learning_rate, self.device)
        common: dict[str, Any] = {
            "max_norm": self.max_grad_norm,
            "world_size": self.gpu_world_size,
            "pool": self._pool,
            "enabled": self._cuda_graphs,
        }
        self._policy_step = GradientStep(
            self._policy_loss, self.optimizer, heads, adapt=self._adapt, **common
        )
        self._estimator_step = GradientStep(
            self._estimator_loss, self._estimator_optimizer, [estimator], **common
        )
        self._history_step = GradientStep(
            self._history_loss, self._history_optimizer, [history], **common
        )

    def _replay(self, function: Callable[[], None], variant: Hashable = None) -> None:
        """Call `function`, recorded on CUDA; what Python decides in it follows from `variant`."""
        key = (function.__name__, variant)
        if key not in self._recorded:
            self._recorded[key] = Replayed(
                function, self.device, enabled=self._cuda_graphs, pool=self._pool
            )
        self._recorded[key]()

    # As the runner uses it

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

    def in_rollouts(self) -> dict[str, Any]:
        """What it keeps of the episodes that robots are in."""
        return {}

    def save(self) -> dict[str, Any]:
        return {
            "actor_state_dict": self._raw_actor.state_dict(),
            "critic_state_dict": self._raw_critic.state_dict(),
            **{f"{name}_state_dict": adam_state(o) for name, o in self._optimizers().items()},
            "actor_architecture": self._raw_actor.architecture,
            "learning_rate": self.learning_rate,
            "updates": self.iteration,
        }

    def _optimizers(self) -> dict[str, torch.optim.Adam]:
        return {
            "optimizer": self.optimizer,
            "estimator_optimizer": self._estimator_optimizer,
            "history_optimizer": self._history_optimizer,
        }

    def load(self, loaded_dict: dict, load_cfg: dict | None = None, strict: bool = True) -> bool:
        """Take over what `save` gave; `load_cfg` chooses parts as in rsl_rl.

        Raises:
            CheckpointError: It does not fit these networks.
        """
        parts = load_cfg or dict.fromkeys(("actor", "critic", "optimizer", "iteration"), True)
        with unfit(UNFIT_RESUME):
            takes_iteration = super().load(loaded_dict, {**parts, "optimizer": False}, strict)
            if parts.get("optimizer", False):
                for name, optimizer in self._optimizers().items():
                    load_adam(optimizer, loaded_dict[f"{name}_state_dict"])
                self.learning_rate = loaded_dict["learning_rate"]
                for step in (self._policy_step, self._estimator_step, self._history_step):
                    step.forget()
            if takes_iteration:
                self.iteration = loaded_dict["updates"]
        self._choose_latent()
        return takes_iteration

    def _choose_latent(self) -> None:
        self._raw_actor.latent_source = "history" if self.adapting else "privileged"
