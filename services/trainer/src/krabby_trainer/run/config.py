"""Configuration of a training run: one tree of dataclasses, composed and overridden by Hydra.

The dataclasses are the only list of keys. Hydra only composes: it makes no folder, changes no
directory and sets up no logging. Files under `conf/` are presets of values.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

import msgspec
from krabby.robot.assets import choose_robot, robot_name
from krabby.robot.description import RobotDescription
from krabby.robot.errors import RobotError
from msgspec import Meta

from krabby_trainer.errors import ConfigError, first_line
from krabby_trainer.fields import Count, NonNegative, check
from krabby_trainer.learn.config import (
    OBS_GROUPS,
    ActorCfg,
    AlgorithmCfg,
    CriticCfg,
    DistillationCfg,
    EncoderCfg,
    FinetuningCfg,
)
from krabby_trainer.task.config import EnvCfg
from krabby_trainer.vision.config import check_errors

__all__ = [
    "AgentCfg",
    "RunCfg",
    "TrainCfg",
    "check_run",
    "choices",
    "compose",
    "compose_from",
    "continue_from",
    "from_dict",
    "parsed",
    "read_config",
    "register_schema",
    "rsl_rl_config",
    "to_dict",
    "to_yaml",
]


@dataclass
class AgentCfg:
    max_iterations: Count = 2000
    """Iterations of the run in all, those before a resume included."""
    num_steps_per_env: Annotated[int, Meta(ge=1, le=10_000)] = 24
    """Control steps each robot takes per iteration."""
    init_at_random_ep_len: bool = True
    """Start episodes at random ages, so that not all robots restart together."""
    actor: ActorCfg = field(default_factory=ActorCfg)
    critic: CriticCfg = field(default_factory=CriticCfg)
    algorithm: AlgorithmCfg = field(default_factory=AlgorithmCfg)
    encoder: EncoderCfg = field(default_factory=EncoderCfg)
    """Of the tasks distill and student."""
    distillation: DistillationCfg = field(default_factory=DistillationCfg)
    """Of the task distill."""
    finetuning: FinetuningCfg = field(default_factory=FinetuningCfg)
    """Of the task student."""


@dataclass
class RunCfg:
    """Where results go, and when they are saved."""

    root: str = "runs/train"
    """Folder of all runs."""
    name: Annotated[str, Meta(pattern="^[^/]+$")] = "teacher"
    """Of this run, without /; its folder is <root>/<date>-<name>."""
    dir: str = ""
    """This folder instead."""
    init: str = ""
    """Checkpoint, or a run's folder, whose networks a new run begins with: a teacher's for the
    tasks teacher and distill, a student's for the task student."""
    resume: str = ""
    """A checkpoint, a run's folder, or `auto`: the newest intact one, else a new run."""
    checkpoint_minutes: NonNegative = 2.0
    """Between checkpoints; 0 for one after every iteration."""
    keep: Count = 3
    """How many of the newest checkpoints are kept."""
    keep_every: Annotated[int, Meta(ge=0)] = 500
    """Those on multiples of this many iterations are kept too; 0 for none."""
    max_minutes: NonNegative = 0.0
    """Wall clock after which the run ends with a checkpoint; 0 for no limit."""
    log_every: Count = 1
    """Iterations per line of log.jsonl."""
    progress_s: NonNegative = 5.0
    """Between lines of progress when standard error is not a terminal [s]."""
    wandb: str = ""
    """Project of Weights & Biases to log to as well; empty for none."""
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """TCP port of the Prometheus exposition; 0 for none."""
    metrics_address: str = "127.0.0.1"
    """Interface it binds; 0.0.0.0 only inside a container network."""


