"""What a training run can be told: one tree of dataclasses, composed and overridden by Hydra.

The dataclasses are the only list of keys. Hydra is used for composing alone: it makes no folder,
changes no directory and sets up no logging. Files under `conf/` are presets of values.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final, cast

from krabby.robot.assets import robot_name

from krabby_trainer.errors import ConfigError
from krabby_trainer.task.config import EnvCfg

__all__ = [
    "OBS_GROUPS",
    "ActorCfg",
    "AgentCfg",
    "AlgorithmCfg",
    "CriticCfg",
    "DistillationCfg",
    "EncoderCfg",
    "RunCfg",
    "SymmetryCfg",
    "TrainCfg",
    "choices",
    "compose",
    "continue_from",
    "from_dict",
    "read_config",
    "rsl_rl_config",
    "to_dict",
    "to_yaml",
]

OBS_GROUPS: Final = {
    "actor": ["proprio", "scan", "velocity", "privileged", "history"],
    "critic": ["proprio", "scan", "velocity", "privileged", "critic"],
}
"""Which of the environment's observation groups each network reads."""
TASKS: Final = ("teacher", "distill", "student")
BACKENDS: Final = ("isaac", "mujoco")


@dataclass
class ActorCfg:
    """The teacher's policy network."""

    hidden_dims: list[int] = field(default_factory=lambda: [512, 256, 128])
    activation: str = "elu"
    obs_normalization: bool = True
    init_std: float = 0.8
    """Standard deviation of the actions before anything is learned."""
    min_std: float = 0.15
    max_std: float = 1.2
    """Exploration stays between the two."""

    def __post_init__(self) -> None:
        _check(
            0.0 < self.min_std <= self.init_std <= self.max_std,
            "init_std",
            self.init_std,
            f"min_std to max_std, {self.min_std} to {self.max_std}, all above 0",
        )


@dataclass
class CriticCfg:
    """The value network, which may see what no robot can."""

    hidden_dims: list[int] = field(default_factory=lambda: [512, 256, 128])
    activation: str = "elu"
    obs_normalization: bool = True


@dataclass
class SymmetryCfg:
    """Left and right are alike: two ways to say so."""

    use_data_augmentation: bool = False
    """Learn from every step's mirror image too; twice the work."""
    use_mirror_loss: bool = True
    """Penalise what the policy would do otherwise in the mirror."""
    mirror_loss_coeff: float = 0.1


