"""What the environment logs: sums on the device, taken every so many steps."""

from __future__ import annotations

import torch

from krabby_trainer.task.rewards import REWARDS, Step

__all__ = ["Statistics"]

Tensor = torch.Tensor

_SUMS = (
    *("steps", "torque_sq", "saturation", "edge", "velocity", "speed", "drag"),
    *("episodes", "falls", "goals", "completed"),
)
_GOALS = 7
"""Waypoints that the published metric counts."""


class Statistics:
    """Sums of what N robots did since they were logged last; `add` can be recorded."""

    def __init__(self, weights: dict[str, float], types: tuple[str, ...], device: str) -> None:
        self._types = types
        self._by_type = torch.zeros(3, len(types), device=device)
        """Episodes, falls and successes by type of course."""
        self._sums = {key: torch.zeros((), device=device) for key in _SUMS}
        self._rewards = torch.zeros(len(REWARDS), device=device)
        self._weights = weights

    def add(
        self,
        step: Step,
        terms: dict[str, Tensor],
        *,
        saturated: Tensor,
        index: Tensor,
        completed: Tensor,
        time_out: Tensor,
        kind: Tensor,
    ) -> None:
        """Add one step.

        Args:
            step: What happened.
            terms: Reward terms, each (N,).
            saturated: Which drives are at their limit, (N, 18).
            index: Waypoints reached, (N,).
            completed: Which robots completed the course, (N,).
            time_out: Which robots timed out, (N,).
            kind: Index of the type of each robot's course, (N,).
        """
        ended = (step.failed | completed | time_out) & ~step.free
        s = self._sums
        s["steps"] += 1.0
        s["torque_sq"] += step.torque.square().mean()
        s["saturation"] += saturated.float().mean()
        s["edge"] += step.on_edge.float().sum(-1).mean()
        walks = (~step.free).float().mean().clamp(min=1e-6)
        s["velocity"] += terms["goal_velocity"].mean() / walks
        speed = step.base_lin_vel_w[:, :2].norm(dim=-1)
        s["speed"] += speed.mean()
        s["drag"] += (step.weight_n * speed).mean()
        self._rewards += torch.stack([terms[reward.name] for reward in REWARDS]).mean(dim=1)
        s["episodes"] += ended.sum()
        s["falls"] += (ended & step.failed).sum()
        s["goals"] += torch.where(ended, index.clamp(max=_GOALS), 0).sum()
        s["completed"] += (ended & completed).sum()
        good = completed | (index >= _GOALS)
        for sums, which in zip(
            self._by_type, (ended, ended & step.failed, ended & good), strict=True
        ):
            sums.index_add_(0, kind, which.float())

    def take(self) -> dict[str, Tensor]:
        """Means since the last call, by name; `Reward/*` are weighted, per second."""
        s = self._sums
        steps, episodes = s["steps"].clamp(min=1.0), s["episodes"].clamp(min=1.0)
        means = dict(zip((reward.name for reward in REWARDS), self._rewards / steps, strict=True))
        log = {
            "Torque/rms_nm": (s["torque_sq"] / steps).sqrt(),
            "Torque/saturation": s["saturation"] / steps,
            "Episode/mev": s["edge"] / steps,
            "Episode/velocity_ratio": s["velocity"] / steps,
            "Episode/speed": s["speed"] / steps,
            "Gait/power_w": means["power"],
            "Gait/cost_of_transport": means["power"] * steps / s["drag"].clamp(min=1e-6),
            "Gait/feet_high_m": means["feet_high"],
            "Gait/contact_force": means["contact_force"],
            "Episode/goals": s["goals"] / episodes,
            "Episode/mxd": s["goals"] / episodes / _GOALS,
            "Episode/fall_rate": s["falls"] / episodes,
            "Episode/completed": s["completed"] / episodes,
        }
        for name, weight in self._weights.items():
            if weight != 0.0:
                log[f"Reward/{name}"] = weight * means[name]
        count, falls, successes = self._by_type.unbind()
        for i, name in enumerate(self._types):  # NaN without episodes
            log[f"Success/{name}"] = successes[i] / count[i]
            log[f"Fell/{name}"] = falls[i] / count[i]
        for total in (*s.values(), self._rewards, self._by_type):
            total.zero_()
        return log
