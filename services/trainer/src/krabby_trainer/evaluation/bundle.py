"""Policy bundles as subjects of an evaluation: what the robot would run, ONNX Runtime included.

So a file that is about to be shipped is measured itself, and a policy that no trainer made, such as
the blind gait, gives the baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from krabby.policy.bundle import OnnxPolicy, PolicyBundle
from krabby.robot.description import RobotDescription

from krabby_trainer.errors import EvaluationError
from krabby_trainer.task.observations import (
    ACTION_CLIP,
    ACTION_SCALE,
    HISTORY,
    PROPRIO,
    PROPRIO_SIZE,
)

if TYPE_CHECKING:
    from pathlib import Path

    from krabby.policy.observation import ObservationTerm
    from numpy.typing import NDArray
    from tensordict import TensorDict

__all__ = ["BundlePolicy"]


class BundlePolicy:
    """Runs a bundle for N robots, one after the other; call it with observation groups.

    Besides `history` and `scan` it wants the group `begins` (N, 1): whose episode begins, so that
    recurrent states start over.
    """

    sees = False
    rate_hz = 0.0

    def __init__(self, folder: Path) -> None:
        desc = RobotDescription.load()
        self.bundle = PolicyBundle.load(folder, desc)
        known = {term.name: term for term in PROPRIO.terms}
        for term in self.bundle.observation.terms:
            fits = term.name == "height_scan" or (term.name in known and term.history <= HISTORY)
            if not fits:
                raise EvaluationError(
                    f"the bundle {folder} reads {term.name!r} with a history of {term.history}; an "
                    f"evaluation has height_scan, and {', '.join(known)} up to {HISTORY} frames"
                )
        action = self.bundle.action
        self._default = desc.default_joint_pos
        self._as_trained = (
            np.allclose(action.scale, ACTION_SCALE)
            and np.allclose(action.offset, self._default)
            and action.clip == ACTION_CLIP
        )
        self._policies: list[OnnxPolicy] = []

    def __call__(self, obs: TensorDict) -> torch.Tensor:
        """Actions as the trainer's environments take them, (N, 18)."""
        rows = self._observations(obs)
        begins = obs["begins"][:, 0].cpu().numpy()
        actions = np.zeros((len(rows), len(self._default)), np.float32)
        for robot, row in enumerate(rows):
            policy = self._policy(robot)
            if begins[robot]:
                policy.reset()
            target = policy.step(row[None])
            # The action itself where it means the same, for the next observation will hold it.
            actions[robot] = (
                policy.last_action if self._as_trained else (target - self._default) / ACTION_SCALE
            )
        return torch.from_numpy(actions)

    def _policy(self, robot: int) -> OnnxPolicy:
        """One for all if it remembers nothing."""
        index = robot if self.bundle.state else 0
        while len(self._policies) <= index:
            self._policies.append(OnnxPolicy(self.bundle))
        return self._policies[index]

    def _observations(self, obs: TensorDict) -> NDArray[np.float32]:
        frames = obs["history"].cpu().numpy().reshape(-1, HISTORY, PROPRIO_SIZE)
        scan = obs["scan"].cpu().numpy()[:, None]
        parts = [self._term(term, frames, scan) for term in self.bundle.observation.terms]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def _term(
        self, term: ObservationTerm, frames: NDArray[np.float32], scan: NDArray[np.float32]
    ) -> NDArray[np.floating]:
        """The last frames of one term with the bundle's scale in place of ours, oldest first."""
        scale = np.asarray(term.scale)
        if term.name == "height_scan":
            values = scan * scale
        else:
            ours = PROPRIO.term(term.name)
            assert ours is not None
            newest = frames[:, HISTORY - term.history :, PROPRIO.slices[term.name]]
            values = newest * (scale / np.asarray(ours.scale))
        return values.reshape(len(values), -1)