@dataclass
class AlgorithmCfg:
    """PPO, and what is fitted beside it."""

    num_learning_epochs: int = 4
    num_mini_batches: int = 4
    clip_param: float = 0.2
    gamma: float = 0.995
    lam: float = 0.95
    value_loss_coef: float = 1.0
    use_clipped_value_loss: bool = True
    entropy_coef: float = 0.002
    learning_rate: float = 1e-3
    """At the start."""
    learning_rate_min: float = 1e-5
    learning_rate_max: float = 1e-3
    """The adaptive schedule stays between the two."""
    schedule: str = "adaptive"
    """`adaptive` follows the KL divergence, `fixed` stays."""
    desired_kl: float = 0.01
    max_grad_norm: float = 1.0
    use_mixed_precision: bool = False
    """Compute losses in bfloat16 where that is safe."""
    regularisation_coef: float = 0.1
    """Pull of the privileged code towards the history's, once it has grown from zero ..."""
    regularisation_start: int = 500
    """... from this iteration ..."""
    regularisation_end: int = 1500
    """... to this one."""
    adaptation_interval: int = 20
    """Every how many iterations robots act on the history's code."""
    adaptation_epochs: int = 5
    """Passes over such a rollout to fit the history encoder."""
    adaptation_learning_rate: float = 1e-3
    history_mini_batches: int = 2
    """Minibatches of every other rollout to keep it fitted."""
    estimator_mini_batches: int = 4
    """Minibatches of every rollout to fit the velocity estimator."""
    estimator_learning_rate: float = 1e-3
    symmetry: SymmetryCfg = field(default_factory=SymmetryCfg)

    def __post_init__(self) -> None:
        _check(self.schedule in ("adaptive", "fixed"), "schedule", self.schedule, "adaptive, fixed")
        _check(0.0 < self.gamma <= 1.0, "gamma", self.gamma, "above 0, at most 1")
        _check(0.0 <= self.lam <= 1.0, "lam", self.lam, "0 to 1")
        for key in ("num_learning_epochs", "num_mini_batches"):
            _check(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for key in ("learning_rate", "desired_kl", "max_grad_norm", "clip_param"):
            _check(getattr(self, key) > 0, key, getattr(self, key), "above 0")


@dataclass
class EncoderCfg:
    """The student's depth encoder."""

    channels: list[int] = field(default_factory=lambda: [16, 32, 48])
    """Of the three convolutions."""
    picture: int = 96
    """Numbers that are left of a picture before memory."""
    memory: int = 160
    """Numbers that are remembered from picture to picture."""
    remember: bool = True
    """False forgets after every picture: to see what memory is worth."""

    def __post_init__(self) -> None:
        sizes = [*self.channels, self.picture, self.memory]
        _check(len(self.channels) == 3, "channels", self.channels, "three numbers")
        _check(min(sizes) >= 1, "encoder", sizes, "sizes of at least 1")


@dataclass
class DistillationCfg:
    """How the student learns from the teacher."""

    num_learning_epochs: int = 2
    """Passes over the newest rollout."""
    replay_epochs: int = 0
    """Passes over older ones besides, minibatch by minibatch from one of them; 0 keeps none."""
    replay_rollouts: int = 8
    """How many older ones are kept for that; they are not in checkpoints."""
    num_mini_batches: int = 16
    """Parts of the robots per pass; memory is learned along a whole rollout of each."""
    learning_rate: float = 1e-3
    """At the start ..."""
    learning_rate_end: float = 1e-4
    """... and at the last iteration; a cosine between the two."""
    max_grad_norm: float = 1.0
    code_coef: float = 0.5
    """Weight of the code's distance from the teacher's."""
    scan_coef: float = 0.5
    """Weight of the remembered scan's distance from the true one."""
    teacher_iterations: int = 8
    """The teacher leads the robots at first, ever fewer of them, for so many iterations."""
    action_noise: float = 0.1
    """Standard deviation of what is added to the student's actions: it sees more, and recovers."""

    def __post_init__(self) -> None:
        for key in ("num_learning_epochs", "num_mini_batches", "replay_rollouts"):
            _check(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        _check(self.replay_epochs >= 0, "replay_epochs", self.replay_epochs, "at least 0")
        _check(
            0.0 < self.learning_rate_end <= self.learning_rate,
            "learning_rate_end",
            self.learning_rate_end,
            f"above 0 and at most learning_rate, {self.learning_rate}",
        )
        _check(self.action_noise >= 0.0, "action_noise", self.action_noise, "at least 0")


@dataclass
class AgentCfg:
    """Who learns, and for how long."""

    max_iterations: int = 2000
    """Iterations of the run in all, those before a resume included."""
    num_steps_per_env: int = 24
    """Control steps each robot takes per iteration."""
    init_at_random_ep_len: bool = True
    """Start episodes at random ages, so that not all robots restart together."""
    compile_mode: str = ""
    """torch.compile's mode for actor and critic: default, reduce-overhead, ...; empty: not."""
    actor: ActorCfg = field(default_factory=ActorCfg)
    critic: CriticCfg = field(default_factory=CriticCfg)
    algorithm: AlgorithmCfg = field(default_factory=AlgorithmCfg)
    encoder: EncoderCfg = field(default_factory=EncoderCfg)
    """Of the tasks distill and student."""
    distillation: DistillationCfg = field(default_factory=DistillationCfg)
    """Of the task distill."""

    def __post_init__(self) -> None:
        _check(self.max_iterations >= 1, "max_iterations", self.max_iterations, "at least 1")
        _check(self.num_steps_per_env >= 1, "num_steps_per_env", self.num_steps_per_env, ">= 1")


@dataclass
class RunCfg:
    """Where results go, and when they are saved."""

    root: str = "runs/train"
    """Folder of all runs."""
    name: str = "teacher"
    """Of this run; its folder is <root>/<date>-<name>."""
    dir: str = ""
    """This very folder instead."""
    init: str = ""
    """Checkpoint, or a run's folder, whose networks a new run begins with: a teacher's for the task
    teacher, which trains it on, and for distill, which learns from it; a distilled student's for
    the task student."""
    resume: str = ""
    """A checkpoint, a run's folder, or `auto`: the newest intact one, else a new run."""
    checkpoint_minutes: float = 2.0
    """Between checkpoints; 0 for one after every iteration."""
    keep: int = 3
    """Newest checkpoints that stay."""
    keep_every: int = 500
    """So do those on multiples of this many iterations; 0 for none."""
    max_minutes: float = 0.0
    """Wall clock after which the run ends with a checkpoint; 0 for no limit."""
    log_every: int = 1
    """Iterations per line of log.jsonl."""
    progress_s: float = 5.0
    """Between lines of progress when standard error is no terminal [s]."""
    metrics_port: int = 0
    """TCP port of the Prometheus exposition; 0 for none."""
    metrics_address: str = "127.0.0.1"
    """Interface it binds; 0.0.0.0 only inside a container network."""

    def __post_init__(self) -> None:
        _check(bool(self.name) and "/" not in self.name, "name", self.name, "a name without /")
        _check(self.checkpoint_minutes >= 0, "checkpoint_minutes", self.checkpoint_minutes, ">= 0")
        _check(self.keep >= 1, "keep", self.keep, "at least 1")
        _check(self.keep_every >= 0, "keep_every", self.keep_every, "at least 0")
        _check(self.max_minutes >= 0, "max_minutes", self.max_minutes, "at least 0")
        _check(self.log_every >= 1, "log_every", self.log_every, "at least 1")
        _check(0 <= self.metrics_port < 65536, "metrics_port", self.metrics_port, "0 to 65535")


@dataclass
class TrainCfg:
    """One training run."""

    task: str = "teacher"
    """What is trained, a file of conf/task: teacher; distill, a student that imitates one; student,
    which goes on learning by itself."""
    robot: str = field(default_factory=robot_name)
    """Folder of the assets folder; the one in KRABBY_ROBOT, or else crab_hex."""
    seed: int = 0
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
        _check(usable, "device", self.device, "auto, cpu, cuda or cuda:<number>")
        _check(self.task in TASKS, "task", self.task, ", ".join(TASKS))
        backend = self.env.physics.backend
        _check(backend in BACKENDS, "env.physics.backend", backend, ", ".join(BACKENDS))
        _check(
            backend == "isaac" or self.task == "distill",
            "env.physics.backend",
            backend,
            f"isaac for the task {self.task}, whose rewards are Isaac Lab's",
        )
        command = self.env.command
        share = command.pause_share
        _check(0.0 <= share < 1.0, "env.command.pause_share", share, "at least 0, below 1")
        for key in ("rest_s", "halt_every_s"):
            seconds = getattr(command, key)
            _check(seconds >= 0.0, f"env.command.{key}", seconds, "at least 0")
        for key in ("pause_s", "halt_s"):
            pair = getattr(command, key)
            in_order = len(pair) == 2 and 0.0 < pair[0] <= pair[1]
            _check(in_order, f"env.command.{key}", pair, "[low, high], above 0")
        factor = self.env.randomisation.mass_factor
        usable = len(factor) == 2 and 0.0 < factor[0] <= factor[1]
        _check(usable, "env.randomisation.mass_factor", factor, "[low, high], above 0")
        for key in ("free_share", "free_still", "long_share"):
            share = getattr(command, key)
            _check(0.0 <= share <= 1.0, f"env.command.{key}", share, "0 to 1")
        for key in ("free_vx", "free_vy", "free_yaw_rate", "redraw_s"):
            pair, low = getattr(command, key), 0.01 if key == "redraw_s" else -math.inf
            in_order = len(pair) == 2 and low <= pair[0] <= pair[1]
            what = "[low, high]" if low < 0.0 else "[low, high], at least a control step of 0.01"
            _check(in_order, f"env.command.{key}", pair, what)
        types = self.env.terrain.types
        _check(
            not command.free_flat or "flat" in types,
            "env.command.free_flat",
            command.free_flat,
            f"false, since env.terrain.types={types} has no flat",
        )
        stops = [key for key in ("pause_share", "rest_s", "halt_every_s") if getattr(command, key)]
        _check(
            not stops or backend == "isaac",
            "env.physics.backend",
            backend,
            f"isaac, since env.command has {stops} and nobody is stopped in MuJoCo",
        )
        free = [key for key in ("free_flat", "free_share") if getattr(command, key)]
        _check(
            not free or backend == "isaac",
            "env.physics.backend",
            backend,
            f"isaac, since env.command has {free} and robots are never free in MuJoCo",
        )
        _check(self.seed >= 0, "seed", self.seed, "at least 0")


def compose(overrides: Sequence[str] = ()) -> TrainCfg:
    """The defaults, the chosen presets, then `dotted.key=value` in order.

    Raises:
        ConfigError: Unknown key or preset, wrong type, a value out of range; the message names
            the key, the value and the nearest valid one.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _check_overrides(overrides)
    ConfigStore.instance().store(name="schema", node=TrainCfg)
    try:
        with hydra.initialize_config_module("krabby_trainer.conf", version_base="1.3"):
            composed = hydra.compose("config", list(overrides))
        return cast("TrainCfg", OmegaConf.to_object(composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_said(error)) from error


def continue_from(config: Mapping[str, Any], overrides: Sequence[str]) -> TrainCfg:
    """A checkpoint's configuration with what was typed on top of it.

    Raises:
        ConfigError: As `compose`, or another task than the checkpoint's.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    parsed = _check_overrides(overrides)
    try:
        node = OmegaConf.merge(OmegaConf.structured(TrainCfg), known(config))
        for override in parsed:
            key, value = override.key_or_group, override.value()
            if key in choices():
                if key == "task" and value != config.get("task"):
                    raise ConfigError(
                        f"task={value}, but the checkpoint is of task={config.get('task')}; leave "
                        "out run.resume for a new run"
                    )
                preset = resources.files("krabby_trainer.conf").joinpath(key, f"{value}.yaml")
                node = OmegaConf.merge(node, OmegaConf.create(preset.read_text(encoding="utf-8")))
            else:
                OmegaConf.update(node, key, value)
        return cast("TrainCfg", OmegaConf.to_object(node))
    except OmegaConfBaseException as error:
        raise ConfigError(_said(error)) from error


def from_dict(config: Mapping[str, Any]) -> TrainCfg:
    """The tree from what `to_dict` made of it; keys this version does not know are left out."""
    return continue_from(config, ())


def to_dict(cfg: TrainCfg) -> dict[str, Any]:
    """Plain values, for checkpoints and files."""
    return dataclasses.asdict(cfg)


def to_yaml(cfg: TrainCfg) -> str:
    """As the file `config.yaml` of a run."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg)))


def known(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without keys that no longer exist, which an older checkpoint may hold."""

    def kept(values: Mapping[str, Any], cls: type) -> dict[str, Any]:
        fields = _fields(cls)
        return {
            key: kept(value, fields[key]) if dataclasses.is_dataclass(fields[key]) else value
            for key, value in values.items()
            if key in fields
        }

    return kept(config, TrainCfg)


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
    std = {key: actor.pop(key) for key in ("init_std", "min_std", "max_std")}
    symmetry = algorithm.pop("symmetry")
    wanted = symmetry["use_data_augmentation"] or symmetry["use_mirror_loss"]
    actor["distribution_cfg"] = {
        "class_name": "GaussianDistribution",
        "init_std": std["init_std"],
        "std_range": (std["min_std"], std["max_std"]),
        "std_type": "log",
    }
    common = {
        "num_steps_per_env": agent["num_steps_per_env"],
        "multi_gpu": None,
        "torch_compile_mode": agent["compile_mode"] or None,
    }
    if cfg.task == "distill":
        learning = {
            "class_name": "krabby_trainer.learn.distillation:Distillation",
            "distillation": agent["distillation"],
            "encoder": encoder,
            "max_iterations": agent["max_iterations"],
        }
        return common | {"actor": actor, "algorithm": learning}
    groups = {name: list(groups) for name, groups in OBS_GROUPS.items()}
    kind = "krabby_trainer.learn.networks:TeacherActor"
    learning = {
        "class_name": "krabby_trainer.learn.ppo:ParkourPPO",
        **algorithm,
        "symmetry_cfg": symmetry if wanted else None,
    }
    if cfg.task == "student":
        groups["actor"] = ["sight" if name == "scan" else name for name in groups["actor"]]
        kind = "krabby_trainer.learn.student:StudentActor"
        learning |= {"class_name": "krabby_trainer.learn.finetuning:StudentPPO", "encoder": encoder}
    return common | {
        "obs_groups": groups,
        "actor": {"class_name": kind, **actor},
        "critic": {"class_name": "krabby_trainer.learn.networks:TeacherCritic", **critic},
        "algorithm": learning,
    }


def _check(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value} is out of range, expected {expected}")


def _check_overrides(overrides: Sequence[str]) -> list[Any]:
    """Parse the command line and refuse keys that are not in the tree."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"{text!r} is not an override; write dotted.key=value")
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException as error:
            raise ConfigError(
                f"cannot read {text!r} ({_said(error)}); a value with = [ {{ or , in it wants "
                "quotes of its own: key='\"a=b\"'"
            ) from error
        if override.type is not OverrideType.CHANGE:
            raise ConfigError(
                f"{text!r}: keys are neither added nor removed, write dotted.key=value"
            )
        if override.is_sweep_override():
            raise ConfigError(f"{text!r} is a sweep; start one run per value")
        key = override.key_or_group
        if key in choices():
            _known_name(key, str(override.value()), choices()[key], "preset")
        else:
            _known_key(key)
        parsed.append(override)
    return parsed


def _known_key(key: str) -> None:
    cls: type = TrainCfg
    seen: list[str] = []
    for part in key.split("."):
        fields = _fields(cls) if dataclasses.is_dataclass(cls) else {}
        if part not in fields:
            here = ".".join(seen)
            if not fields:
                raise ConfigError(f"unknown key {key}: {here} is a value, not a table")
            names = [*fields, *(choices() if not seen else ())]
            raise ConfigError(f"unknown key {key}; {_nearest(part, names, here, key)}")
        seen.append(part)
        cls = fields[part]


def _nearest(part: str, names: Iterable[str], table: str, key: str) -> str:
    prefix = f"{table}." if table else ""
    near = difflib.get_close_matches(part, names, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    # The right name in the wrong table is the other common slip.
    last = key.rpartition(".")[2]
    elsewhere = difflib.get_close_matches(
        last, [each.rpartition(".")[2] for each in _all_keys()], n=1
    )
    if elsewhere:
        found = [each for each in _all_keys() if each.rpartition(".")[2] == elsewhere[0]]
        return f"did you mean {' or '.join(found[:3])}?"
    return f"valid are {', '.join(prefix + name for name in names)}"


def _known_name(key: str, value: str, names: Sequence[str], kind: str) -> None:
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"{key}={value}: no such {kind}; {hint}")


@functools.cache
def _all_keys() -> tuple[str, ...]:
    def walk(cls: type, prefix: str) -> Iterable[str]:
        for name, hint in _fields(cls).items():
            if dataclasses.is_dataclass(hint):
                yield from walk(cast("type", hint), f"{prefix}{name}.")
            else:
                yield prefix + name

    return tuple(walk(TrainCfg, ""))


@functools.cache
def _fields(cls: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls)
    names = (each.name for each in dataclasses.fields(cls))
    return types.MappingProxyType({name: hints[name] for name in names})


def _said(error: BaseException) -> str:
    """The cause of a composing error, as one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    key = getattr(cause, "full_key", None)
    text = " ".join(str(cause).split("\n")[0].split())
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
