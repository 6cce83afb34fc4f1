"""`python -m krabby_trainer train`."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

import torch

from krabby_trainer.errors import (
    CheckpointError,
    ConfigError,
    MissingDependency,
    TrainerError,
    first_line,
)
from krabby_trainer.run import checkpoints
from krabby_trainer.run.config import (
    TrainCfg,
    check_run,
    compose,
    compose_from,
    continue_from,
    rsl_rl_config,
    to_dict,
    to_yaml,
)
from krabby_trainer.run.metrics import Exposition
from krabby_trainer.run.output import Aside, aside
from krabby_trainer.run.provenance import provenance
from krabby_trainer.run.runner import NotFinite, ParkourRunner, seed_everything
from krabby_trainer.run.telemetry import (
    JsonLines,
    Progress,
    Sink,
    TensorBoard,
    WeightsAndBiases,
    duration,
)

__all__ = ["Plan", "plan_run", "resolve", "resolve_device", "train"]

_INTERRUPTED: Final = 130
_LINGER_S: Final = 15.0
"""How long the metrics of a failed run stay, for the alert."""


_BEGINS_WITH: Final[dict[str, tuple[checkpoints.Kind, ...]]] = {
    "teacher": ("teacher",),
    "distill": ("teacher",),
    "student": ("distilled student", "fine-tuned student"),
}
"""Kinds of checkpoints that a task may begin with."""


_SHAPES: Final = (
    *("hidden_dims", "activation", "obs_normalization"),
    *("channels", "picture", "memory", "remember"),
)
"""Keys of actor, critic and encoder that decide the shape of a network."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved run: configuration, folder, checkpoint."""

    cfg: TrainCfg
    folder: Path
    checkpoint: Path | None
    """Where to go on from; None for a new run."""
    done: int = 0
    """Iterations it has."""


def train(overrides: Sequence[str], *, started: float | None = None, base: str = "") -> int:
    """Train until the iterations are done, the time limit or a signal.

    Args:
        overrides: `dotted.key=value` and `preset=name`, as typed.
        started: `time.monotonic()` when the process began.
        base: A `config.yaml` that takes the place of the defaults.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.

    Raises:
        TrainerError: What cannot be trained, and what to do about it.
    """
    started = time.monotonic() if started is None else started
    plan = plan_run(overrides, base=base)
    cfg = plan.cfg
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = resolve_device(cfg.device)
    if cfg.run.wandb and importlib.util.find_spec("wandb") is None:
        raise MissingDependency("run.wandb: wandb not installed here; `make train-setup` does it")
    first = rank == 0
    progress = Progress(period_s=cfg.run.progress_s)
    if plan.done >= cfg.agent.max_iterations:  # started again and again until it is done
        if first:
            progress.say(f"nothing left to do: {plan.checkpoint} has {plan.done} iterations")
        return 0
    with contextlib.ExitStack() as stack:
        sinks: list[Sink] = []
        facts: dict[str, Any] = {}
        if first:
            stack.enter_context(_own(plan.folder))
            facts = provenance(device, world)
            _write(plan.folder / "config.yaml", to_yaml(cfg))
            _write(plan.folder / "provenance.json", json.dumps(facts, indent=2) + "\n")
            progress.say(_opening(plan, device, world, facts))
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        seed = seed_everything(cfg.seed, rank)
        torch.set_float32_matmul_precision("high")
        # The solver may print in every step; standard output is for the summary.
        output = stack.enter_context(aside(plan.folder / "output.log" if first else None))
        with aside(output.path, errors=True):
            env = _make_env(cfg, device=device, seed=seed)
            stack.callback(_close, env)
            runner = ParkourRunner(
                env,
                rsl_rl_config(cfg),
                plan.folder,
                device,
                run=cfg.run,
                config=to_dict(cfg),
                provenance=facts,
                started=started,
            )
        if plan.checkpoint is not None:
            runner.load(plan.checkpoint)
        elif cfg.run.init:
            runner.begin_with(Path(cfg.run.init))
        done = runner.current_learning_iteration
        if first:
            later = checkpoints.set_aside(plan.folder, beyond=done) if done else []
            if later:
                progress.say(f"{len(later)} later checkpoints are in {later[0].parent} now")
            sinks += _sinks(plan, done, progress, output)
            for sink in sinks:
                stack.callback(_close_sink, sink)
            runner.sinks.extend(sinks)
            progress.say(f"training after {duration(time.monotonic() - started)} of preparation")
        try:
            runner.learn(cfg.agent.max_iterations - done, cfg.agent.init_at_random_ep_len)
        except NotFinite:
            for sink in sinks:
                if isinstance(sink, Exposition):
                    sink.fail(_LINGER_S)
            raise
    runner.processes.leave()
    if first:
        _write_summary(sys.stdout, _summary(plan, runner, time.monotonic() - started))
    return _INTERRUPTED if runner.stopped_by == "SIGINT" else 0


