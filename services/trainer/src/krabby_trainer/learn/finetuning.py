"""Fine-tuning: PPO on the student, with the depth encoder in the loop.

By default the encoder is frozen: its code is an observation, kept with the rollout, so PPO runs at
the speed of a policy without memory, and the actor learns to act on this encoder's code with its
latency. `agent.finetuning` has what is published for students beside that:

- `learn_encoder`: the rollout keeps the images (`krabby_trainer.learn.rollout.Footage`), and every
  minibatch runs the encoder along those of a share of the robots again, with gradients through its
  memory: truncated backpropagation through time. With a mirror loss both streams are run.
- `critic_iterations`: at first the critic alone learns, so that the actor is not moved by the
  advantages of a critic that knew only the teacher. Nothing of actor and encoder changes.
- `imitation_coef`: the divergence from the teacher's actions in the student's states, whose weight
  falls to 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, cast

import torch
from rsl_rl.env import VecEnv
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict
from torch import Tensor, nn

from krabby_trainer.errors import CheckpointError, ConfigError, unfit
from krabby_trainer.learn.config import EncoderCfg, FinetuningCfg
from krabby_trainer.learn.networks import (
    CRITIC_GROUPS,
    SIZES,
    TeacherActor,
    TeacherCritic,
    actor_of,
)
from krabby_trainer.learn.ppo import ParkourPPO
from krabby_trainer.learn.rollout import Footage
from krabby_trainer.learn.student import DepthEncoder, Sight, StudentActor

__all__ = ["StudentPPO"]


class StudentPPO(ParkourPPO):
    """`ParkourPPO` of a student; the code of the unsensed always comes from the history."""

    kind = "fine-tuned student"
    _raw_actor: StudentActor
    sight: Sight

    def __init__(
        self,
        actor: StudentActor,
        critic: TeacherCritic,
        storage: RolloutStorage,
        *,
        encoder: Mapping[str, Any],
        finetuning: Mapping[str, Any],
        device: str = "cpu",
        **algorithm: Any,
    ) -> None:
        self._tuning = FinetuningCfg(**finetuning)
        self._encoder = DepthEncoder(EncoderCfg(**encoder)).to(device).eval()
        self._teacher: TeacherActor | None = None
        self._teacher_state: dict[str, Any] = {}
        steps, robots = storage.actions.shape[:2]
        self._footage: Footage | None = None
        if self._tuning.learn_encoder:
            memory, window = self._encoder.cfg.memory, self._tuning.window
            self._footage = Footage(steps, robots, memory, device, window=window)
        self._imitation = torch.zeros((), device=device)
        """Weight of the divergence from the teacher, now."""
        self._wanted = torch.zeros(0, device=device)
        """The teacher's actions in the rollout, (T * N, 18)."""
        super().__init__(actor, critic, storage, device=device, **algorithm)
        if self._tuning.imitation_coef:
            self._wanted = torch.zeros_like(self._rollout["actions"])

    @staticmethod
    def construct_algorithm(
        obs: TensorDict, env: VecEnv, cfg: dict[str, Any], device: str
    ) -> StudentPPO:
        seen = torch.zeros(env.num_envs, SIZES["sight"], device=device)
        alg = cast(
            "StudentPPO",
            ParkourPPO.construct_algorithm(_with(obs, seen), env, cfg, device),
        )
        alg._attach(env)
        return alg

    def _attach(self, env: Any) -> None:
        self._env, self.sight = env, Sight.of(env, self._encoder, self.device)
        self._raw_actor.tolerate(self.sight.unseen_s)
        self._begins = torch.ones(env.num_envs, dtype=torch.bool, device=self.device)

    @property
    def adapting(self) -> bool:
        """A student has no privileged code to act on."""
        return True

    @property
    def warming_up(self) -> bool:
        """Whether the critic alone learns in this iteration."""
        return self.iteration < self._tuning.critic_iterations

    @property
    def imitation(self) -> float:
        """Weight of the divergence from the teacher in this iteration."""
        return 0.0 if self.warming_up else self._tuning.imitation(self.iteration)

    def begin_with(self, payload: Mapping[str, Any], source: str) -> None:
        """Take a student's networks, and the critic: its own, or else its teacher's.

        Raises:
            CheckpointError: They are not in `payload`.
        """
        algorithm = payload["algorithm"]
        with unfit(
            f"{source} holds no student to go on from ({{reason}}); take a checkpoint of "
            "`python -m krabby_trainer train task=distill`"
        ):
            self._take_encoder(algorithm)
            self._raw_actor.load_state_dict(algorithm["actor_state_dict"])
            self._raw_actor.clamp_std()
            own = "critic_state_dict" in algorithm
            critic = algorithm if own else algorithm["teacher"]
            self._raw_critic.load_state_dict(critic["critic_state_dict"])
        self._take_teacher(algorithm, source)

    # A rollout

    def act(self, obs: TensorDict) -> Tensor:
        """Encode the images that arrived, then act; the code is kept with the rollout."""
        vision = self._env.unwrapped.vision
        if vision is None:
            raise ConfigError("env.camera.enabled=false; a student needs cameras")
        self.sight.forget(self._begins)
        self._begins.zero_()
        footage = self._footage
        if footage is not None and footage.step == 0:
            footage.begin(self.sight)
        pictures = self.sight.look(vision)
        if footage is not None:
            footage.add_pictures(pictures)
            footage.add_sight(self.sight)
        return super().act(_with(obs, self.sight.group(vision.age)))

    def process_env_step(
        self, obs: TensorDict, rewards: Tensor, dones: Tensor, extras: dict[str, Tensor]
    ) -> None:
        """As PPO's; memories of robots whose episode ended are cleared in the next step."""
        self._begins |= dones.bool()
        super().process_env_step(obs, rewards, dones, extras)

    def in_rollouts(self) -> dict[str, Any]:
        """Memories of the encoder, and whose are to be cleared."""
        return {"sight": self.sight, "begins": self._begins}

    # An update

    def update(self) -> dict[str, float]:
        """As PPO's; of the critic alone while it warms up."""
        if self._footage is not None:
            self._footage.finish()
        self._imitation.fill_(self.imitation)
        if self._imitates:
            self._replay(self._ask_teacher)
        losses = super().update()
        if self._footage is not None:
            self._footage.step = 0
        self.sight.fit_capacity()
        return losses

    @property
    def _imitates(self) -> bool:
        return self.imitation > 0.0

    def _variant(self) -> tuple[Hashable, ...]:
        images = 0 if self._footage is None else self._footage.used
        return (self.warming_up, self._imitates, images)

    def _ask_teacher(self) -> None:
        """What the teacher would do in every step of the rollout."""
        teacher, size = self._teacher, len(self._index)
        assert teacher is not None
        read = ("proprio", "scan", "history")
        parts = [self._rollout[name].split(size) for name in read]
        with torch.no_grad():
            for place, *groups in zip(self._wanted.split(size), *parts, strict=True):
                latent = teacher.get_latent(dict(zip(read, groups, strict=True)))
                place.copy_(teacher.mlp(latent))

    def _imitation_loss(self, mean: Tensor, std: Tensor) -> Tensor:
        wanted = self._wanted.index_select(0, self._index)
        # Of two Gaussians of the same width, which this loss leaves as it is.
        divergence = ((mean - wanted) / std.detach()).square().sum(dim=-1).mean() / 2.0
        self._note(imitation=divergence)
        return self._imitation * divergence

    def _policy_loss(self) -> Tensor:
        if not self.warming_up:
            return super()._policy_loss()
        values = self._raw_critic({name: self._rows(name) for name in CRITIC_GROUPS}).squeeze(-1)
        # Not clipped round what it said: it may be far off.
        value = nn.functional.mse_loss(values, self._rows("returns"))
        self._note(value=value)
        self._policy_step.number.zero_()
        return self.value_loss_coef * value

    def _learn_beside(self, observations: TensorDict) -> None:
        if not self.warming_up:
            super()._learn_beside(observations)

    def _batch(self) -> dict[str, Tensor]:
        batch = super()._batch()
        if self._footage is not None:
            batch["sight"] = self._seen_again(self._footage, batch["sight"])
        return batch

    def _seen_again(self, footage: Footage, sight: Tensor) -> Tensor:
        """The group `sight` of the minibatch with codes of the encoder as it is now."""
        robots = self._index[: self._robots_of_minibatch]  # their first steps come first
        stream = torch.zeros_like(robots)
        if self._sides == 2:
            robots, stream = robots.repeat(2), torch.cat((stream, stream + 1))
        code, _ = footage.at_steps(self._encoder, robots, stream)
        codes = [part.flatten(0, 1) for part in code.split(self._robots_of_minibatch, dim=1)]
        if len(codes) == 1:  # nothing reads that of the mirrored images
            codes.append(torch.zeros_like(codes[0]))
        return torch.cat((*codes, sight[:, -1:]), dim=-1)

    @property
    def _robots_of_minibatch(self) -> int:
        return self.storage.actions.shape[1] // self.num_mini_batches

    @property
    def _minibatch_rows(self) -> int:
        if self._footage is None:
            return super()._minibatch_rows
        return self.storage.actions.shape[0] * self._robots_of_minibatch

    def _shuffled(self) -> Tensor:
        """With the encoder, minibatches of robots with all their steps, step by step."""
        if self._footage is None:
            return super()._shuffled()
        steps, robots = self.storage.actions.shape[:2]
        used = self.num_mini_batches * self._robots_of_minibatch
        parts = torch.randperm(robots, device=self.device)[:used].view(self.num_mini_batches, 1, -1)
        return (robots * torch.arange(steps, device=self.device)[:, None] + parts).flatten()

    def _heads(self) -> list[list[nn.Parameter]]:
        learned = [] if self._footage is None else [list(self._encoder.parameters())]
        return super()._heads() + learned

    # As the runner uses it

    def broadcast_parameters(self) -> None:
        super().broadcast_parameters()
        for value in self._encoder.state_dict().values():
            torch.distributed.broadcast(value, src=0)

    def save(self) -> dict[str, Any]:
        return super().save() | {
            "encoder_state_dict": self._encoder.state_dict(),
            "encoder_architecture": dataclasses.asdict(self._encoder.cfg),
            **({"teacher": self._teacher_state} if self._teacher_state else {}),
        }

    def load(self, loaded_dict: dict, load_cfg: dict | None = None, strict: bool = True) -> bool:
        """As PPO's, and the encoder.

        Raises:
            CheckpointError: It does not fit these networks.
        """
        with unfit(
            "the checkpoint holds no depth encoder that fits ({reason}); resume one of "
            "`python -m krabby_trainer train task=student`"
        ):
            self._take_encoder(loaded_dict)
        self._take_teacher(loaded_dict, "the checkpoint")
        return super().load(loaded_dict, load_cfg, strict)

    def _take_encoder(self, algorithm: Mapping[str, Any]) -> None:
        built = dataclasses.asdict(self._encoder.cfg)
        given = algorithm["encoder_architecture"]
        if given != built:
            raise CheckpointError(
                f"the checkpoint's depth encoder is {given}, agent.encoder asks for {built}; give "
                "the same"
            )
        self._encoder.load_state_dict(algorithm["encoder_state_dict"])

    def _take_teacher(self, algorithm: Mapping[str, Any], source: str) -> None:
        """The teacher to imitate, if any is wanted."""
        if not self._tuning.imitation_coef:
            return
        theirs = algorithm.get("teacher", {})
        kept = ("actor_state_dict", "actor_architecture")
        self._teacher = actor_of({"algorithm": theirs}, f"{source}, of its teacher,").to(
            self.device
        )
        self._teacher_state = {key: theirs[key] for key in kept}


def _with(obs: TensorDict, seen: Tensor) -> TensorDict:
    groups = dict(obs.items()) | {"sight": seen}
    return TensorDict(groups, batch_size=obs.batch_size, device=obs.device)  # type: ignore[arg-type]
