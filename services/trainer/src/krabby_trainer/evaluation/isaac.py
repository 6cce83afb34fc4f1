"""Evaluation in Isaac Lab: the training environment itself, with the suite's configuration."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from krabby_trainer.errors import EvaluationError
from krabby_trainer.evaluation.metrics import EpisodeRecorder, StepFacts
from krabby_trainer.evaluation.outcome import Outcome, ProgressLine
from krabby_trainer.evaluation.suite import assign
from krabby_trainer.task.terrain import Terrain
from krabby_trainer.vision.cameras import seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from tensordict import TensorDict

    from krabby_trainer.evaluation.metrics import Robots
    from krabby_trainer.task.config import EnvCfg

__all__ = ["evaluate_isaac", "to_numpy"]


def evaluate_isaac(
    policy: Callable[[TensorDict], torch.Tensor],
    cfg: EnvCfg,
    *,
    seconds: float,
    seed: int,
    device: str,
) -> Outcome:
    """Let `policy` walk every robot of `cfg` for `seconds` of simulated time.

    Raises:
        EvaluationError: the environment deals out other courses than the suite says, or actions
            are not finite.
        MissingDependency: Isaac Lab is not installed.
    """
    from krabby_trainer.task.isaac import CONTROL_STEP_S, make_env

    begin_s = time.monotonic()
    robots, _ = assign(Terrain(cfg.terrain), cfg.num_envs)
    recorder = EpisodeRecorder(robots, step_s=CONTROL_STEP_S)
    steps = max(1, round(seconds / CONTROL_STEP_S))
    env = make_env(cfg, device=device, seed=seed)
    try:
        env.unwrapped.parkour.collect_facts = True
        observations, vision = env.get_observations(), env.unwrapped.vision
        begins = torch.ones(cfg.num_envs, dtype=torch.bool, device=env.unwrapped.device)
        with ProgressLine("evaluating in Isaac Lab", steps, CONTROL_STEP_S) as line:
            for step in range(steps):
                if vision is not None:
                    observations = seen(observations, vision, begins)
                action = policy(observations)
                observations, _, dones, _ = env.step(action)
                begins = dones.bool()
                facts = env.unwrapped.facts
                if step == 0:
                    _check_courses(facts, robots)
                recorder.add(to_numpy(facts))
                line.update(step + 1, f"{recorder.finished} episodes")
        if not torch.isfinite(action).all():
            raise EvaluationError(
                "the policy's actions are not finite; the checkpoint is of a run that diverged, "
                "take an earlier one"
            )
    finally:
        env.close()
    return Outcome(run=recorder.finish(), wall_s=time.monotonic() - begin_s)


def to_numpy(facts: Any) -> StepFacts:
    """The environment's facts of a step as the metrics want them."""

    def array(value: torch.Tensor) -> NDArray[Any]:
        return value.detach().cpu().numpy()

    completed = array(facts.completed)
    return StepFacts(
        goal_index=array(facts.goal_index),
        foot_contact=array(facts.foot_contact),
        feet_on_edge=array(facts.feet_on_edge),
        terminated=array(facts.terminated) & ~completed,
        timed_out=array(facts.timed_out) & ~completed,
        completed=completed,
        torque=array(facts.torque),
        saturated=array(facts.saturated),
        base_contact=array(facts.base_contact),
        distance_m=array(facts.distance_m),
    )


def _check_courses(facts: Any, robots: Robots) -> None:
    """The comparison with MuJoCo stands on this."""
    if not np.array_equal(facts.course_seed.cpu().numpy(), robots.course_seed):
        raise EvaluationError(
            "the environment gave its robots other courses than the suite; `assign` in "
            "krabby_trainer.evaluation.suite and the tiles in krabby_trainer.task.isaac must "
            "follow one rule"
        )
