"""Robots over processes: each process simulates its share, all advance one control step at a time.

Results do not depend on the number of processes: each robot draws from its own seed.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from krabby.robot.description import RobotDescription
from krabby.runtime.child import interrupts_ignored

from krabby_trainer.errors import EvaluationError
from krabby_trainer.evaluation.physics import WIDTH, Conditions, Robot, RobotSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

__all__ = ["RobotPool", "usable_cores"]

_Order = Literal["step", "reset", "stop"]


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class _Share:
    """What one process needs to know."""

    specs: tuple[RobotSpec, ...]
    conditions: Conditions
    scan_points_b: NDArray[np.float64]


class RobotPool:
    """N robots; use it as a context manager.

    Args:
        specs: one for each robot.
        conditions: what is drawn for them.
        scan_points_b: where each looks up the ground, (P, 2) [m].
        processes: how many to share the work; 0 for as many as there are cores.
    """

    def __init__(
        self,
        specs: Sequence[RobotSpec],
        conditions: Conditions,
        scan_points_b: NDArray[np.float64],
        *,
        processes: int = 0,
    ) -> None:
        count = min(processes or usable_cores(), len(specs))
        bounds = np.linspace(0, len(specs), count + 1).round().astype(int)
        self._shares = [slice(a, b) for a, b in pairwise(bounds.tolist())]
        self.rows = np.zeros((len(specs), WIDTH), np.float32)
        """Newest report of every robot; see `krabby_trainer.evaluation.physics.FIELDS`."""
        # A fork would copy torch's threads and locks in their present state.
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        try:
            for share in self._shares:
                ours, theirs = context.Pipe()
                work = _Share(tuple(specs[share]), conditions, scan_points_b)
                process = context.Process(target=_serve, args=(theirs, work), daemon=True)
                with interrupts_ignored():
                    process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            for share, pipe in zip(self._shares, self._pipes, strict=True):
                self.rows[share] = _receive(pipe)
        except BaseException:
            self.close()
            raise

    def step(self, joint_pos_target: NDArray[np.float64]) -> None:
        """Advance every robot by one control step; targets (N, 18) [rad]."""
        for share, pipe in zip(self._shares, self._pipes, strict=True):
            _send(pipe, ("step", joint_pos_target[share]))
        for share, pipe in zip(self._shares, self._pipes, strict=True):
            self.rows[share] = _receive(pipe)

    def reset(
        self, chosen: NDArray[np.bool_], specs: Mapping[int, RobotSpec] | None = None
    ) -> None:
        """Put the robots in `chosen` (N,) back to the start of their courses.

        Those in `specs`, by number, become other robots on other courses.
        """
        asked = [
            (share, pipe)
            for share, pipe in zip(self._shares, self._pipes, strict=True)
            if chosen[share].any()
        ]
        for share, pipe in asked:
            numbers = (np.flatnonzero(chosen[share]) + share.start).tolist()
            _send(pipe, ("reset", {n - share.start: (specs or {}).get(n) for n in numbers}))
        for share, pipe in asked:
            self.rows[share] = _receive(pipe)

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()  # they end when their pipe is closed
        for process in self._processes:
            process.join(timeout=2.0)
            if process.is_alive():
                process.terminate()
                process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _send(pipe: Connection, message: tuple[_Order, Any]) -> None:
    try:
        pipe.send(message)
    except OSError as error:
        raise _lost() from error


def _receive(pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except (EOFError, OSError) as error:
        raise _lost() from error
    if isinstance(answer, str):
        raise EvaluationError(answer)
    return answer


def _lost() -> EvaluationError:
    return EvaluationError(
        "a simulation process ended unexpectedly, most likely for lack of memory; run it again "
        "with fewer robots"
    )


def _serve(pipe: Connection, work: _Share) -> None:
    """What each process does: simulate its robots until the pipe closes."""
    try:
        desc = RobotDescription.load()

        def make(spec: RobotSpec) -> Robot:
            return Robot(desc, spec, work.conditions, work.scan_points_b)

        robots = [make(spec) for spec in work.specs]
        rows = np.zeros((len(robots), WIDTH), np.float32)

        def report() -> NDArray[np.float32]:
            for robot, row in zip(robots, rows, strict=True):
                robot.report(row)
            return rows

        pipe.send(report())
        while True:
            order, values = pipe.recv()
            if order == "step":
                for robot, target in zip(robots, values, strict=True):
                    robot.step(target)
                pipe.send(report())
            else:
                for number, spec in values.items():
                    if spec is None:
                        robots[number].reset()
                    else:
                        robots[number] = make(spec)
                    robots[number].report(rows[number])
                pipe.send(rows)
    except (EOFError, OSError):
        return
    except Exception as error:
        pipe.send(f"a simulation process failed: {type(error).__name__}: {error}")