@dataclass
class TrainCfg:
    task: Literal["teacher", "distill", "student"] = "teacher"
    """What is trained, a file of conf/task: teacher; distill, a student that imitates one; student,
    which is fine-tuned by PPO."""
    robot: str = field(default_factory=robot_name)
    """Folder of the assets folder; the one in KRABBY_ROBOT, or else crab_hex."""
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    device: str = "auto"
    """`auto` is this process's GPU where there is one, else `cpu`."""
    env: EnvCfg = field(default_factory=EnvCfg)
    agent: AgentCfg = field(default_factory=AgentCfg)
    run: RunCfg = field(default_factory=RunCfg)

    def __post_init__(self) -> None:
        kind, _, index = self.device.partition(":")
        usable = self.device == "auto" or (
            kind in ("cpu", "cuda") and (not index or index.isdigit())
        )
        check(usable, "device", self.device, "auto, cpu, cuda or cuda:<number>")
        self._check_sizes()
        if self.task != "teacher":
            enabled = self.env.camera.enabled
            check(enabled, "env.camera.enabled", enabled, f"true for the task {self.task}")
        backend = self.env.physics.backend
        if backend == "isaac":
            return
        key, keys = "env.physics.backend", self.env.command.only_in_isaac()
        reason = f"isaac for the task {self.task}, whose rewards are Isaac Lab's"
        check(self.task == "distill", key, backend, reason)
        reason = f"isaac, since env.command has {keys} and MuJoCo has neither stops nor free robots"
        check(not keys, key, backend, reason)

    def _check_sizes(self) -> None:
        """Every minibatch of an update has to have a sample."""
        if self.task == "distill":
            return
        steps, robots = self.agent.num_steps_per_env, self.env.num_envs
        parts = self.agent.algorithm.num_mini_batches
        check(
            parts <= steps * robots,
            "agent.algorithm.num_mini_batches",
            parts,
            f"at most agent.num_steps_per_env * env.num_envs, {steps} * {robots} = "
            f"{steps * robots} samples",
        )
        if self.task != "student":
            return
        tuning, iterations = self.agent.finetuning, self.agent.max_iterations
        check(
            parts <= robots or not tuning.learn_encoder,
            "agent.algorithm.num_mini_batches",
            parts,
            f"at most env.num_envs={robots}, since agent.finetuning.learn_encoder=true learns from "
            "robots with all their steps",
        )
        check(
            tuning.critic_iterations < iterations,
            "agent.finetuning.critic_iterations",
            tuning.critic_iterations,
            f"less than agent.max_iterations={iterations}, or none is left for the actor",
        )


def check_run(cfg: TrainCfg) -> TrainCfg:
    """Refuse what only the robot and the courses can tell: all of it before a simulator starts.

    Raises:
        ConfigError: Names the key and what is valid.
    """
    from krabby_trainer.task.terrain import check_terrain

    try:
        choose_robot(cfg.robot)
    except RobotError as error:
        raise ConfigError(f"robot={cfg.robot}: {error}") from error
    check_terrain(cfg.env.terrain)
    if cfg.env.camera.enabled:
        check_errors(cfg.env.camera.errors, RobotDescription.load().camera)
    return cfg


def compose(overrides: Sequence[str] = ()) -> TrainCfg:
    """The configuration that overrides make of the defaults.

    Args:
        overrides: `dotted.key=value`, or `preset=name`.

    Raises:
        ConfigError: Unknown key or preset, wrong type, value out of range; the message names
            the key, the value and the nearest valid one.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    parsed(overrides)
    register_schema()
    try:
        with hydra.initialize_config_module("krabby_trainer.conf", version_base="1.3"):
            composed = hydra.compose("config", list(overrides))
        return _built(OmegaConf.to_container(composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_said(error)) from error


def continue_from(config: Mapping[str, Any], overrides: Sequence[str]) -> TrainCfg:
    """A checkpoint's configuration with overrides on top of it: presets first, then single keys.

    Keys of the checkpoint that this version does not know are left out.

    Raises:
        ConfigError: As `compose`, or another task than the checkpoint's.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    node = OmegaConf.create(dict(config))
    try:
        # As in a new run, where Hydra composes the presets before it sets any key.
        typed = [override for _, override in parsed(overrides)]
        for override in sorted(typed, key=lambda each: each.key_or_group not in choices()):
            key, value = override.key_or_group, override.value()
            if key == "task" and value != config.get("task"):
                raise ConfigError(
                    f"task={value}, but the checkpoint is of task={config.get('task')}; leave out "
                    "run.resume for a new run"
                )
            if key in choices():
                preset = resources.files("krabby_trainer.conf").joinpath(key, f"{value}.yaml")
                node = OmegaConf.merge(node, OmegaConf.create(preset.read_text(encoding="utf-8")))
            else:
                OmegaConf.update(node, key, value)
    except OmegaConfBaseException as error:
        raise ConfigError(_said(error)) from error
    return _built(OmegaConf.to_container(node))


