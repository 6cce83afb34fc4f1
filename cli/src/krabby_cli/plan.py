"""The plan of a run of `krabby up`, checked completely before anything starts."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from krabby.control.config import DEFAULT_POLICY
from krabby.control.policy_manager import check_measurable
from krabby.course.courses import make_course
from krabby.policy.bundle import PolicyBundle, bundle_dir
from krabby.robot.description import RobotDescription
from krabby_proto import STREAMS

from krabby_cli.errors import UsageError
from krabby_cli.isaac_python import isaac_python
from krabby_cli.key_files import default_folder
from krabby_cli.options import BLIND_COURSE, DEFAULT_COURSE
from krabby_cli.relay import check_listen, relay_command
from krabby_cli.supervise import ChildSpec
from krabby_cli.view import view_command
from krabby_cli.view.access import TOKEN_ENV, Tokens
from krabby_cli.wiring import Wiring, check_free, wire, wire_in_process

__all__ = [
    "DEFAULT_COURSE",
    "DEFAULT_POLICY",
    "Plan",
    "check_settings",
    "make_plan",
    "service_command",
]

_MODULES: Final = {
    "sim-hal": "krabby_sim_hal",
    "camera": "krabby_camera",
    "gameloop": "krabby_gameloop",
}
_MEMORY_BYTES: Final = {"sim-hal": 1 << 30, "camera": 512 << 20, "gameloop": 512 << 20}
"""As `mem_limit` in compose.yaml; they use 100 to 200 MB."""
_ISAAC_MEMORY_BYTES: Final = 16 << 30
"""Isaac Lab with one robot on the processor uses 3 GB."""
_START_S: Final = 60.0
_ISAAC_START_S: Final = 600.0
"""The first start compiles kernels: minutes on two cores."""
_GPU_MEMORY_BYTES: Final = 6 << 30
"""As in compose.jetson.yaml, where a network runs on the GPU."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, checked and ready to start."""

    run_id: str
    folder: Path
    wiring: Wiring
    children: tuple[ChildSpec, ...]
    """The processes to start; none when the services are threads of this one."""
    configuration: Mapping[str, tuple[str, ...]]
    """Settings of each service, as `key=value`."""
    policy: str
    course: str
    difficulty: float
    seed: int
    duration_s: float
    """0 for no end."""
    lockstep: bool
    until_over: bool
    """End as soon as the course is completed or the robot has fallen."""
    start_timeout_s: float
    view: Tokens | None
    """Secrets of the page that shows the run; None without one."""
    isaac_python: str | None = None
    """Interpreter of sim-hal where its back end is Isaac Lab."""
    recording: Path | None = None
    """File of all streams."""

    @property
    def title(self) -> str:
        return (
            f"{self.policy} on {self.course}, difficulty {self.difficulty:g}, seed {self.seed}"
            + (", lock-step" if self.lockstep else "")
            + f"; logs in {self.folder}"
        )


def make_plan(args: argparse.Namespace) -> Plan:
    """Check what was asked and lay out the run.

    Raises:
        UsageError: or the error of the course or of the policy; nothing was started.
    """
    if not 0.0 <= args.duration < 1e7:
        raise UsageError(f"--duration {args.duration} is out of range; give seconds, 0 for no end")
    bundle = PolicyBundle.load(bundle_dir(args.policy), RobotDescription.load())
    check_measurable(bundle)
    if args.course is None:
        args.course = BLIND_COURSE if bundle.needs_features == "none" else DEFAULT_COURSE
    make_course(args.course, args.difficulty, args.seed)
    settings = _settings(args.settings)
    run_id = secrets.token_hex(4)
    if args.no_camera and "camera" in settings:
        raise UsageError("--set camera.… with --no-camera: there is no camera to set; drop one")
    check_listen(args.listen, args.base_port, tuple(STREAMS))
    if args.in_process:
        _check_in_process(args)
        wiring = wire_in_process(run_id)
    else:
        wiring = wire(args.transport, args.base_port)
        check_free(wiring)
    if args.record is not None:
        _check_record(args.record)

    overrides = _overrides(args, wiring, bundle)
    names = [name for name in _MODULES if not (name == "camera" and args.no_camera)]
    _check_installed(names)
    python = isaac_python() if args.backend == "isaaclab" else None
    configuration = {name: (*overrides[name], *settings.get(name, ())) for name in names}
    children = [
        ChildSpec(
            name=name,
            argv=(*_command(name, python), *configuration[name]),
            may_end=name == "sim-hal",
            memory_bytes=_memory_bytes(name, configuration[name]),
        )
        for name in (names if not args.in_process else ())
    ]
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = args.runs_dir / f"{stamp}-{run_id}"
    ring = None if args.speed == 0 or args.no_black_box else folder
    if not args.in_process and (args.record is not None or ring is not None):
        children.append(_recorder(args.record, ring, wiring))
    if args.listen is not None:
        command = relay_command(args.listen, args.base_port, default_folder(), wiring.endpoints)
        children.append(
            ChildSpec(name="relay", argv=command, has_ready_event=False, expendable=True)
        )
    tokens = _view(args)
    if tokens is not None:
        children.append(
            ChildSpec(
                name="view",
                argv=view_command(args.view_port, wiring.endpoints),
                has_ready_event=False,
                expendable=True,
                env={TOKEN_ENV: tokens.operate},
            )
        )
    return Plan(
        run_id=run_id,
        folder=folder,
        wiring=wiring,
        children=tuple(children),
        configuration=configuration,
        policy=bundle.name,
        course=args.course,
        difficulty=args.difficulty,
        seed=args.seed,
        duration_s=args.duration,
        lockstep=args.speed == 0,
        until_over=args.until_over,
        start_timeout_s=args.start_timeout or (_START_S if python is None else _ISAAC_START_S),
        isaac_python=python,
        view=tokens,
        recording=args.record,
    )


