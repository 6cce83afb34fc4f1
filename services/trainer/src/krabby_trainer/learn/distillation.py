"""Distillation: the student acts and learns the actions that the teacher would have taken.

The update runs the encoder along each robot's images (`krabby_trainer.learn.rollout`), from the
memory at the start of the rollout, and has three losses at every control step: the action against
the teacher's, the code against the teacher's code of the terrain scan, and the scan decoded from
memory against the scan. All targets are those of the time of use, not of exposure: the encoder
learns to predict over its latency. A random half of the robots of each minibatch is mirrored.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from krabby_trainer.errors import UNFIT_RESUME, ConfigError, unfit
from krabby_trainer.learn.config import DistillationCfg, EncoderCfg
from krabby_trainer.learn.gradients import GradientStep, Sums, adam, adam_state, load_adam
from krabby_trainer.learn.networks import TeacherActor, actor_of, example_observations
from krabby_trainer.learn.rollout import Rollout
from krabby_trainer.learn.student import (
    STUDENT_GROUPS,
    DepthEncoder,
    ScanDecoder,
    Sight,
    StudentActor,
    teach,
)
from krabby_trainer.learn.symmetry import reflections
from krabby_trainer.task.observations import NUM_JOINTS, PROPRIO_SIZE
from krabby_trainer.vision.cameras import Vision

__all__ = ["Distillation"]


class Distillation:
    """Learns a student from a teacher; has the interface of rsl_rl's algorithms."""

    kind = "distilled student"
    """What its checkpoints hold."""

    def __init__(
        self,
        env: Any,
        cfg: DistillationCfg,
        encoder_cfg: EncoderCfg,
        actor_cfg: Mapping[str, Any],
        *,
        num_steps: int,
        max_iterations: int,
        device: str,
        multi_gpu: Mapping[str, Any] | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        self.cfg, self.device, self._env = cfg, device, env
        self.iteration, self._max_iterations = 0, max_iterations
        groups = {"actor": list(STUDENT_GROUPS)}
        self.actor = StudentActor(
            example_observations(), groups, "actor", NUM_JOINTS, **actor_cfg
        ).to(device)
        self.encoder = DepthEncoder(encoder_cfg).to(device)
        self.decoder = ScanDecoder(encoder_cfg.memory).to(device)
        self.teacher: TeacherActor | None = None
        self._teacher_state: dict[str, Any] = {}
        """What the checkpoint keeps of the teacher: its actor, and its critic for fine-tuning."""
        modules = (self.encoder, self.decoder, self.actor.mlp, self.actor.estimator)
        learned = [each for module in modules for each in module.parameters()]
        self.optimizer = adam(learned, cfg.learning_rate, device)
        self._sums = Sums(("action", "code", "scan", "estimator"), device)
        self._step = GradientStep(
            self._loss,
            self.optimizer,
            [learned],
            max_norm=cfg.max_grad_norm,
            world_size=1 if multi_gpu is None else int(multi_gpu["world_size"]),
            enabled=cuda_graphs,
        )
        self.sight = Sight.of(env, self.encoder, device)
        self.actor.tolerate(self.sight.unseen_s)
        if torch.device(device).type == "cpu":  # convolutions then take two thirds of the time
            self.encoder.picture.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._new_rollout = functools.partial(
            Rollout, num_steps, env.num_envs, encoder_cfg.memory, device
        )
        self._rollout = self._new_rollout()
        self._learned_from = self._rollout
        """Rollout of the minibatch."""
        self._places = torch.zeros(env.num_envs, dtype=torch.long, device=device)
        self._robots = self._places
        """Robots of the minibatch: the first numbers of `_places`."""
        self._older: list[Rollout] = []
        self._begins = torch.ones(env.num_envs, dtype=torch.bool, device=device)
        self._rank = torch.rand(env.num_envs, device=device)
        """The teacher controls the robots whose value is below its share."""

    @staticmethod
    def construct_algorithm(obs: TensorDict, env: Any, cfg: dict[str, Any], device: str) -> Any:
        return Distillation(
            env,
            DistillationCfg(**cfg["algorithm"]["distillation"]),
            EncoderCfg(**cfg["algorithm"]["encoder"]),
            cfg["actor"],
            num_steps=cfg["num_steps_per_env"],
            max_iterations=cfg["algorithm"]["max_iterations"],
            device=device,
            multi_gpu=cfg["multi_gpu"],
            cuda_graphs=cfg["algorithm"]["cuda_graphs"],
        )

    @property
    def vision(self) -> Vision:
        vision = self._env.unwrapped.vision
        if vision is None:
            raise ConfigError("env.camera.enabled=false; a student needs cameras")
        return vision

    @property
    def learning_rate(self) -> float:
        done = min(self.iteration / max(self._max_iterations, 1), 1.0)
        low, high = self.cfg.learning_rate_end, self.cfg.learning_rate
        return low + 0.5 * (high - low) * (1.0 + math.cos(math.pi * done))

    @property
    def led_share(self) -> float:
        """Share of the robots that the teacher leads in this iteration."""
        return max(0.0, 1.0 - self.iteration / max(self.cfg.teacher_iterations, 1))

    def begin_with(self, payload: Mapping[str, Any], source: str) -> None:
        """Take a teacher: to learn from, and to begin as.

        Raises:
            CheckpointError: There is none in `payload`.
        """
        teach(self.encoder, self.actor, self._take_teacher(payload, source))

    def act(self, obs: TensorDict) -> Tensor:
        """Take in images, keep what the teacher would do, and act."""
        if self.teacher is None:
            raise ConfigError("run.init: give the teacher's checkpoint, run.init=PATH")
        rollout, sight, vision = self._rollout, self.sight, self.vision
        sight.forget(self._begins)
        self._begins.zero_()
        if rollout.step == 0:
            rollout.begin(sight)
        rollout.add_pictures(sight.look(vision))
        groups: dict[str, Any] = dict(obs.items())
        groups["sight"] = sight.group(vision.age)
        action = self.actor.mlp(self.actor.get_latent(groups))
        wanted = self.teacher.mlp(self.teacher.get_latent(obs))
        rollout.add_step(sight, groups, wanted)
        action = action + self.cfg.action_noise * torch.randn_like(action)
        led = self._rank < self.led_share
        return torch.where(led[:, None], wanted, action)

    def process_env_step(
        self, obs: TensorDict, rewards: Tensor, dones: Tensor, extras: Mapping[str, Any]
    ) -> None:
        """Memories of robots whose episode ended are cleared in the next step."""
        self._begins |= dones.bool()

    def compute_returns(self, obs: TensorDict) -> None:
        """Imitation has no returns."""

    @property
    def figures(self) -> dict[str, float]:
        """Of the next update, for the log."""
        return {"learning_rate": self.learning_rate}

    def update(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(self.learning_rate)
        self._rollout.finish()
        self.sight.fit_capacity()
        count = 0
        for rollout, robots in self._mini_batches():
            self._learned_from, self._robots = rollout, self._places[: len(robots)]
            self._robots.copy_(robots)
            self._step.descend((id(rollout), rollout.used, len(robots)))
            count += 1
        self._put_aside()
        self.iteration += 1
        means = {name: total / count for name, total in self._sums.take().items()}
        return means | {"led_share": self.led_share}

    def _mini_batches(self) -> Iterator[tuple[Rollout, Tensor]]:
        """Rollouts, and robots of them: the newest one whole, between minibatches of older ones."""
        n, cfg = self._rollout.num_envs, self.cfg
        parts = min(cfg.num_mini_batches, n)

        def passes(count: int) -> Iterator[Tensor]:
            for _ in range(count):
                yield from torch.randperm(n, device=self.device).tensor_split(parts)

        newest, older = passes(cfg.num_learning_epochs), passes(cfg.replay_epochs)
        again = [False] * parts * cfg.num_learning_epochs
        if self._older:
            again += [True] * parts * cfg.replay_epochs
            random.shuffle(again)
        for old in again:
            yield (
                (random.choice(self._older), next(older)) if old else (self._rollout, next(newest))
            )

    def _put_aside(self) -> None:
        if self.cfg.replay_epochs:
            self._older.append(self._rollout)
            full = len(self._older) > self.cfg.replay_rollouts
            self._rollout = self._older.pop(0) if full else self._new_rollout()
        self._rollout.step = 0

    def _loss(self) -> Tensor:
        """Of the minibatch."""
        losses = self._losses(self._learned_from, self._robots)
        for name, value in losses.items():
            self._sums.add(name, value)
        return (
            losses["action"]
            + self.cfg.code_coef * losses["code"]
            + self.cfg.scan_coef * losses["scan"]
            + losses["estimator"]
        )

    def _losses(self, r: Rollout, robots: Tensor) -> dict[str, Tensor]:
        """Of one minibatch of robots (B,), some of them in the mirror."""
        stream = torch.randint(0, 2, (len(robots),), device=self.device)
        flipped = stream.bool()
        maps = reflections(self.device)

        def chosen(values: Tensor, name: str) -> Tensor:
            """Steps (T, B, k) of the minibatch, mirrored where the robot is."""
            own = values[:, robots]
            return torch.where(flipped[None, :, None], maps[name](own), own)

        code, memory = r.at_steps(self.encoder, robots, stream)
        history = chosen(r.history, "history").flatten(0, 1)
        code_now = code.flatten(0, 1)
        groups = {
            "proprio": history[:, -PROPRIO_SIZE:],
            "history": history,
            "sight": torch.cat((code_now, code_now, r.age[:, robots].flatten()[:, None]), dim=-1),
        }
        action = self.actor.mlp(self.actor.get_latent(groups))
        velocity = self.actor.velocity(self.actor.frames(groups))
        wanted = chosen(r.teacher_action, "actions").flatten(0, 1)
        true_scan = chosen(r.scan, "scan").float()
        assert self.teacher is not None
        with torch.no_grad():
            true_code = self.teacher.sight({"scan": true_scan})
        seen = ~r.blind[:, robots, None]
        if self.actor.oldest_s:  # no code is read from images that are too old
            seen &= r.age[:, robots, None] < self.actor.oldest_s
        scan = self.decoder(memory)
        return {
            "action": nn.functional.mse_loss(action, wanted),
            "code": _mean_where((code - true_code).square(), seen),
            "scan": _mean_where((scan - true_scan).square(), seen),
            "estimator": nn.functional.mse_loss(
                velocity, chosen(r.velocity, "velocity").flatten(0, 1)
            ),
        }

    def train_mode(self, training: bool = True) -> None:
        for model in self._models().values():
            model.train(training)

    def eval_mode(self) -> None:
        self.train_mode(False)

    def get_policy(self) -> StudentActor:
        return self.actor

    def broadcast_parameters(self) -> None:
        for model in self._models().values():
            for value in model.state_dict().values():
                torch.distributed.broadcast(value, src=0)

    def in_rollouts(self) -> dict[str, Any]:
        """Memories of the encoder, whose are to be cleared, and whom the teacher controls."""
        return {"sight": self.sight, "begins": self._begins, "rank": self._rank}

    def save(self) -> dict[str, Any]:
        """All that a resumed run, a fine-tuning run or an export needs."""
        return {
            **{f"{name}_state_dict": model.state_dict() for name, model in self._models().items()},
            "actor_architecture": self.actor.architecture,
            "encoder_architecture": dataclasses.asdict(self.encoder.cfg),
            "optimizer_state_dict": adam_state(self.optimizer),
            "updates": self.iteration,
            "teacher": self._teacher_state,
        }

    def load(self, loaded: Mapping[str, Any], load_cfg: object = None, strict: bool = True) -> bool:
        """Take over what `save` gave.

        Raises:
            CheckpointError: It does not fit these networks.
        """
        with unfit(UNFIT_RESUME):
            self._take_teacher({"algorithm": loaded["teacher"]}, "the checkpoint's teacher")
            for name, model in self._models().items():
                model.load_state_dict(loaded[f"{name}_state_dict"], strict=strict)
            load_adam(self.optimizer, loaded["optimizer_state_dict"])
            self._step.forget()
            self.iteration = int(loaded["updates"])
        return True

    def _models(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "encoder": self.encoder, "decoder": self.decoder}

    def _take_teacher(self, payload: Mapping[str, Any], source: str) -> TeacherActor:
        self.teacher = actor_of(payload, source).to(self.device)
        kept = ("actor_state_dict", "actor_architecture", "critic_state_dict")
        self._teacher_state = {key: payload["algorithm"][key] for key in kept}
        return self.teacher


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` (T, B, k) where `mask` (T, B, 1)."""
    weight = mask.float()
    return (values * weight).sum() / (weight.sum() * values.shape[-1]).clamp(min=1.0)