def register_schema() -> None:
    """Tell Hydra the keys: `conf/config.yaml` begins with them."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=to_dict(TrainCfg()))


def compose_from(path: Path, overrides: Sequence[str]) -> TrainCfg:
    """A file's configuration with overrides on top of it; what the file leaves out is default.

    Raises:
        ConfigError: As `compose`, also for keys of the file.
    """
    config = read_config(path)
    try:
        for key in _leaves(config):
            if not key.startswith("env.terrain.ranges."):  # names of courses
                _check_key(key)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return continue_from({"task": TrainCfg.task, **config}, overrides)


def from_dict(config: Mapping[str, Any]) -> TrainCfg:
    """The tree from what `to_dict` made of it; keys this version does not know are left out."""
    return continue_from(config, ())


def to_dict(cfg: TrainCfg) -> dict[str, Any]:
    return dataclasses.asdict(cfg)


def to_yaml(cfg: TrainCfg) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg)))


@functools.cache
def choices() -> dict[str, tuple[str, ...]]:
    """The presets: folders of `conf/`, and the names in each."""
    found = {}
    for folder in resources.files("krabby_trainer.conf").iterdir():
        if folder.is_dir() and not folder.name.startswith("_"):
            names = (file.name for file in folder.iterdir())
            found[folder.name] = tuple(
                sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
            )
    return found


def rsl_rl_config(cfg: TrainCfg) -> dict[str, Any]:
    """The agent as rsl-rl's runner wants it: nested dictionaries with class names."""
    agent = dataclasses.asdict(cfg.agent)
    actor, critic, algorithm = agent["actor"], agent["critic"], agent["algorithm"]
    encoder = agent["encoder"]
    symmetry = algorithm.pop("symmetry")
    wanted = symmetry["use_data_augmentation"] or symmetry["use_mirror_loss"]
    actor["distribution_cfg"] = {
        "class_name": "GaussianDistribution",
        "init_std": actor.pop("init_std"),
        "std_range": (actor.pop("min_std"), actor.pop("max_std")),
        "std_type": "log",
    }
    common = {"num_steps_per_env": agent["num_steps_per_env"], "multi_gpu": None}
    if cfg.task == "distill":
        learning = {
            "class_name": "krabby_trainer.learn.distillation:Distillation",
            "distillation": agent["distillation"],
            "encoder": encoder,
            "max_iterations": agent["max_iterations"],
            "cuda_graphs": cfg.env.cuda_graphs,
        }
        return common | {"actor": actor, "algorithm": learning}
    groups = {name: list(groups) for name, groups in OBS_GROUPS.items()}
    kind = "krabby_trainer.learn.networks:TeacherActor"
    learning = {
        "class_name": "krabby_trainer.learn.ppo:ParkourPPO",
        **algorithm,
        "symmetry_cfg": symmetry if wanted else None,
        "cuda_graphs": cfg.env.cuda_graphs,
    }
    if cfg.task == "student":
        groups["actor"] = ["sight" if name == "scan" else name for name in groups["actor"]]
        kind = "krabby_trainer.learn.student:StudentActor"
        learning |= {
            "class_name": "krabby_trainer.learn.finetuning:StudentPPO",
            "encoder": encoder,
            "finetuning": agent["finetuning"],
        }
    return common | {
        "obs_groups": groups,
        "actor": {"class_name": kind, **actor},
        "critic": {"class_name": "krabby_trainer.learn.networks:TeacherCritic", **critic},
        "algorithm": learning,
    }


