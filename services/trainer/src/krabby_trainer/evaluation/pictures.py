"""Pictures of an evaluation: the robot on each obstacle, ray-traced from the recorded poses."""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import mujoco
import numpy as np
from krabby.mujoco.model import ModelIndex, build_model, set_robot_state
from krabby.mujoco.render import (
    Picture,
    View,
    contact_sheet,
    render_rays,
    save_picture,
)
from krabby.robot.description import RobotDescription

from krabby_trainer.evaluation.suite import TYPES, obstacle_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from krabby.course.courses import Course

    from krabby_trainer.evaluation.metrics import Run
    from krabby_trainer.evaluation.outcome import Poses

__all__ = ["choose_robot", "write_pictures"]

_COLUMNS: Final = 4
_SIZE: Final = (336, 210)
"""Of one picture [px]."""
_FROM_X_M: Final = 2.3
"""Where the start platform is nearly over."""
_SKY_SAMPLES: Final = 8


def choose_robot(run: Run, kind: str) -> int:
    """The robot that came furthest in its first episode, on the hardest course among those."""
    first = run.episodes[run.episodes["number"] == 0]
    goals = np.zeros(len(run.robots), int)
    goals[first["robot"]] = first["goals"]
    candidates = np.flatnonzero(run.robots.type == kind)
    order = np.lexsort((run.robots.difficulty[candidates], goals[candidates]))
    return int(candidates[order[-1]])


def write_pictures(run: Run, poses: Poses, courses: Sequence[Course], path: Path) -> Path:
    """A contact sheet: a row for each obstacle type, the robot on its way along it."""
    pictures: list[Picture] = []
    labels: list[str] = []
    for kind in TYPES:
        robot = choose_robot(run, kind)
        course = courses[robot]
        size = obstacle_size(course)
        label = f"{kind}: {size}" if size.what == kind else f"{kind}: {size.what} {size}"
        scene = _Scene(course)
        for column, at in enumerate(_moments(poses, robot)):
            pictures.append(scene.picture(poses, at, robot, *_SIZE))
            labels.append("" if column else label)
    save_picture(contact_sheet(pictures, columns=_COLUMNS, labels=labels), path)
    return path


class _Scene:
    """One course with a robot that can be put anywhere."""

    def __init__(self, course: Course) -> None:
        description = RobotDescription.load()
        self._model = build_model(description, course)
        self._data = mujoco.MjData(self._model)
        self._index = ModelIndex.of(self._model, description)

    def picture(self, poses: Poses, at: int, robot: int, width: int, height: int) -> Picture:
        x, y, z = (float(v) for v in poses.base_pos_w[at, robot])
        set_robot_state(
            self._model,
            self._data,
            self._index,
            base_pos_w=(x, y, z),
            base_quat_w=poses.base_quat_w[at, robot],
            joint_pos=poses.joint_pos[at, robot],
        )
        view = View(eye=(x + 2.4, -3.6, 2.3), target=(x + 0.15, 0.0, z - 0.25), fov_rad=0.62)
        return render_rays(
            self._model, self._data, view,
            width=width, height=height, supersample=2, sky_samples=_SKY_SAMPLES,
        )  # fmt: skip


def _moments(poses: Poses, robot: int) -> list[int]:
    """Times at which the robot was a quarter, half and so on of its way, in its first episode."""
    times = np.flatnonzero(poses.episode[:, robot] == 0)
    x = np.maximum.accumulate(poses.base_pos_w[times, robot, 0])
    wanted = np.linspace(min(_FROM_X_M, float(x[-1])), float(x[-1]), _COLUMNS + 1)[:-1]
    if x[-1] <= _FROM_X_M:  # hardly moved: spread over time instead
        return times[np.linspace(0, len(times) - 1, _COLUMNS).astype(int)].tolist()
    return times[np.searchsorted(x, wanted + 0.5 * (wanted[1] - wanted[0]))].tolist()
