"""Measures what policies observe while they walk, and writes it into their bundles.

    python -m krabby_diagnosis.statistics               # all shipped policies of this robot
    KRABBY_ROBOT=crab_hex_rs python -m krabby_diagnosis.statistics --policy gait

Every course of the published suite at difficulties 0.25 to 1, with the camera's noise, latency and
lost pictures, the mount off by up to 2 degrees, and friction and masses varied.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import structlog
from krabby.benchmark.published import PUBLISHED
from krabby.benchmark.scenario import Cell, Pictures, RobotVariation, Scenario
from krabby.benchmark.trial import Policies, Trial
from krabby.control.modes import Mode
from krabby.diagnosis.observations import observed_terms
from krabby.policy.bundle import MANIFEST_FILE, PolicyBundle, bundle_dir, write_bundle
from krabby.policy.statistics import STATISTICS_FILE, ObservationStatistics, TermStatistics
from krabby.robot.description import RobotDescription
from numpy.typing import NDArray

__all__ = ["main", "measure"]

_WALK_S: Final = 12.0
_FRICTION: Final = (0.6, 0.9, 1.1)
_MASS: Final = (1.0, 0.95, 1.05)
_TILT_DEG: Final = (0.0, 2.0, -2.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m krabby_diagnosis.statistics")
    parser.add_argument("--policy", action="append", help="default: gait and parkour")
    parser.add_argument("--walks", type=int, default=len(PUBLISHED), help="at most so many trials")
    args = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    desc = RobotDescription.load()
    for name in args.policy or ("gait", "parkour"):
        folder = bundle_dir(name)
        statistics = measure(name, desc, PUBLISHED[: args.walks])
        bundle = PolicyBundle.load(folder, desc)
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        files = {**bundle.files, STATISTICS_FILE: statistics.to_json()}
        write_bundle(folder, manifest, files, desc)
        sys.stdout.write(f"{folder}: {statistics.samples} steps\n")
    return 0


def measure(policy: str, desc: RobotDescription, cells: Sequence[Cell]) -> ObservationStatistics:
    """Walk a trial of each cell and collect the observations of the walking policy."""
    policies = Policies(desc, policy)
    layout = policies.manager().chosen.bundle.observation
    columns: dict[str, list[NDArray[np.float64]]] = {}
    for index, cell in enumerate(cells):
        scenario = _varied(cell.make(1000 + index), index)
        varied = dataclasses.replace(cell, make=lambda _, made=scenario: made)
        trial = _ObservedTrial(varied, 1000 + index, policies, desc)
        while trial.walked_s < _WALK_S and trial.sim_time_s < 2.0 * _WALK_S:
            if trial.period().diverged or trial.robot.falls:
                break
        for name, values in observed_terms(trial.arrays(), desc, layout).items():
            columns.setdefault(name, []).append(values)
        sys.stderr.write(f"{policy}, {cell.name}: {trial.walked_s:.1f} s\n")
    terms = {name: np.concatenate(parts) for name, parts in columns.items()}
    return ObservationStatistics(
        source="MuJoCo, published courses at difficulty 0.25 to 1, sensor noise, latency, lost "
        "pictures, mount, friction and masses varied: python -m krabby_diagnosis.statistics",
        samples=len(next(iter(terms.values()))),
        terms={name: TermStatistics.of(values) for name, values in terms.items()},
    )


def _varied(scenario: Scenario, index: int) -> Scenario:
    turn = index % 3
    return dataclasses.replace(
        scenario,
        robot=RobotVariation(friction=_FRICTION[turn], mass_factor=_MASS[(index // 3) % 3]),
        pictures=Pictures(tilt_deg=_TILT_DEG[(index // 2) % 3]),
    )


class _ObservedTrial(Trial):
    """Keeps the states in which the policy walked."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._states: list[NDArray[np.float32]] = []

    @property
    def walked_s(self) -> float:
        """Time in which the policy walked [s]."""
        return 0.01 * len(self._states)

    def _answer(self, payload: NDArray[np.float32]) -> None:
        super()._answer(payload)
        if self.controller.mode is Mode.POLICY and not self.controller.policies.blind:
            self._states.append(payload.copy())

    def arrays(self) -> NDArray[np.float64]:
        """Payloads of the stream state, (N, 70)."""
        return np.array(self._states, np.float64)


if __name__ == "__main__":
    sys.exit(main())
