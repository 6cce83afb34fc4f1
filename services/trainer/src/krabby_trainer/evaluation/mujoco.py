"""Evaluation in MuJoCo: the physics of the runtime's simulation, the courses of Isaac Lab.

What differs from Isaac Lab is what the comparison is about;
`krabby_trainer.evaluation.walkers` lists it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from krabby_trainer.errors import EvaluationError
from krabby_trainer.evaluation.metrics import EpisodeRecorder, StepFacts
from krabby_trainer.evaluation.outcome import Outcome, Poses, ProgressLine
from krabby_trainer.evaluation.physics import CONTROL_S
from krabby_trainer.evaluation.suite import assign, tiles
from krabby_trainer.evaluation.walkers import REASONS, Walkers
from krabby_trainer.task.terrain import Terrain

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from tensordict import TensorDict

    from krabby_trainer.evaluation.metrics import Robots
    from krabby_trainer.evaluation.walkers import Ended
    from krabby_trainer.task.config import EnvCfg

__all__ = ["evaluate_mujoco"]

Tensor = torch.Tensor

_POSE_EVERY = 10
"""Control steps between recorded poses."""


def evaluate_mujoco(
    policy: Callable[[TensorDict], Tensor],
    cfg: EnvCfg,
    *,
    seconds: float,
    seed: int,
    device: str = "cpu",
    processes: int = 0,
) -> Outcome:
    """Let `policy` walk every robot of `cfg` for `seconds` of simulated time.

    Args:
        policy: deterministic actions (N, 18) from observation groups.
        cfg: courses, commands, disturbances.
        seconds: for each robot; episodes follow one another.
        seed: of everything that is drawn but the courses.
        device: where the policy's observations go.
        processes: that share the physics; 0 for all cores.
    """
    torch.manual_seed(seed)
    terrain = Terrain(cfg.terrain)
    robots, _ = assign(terrain, cfg.num_envs)
    level, column = tiles(terrain, cfg.num_envs)
    steps = max(1, round(seconds / CONTROL_S))
    begin_s = time.monotonic()
    with (
        Walkers(
            cfg, terrain, level * terrain.columns + column, seed=seed, processes=processes
        ) as walkers,
        ProgressLine("evaluating in MuJoCo", steps, CONTROL_S) as line,
    ):
        record = _Record(walkers, robots)
        for step in range(steps):
            obs = walkers.look()
            action = policy(obs.to(device)).to("cpu", torch.float32)
            if not torch.isfinite(action).all():
                raise EvaluationError(
                    "the policy's actions are not finite; the checkpoint is of a run that "
                    "diverged, take an earlier one"
                )
            ended = walkers.step(action)
            record.add(ended)
            if ended.any.any():
                walkers.restart(ended.any)
            line.update(step + 1, f"{record.recorder.finished} episodes")
    return Outcome(
        run=record.recorder.finish(),
        wall_s=time.monotonic() - begin_s,
        falls=record.falls,
        poses=record.poses(),
    )


class _Record:
    """What came of every robot's walk."""

    def __init__(self, walkers: Walkers, robots: Robots) -> None:
        self._walkers, self._robots = walkers, robots
        self._episode = np.zeros(len(robots), np.int64)
        self._poses: list[tuple[NDArray[Any], ...]] = []
        self._steps = 0
        self.recorder = EpisodeRecorder(robots, step_s=CONTROL_S)
        self.falls: dict[str, dict[str, int]] = {}
        """How often for which reason, by obstacle type."""

    def add(self, ended: Ended) -> None:
        """A step, before those that ended begin anew."""
        walkers = self._walkers
        get = walkers.get
        self._steps += 1
        if self._steps % _POSE_EVERY == 0:
            names = ("base_pos_w", "base_quat_w", "joint_pos")
            self._poses.append((*(get(n).numpy().copy() for n in names), self._episode + 0))
        self.recorder.add(
            StepFacts(
                goal_index=walkers.progress.index.numpy(),
                foot_contact=get("foot_contact").numpy() > 0.5,
                feet_on_edge=get("feet_on_edge").numpy() > 0.5,
                terminated=ended.terminated,
                timed_out=ended.timed_out,
                completed=ended.completed,
                torque=get("torque").numpy(),
                saturated=get("saturated").numpy(),
                base_contact=get("base_contact").numpy()[:, 0] > 0.5,
                distance_m=walkers.progress.distance_m.numpy(),
            )
        )
        for robot in np.flatnonzero(ended.terminated):
            reason = REASONS[int(ended.reasons[:, robot].argmax())]
            counts = self.falls.setdefault(str(self._robots.type[robot]), {})
            counts[reason] = counts.get(reason, 0) + 1
        self._episode += ended.any

    def poses(self) -> Poses | None:
        """What was recorded on the way."""
        if not self._poses:
            return None
        pos, quat, joints, episode = (np.stack(part) for part in zip(*self._poses, strict=True))
        return Poses(
            period_s=_POSE_EVERY * CONTROL_S,
            base_pos_w=pos,
            base_quat_w=quat,
            joint_pos=joints,
            episode=episode,
        )
