"""What a bundle can do on level ground: measured, since training may fail.

The bundle walks in the benchmark's trials: MuJoCo, the safety gate and the runtime's controller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from krabby.benchmark.outcome import Judge
from krabby.benchmark.scenario import Cell, CommandSegment, Scenario
from krabby.benchmark.trial import Policies, Trial
from krabby.control.config import ControlCfg
from krabby.course.courses import make_course

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from krabby.benchmark.trace import Tick
    from krabby.robot.description import RobotDescription

__all__ = ["ABILITIES", "FOLLOWS", "STILL_M_S", "measure"]

STILL_M_S: Final = 0.01
"""A robot that moves less than this on a zero command stands [m/s]; a robot that creeps would be
out of place within minutes."""
FOLLOWS: Final = 0.5
"""Least share of the commanded velocity at which a policy counts as able to follow it."""


class _Manoeuvre(NamedTuple):
    command: tuple[float, float, float]
    """vx, vy [m/s], yaw rate [rad/s]."""
    seconds: float = 6.0


ABILITIES: Final[dict[str, tuple[_Manoeuvre, ...]]] = {
    "stands": (_Manoeuvre((0.0, 0.0, 0.0), 20.0),),  # creeping shows late
    "reverses": (_Manoeuvre((-0.3, 0.0, 0.0)),),
    "side_steps": (_Manoeuvre((0.0, 0.3, 0.0)), _Manoeuvre((0.0, -0.3, 0.0))),
    "turns_in_place": (_Manoeuvre((0.0, 0.0, 0.5)), _Manoeuvre((0.0, 0.0, -0.5))),
}
"""The manoeuvres of each ability, by its key in the manifest."""


class _Track:
    """Poses and velocities over the last half of a trial."""

    def __init__(self, seconds: float) -> None:
        self._from_s = 0.5 * seconds
        self._poses: list[np.ndarray] = []
        self._velocities: list[tuple[float, float, float]] = []
        self._times: list[float] = []

    def tick(self, tick: Tick) -> None:
        if tick.time_s < self._from_s:
            return
        vx, vy, _ = tick.base_lin_vel_b
        self._times.append(tick.time_s)
        self._poses.append(tick.base_pos_w[:2].copy())
        self._velocities.append((float(vx), float(vy), float(tick.base_ang_vel_b[2])))

    @property
    def drift_m_s(self) -> float:
        elapsed_s = self._times[-1] - self._times[0]
        return float(np.linalg.norm(self._poses[-1] - self._poses[0])) / elapsed_s

    def gain(self, command: tuple[float, float, float]) -> float:
        """Mean velocity along the commanded axis over the commanded one."""
        axis = int(np.argmax(np.abs(command)))
        return float(np.mean(self._velocities, axis=0)[axis]) / command[axis]


def measure(
    folder: Path, desc: RobotDescription, names: Collection[str] = tuple(ABILITIES)
) -> dict[str, tuple[bool, float]]:
    """Try abilities of the bundle in `folder`.

    No other policy stands in for it.

    Returns:
        For each of `names`: whether the policy is able, and the worst figure of its manoeuvres:
        drift [m/s] of `stands`, else the share of the command that is followed. A robot that
        falls is not able, and its figure is infinity or 0.
    """
    control = ControlCfg(policy=str(folder), blind_policy="")
    policies = Policies(desc, str(folder), control=control)
    found: dict[str, tuple[bool, float]] = {}
    for name in names:
        figures = [_try(manoeuvre, policies, desc) for manoeuvre in ABILITIES[name]]
        if name == "stands":
            worst = max(figures)
            found[name] = (worst < STILL_M_S, worst)
        else:
            worst = min(figures)
            found[name] = (worst >= FOLLOWS, worst)
    return found


def _try(manoeuvre: _Manoeuvre, policies: Policies, desc: RobotDescription) -> float:
    command, seconds = manoeuvre
    stands = not any(command)
    cell = Cell(
        name="ability",
        family="ability",
        summary="a command on level ground",
        goal="stand" if stands else "track",
        make=lambda seed: _scenario(seed, manoeuvre),
    )
    trial, track = Trial(cell, 0, policies, desc), _Track(seconds)
    result = trial.run(Judge(trial.facts), recorders=(track,))
    if result.outcome == "fell" or result.time_s < seconds - 0.1:
        return np.inf if stands else 0.0
    return track.drift_m_s if stands else track.gain(command)


def _scenario(seed: int, manoeuvre: _Manoeuvre) -> Scenario:
    course = make_course("field", 0.0, seed)
    vx, vy, yaw_rate = manoeuvre.command
    return Scenario(
        course=course,
        duration_s=manoeuvre.seconds,
        spawn=(0.5 * course.length_m, 0.0, 0.0),
        commands=(CommandSegment(start_s=0.0, vx=vx, vy=vy, yaw_rate=yaw_rate),),
    )
