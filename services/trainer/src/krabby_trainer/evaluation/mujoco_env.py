"""Somewhere to imitate in without a GPU: rsl-rl's environment on MuJoCo.

Every episode is another robot on another tile. There are no rewards: imitation asks for none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from tensordict import TensorDict

from krabby_trainer import snapshot
from krabby_trainer.evaluation.walkers import Walkers
from krabby_trainer.task.observations import NUM_JOINTS
from krabby_trainer.task.terrain import Terrain

if TYPE_CHECKING:
    from krabby_trainer.task.config import EnvCfg
    from krabby_trainer.vision.cameras import Cameras

__all__ = ["MujocoEnv"]

Tensor = torch.Tensor

_LOG_EVERY: Final = 24
_NO_STATE: Final = (
    *("_cfg", "cfg", "_desc", "_courses", "_corners", "_waypoints", "_half_widths", "_spawns"),
    *("_default", "_pool", "camera"),
)
"""Attributes of `Walkers` and its parts that do not change."""


class MujocoEnv:
    """rsl-rl's `VecEnv` for the task distill.

    Args:
        cfg: Robots, courses, commands, disturbances, cameras. Gains, centres of mass and the delay
            of commands are those of the robot; the scan is exact.
        seed: Of everything that is drawn but the courses.
    """

    device = "cpu"
    num_actions = NUM_JOINTS

    def __init__(self, cfg: EnvCfg, *, seed: int) -> None:
        self.cfg, self.num_envs = cfg, cfg.num_envs
        self._terrain = Terrain(cfg.terrain)
        self._rng = np.random.Generator(np.random.PCG64((seed, 7)))
        tile = self._rng.integers(0, self._terrain.tiles, cfg.num_envs)
        self._walkers = Walkers(
            cfg, self._terrain, tile, seed=seed, processes=cfg.physics.processes
        ).__enter__()
        self._episodes = np.zeros(cfg.num_envs, np.int64)
        # The physics of an episode follow from its robot and actions: those are kept to resume.
        self._since = np.zeros(cfg.num_envs, np.int64)
        self._actions = torch.zeros(self._walkers.episode_steps, cfg.num_envs, NUM_JOINTS)
        self._robots = np.arange(cfg.num_envs)
        self._steps, self._sums = 0, _Sums()
        self._obs: TensorDict | None = None

    @property
    def unwrapped(self) -> MujocoEnv:
        """There is no wrapper."""
        return self

    @property
    def vision(self) -> Cameras | None:
        """The robots' cameras; None where `camera.enabled` is false."""
        return self._walkers.cameras

    @property
    def max_episode_length(self) -> int:
        """Control steps."""
        return self._walkers.episode_steps

    @property
    def episode_length_buf(self) -> Tensor:
        """Control steps since each episode began, (N,)."""
        return torch.from_numpy(self._walkers.age)

    @episode_length_buf.setter
    def episode_length_buf(self, steps: Tensor) -> None:
        self._walkers.age[:] = steps.numpy()

    def get_observations(self) -> TensorDict:
        """Before the first step; afterwards `step` gives them."""
        if self._obs is None:
            self._obs = self._walkers.observe()
        return self._obs

    def step(self, action: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        """Observations, rewards (0), whose episode ended, and what to log now and then."""
        walkers = self._walkers
        self._actions[self._since, self._robots] = action
        self._since += 1
        ended = walkers.step(action)
        done = ended.any
        self._sums.add(walkers, ended.terminated, done)
        if done.any():
            self._episodes += done
            self._since[done] = 0
            numbers = np.flatnonzero(done).tolist()
            tiles = self._rng.integers(0, self._terrain.tiles, len(numbers)).tolist()
            walkers.tile[numbers] = torch.tensor(tiles)
            walkers.restart(
                done,
                {
                    robot: walkers.spec(robot, tile, int(self._episodes[robot]))
                    for robot, tile in zip(numbers, tiles, strict=True)
                },
            )
        self._obs = walkers.observe()
        self._steps += 1
        log = self._sums.take() if self._steps % _LOG_EVERY == 0 else {}
        extras = {"log": log, "time_outs": torch.from_numpy(ended.timed_out | ended.completed)}
        return self._obs, torch.zeros(self.num_envs), torch.from_numpy(done), extras

    def rollout_state(self) -> dict[str, Tensor]:
        """The episodes that robots are in: what was drawn for them, and their actions so far."""
        longest = int(self._since.max(initial=0))
        state: dict[str, Any] = dict(snapshot.tensors(self._walkers, without=_NO_STATE))
        state |= {f"obs.{name}": value for name, value in self.get_observations().items()}
        return state | {
            "actions": self._actions[:longest],
            "age": torch.from_numpy(self._walkers.age),
            "episodes": torch.from_numpy(self._episodes),
            "since": torch.from_numpy(self._since),
            "steps": torch.tensor(self._steps),
            "rng": _as_tensor(self._rng),
        }

    def load_rollout_state(self, state: dict[str, Tensor]) -> bool:
        """Go through the actions again, so that every robot is where it was.

        Returns:
            Whether all robots are where they were; new episodes begin otherwise.
        """
        walkers, before = self._walkers, self._episodes.copy()
        if len(state["since"]) != self.num_envs:
            return False
        for name in ("episodes", "since"):
            getattr(self, f"_{name}")[:] = state[name].cpu().numpy()
        longest = int(self._since.max(initial=0))
        self._actions[:longest] = state["actions"].cpu()
        self._steps = int(state["steps"])
        walkers.tile.copy_(state["tile"])
        walkers.repeat(self._actions, self._since, self._episodes, drawn=before)
        found = {name: value.clone() for name, value in self.rollout_state().items()}
        if not torch.equal(found["_state"], state["_state"].cpu()):
            self._since[:] = 0
            walkers.restart(np.ones(self.num_envs, bool))
            self._obs = None
            return False
        kept = snapshot.tensors(walkers, without=_NO_STATE)
        snapshot.restore(kept, {name: state[name].cpu() for name in kept})
        walkers.age[:] = state["age"].cpu().numpy()
        _from_tensor(self._rng, state["rng"])
        groups = {
            name.removeprefix("obs."): value.cpu()
            for name, value in state.items()
            if name.startswith("obs.")
        }
        self._obs = TensorDict(groups, batch_size=[self.num_envs])
        return True

    def close(self) -> None:
        """End the processes."""
        self._walkers.__exit__()


def _as_tensor(rng: np.random.Generator) -> Tensor:
    """State of a PCG64 as bytes."""
    state: Any = rng.bit_generator.state
    words = [state["state"]["state"], state["state"]["inc"], state["has_uint32"], state["uinteger"]]
    return torch.tensor(list(b"".join(word.to_bytes(16, "little") for word in words)))


def _from_tensor(rng: np.random.Generator, saved: Tensor) -> None:
    data = bytes(saved.tolist())
    state, inc, has, word = (int.from_bytes(data[i : i + 16], "little") for i in range(0, 64, 16))
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": inc},
        "has_uint32": has,
        "uinteger": word,
    }