def _built(values: Any) -> TrainCfg:
    """The tree from plain values; constraints are checked here."""
    values = _texts(values, to_dict(TrainCfg()))
    _check_finite(values)
    try:
        return msgspec.convert(values, TrainCfg)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        key = place.strip(".`")
        value = functools.reduce(
            lambda table, part: table.get(part) if isinstance(table, dict) else table,
            key.split("."),
            values,
        )
        if isinstance(value, dict):  # several keys of a table do not go together
            raise ConfigError(f"{key}.{problem}") from error
        if problem.startswith("Invalid enum"):
            hint: Any = TrainCfg
            for part in key.split("."):
                hint = get_type_hints(hint)[part]
            problem = f"expected {', '.join(map(str, get_args(hint)))}"
        what = f"{key}={value}: {problem[:1].lower()}{problem[1:]}"
        raise ConfigError(what if key else problem) from error


def _check_finite(values: Any, key: str = "") -> None:
    if isinstance(values, float) and not math.isfinite(values):
        raise ConfigError(f"{key}={values}: expected a finite number")
    parts = values.items() if isinstance(values, dict) else ()
    if isinstance(values, list):
        parts = ((None, value) for value in values)
    for name, value in parts:
        _check_finite(value, ".".join(filter(None, (key, name))))


def _texts(values: Any, defaults: Any) -> Any:
    """`values` with numbers as text where the default is text: `run.name=2024`."""
    if isinstance(defaults, dict) and isinstance(values, dict):
        return {key: _texts(value, defaults.get(key)) for key, value in values.items()}
    return str(values) if isinstance(defaults, str) and isinstance(values, int | float) else values


def parsed(overrides: Sequence[str], *, sweeps: bool = False) -> list[tuple[str, Any]]:
    """Overrides as typed and as Hydra parses them; their keys and presets are checked.

    Args:
        overrides: `dotted.key=value`, or `preset=name`.
        sweeps: Allow several values of a key.

    Raises:
        ConfigError: As `compose`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    found: list[tuple[str, Any]] = []
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"{text!r} is not an override; write dotted.key=value")
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException as error:
            raise ConfigError(
                f"cannot read {text!r} ({_said(error)}); quote a value with = [ {{ or , in it: "
                "key='\"a=b\"'"
            ) from error
        if override.type is not OverrideType.CHANGE:
            raise ConfigError(
                f"{text!r}: keys are neither added nor removed, write dotted.key=value"
            )
        key = override.key_or_group
        if override.is_sweep_override() and not sweeps:
            raise ConfigError(
                f"{text!r} is several values; `python -m krabby_trainer sweep {text}` starts one "
                "run for each"
            )
        if key not in choices():
            _check_key(key)
        elif not override.is_sweep_override():
            _check_preset(key, str(override.value()))
        found.append((text, override))
    return found


def _check_preset(key: str, value: str) -> None:
    names = choices()[key]
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"{key}={value}: no such preset; {hint}")


def _check_key(key: str) -> None:
    keys = _keys()
    if key in keys or any(name.startswith(f"{key}.") for name in keys):
        return
    table, _, last = key.rpartition(".")
    if table in keys:
        raise ConfigError(f"unknown key {key}: {table} is a value, not a table")
    lasts = {name: name.rpartition(".")[2] for name in keys}
    near = difflib.get_close_matches(key, keys, n=1)
    if not near:  # the right name in the wrong table
        close = difflib.get_close_matches(last, lasts.values(), n=1)
        near = [name for name in keys if lasts[name] in close][:3]
    tops = dict.fromkeys(name.partition(".")[0] for name in keys)
    hint = f"did you mean {' or '.join(near)}?" if near else f"valid are {', '.join(tops)}"
    raise ConfigError(f"unknown key {key}; {hint}")


@functools.cache
def _keys() -> tuple[str, ...]:
    return tuple(_leaves(to_dict(TrainCfg())))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _said(error: BaseException) -> str:
    """The cause of a composing error, as one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    key, text = getattr(cause, "full_key", None), first_line(cause)
    return f"{key}: {text}" if key and key not in text else text


def read_config(path: Path) -> dict[str, Any]:
    """A `config.yaml` as plain values.

    Raises:
        ConfigError: There is none, or it is not one.
    """
    from omegaconf import OmegaConf

    try:
        read = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror})") from error
    except Exception as error:
        raise ConfigError(f"{path} is not a configuration: {_said(error)}") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{path} is not a configuration: it holds no table")
    return cast("dict[str, Any]", read)
