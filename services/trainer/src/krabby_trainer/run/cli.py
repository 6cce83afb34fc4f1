"""The command line: one parser, one place where errors become one line and an exit status.

What is heavy is imported where it is used: help and a missing package are answered at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from krabby import config
from krabby.benchmark.suites import SUITES
from krabby.config import check, describe, load
from krabby.robot.assets import choose_robot

from krabby_trainer.errors import ConfigError, MissingDependency, TrainerError, first_line
from krabby_trainer.run.output import aside

__all__ = ["main"]

_STARTED = time.monotonic()
_EXIT_FAILED: Final = 1
_EXIT_USAGE: Final = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalCfg:
    """`python -m krabby_trainer eval`."""

    checkpoint: str = ""
    """Checkpoint to evaluate; a run's folder means its newest intact one."""
    suite: str = "paper"
    """What is measured: paper, fixed, open, smoke; in MuJoCo also the suites of `krabby evaluate`,
    published and wild, which run the game loop's controller."""
    cells: str = "*"
    """Of the suites published and wild: names or patterns, such as 'stairs*,beam*'."""
    conditions: str = "nominal"
    """Disturbances: nominal (none), deployable, or that and one of drop30, latency120, noise2,
    tilt3, weak20, payload5, heavy, friction04."""
    backend: str = "isaac"
    """Physics: isaac, many robots at once, or mujoco, that of the runtime's simulation."""
    robots: int = 0
    """How many, or trials of each cell at most; 0 for the suite's own number."""
    seconds: float = 0.0
    """Simulated time for each [s]; 0 for the suite's own."""
    seed: int = 1
    """Of courses, speeds and disturbances."""
    device: str = "auto"
    """As for training."""
    out: str = ""
    """Folder of the report; empty for evaluation/<suite>-<backend> in the run's folder."""
    processes: int = 0
    """Processes that share MuJoCo's physics; 0 for all cores."""
    robot: str = ""
    """Folder of the assets folder; empty for the one the checkpoint was trained for."""

    def __post_init__(self) -> None:
        check(self.backend in ("isaac", "mujoco"), "backend", self.backend, "isaac or mujoco")
        for key in ("robots", "seconds", "seed", "processes"):
            check(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCfg:
    """`python -m krabby_trainer export`."""

    checkpoint: str = ""
    """Checkpoint to export; a run's folder means its newest intact one."""
    robot: str = ""
    """As for eval."""
    name: str = "teacher"
    """Of the bundle."""
    out: str = ""
    """Its folder; empty for assets/policies/<name>."""
    observations: str = ""
    """File with recorded observations to compare on; empty for plausible ones made up."""
    evaluation: str = ""
    """A report.json whose figures go into the manifest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayCfg:
    """`python -m krabby_trainer play`."""

    checkpoint: str = ""
    """Checkpoint to watch; a run's folder means its newest intact one."""
    robot: str = ""
    """As for eval."""
    robots: int = 16
    """How many walk."""
    seconds: float = 0.0
    """Simulated time [s]; 0 until the window is closed or Ctrl-C."""
    view: bool = True
    """Open a window; without one only the figures are shown."""
    seed: int = 1
    """Of courses and speeds."""
    device: str = "auto"
    """As for training."""

    def __post_init__(self) -> None:
        check(self.robots >= 1, "robots", self.robots, "at least 1")
        check(self.seconds >= 0, "seconds", self.seconds, "at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoCfg:
    """`python -m krabby_trainer demo`."""

    seed: int = 0
    """Of training."""
    num_envs: int = 8192
    """Robots in training."""
    mxd: float = 0.95
    """Share of the waypoints that has to be reached, mean of the published suite in MuJoCo."""
    max_minutes: float = 8.0
    """Training ends then, reached or not."""
    robots: int = 0
    """Of an evaluation; 0 for the suite's own number."""
    out: str = ""
    """Folder of the run; empty for runs/demo/seed<seed>."""
    device: str = "auto"
    """As for training."""

    def __post_init__(self) -> None:
        check(0.0 < self.mxd <= 1.0, "mxd", self.mxd, "above 0, at most 1")
        check(self.max_minutes > 0.0, "max_minutes", self.max_minutes, "above 0")
        check(self.num_envs >= 1, "num_envs", self.num_envs, "at least 1")
        for key in ("robots", "seed"):
            check(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoCfg:
    """`python -m krabby_trainer info`."""

    checkpoint: str = ""
    """Checkpoint to describe; empty for this machine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunsCfg:
    """`python -m krabby_trainer runs`."""

    root: str = "runs"
    """Folder that is searched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorBoardCfg:
    """`python -m krabby_trainer tensorboard`."""

    root: str = "runs"
    """Folder of the runs."""
    port: int = 6006
    """TCP port."""
    address: str = "127.0.0.1"
    """Interface it binds; 0.0.0.0 only inside a container network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsCfg:
    """`python -m krabby_trainer weights`."""

    checkpoint: str = ""
    """Checkpoint, or a run's folder: its newest intact one."""
    out: str = ""
    """File to write."""
    resumable: bool = False
    """Keep optimisers and curriculum too, some MB in all: for run.resume on another machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.keys:
        sys.stdout.write(_keys(args.command))
        return 0
    try:
        base = {"base": args.base} if args.command in _TAKES_BASE else {}
        return args.handler(args.overrides, **base)
    except (ConfigError, MissingDependency, config.ConfigError) as error:
        return _complain(args.command, error, _EXIT_USAGE)
    except TrainerError as error:
        return _complain(args.command, error, _EXIT_FAILED)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if _ran_out_of_memory(error):
            reason = TrainerError(f"memory ran out; lower env.num_envs ({first_line(error)})")
            return _complain(args.command, reason, _EXIT_FAILED)
        if type(error).__module__.partition(".")[0] == "krabby":
            return _complain(args.command, error, _EXIT_FAILED)
        raise


def _train(overrides: Sequence[str], *, base: str = "") -> int:
    _need("torch", "isaaclab", "rsl_rl", "hydra", "tensordict")
    from krabby_trainer.run.training import train

    return train(overrides, started=_STARTED, base=base)


def _config(overrides: Sequence[str], *, base: str = "") -> int:
    _need("torch", "rsl_rl", "hydra", "tensordict")
    from krabby_trainer.run.config import to_yaml
    from krabby_trainer.run.training import resolve

    cfg, _, _ = resolve(overrides, base=base)
    sys.stdout.write(to_yaml(cfg))
    return 0


def _sweep(overrides: Sequence[str]) -> int:
    _need("torch", "isaaclab", "rsl_rl", "hydra", "tensordict")
    from krabby_trainer.run.sweep import sweep

    return sweep(overrides)


def _runs(overrides: Sequence[str]) -> int:
    cfg = load(RunsCfg, None, overrides)
    _need("torch", "hydra")
    from krabby_trainer.run.runs import table

    sys.stdout.write(table(Path(cfg.root)))
    return 0


def _tensorboard(overrides: Sequence[str]) -> int:
    """Without plugins of other packages: that of open3d needs libraries of a desktop."""
    cfg = load(TensorBoardCfg, None, overrides)
    _need("tensorboard")
    from tensorboard import default, program

    board = program.TensorBoard(plugins=default.get_static_plugins())
    where = (f"--logdir={cfg.root}", f"--host={cfg.address}", f"--port={cfg.port}")
    board.configure(argv=["tensorboard", *where, "--load_fast=false"])
    return board.main() or 0


def _profile(overrides: Sequence[str]) -> int:
    _need("torch", "isaaclab", "rsl_rl", "hydra", "tensordict")
    from krabby_trainer.run.profiling import profile

    with aside(None):
        report = profile(overrides)
    return _print(report)


def _demo(overrides: Sequence[str]) -> int:
    cfg = load(DemoCfg, None, overrides)
    _need("torch", "isaaclab", "rsl_rl", "hydra", "tensordict", "mujoco")
    from krabby_trainer.run.demo import demo

    out = Path(cfg.out or f"runs/demo/seed{cfg.seed}")
    if out.exists():
        raise ConfigError(f"out={out} exists; name a new folder, out=PATH, or remove it")
    keys = ("seed", "num_envs", "mxd", "max_minutes", "robots", "device")
    report = demo(out, **{key: getattr(cfg, key) for key in keys})
    _print(report)
    return 0 if report["reached"] else _EXIT_FAILED


def _eval(overrides: Sequence[str]) -> int:
    cfg = load(EvalCfg, None, overrides)
    checkpoint = _checkpoint(cfg.checkpoint)
    if cfg.suite in SUITES:
        return _benchmark(cfg, checkpoint)
    _need("torch", *(("isaaclab",) if cfg.backend == "isaac" else ()), "mujoco")
    from krabby_trainer.evaluation import evaluate
    from krabby_trainer.evaluation.conditions import find_condition
    from krabby_trainer.evaluation.suite import find_suite
    from krabby_trainer.run.policies import load_subject
    from krabby_trainer.run.training import resolve_device

    find_suite(cfg.suite)
    check(cfg.cells == "*", "cells", cfg.cells, f"none of suite={cfg.suite}")
    find_condition(cfg.conditions)
    name = f"{cfg.suite}-{cfg.backend}"
    if cfg.conditions != "nominal":
        name += f"-{cfg.conditions}"
    if cfg.robot:
        name += f"-{cfg.robot}"
    out = Path(cfg.out) if cfg.out else _run_of(checkpoint) / "evaluation" / name
    backend, device = "mujoco" if cfg.backend == "mujoco" else "isaac", resolve_device(cfg.device)
    _choose_robot(cfg.robot, checkpoint)
    policy, about = load_subject(checkpoint, backend, device)
    with aside(None):
        report = evaluate(
            policy=policy,
            about=about,
            suite=cfg.suite,
            backend=backend,
            robots=cfg.robots,
            seconds=cfg.seconds,
            seed=cfg.seed,
            conditions=cfg.conditions,
            device=device,
            out=out,
            processes=cfg.processes,
        )
    shown = ("checkpoint", "iteration", "suite", "backend", "robots", "seconds", "wall_s", "total")
    return _print({"report": str(out / "report.md"), **{key: report.get(key) for key in shown}})


def _benchmark(cfg: EvalCfg, checkpoint: Path) -> int:
    """A suite of the benchmark, which runs the game loop's controller: in MuJoCo alone."""
    check(cfg.backend == "mujoco", "backend", cfg.backend, f"mujoco for suite={cfg.suite}")
    check(cfg.conditions == "nominal", "conditions", cfg.conditions, f"none of suite={cfg.suite}")
    _need("torch", "onnx", "onnxruntime", "mujoco")
    from krabby_trainer.run.benchmark import run_suite

    _choose_robot(cfg.robot, checkpoint)
    robot = f"-{cfg.robot}" if cfg.robot else ""
    out = Path(cfg.out) if cfg.out else _run_of(checkpoint) / "evaluation" / f"{cfg.suite}{robot}"
    with aside(None):
        facts = run_suite(
            checkpoint,
            out,
            suite=cfg.suite,
            cells=cfg.cells,
            trials=cfg.robots,
            processes=cfg.processes,
        )
    return _print({"report": str(out / "report.md"), "checkpoint": str(checkpoint), **facts})


def _export(overrides: Sequence[str]) -> int:
    cfg = load(ExportCfg, None, overrides)
    checkpoint = _checkpoint(cfg.checkpoint)
    _need("torch", "onnx", "onnxruntime")
    from krabby_trainer.run.export import export_bundle

    out = Path(cfg.out) if cfg.out else Path("assets/policies") / cfg.name
    figures = _figures(cfg.evaluation) if cfg.evaluation else None
    _choose_robot(cfg.robot, checkpoint)
    if checkpoint.exists():  # else the export ends with one line
        sys.stderr.write(f"exporting {checkpoint}; a student is tried in MuJoCo, up to a minute\n")
    with aside(None):
        export_bundle(
            checkpoint,
            out,
            name=cfg.name,
            observations=Path(cfg.observations) if cfg.observations else None,
            evaluation=figures,
        )
    return _print({"bundle": str(out), "checkpoint": str(checkpoint)})


def _figures(path: str) -> dict[str, Any]:
    """Figures of an evaluation's report for a manifest."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        kept = ("suite", "backend", "robots", "seconds", "total", "mean")
        return {key: report[key] for key in kept}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"evaluation={path} is not a report of `python -m krabby_trainer eval` "
            f"({type(error).__name__}: {error})"
        ) from error


def _play(overrides: Sequence[str]) -> int:
    cfg = load(PlayCfg, None, overrides)
    checkpoint = _checkpoint(cfg.checkpoint)
    _need("torch", "isaaclab")
    from krabby_trainer.run.play import play
    from krabby_trainer.run.training import resolve_device

    _choose_robot(cfg.robot, checkpoint)
    with aside(None):
        report = play(
            checkpoint,
            robots=cfg.robots,
            seconds=cfg.seconds,
            view=cfg.view,
            seed=cfg.seed,
            device=resolve_device(cfg.device),
        )
    return _print(report)


def _info(overrides: Sequence[str]) -> int:
    cfg = load(InfoCfg, None, overrides)
    if not cfg.checkpoint:
        return _print(_machine())
    checkpoint = _checkpoint(cfg.checkpoint)
    _need("torch")
    from krabby_trainer.run import checkpoints

    payload = checkpoints.load(checkpoint)
    return _print(
        {
            "checkpoint": str(checkpoint),
            **{key: payload[key] for key in ("iteration", "env_steps", "wall_s")},
            "provenance": payload["provenance"],
            "config": payload["config"],
        }
    )


def _weights(overrides: Sequence[str]) -> int:
    cfg = load(WeightsCfg, None, overrides)
    checkpoint = _checkpoint(cfg.checkpoint)
    if not cfg.out:
        raise ConfigError("out: give the file to write, out=PATH")
    _need("torch")
    from krabby_trainer.run import checkpoints

    save = checkpoints.save_small if cfg.resumable else checkpoints.save_weights
    save(checkpoint, Path(cfg.out))
    sizes = {
        "bytes": Path(cfg.out).stat().st_size,
        "bytes_of_checkpoint": checkpoint.stat().st_size,
    }
    return _print({"weights": cfg.out, "checkpoint": str(checkpoint), **sizes})


_COMMANDS: Final[dict[str, tuple[Callable[[Sequence[str]], int], Any, str, str]]] = {
    "train": (_train, None, "train a policy", "env.num_envs=8192 run.name=first"),
    "sweep": (
        *(_sweep, None, "train every combination of several values, or Optuna's trials"),
        "run.name=rates agent.algorithm.learning_rate_max=1e-3,2e-3 seed=1,2",
    ),
    "runs": (_runs, RunsCfg, "list the runs in a folder", "root=runs/train"),
    "tensorboard": (_tensorboard, TensorBoardCfg, "show the runs' curves", "root=runs/train"),
    "eval": (_eval, EvalCfg, "measure a checkpoint", "checkpoint=runs/train/RUN suite=paper"),
    "export": (
        _export,
        ExportCfg,
        "write a policy bundle",
        "checkpoint=runs/train/RUN name=teacher",
    ),
    "play": (_play, PlayCfg, "watch a checkpoint walk", "checkpoint=runs/train/RUN robots=8"),
    "weights": (
        *(_weights, WeightsCfg, "keep a checkpoint's networks, without what only a resume needs"),
        "checkpoint=runs/train/RUN out=weights.pt",
    ),
    "info": (_info, InfoCfg, "describe a checkpoint, or this machine", "checkpoint=runs/train/RUN"),
    "demo": (
        *(_demo, DemoCfg, "train a teacher from scratch and print the minutes until it walks"),
        "seed=1 mxd=0.95",
    ),
    "profile": (
        *(_profile, None, "show where the time of an iteration goes"),
        "env.num_envs=8192 device=cuda",
    ),
    "config": (_config, None, "show the resolved configuration", "size=small env.num_envs=64"),
}
"""Handler, class of its keys (None for those of a training run), help, and an example."""
_TAKES_BASE: Final = ("train", "config")


def _parser() -> argparse.ArgumentParser:
    prog = "python -m krabby_trainer"
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train, evaluate and export parkour policies for the hexapod.",
        epilog=f"{prog} COMMAND --keys lists the keys of each.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (handler, _, says, example) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=says, description=says, epilog=f"for example: {prog} {name} {example}"
        )
        command.add_argument(
            "overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the defaults"
        )
        if name in _TAKES_BASE:
            command.add_argument(
                "--from",
                dest="base",
                metavar="config.yaml",
                default="",
                help="begin with this configuration instead of the defaults",
            )
        command.add_argument("--keys", action="store_true", help="list the keys and exit")
        command.set_defaults(handler=handler)
    return parser


def _keys(command: str) -> str:
    own = _COMMANDS[command][1]
    if own is not None:
        return describe(own) + "\n"
    _need("hydra", "torch")
    from krabby_trainer.run.config import TrainCfg, choices
    from krabby_trainer.task.rewards import REWARDS

    presets = "\n".join(f"  {name}  (one of {', '.join(of)})" for name, of in choices().items())
    meanings = {f"env.reward.{reward.name}": reward.meaning for reward in REWARDS}
    keys = []
    for line in describe(TrainCfg).splitlines():
        keys.append(line)
        if meaning := meanings.get(line.strip().partition(" ")[0]):
            keys.append(f"      {meaning}")
    return f"presets\n{presets}\n\nkeys\n" + "\n".join(keys) + "\n"


def _need(*packages: str) -> None:
    """Refuse to go on without these packages, with one line and no traceback.

    Raises:
        MissingDependency: Another Python than 3.12, or a package that is not installed.
    """
    remedy = "`make train-setup` makes the trainer's environment (Python 3.12, about 8 GB)"
    if sys.version_info[:2] != (3, 12):
        raise MissingDependency(
            f"the trainer runs on Python 3.12 and this is {sys.version_info[0]}."
            f"{sys.version_info[1]}; {remedy}, `make train` uses it"
        )
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(f"{', '.join(missing)} not installed here; {remedy}")


def _checkpoint(text: str) -> Path:
    """The checkpoint that a path means; a folder means its newest intact one."""
    if not text:
        raise ConfigError("checkpoint: give one, checkpoint=PATH of a file or of a run's folder")
    path = Path(text)
    if path.is_dir() and not (path / "manifest.json").is_file():
        _need("torch")
        from krabby_trainer.errors import CheckpointError
        from krabby_trainer.run.checkpoints import newest_intact

        found = newest_intact(path)
        if found is None:
            raise CheckpointError(f"no intact checkpoint in {path}")
        return found
    return path


def _choose_robot(name: str, checkpoint: Path) -> None:
    """Choose the robot by name, or else the one the checkpoint was trained for."""
    from krabby_trainer.run import checkpoints

    if not name and checkpoint.is_file():
        name = (checkpoints.load(checkpoint)["config"] or {}).get("robot", "")
    choose_robot(name)


def _run_of(checkpoint: Path) -> Path:
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


def _machine() -> dict[str, Any]:
    _need("torch")
    import torch

    from krabby_trainer.run.provenance import provenance

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {**provenance("cpu"), "device": "cuda:0" if gpus else "cpu", "gpu": gpus or None}


def _ran_out_of_memory(error: Exception) -> bool:
    """Of a GPU, as torch says it, or of this machine."""
    said = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in said
        or "Failed to allocate" in said  # Warp
    )


def _print(facts: dict[str, Any]) -> int:
    sys.stdout.write(json.dumps(facts, indent=2, default=str) + "\n")
    return 0


def _complain(command: str, error: Exception, status: int) -> int:
    sys.stderr.write(f"trainer {command}: {error}\n")
    return status