class _Sums:
    """What is logged, added up since it was taken last."""

    def __init__(self) -> None:
        self._steps = self._episodes = self._falls = 0
        self._goals = self._torque_sq = self._edge = self._speed = 0.0

    def add(self, walkers: Walkers, fell: np.ndarray[Any, Any], done: np.ndarray[Any, Any]) -> None:
        self._steps += 1
        self._torque_sq += float(walkers.get("torque").square().mean())
        self._edge += float(walkers.get("feet_on_edge").sum(-1).mean())
        self._episodes += int(done.sum())
        self._falls += int(fell.sum())
        self._goals += float(walkers.progress.index.clamp(max=7).numpy()[done].sum())
        velocity = walkers.get("base_lin_vel_w")[:, :2]
        self._speed += float(velocity.norm(dim=-1).mean())

    def take(self) -> dict[str, float]:
        """As the training environment names them; what did not happen is absent."""
        steps, episodes = max(self._steps, 1), self._episodes
        log = {
            "Torque/rms_nm": (self._torque_sq / steps) ** 0.5,
            "Episode/mev": self._edge / steps,
            "Episode/speed": self._speed / steps,
        }
        if episodes:
            log |= {
                "Episode/mxd": self._goals / episodes / 7.0,
                "Episode/fall_rate": self._falls / episodes,
            }
        self.__init__()
        return log