def _view(args: argparse.Namespace) -> Tokens | None:
    """Secrets of the page, when there is to be one: in real time, unless it is asked otherwise."""
    if not (args.speed != 0 and not args.in_process if args.view is None else args.view):
        return None
    if not 0 <= args.view_port <= 65535:
        raise UsageError(f"--view-port {args.view_port} is out of range; give 0 to 65535")
    return Tokens.make()


def check_settings(plan: Plan, texts: Sequence[str]) -> None:
    """Have every service that `--set` names read its configuration and the files that it names.

    Raises:
        UsageError: with the service's own line; nothing was started.
    """
    for name in _settings(texts):
        command = (*_command(name, plan.isaac_python), "--check", *plan.configuration[name])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise UsageError(f"--set {name}.…: {said[-1]}")


def _check_installed(names: Sequence[str]) -> None:
    missing = [f"krabby-{name}" for name in names if find_spec(_MODULES[name]) is None]
    if missing:
        raise UsageError(
            f"not installed: {', '.join(missing)}; the krabby command alone drives a robot, for a "
            "simulation install these packages too (make wheels, pip install dist/*.whl)"
        )


def service_command(name: str) -> tuple[str, ...]:
    """Command that starts a service in this interpreter, without the working folder on its path."""
    return (sys.executable, "-P", "-m", _MODULES[name])


def _command(name: str, python: str | None) -> tuple[str, ...]:
    """The same; sim-hal in the interpreter `python`, unless that is None."""
    command = service_command(name)
    return command if python is None or name != "sim-hal" else (python, *command[1:])


def _overrides(
    args: argparse.Namespace, wiring: Wiring, bundle: PolicyBundle
) -> dict[str, list[str]]:
    """What this run sets in each service's configuration, as `key=value`."""
    endpoints = wiring.endpoints
    sim = {
        "backend": args.backend,
        "course.name": args.course,
        "course.difficulty": args.difficulty,
        "course.seed": args.seed,
        "seed": args.seed,
        "speed": args.speed,
        "camera.enabled": not args.no_camera,
    }
    if args.speed == 0:
        sim["duration_s"] = args.duration
    encodes = bundle.needs_features == "latent"
    keys: dict[str, dict[str, object]] = {
        "sim-hal": sim,
        "camera": {"source": "hal", "bundle": str(bundle.path.resolve()) if encodes else ""},
        "gameloop": {"policy": str(bundle.path.resolve())},
    }
    streams = {
        "sim-hal": ("state", "camera", "command", "safety", "trace", "truth", "nav", "colour"),
        "camera": ("camera", "state", "features"),
        "gameloop": ("state", "command", "features", "nav", "control", "ticks"),
    }
    for name, table in keys.items():
        table["metrics_port"] = wiring.metrics_ports[name]
        table |= {f"endpoints.{stream}": endpoints[stream] for stream in streams[name]}
    # JSON's strings, numbers and booleans are TOML's.
    return {
        name: [f"{key}={json.dumps(value)}" for key, value in table.items()]
        for name, table in keys.items()
    }


def _memory_bytes(name: str, overrides: Sequence[str]) -> int:
    """Memory limit of a service."""
    backends = [text for text in overrides if text.startswith("inference.backend=")]
    on_gpu = bool(backends) and "onnxruntime" not in backends[-1]
    if 'backend="isaaclab"' in overrides:
        return _ISAAC_MEMORY_BYTES
    return _GPU_MEMORY_BYTES if on_gpu else _MEMORY_BYTES[name]


def _settings(texts: Sequence[str]) -> dict[str, list[str]]:
    """`--set` texts by service."""
    settings: dict[str, list[str]] = {}
    for text in texts:
        service, dot, rest = text.partition(".")
        if service not in _MODULES or not dot or "=" not in rest:
            raise UsageError(
                f"--set {text!r} is not SERVICE.KEY=VALUE; services are {', '.join(_MODULES)}, "
                "`python -m krabby_SERVICE --help` lists their keys"
            )
        settings.setdefault(service, []).append(rest)
    return settings


def _check_in_process(args: argparse.Namespace) -> None:
    if args.speed != 0:
        raise UsageError(
            "--in-process with --speed 1: threads of one interpreter cannot keep 100 Hz; "
            "add --speed 0 for lock-step, or leave --in-process out"
        )
    for option, given in (
        ("--backend isaaclab", args.backend == "isaaclab"),
        ("--record", args.record is not None),
        ("--until-over", args.until_over),
        ("--listen", args.listen is not None),
        ("--view", bool(args.view)),
    ):
        if given:
            raise UsageError(f"{option} needs separate processes; drop --in-process")


def _check_record(path: Path) -> None:
    parent = path.absolute().parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)) or path.is_dir():
        raise UsageError(f"--record {path}: cannot be written; give a file in a writable folder")
    if path.exists():
        raise UsageError(f"--record {path} exists already; remove it or give another name")


def _recorder(path: Path | None, folder: Path | None, wiring: Wiring) -> ChildSpec:
    """Records to `path`, when that is given, and the last minute of incidents to `folder`."""
    options = [f"--endpoint={name}={endpoint}" for name, endpoint in wiring.endpoints.items()]
    file = [] if path is None else [str(path.absolute())]
    ring = [] if folder is None else [f"--ring={folder.absolute()}"]
    return ChildSpec(
        name="recorder",
        argv=(sys.executable, "-P", "-m", "krabby_cli", "record", *file, *ring, *options),
        has_ready_event=False,
        # Without a file it is a bystander: the robot walks on, and it is started again.
        expendable=path is None,
    )
