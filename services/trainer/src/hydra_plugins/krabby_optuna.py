"""Hydra's sweeper on Optuna's samplers, for `python -m krabby_trainer sweep sweep.trials=N`.

The plugin that Hydra's project publishes pins Optuna 2, whose storage does not open on present
versions of SQLAlchemy. This one keeps its trials in a journal file in the sweep's folder, on which
an interrupted sweep continues, with any of Hydra's launchers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

__all__ = ["KrabbyOptunaSweeper"]

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="krabby_optuna",
    node={"_target_": f"{__name__}.KrabbyOptunaSweeper", "trials": 20, "batch": 1, "seed": 0},
    provider="krabby_trainer",
)


class KrabbyOptunaSweeper(Sweeper):
    """Maximises what a run returns over choices, ranges and intervals.

    Args:
        trials: How many in all, those of earlier starts of the same sweep included.
        batch: How many are asked for, and launched, at once.
        seed: Of the sampler.
    """

    launcher: Launcher
    config: DictConfig

    def __init__(self, trials: int, batch: int, seed: int) -> None:
        self.trials, self.batch, self.seed = trials, batch, seed

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run trials until there are as many as wanted; the best parameters."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.trial import TrialState

        parsed = OverridesParser.create().parse_overrides(arguments)
        space = {o.get_key_element(): _distribution(o) for o in parsed if o.is_sweep_override()}
        fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
        study = optuna.create_study(
            storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
        )
        # Trials that an earlier start left unfinished come first; their runs resume.
        unfinished = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        ended = len(study.get_trials(deepcopy=False)) - len(unfinished)
        # The same seed would begin with the same draws again.
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + ended)
        chosen = [(trial.number, trial.params) for trial in unfinished]
        while ended < self.trials:
            while len(chosen) < min(self.batch, self.trials - ended):
                asked = study.ask(space)
                chosen.append((asked.number, asked.params))
            batch, chosen = chosen[: self.batch], chosen[self.batch :]
            lines = [[*fixed, *(f"{k}={v}" for k, v in params.items())] for _, params in batch]
            returned = self.launcher.launch(lines, initial_job_idx=ended)
            for (number, _), job in zip(batch, returned, strict=True):
                value = job._return_value if job.status is JobStatus.COMPLETED else math.nan
                good = isinstance(value, float) and math.isfinite(value)
                study.tell(number, value if good else None, None if good else TrialState.FAIL)
            ended += len(batch)
        if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            raise HydraException(f"none of {ended} trials has a result; see output.txt in {folder}")
        return study.best_params


def _distribution(override: Override) -> Any:
    """Optuna's distribution of a sweep in Hydra's grammar; `tag(log, ...)` makes it logarithmic."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    sweep: Any = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        return FloatDistribution(float(sweep.start), float(sweep.end), log="log" in sweep.tags)
    if isinstance(sweep, RangeSweep) and isinstance(sweep.start, int):
        assert sweep.stop is not None
        values = range(sweep.start, int(sweep.stop), int(sweep.step))
        return IntDistribution(values[0], values[-1], step=values.step)
    assert isinstance(sweep, ChoiceSweep | RangeSweep)
    return CategoricalDistribution([str(value) for value in override.sweep_string_iterator()])
