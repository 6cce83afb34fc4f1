"""The learning loop around rsl_rl's algorithms.

It calls algorithm and environment in the order of rsl_rl's `OnPolicyRunner`. It stops on a signal,
at a time limit or at the end, always with a checkpoint; resumes exactly; trains in several
processes under torchrun, of which the first writes; and reports to sinks. A sink or an interim
checkpoint that cannot be written is reported, and training continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import math
import os
import random
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from rsl_rl.utils import resolve_callable

from krabby_trainer import snapshot
from krabby_trainer.errors import CheckpointError, TrainerError, first_line
from krabby_trainer.run import checkpoints
from krabby_trainer.run.config import AgentCfg, RunCfg
from krabby_trainer.run.processes import Processes
from krabby_trainer.run.telemetry import Iteration, Meter, Progress, Sink
from krabby_trainer.task.config import TerrainCfg
from krabby_trainer.task.observations import described
from krabby_trainer.task.terrain import column_types

__all__ = ["NotFinite", "ParkourRunner", "seed_everything"]

log = logging.getLogger(__name__)

StopReason = Literal["max_iterations", "max_minutes", "SIGHUP", "SIGINT", "SIGTERM"]


class NotFinite(TrainerError):  # noqa: N818 - named for what happened
    """The environment or the update produced a value that is not finite."""


class Stop:
    """Turns the first SIGTERM, SIGHUP or Ctrl-C into a flag; the second one ends the process."""

    def __init__(self) -> None:
        self.received: Literal["SIGHUP", "SIGINT", "SIGTERM"] | None = None

    @contextlib.contextmanager
    def installed(self) -> Generator[None]:
        numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in numbers}
        if before[signal.SIGHUP] is signal.SIG_IGN:  # started by nohup
            del before[signal.SIGHUP]
        for number in before:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name  # type: ignore[assignment]
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def seed_everything(seed: int, rank: int = 0) -> int:
    """Seed the generators of Python, NumPy and torch; every process gets its own seed.

    Returns:
        The seed of this process.
    """
    own = seed + 1000 * rank
    random.seed(own)
    np.random.seed(own % 2**32)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(own)
    return own


class ParkourRunner:
    """Trains one agent in one environment.

    Args:
        env: rsl-rl's `VecEnv`; `env.unwrapped` may have `checkpoint_state` and
            `load_checkpoint_state`.
        train_cfg: What `krabby_trainer.run.config.rsl_rl_config` gives.
        log_dir: The run's folder; None writes nothing.
        device: torch's name of it.
        run: How often to save, how many to keep, when to end.
        sinks: Receive every iteration; only the first process has any.
        config: The resolved configuration, for checkpoints.
        provenance: What the run stands on, for checkpoints.
        started: `time.monotonic()` when the process began, for `run.max_minutes`.
    """

    def __init__(
        self,
        env: Any,
        train_cfg: dict[str, Any],
        log_dir: str | Path | None = None,
        device: str = "cpu",
        *,
        run: RunCfg | None = None,
        sinks: Sequence[Sink] = (),
        config: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        started: float | None = None,
    ) -> None:
        self.env, self.cfg, self.device = env, train_cfg, device
        self.run = run or RunCfg()
        self.folder = None if log_dir is None else Path(log_dir)
        self.sinks = list(sinks)
        self.stop = Stop()
        self.stopped_by: StopReason = "max_iterations"
        self.current_learning_iteration = 0
        """Iterations done."""
        self.env_steps, self.wall_s = 0, 0.0
        self.last_checkpoint: Path | None = None
        self.last_scalars: dict[str, float] = {}
        self._config, self._provenance = dict(config or {}), dict(provenance or {})
        self._started = time.monotonic() if started is None else started
        self._saved_at = time.monotonic()
        self._ages_restored = False
        self._failed: list[Sink] = []
        self._unwrapped: Any = getattr(env, "unwrapped", env)
        self.processes = Processes(device)
        train_cfg["multi_gpu"] = self.processes.settings()
        construct = resolve_callable(train_cfg["algorithm"]["class_name"]).construct_algorithm
        self.alg: Any = construct(env.get_observations(), env, train_cfg, device)
        self._meter = Meter(env.num_envs, device)

    def learn(self, num_learning_iterations: int, init_at_random_ep_len: bool = False) -> None:
        """Train for so many iterations more, or until something ends the run.

        Afterwards `stopped_by` says what did, and `last_checkpoint` is the state it ended in.

        Raises:
            NotFinite: An observation, a reward or a loss is not a number; nothing is saved then.
        """
        if init_at_random_ep_len and not self._ages_restored:
            self.env.episode_length_buf = torch.randint_like(
                self.env.episode_length_buf, high=int(self.env.max_episode_length)
            )
        total = self.current_learning_iteration + num_learning_iterations
        gc.collect()
        gc.freeze()  # a collection in one process would delay all
        with self.stop.installed():
            obs = self.env.get_observations().to(self.device)
            self.alg.train_mode()
            if self.processes.several:
                self.alg.broadcast_parameters()
            while self.current_learning_iteration < total:
                began = time.monotonic()
                obs = self._collect(obs)
                collected = time.monotonic()
                losses = self.alg.update()
                if torch.device(self.device).type == "cuda":
                    torch.cuda.synchronize(self.device)
                learned = time.monotonic()
                self.current_learning_iteration += 1
                self._tell(total, collected - began, learned - collected, losses)
                reason = self._reason_to_stop(time.monotonic() - began)
                if reason is not None:
                    self.stopped_by = reason
                    break
                if self._is_time_to_save():
                    self.checkpoint(interim=True)
            else:
                self.stopped_by = "max_iterations"
            self.checkpoint()

    def checkpoint(self, *, interim: bool = False) -> Path | None:
        """Write a checkpoint now, unless this iteration has one; all processes call this together.

        Args:
            interim: A failure is logged instead of raised: training continues, and the next one
                is tried at its time.

        Returns:
            The newest checkpoint's path; None where nothing is written.

        Raises:
            CheckpointError: It cannot be written.
        """
        if self.folder is None:
            return None
        name = checkpoints.checkpoint_name(self.current_learning_iteration)
        path = self.folder / "checkpoints" / name
        self._saved_at = time.monotonic()
        if path != self.last_checkpoint:
            others = self.processes.gather(
                {"environment": _env_state(self._unwrapped), "random": checkpoints.random_state()}
            )
            try:
                if self.processes.is_first:
                    checkpoints.save(path, self._payload(others))
                    keep, keep_every = self.run.keep, self.run.keep_every
                    checkpoints.prune(path.parent, keep=keep, keep_every=keep_every)
            except CheckpointError as error:
                if not interim:
                    raise
                self._report(f"{error}; training continues without this checkpoint")
                return self.last_checkpoint
            self.last_checkpoint = path
        return path

    def load(self, path: Path) -> None:
        """Resume a checkpoint: networks, optimisers, curriculum, counters, random numbers.

        Raises:
            CheckpointError: It is missing, damaged, without what a resumed run needs, or of another
                shape than this run.
        """
        payload = checkpoints.load_to_resume(path, self.device)
        checkpoints.require_kind(payload, path, [self.alg.kind], "resuming this run")
        self.alg.load(payload["algorithm"])
        own = self._own_part(payload)
        state = dict(own["environment"] or {})
        if state and hasattr(self._unwrapped, "load_checkpoint_state"):
            if "level" in state and "types" not in state:  # an older checkpoint
                terrain = (payload["config"] or {}).get("env", {}).get("terrain", {})
                known = {field.name for field in dataclasses.fields(TerrainCfg)}
                given = {key: value for key, value in terrain.items() if key in known}
                state["types"] = column_types(TerrainCfg(**given))
            try:
                self._unwrapped.load_checkpoint_state(state)
            except (KeyError, RuntimeError, ValueError) as error:
                raise CheckpointError(
                    f"{path}: its environment does not fit this one ({error}); resume with the "
                    "configuration it was made with"
                ) from error
        self.current_learning_iteration = int(payload["iteration"])
        self.env_steps = int(payload["env_steps"])
        self.wall_s = float(payload["wall_s"])
        if own["random"] is not None:
            checkpoints.restore_random_state(own["random"])
        # Robots that begin new episodes have their ages drawn again.
        went_on = self._take_rollouts(payload.get("rollouts"))
        self._ages_restored = went_on or "episode_length" in state

    def _take_rollouts(self, saved: Mapping[str, Any] | None) -> bool:
        """Continue the episodes of the checkpoint, where it has them and they fit this run."""
        if saved is None or self.processes.several:
            return False
        load = getattr(self._unwrapped, "load_rollout_state", None)
        if load is None or not load(saved["environment"]):
            return False
        return snapshot.restore(snapshot.tensors(self._in_rollouts()), saved["learner"])

    def _rollouts(self) -> dict[str, Any] | None:
        """Episodes that robots are in, and what the learner knows of them; of one process only.

        Those of several would make checkpoints of GB.
        """
        state = getattr(self._unwrapped, "rollout_state", None)
        if state is None or self.processes.several:
            return None
        parts = {
            "environment": state(),
            "learner": snapshot.tensors(self._in_rollouts()),
        }
        return {
            part: {path: value.detach().cpu() for path, value in values.items()}
            for part, values in parts.items()
        }

    def _in_rollouts(self) -> dict[str, Any]:
        return {"meter": self._meter, "algorithm": self.alg.in_rollouts()}

    def begin_with(self, path: Path) -> None:
        """Begin a new run with the networks of a checkpoint.

        Raises:
            CheckpointError: It is missing or damaged, or holds no such networks.
        """
        self.alg.begin_with(checkpoints.load(path, self.device), str(path))

    def _collect(self, obs: Any) -> Any:
        with torch.inference_mode():
            for _ in range(self.cfg["num_steps_per_env"]):
                actions = self.alg.act(obs)
                obs, rewards, dones, extras = self.env.step(actions.to(self.env.device))
                obs, rewards, dones = (each.to(self.device) for each in (obs, rewards, dones))
                self.alg.process_env_step(obs, rewards, dones, extras)
                self._meter.step(obs, rewards, dones, extras.get("log") or extras.get("episode"))
            self.alg.compute_returns(obs)
        bad = self._meter.not_finite()  # waits for the device
        if bad:
            raise NotFinite(
                f"iteration {self.current_learning_iteration + 1}: {', '.join(bad)} from the "
                f"environment is not finite; {_where_to_resume(self.folder)}"
            )
        return obs

    def _tell(
        self, total: int, collect_s: float, learn_s: float, losses: Mapping[str, float]
    ) -> None:
        steps = self.cfg["num_steps_per_env"] * self.env.num_envs * self.processes.count
        self.env_steps += steps
        self.wall_s += collect_s + learn_s
        scalars = self._meter.take()
        scalars |= {f"Loss/{name}": float(value) for name, value in losses.items()}
        scalars |= {
            **{f"Policy/{name}": value for name, value in self.alg.figures.items()},
            "Perf/env_steps_per_s": steps / max(collect_s + learn_s, 1e-9),
            "Perf/collect_s": collect_s,
            "Perf/learn_s": learn_s,
        }
        if hasattr(self._unwrapped, "take_broken"):
            scalars["Robots/replaced"] = self._dump_replaced()
        self.last_scalars = scalars
        iteration = Iteration(
            number=self.current_learning_iteration,
            total=total,
            env_steps=self.env_steps,
            wall_s=self.wall_s,
            eta_s=self._eta(total, collect_s + learn_s),
            scalars=scalars,
        )
        for sink in self.sinks:
            try:
                sink.write(iteration)
            except Exception as error:
                self._sink_failed(sink, error)
        bad = [name for name, value in scalars.items() if not math.isfinite(value)]
        if bad:
            raise NotFinite(
                f"iteration {self.current_learning_iteration}: {', '.join(bad)} is not finite; "
                f"{_where_to_resume(self.folder)} {_halved_rates(self._config)}"
            )

    def _sink_failed(self, sink: Sink, error: Exception) -> None:
        """Report a sink's first failure; it is tried again in every iteration."""
        if sink in self._failed:
            return
        self._failed.append(sink)
        self._report(
            f"{type(sink).__name__} cannot be written in iteration "
            f"{self.current_learning_iteration} ({first_line(error)}); training continues"
        )

    def _report(self, message: str) -> None:
        """One line for the person at the keyboard."""
        log.warning(message)
        for sink in self.sinks:
            if isinstance(sink, Progress):
                sink.say(message)

    def _dump_replaced(self) -> float:
        """Keep the states in which robots broke, in the run's folder; how many broke."""
        broken = self._unwrapped.take_broken()
        if broken is None:
            return 0.0
        count = len(broken["robot"])
        if self.folder is not None:
            rank = f"-rank{self.processes.rank}" if self.processes.rank else ""
            name = f"iteration_{self.current_learning_iteration:06d}{rank}.pt"
            path = self.folder / "replaced" / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(broken, path)
            except (OSError, RuntimeError) as error:
                self._report(f"cannot write {path} ({first_line(error)}); training continues")
            else:
                self._report(f"{count} robots whose state was not finite were replaced, see {path}")
        return float(count)

    def _eta(self, total: int, last_s: float) -> float:
        left = (total - self.current_learning_iteration) * last_s
        if self.run.max_minutes:
            left = min(left, 60.0 * self.run.max_minutes - (time.monotonic() - self._started))
        return left

    def _reason_to_stop(self, last_s: float) -> StopReason | None:
        """What ends the run now; all processes come to the same answer."""
        reasons: tuple[StopReason, ...] = ("max_minutes", "SIGHUP", "SIGTERM", "SIGINT")
        own = 0
        if self.run.max_minutes:
            elapsed = time.monotonic() - self._started
            # Not one iteration more than fits.
            own = int(elapsed + last_s > 60.0 * self.run.max_minutes)
        if self.stop.received is not None:
            own = 1 + reasons.index(self.stop.received)
        agreed = self.processes.agree(own)
        return reasons[agreed - 1] if agreed else None

    def _is_time_to_save(self) -> bool:
        due = time.monotonic() - self._saved_at >= 60.0 * self.run.checkpoint_minutes
        every = self.run.keep_every
        milestone = every > 0 and self.current_learning_iteration % every == 0
        return bool(self.processes.agree(int(due or milestone)))

    def _payload(self, ranks: list[Any]) -> dict[str, Any]:
        return {
            "iteration": self.current_learning_iteration,
            "env_steps": self.env_steps,
            "wall_s": self.wall_s,
            "algorithm": self.alg.save(),
            "environment": _env_state(self._unwrapped),
            "rollouts": self._rollouts(),
            "random": checkpoints.random_state(),
            "ranks": ranks[1:],
            "config": self._config,
            "provenance": self._provenance,
            "kind": self.alg.kind,
            "observations": described(),
        }

    def _own_part(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """Environment and random numbers of this process's rank, where the checkpoint has them."""
        if self.processes.is_first:
            return payload
        ranks = payload.get("ranks", [])
        if self.processes.rank <= len(ranks):
            return ranks[self.processes.rank - 1]
        return {"environment": payload["environment"], "random": None}


def _env_state(env: Any) -> dict[str, Any] | None:
    """What the environment wants kept, on the host; None if nothing."""
    state = getattr(env, "checkpoint_state", None)
    if state is None:
        return None
    return {
        name: value.detach().cpu() if isinstance(value, torch.Tensor) else value
        for name, value in state().items()
    }


def _where_to_resume(folder: Path | None) -> str:
    intact = checkpoints.newest_intact(folder / "checkpoints") if folder else None
    return f"continue with run.resume={intact}" if intact else "there is no checkpoint, begin again"


def _halved_rates(config: Mapping[str, Any]) -> str:
    """Overrides that halve the highest learning rate of a run."""
    agent = config.get("agent", dataclasses.asdict(AgentCfg()))
    if config.get("task") == "distill":
        own = agent["distillation"]
        rate = max(0.5 * own["learning_rate"], own["learning_rate_end"])
        return f"agent.distillation.learning_rate={rate:g}"
    own = agent["algorithm"]
    highest = max(0.5 * own["learning_rate_max"], own["learning_rate_min"])
    start = min(own["learning_rate"], highest)
    return f"agent.algorithm.learning_rate_max={highest:g} agent.algorithm.learning_rate={start:g}"
