"""Fine-tuning: PPO on the student's actor, with the depth encoder in the loop.

The encoder is frozen: its code is an observation, kept with the rollout, so PPO stays rsl_rl's and
runs at the speed of a policy without memory. The actor learns to act on this encoder's code with
its latency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from rsl_rl.env import VecEnv
from tensordict import TensorDict
from torch import Tensor

from krabby_trainer.errors import CheckpointError, ConfigError, unfit
from krabby_trainer.learn.config import EncoderCfg
from krabby_trainer.learn.ppo import ParkourPPO
from krabby_trainer.learn.student import DepthEncoder, Sight, StudentActor

__all__ = ["StudentPPO"]


class StudentPPO(ParkourPPO):
    """`ParkourPPO` of a student; the code of the unsensed always comes from the history."""

    kind = "fine-tuned student"
    _raw_actor: StudentActor
    _encoder: DepthEncoder
    sight: Sight

    @staticmethod
    def construct_algorithm(
        obs: TensorDict, env: VecEnv, cfg: dict[str, Any], device: str
    ) -> StudentPPO:
        encoder = DepthEncoder(EncoderCfg(**cfg["algorithm"].pop("encoder"))).to(device)
        sight = Sight.of(env, encoder, device)
        seen = sight.group(torch.zeros(env.num_envs, device=device))
        alg = cast(
            "StudentPPO",
            ParkourPPO.construct_algorithm(_with(obs, seen), env, cfg, device),
        )
        alg._raw_actor.tolerate(sight.unseen_s)
        alg._attach(env, encoder, sight)
        return alg

    def _attach(self, env: Any, encoder: DepthEncoder, sight: Sight) -> None:
        self._env, self._encoder, self.sight = env, encoder.eval(), sight
        self._begins = torch.ones(env.num_envs, dtype=torch.bool, device=self.device)

    @property
    def adapting(self) -> bool:
        """A student has no privileged code to act on."""
        return True

    def begin_with(self, payload: Mapping[str, Any], source: str) -> None:
        """Take a distilled student's networks, and its teacher's critic.

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
            critic = algorithm.get("teacher", algorithm)["critic_state_dict"]
            self._raw_critic.load_state_dict(critic)

    def act(self, obs: TensorDict) -> Tensor:
        """Encode the images that arrived, then act; the code is kept with the rollout."""
        vision = self._env.unwrapped.vision
        if vision is None:
            raise ConfigError("env.camera.enabled=false; a student needs cameras")
        self.sight.forget(self._begins)
        self._begins.zero_()
        self.sight.look(vision)
        return super().act(_with(obs, self.sight.group(vision.age)))

    def update(self) -> dict[str, float]:
        """As PPO's."""
        losses = super().update()
        self.sight.fit_capacity()
        return losses

    def process_env_step(
        self, obs: TensorDict, rewards: Tensor, dones: Tensor, extras: dict[str, Tensor]
    ) -> None:
        """As PPO's; memories of robots whose episode ended are cleared in the next step."""
        self._begins |= dones.bool()
        super().process_env_step(obs, rewards, dones, extras)

    def in_rollouts(self) -> dict[str, Any]:
        """Memories of the encoder, and whose are to be cleared."""
        return {"sight": self.sight, "begins": self._begins}

    def save(self) -> dict[str, Any]:
        return super().save() | {
            "encoder_state_dict": self._encoder.state_dict(),
            "encoder_architecture": dataclasses.asdict(self._encoder.cfg),
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


def _with(obs: TensorDict, seen: Tensor) -> TensorDict:
    groups = dict(obs.items()) | {"sight": seen}
    return TensorDict(groups, batch_size=obs.batch_size, device=obs.device)  # type: ignore[arg-type]