def plan_run(overrides: Sequence[str], *, now: datetime | None = None, base: str = "") -> Plan:
    """Resolve configuration, folder and checkpoint.

    Args:
        overrides: As typed.
        now: Names the folder of a new run.
        base: A `config.yaml` that takes the place of the defaults.

    Raises:
        ConfigError: The configuration cannot be used, or the folder holds another run.
        CheckpointError: `run.resume` names nothing that can be resumed, or networks of a
            checkpoint have another shape than this run's.
    """
    cfg, checkpoint, done = resolve(overrides, base=base)
    if checkpoint is None and cfg.task != "teacher" and not cfg.run.init:
        kinds = " or a ".join(_BEGINS_WITH[cfg.task])
        raise ConfigError(
            f"run.init: the task {cfg.task} begins with a {kinds}'s checkpoint; give run.init=PATH"
        )
    folder = Path(cfg.run.dir) if cfg.run.dir else _new_folder(cfg, now or datetime.now())
    if checkpoint is None and checkpoints.find_checkpoints(folder):
        raise ConfigError(
            f"run.dir={folder} already holds a run; add run.resume=auto to go on with it, or name "
            "another folder"
        )
    automatic = any(text == "run.resume=auto" for text in overrides)
    if done >= cfg.agent.max_iterations and not automatic:
        raise ConfigError(
            f"{checkpoint} has {done} iterations, as many as agent.max_iterations="
            f"{cfg.agent.max_iterations} asks for; to continue, give more, for example "
            f"agent.max_iterations={done + max(done, 1)}"
        )
    return Plan(cfg=cfg, folder=folder, checkpoint=checkpoint, done=done)


def resolve(overrides: Sequence[str], *, base: str = "") -> tuple[TrainCfg, Path | None, int]:
    """The configuration, the checkpoint that it resumes if any, and its iterations.

    Raises:
        ConfigError, CheckpointError: As `plan_run`.
    """
    cfg = compose_from(Path(base), overrides) if base else compose(overrides)
    typed = {text.partition("=")[0] for text in overrides}
    if base and "run.dir" not in typed:
        cfg.run.dir = ""  # another run's
    checkpoint = _to_resume(cfg, by_name="run.name" in typed) if cfg.run.resume else None
    done = 0
    if checkpoint is not None:
        payload = checkpoints.load_to_resume(checkpoint)
        done = int(payload["iteration"])
        cfg = continue_from(payload["config"], overrides)
        if "run.dir" not in typed:
            cfg.run.dir = ""
            if checkpoint.parent.name == "checkpoints":
                cfg.run.dir = str(checkpoint.parent.parent)
        _check_shapes(cfg, payload, checkpoint)
        _check_finetuning(cfg, payload, checkpoint, resumes=True)
    elif cfg.run.init:
        path = _newest(Path(cfg.run.init), "run.init")
        cfg.run.init = str(path)
        payload = checkpoints.load(path)
        checkpoints.require_kind(
            payload, path, _BEGINS_WITH[cfg.task], f"run.init of task={cfg.task}"
        )
        _check_shapes(cfg, payload, path)
        _check_finetuning(cfg, payload, path, resumes=False)
    return check_run(cfg), checkpoint, done


