"""A tiny world in place of the simulator: same groups, same shapes, nothing to learn."""

from __future__ import annotations

import pytest
import torch
from krabby_trainer.task.observations import (
    EYE_INDEX,
    GROUP_SIZES,
    HISTORY,
    PROPRIO_SIZE,
    SCAN_SIZE,
)
from tensordict import TensorDict

NUM_ACTIONS = 18
# Networks this small lose more to handing work round than they gain.
torch.set_num_threads(1)


class FakeVision:
    """Cameras of robots: a picture comes to each in about every third step."""

    def __init__(self, num_envs: int) -> None:
        self.arrived = torch.ones(num_envs, dtype=torch.bool)
        self.image = torch.rand(num_envs, 58, 87) - 0.5
        self.eye = torch.zeros(num_envs, 48)
        self.age = torch.full((num_envs,), 0.05)

    oldest_s = 0.0

    def step(self, frame: torch.Tensor, ended: torch.Tensor) -> None:
        self.arrived = (torch.rand(len(ended)) < 0.3) & ~ended
        fresh = self.arrived
        self.image[fresh] = torch.rand(int(fresh.sum()), 58, 87) - 0.5
        self.eye[fresh] = frame[fresh][:, EYE_INDEX]
        self.age = torch.where(fresh, 0.05, self.age + 0.01)


class FakeEnv:
    """Observations drift with the actions and torch's generator; all of it can be saved."""

    max_episode_length = 7
    device = "cpu"
    cfg = None

    def __init__(self, num_envs: int = 4, *, poison: tuple[int, str] | None = None) -> None:
        self.num_envs = num_envs
        self.num_actions = NUM_ACTIONS
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.level = torch.zeros(num_envs)
        self.state = torch.zeros(num_envs, PROPRIO_SIZE)
        self.frames = torch.zeros(num_envs, HISTORY, PROPRIO_SIZE)
        self.steps = 0
        self.poison = poison
        self.closed = False
        self.vision = FakeVision(num_envs)

    @property
    def unwrapped(self) -> FakeEnv:
        return self

    def get_observations(self) -> TensorDict:
        n = self.num_envs
        seen = {
            "proprio": self.state.clone(),
            "scan": self.state.repeat(1, 5)[:, :SCAN_SIZE].clone(),
            "velocity": self.state[:, :3].clone(),
            "privileged": self.state[:, : GROUP_SIZES["privileged"]].clone(),
            "history": self.frames.reshape(n, -1).clone(),
            "critic": self.state[:, : GROUP_SIZES["critic"]].clone(),
        }
        if self.poison and self.steps >= self.poison[0] and self.poison[1] in seen:
            seen[self.poison[1]][0, 0] = torch.nan
        return TensorDict(seen, batch_size=[n])

    def step(self, actions: torch.Tensor):
        self.steps += 1
        push = torch.nn.functional.pad(actions.detach(), (0, PROPRIO_SIZE - NUM_ACTIONS))
        self.state = 0.9 * self.state + 0.1 * push + 0.01 * torch.randn_like(self.state)
        self.frames = torch.cat([self.frames[:, 1:], self.state[:, None]], dim=1)
        self.episode_length_buf += 1
        timed_out = self.episode_length_buf >= self.max_episode_length
        rewards = 1.0 - self.state[:, :3].norm(dim=1)
        if self.poison and self.steps >= self.poison[0] and self.poison[1] == "reward":
            rewards[0] = torch.inf
        self.vision.step(self.state, timed_out)
        self.level[timed_out] += 1
        self.episode_length_buf[timed_out] = 0
        log = {
            "Level/mean": self.level.mean(),
            "Torque/rms_nm": torch.tensor(30.0),
            "Episode/mxd": torch.where(timed_out.any(), torch.tensor(0.5), torch.tensor(torch.nan)),
            "Reward/alive": 1.0,
        }
        extras = {"log": log, "time_outs": timed_out}
        return self.get_observations(), rewards, timed_out.long(), extras

    def checkpoint_state(self) -> dict[str, torch.Tensor]:
        return {
            "level": self.level,
            "state": self.state,
            "frames": self.frames,
            "episode_length": self.episode_length_buf,
        }

    def load_checkpoint_state(self, state: dict[str, torch.Tensor]) -> None:
        if state["level"].shape != self.level.shape:
            raise ValueError(f"{len(state['level'])} robots, not {self.num_envs}")
        self.level, self.state = state["level"].clone(), state["state"].clone()
        self.frames = state["frames"].clone()
        self.episode_length_buf = state["episode_length"].clone()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake_env():
    """Makes fake environments."""
    return FakeEnv
