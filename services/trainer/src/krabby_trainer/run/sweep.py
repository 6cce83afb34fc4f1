"""`python -m krabby_trainer sweep`: many runs, by Hydra's multirun, launchers and sweepers.

Every job is a training in a separate process, in the folder of its overrides. Starting the same
sweep again resumes the runs that have not finished and leaves the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from krabby.config import check, load

from krabby_trainer.errors import ConfigError, MissingDependency, TrainerError, first_line
from krabby_trainer.run.config import check_run, compose, parsed

__all__ = ["SweepCfg", "sweep"]

_OBJECTIVE_OVER = 10
"""Iterations at the end of a run that its result is the mean of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepCfg:
    """Keys of `sweep` beside those of a run."""

    dir: str = ""
    """Folder of the sweep; empty for runs/sweeps/<run.name>. The same folder resumes."""
    trials: int = 0
    """With Optuna, this many trials; 0 for every combination of the values given."""
    batch: int = 1
    """With Optuna, trials at once."""
    objective: str = "Level/mean"
    """What Optuna maximises: a key of log.jsonl, the mean of a run's last 10 iterations."""

    def __post_init__(self) -> None:
        check(self.trials >= 0, "sweep.trials", self.trials, "at least 0")
        check(self.batch >= 1, "sweep.batch", self.batch, "at least 1")


def sweep(overrides: Sequence[str]) -> int:
    """Train every combination of the values given, or Optuna's trials; the exit status.

    Raises:
        ConfigError: There is nothing to vary, or a value that a run would refuse.
        MissingDependency: Optuna or a launcher is not installed.
    """
    own = [text.removeprefix("sweep.") for text in overrides if text.startswith("sweep.")]
    hydras = [text for text in overrides if text.startswith(("hydra.", "hydra/"))]
    rest = [text for text in overrides if not text.startswith(("sweep.", "hydra.", "hydra/"))]
    cfg = load(SweepCfg, None, own)
    fixed = _check(rest, continuous=cfg.trials > 0)
    folder = Path(cfg.dir or f"runs/sweeps/{compose(fixed).run.name}").resolve()
    keys = [text.partition("=")[0] for text in fixed]
    os.environ[_OBJECTIVE_ENV] = cfg.objective
    arguments = [
        *("--multirun", *rest, f"hydra.sweep.dir={_quoted(folder)}", "hydra.output_subdir=null"),
        *("hydra.sweep.subdir=${hydra.job.override_dirname}", "hydra.job.chdir=false"),
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(keys)}]",
        # Names that can be typed as values without quotes.
        *(f"hydra.job.config.override_dirname.{key}" for key in ("kv_sep=-", "item_sep=_")),
        *("hydra/job_logging=none", "hydra/hydra_logging=none"),
    ]
    if cfg.trials:
        _need("optuna")
        arguments += ["hydra/sweeper=krabby_optuna", f"hydra.sweeper.trials={cfg.trials}"]
        arguments += [f"hydra.sweeper.batch={cfg.batch}"]
    _run_hydra([*arguments, *hydras])
    from krabby_trainer.run.runs import table

    sys.stdout.write(table(folder))
    return 0


_OBJECTIVE_ENV = "KRABBY_SWEEP_OBJECTIVE"


def _check(overrides: Sequence[str], *, continuous: bool) -> list[str]:
    """The overrides that do not vary; every value of the others has been tried on a run's keys."""
    each = parsed(overrides, sweeps=True)
    fixed = [text for text, override in each if not override.is_sweep_override()]
    varied = [(text, override) for text, override in each if override.is_sweep_override()]
    if not varied:
        raise ConfigError("nothing varies; give several values to a key, for example seed=1,2,3")
    for text, override in varied:
        if not override.is_discrete_sweep():
            if not continuous:
                raise ConfigError(f"{text}: an interval needs sweep.trials=N")
            bounds = override.value()
            values = [str(bounds.start), str(bounds.end)]
        else:
            values = [str(value) for value in override.sweep_string_iterator()]
        for value in values:
            check_run(compose([*fixed, f"{override.key_or_group}={value}"]))
    return fixed


def _need(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingDependency(f"{package} not installed here; `make train-setup` installs it")


def _run_hydra(arguments: list[str]) -> None:
    """Hydra's own entry point: launchers and sweepers are chosen by its overrides."""
    import hydra
    from hydra.errors import HydraException, MissingConfigException

    from krabby_trainer.run.config import register_schema

    register_schema()
    before = sys.argv
    sys.argv = ["krabby_trainer sweep", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are told in one place, by the command line
    try:
        hydra.main(
            version_base="1.3", config_path="pkg://krabby_trainer.conf", config_name="config"
        )(job)()
    except (HydraException, MissingConfigException) as error:
        raise ConfigError(
            f"{first_line(error)} (`make train-setup` installs the launchers joblib and submitit)"
        ) from error
    finally:
        sys.argv = before


def job(_: Any) -> float:
    """Train one run of the sweep, or resume it; its result.

    Raises:
        TrainerError: It failed; its output is in `output.txt` of its folder.
    """
    from hydra.core.hydra_config import HydraConfig

    now = HydraConfig.get()
    folder = Path(now.runtime.output_dir)
    command = [sys.executable, "-m", "krabby_trainer", "train", *now.overrides.task]
    with (folder / "output.txt").open("ab") as output, _gpu() as environment:
        status = _wait(
            subprocess.Popen(
                [*command, f"run.dir={_quoted(folder)}", "run.resume=auto"],
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
            )
        )
    if status:
        last = (folder / "output.txt").read_text(errors="replace").strip().splitlines()[-1:]
        raise TrainerError(f"{folder} ended with status {status}: {''.join(last)}")
    return result(folder, os.environ.get(_OBJECTIVE_ENV, SweepCfg().objective))


def _quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def result(folder: Path, objective: str) -> float:
    """Mean of a log's last iterations; NaN where it has none of that key."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[-_OBJECTIVE_OVER:]]
    values = [row[objective] for row in rows if row.get(objective) is not None]
    return sum(values) / len(values) if values else float("nan")


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a training; the signal that ends the sweep lets it save first."""

    def forward(number: int, _: object) -> None:
        process.send_signal(number)
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, forward)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


@contextlib.contextmanager
def _gpu() -> Generator[dict[str, str]]:
    """Variables that give a run a GPU for itself, while there is one; none without several GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        names = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    else:
        names = visible.split(",")
    if len(names) < 2:
        yield {}
        return
    for name in sorted(names):
        with (Path(tempfile.gettempdir()) / f"krabby-trainer-gpu-{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield {"CUDA_VISIBLE_DEVICES": name}
            return
    raise TrainerError(
        f"all {len(names)} GPUs train another run of a sweep; launch at most as many at once, "
        f"hydra.launcher.n_jobs={len(names)}"
    )