def _check_shapes(cfg: TrainCfg, payload: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint whose networks have other shapes than this run's.

    Raises:
        ConfigError: Names every key that differs, with the checkpoint's value.
    """
    algorithm, agent = payload["algorithm"] or {}, (payload["config"] or {}).get("agent", {})
    theirs = {
        "actor": algorithm.get("actor_architecture", {}),
        "critic": {} if cfg.task == "distill" else agent.get("critic", {}),
        "encoder": algorithm.get("encoder_architecture", {}),
    }
    ours = dataclasses.asdict(cfg.agent)
    differ = [
        (f"agent.{part}.{key}", ours[part][key], theirs[part][key])
        for part in theirs
        for key in _SHAPES
        if key in theirs[part] and key in ours[part] and theirs[part][key] != ours[part][key]
    ]
    if differ:
        has = ", ".join(f"{key}={value}" for key, _, value in differ)
        wants = ", ".join(f"{key}={value}" for key, value, _ in differ)
        give = " ".join(f"{key}={str(value).replace(' ', '').lower()}" for key, _, value in differ)
        raise ConfigError(f"{path} has networks with {has}, this run asks for {wants}; give {give}")


def _check_finetuning(
    cfg: TrainCfg, payload: Mapping[str, Any], path: Path, *, resumes: bool
) -> None:
    """Refuse fine-tuning that the checkpoint has no teacher or no optimiser for.

    Raises:
        ConfigError: Names the key, and the value that this checkpoint allows.
    """
    if cfg.task != "student":
        return
    key, tuning = "agent.finetuning", cfg.agent.finetuning
    if tuning.imitation_coef and "teacher" not in (payload["algorithm"] or {}):
        raise ConfigError(
            f"{key}.imitation_coef={tuning.imitation_coef:g}, but {path} keeps no teacher; begin "
            f"with a distilled student, or give {key}.imitation_coef=0"
        )
    theirs = (payload["config"] or {}).get("agent", {}).get("finetuning", {})
    learned = bool(theirs.get("learn_encoder", False))
    if resumes and learned != tuning.learn_encoder:
        raise ConfigError(
            f"{key}.learn_encoder={str(tuning.learn_encoder).lower()}, but the optimiser of {path} "
            f"is one of learn_encoder={str(learned).lower()}; begin a new run with run.init={path}"
        )


def resolve_device(device: str) -> str:
    """Name, as torch has it, of the device this process trains on.

    Raises:
        ConfigError: It names a GPU that is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if device == "auto":
        return f"cuda:{local}" if local < count else "cpu"
    if not device.startswith("cuda"):
        return device
    index = int(device.partition(":")[2] or local)
    if index >= count:
        there = f"torch sees {count} GPU{'s' * (count != 1)}"
        raise ConfigError(f"device={device}, but {there}; use device=cpu or device=auto")
    return f"cuda:{index}"


def _make_env(cfg: TrainCfg, *, device: str, seed: int) -> Any:
    """The environment; imports only the simulator that is used."""
    if cfg.env.physics.backend == "mujoco":
        from krabby_trainer.evaluation.mujoco_env import MujocoEnv

        return MujocoEnv(cfg.env, seed=seed)
    from krabby_trainer.task.isaac import make_env

    return make_env(cfg.env, device=device, seed=seed)


def _to_resume(cfg: TrainCfg, *, by_name: bool) -> Path | None:
    wanted = cfg.run.resume
    if wanted != "auto":
        return _newest(Path(wanted), "run.resume")
    if cfg.run.dir:
        return checkpoints.newest_intact(Path(cfg.run.dir))
    pattern = f"*-{cfg.run.name}" if by_name else "*"
    newest = (checkpoints.newest_intact(folder) for folder in Path(cfg.run.root).glob(pattern))
    return max(
        (path for path in newest if path is not None),
        key=lambda path: path.stat().st_mtime_ns,
        default=None,
    )


def _newest(path: Path, key: str) -> Path:
    if not path.is_dir():
        return path
    if (path / "manifest.json").is_file():
        return path  # a bundle, which `checkpoints.load` names
    found = checkpoints.newest_intact(path)
    if found is None:
        raise CheckpointError(
            f"{key}={path}: no intact checkpoint in it; give the folder of a run, or a file"
        )
    return found


def _new_folder(cfg: TrainCfg, now: datetime) -> Path:
    return Path(cfg.run.root) / f"{now:%Y%m%d-%H%M%S}-{cfg.run.name}"


@contextlib.contextmanager
def _own(folder: Path) -> Generator[None]:
    """Lock the folder for this run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"cannot write into {folder} ({error.strerror}); choose another run.dir or run.root"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another trainer is at work in {folder}; stop it, or choose another run.dir"
            ) from error
        yield


def _sinks(plan: Plan, done: int, progress: Progress, output: Aside) -> list[Sink]:
    run = plan.cfg.run
    sinks: list[Sink] = [output, progress]
    makers: list[Callable[[], Sink]] = [
        lambda: JsonLines(plan.folder / "log.jsonl", every=run.log_every, iteration=done),
        lambda: TensorBoard(plan.folder, iteration=done),
    ]
    if run.wandb:
        makers.append(lambda: WeightsAndBiases(plan.folder, run.wandb, to_dict(plan.cfg)))
    for make in makers:
        try:
            sinks.append(make())
        except OSError as error:
            progress.say(f"{first_line(error)}; training continues without this log")
    if run.metrics_port:
        sinks.append(Exposition(run.metrics_port, run.metrics_address))
    return sinks


def _opening(plan: Plan, device: str, world: int, facts: dict[str, Any]) -> str:
    cfg = plan.cfg
    where = f"{device} ({facts['gpu']})" if facts.get("gpu") else device
    processes = f" in each of {world} processes" if world > 1 else ""
    begin = f"going on from {plan.checkpoint}" if plan.checkpoint else "a new run"
    robots = f"{cfg.env.num_envs} robots on {where}{processes}"
    return f"{plan.folder}: {begin}, {robots}; preparing the simulation"


def _summary(plan: Plan, runner: ParkourRunner, elapsed_s: float) -> dict[str, Any]:
    scalars = runner.last_scalars
    return {
        "run": str(plan.folder),
        "checkpoint": None if runner.last_checkpoint is None else str(runner.last_checkpoint),
        "stopped_by": runner.stopped_by,
        "iterations": runner.current_learning_iteration,
        "env_steps": runner.env_steps,
        "wall_s": round(elapsed_s, 1),
        "env_steps_per_s": round(scalars.get("Perf/env_steps_per_s", 0.0)),
        "mean_reward": scalars.get("Train/mean_reward"),
        "mxd": scalars.get("Episode/mxd"),
        "level": scalars.get("Level/mean"),
        "torque_rms_nm": scalars.get("Torque/rms_nm"),
    }


def _write_summary(stream: TextIO, summary: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        stream.write(json.dumps(summary) + "\n")
        stream.flush()


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise TrainerError(
            f"cannot write {path} ({error.strerror}); free some space, or choose another run.dir"
        ) from error


def _close_sink(sink: Sink) -> None:
    """A log that cannot be completed does not spoil the run."""
    with contextlib.suppress(OSError):
        sink.close()


def _close(env: Any) -> None:
    """Close the simulator; its output is dropped."""
    with aside(None, errors=True), contextlib.suppress(Exception):
        env.close()
