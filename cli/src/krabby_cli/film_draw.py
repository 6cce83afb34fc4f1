"""Draws the pictures of a film, over processes."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from krabby.course.courses import Course, make_course
from krabby.robot.assets import choose_robot, robot_name
from krabby.runtime.child import interrupts_ignored

from krabby_cli.errors import CliError
from krabby_cli.film_poses import Pose

if TYPE_CHECKING:
    from krabby.mujoco.model import PosedRobot
    from krabby.mujoco.render import Picture, View

__all__ = ["Film", "draw", "draw_film"]

_SKY_SAMPLES: Final = 8
_WORTH: Final = 24
"""Pictures for which it is worth to start processes."""
_AHEAD: Final = 8
"""Pictures that each process may be ahead of the one that writes them."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """What a film looks like."""

    course: str
    difficulty: float
    seed: int
    width: int
    """Of a picture, even [px]."""
    height: int
    """Of a picture, even [px]."""
    captions: bool = True
    """Whether time, velocities and the state of the loop are written into the pictures."""


def draw(
    course: Course, poses: Sequence[Pose], view: Callable[[Pose], View], *, width: int, height: int
) -> list[Picture]:
    """One picture per pose, `width` x `height` pixels, with soft shadows; seconds each."""
    from krabby.mujoco.render import render_rays

    robot = _robot_on(course)
    pictures = []
    for pose in poses:
        robot.put(pose.base_pos_w, pose.base_quat_w, pose.joint_pos)
        picture = render_rays(
            robot.model,
            robot.data,
            view(pose),
            width=width,
            height=height,
            sky_samples=_SKY_SAMPLES,
        )
        pictures.append(picture)
    return pictures


def draw_film(film: Film, poses: Sequence[Pose], *, jobs: int) -> Iterator[Picture]:
    """One picture per pose, in order, the camera beside the robot; a tenth of a second each.

    Raises:
        CliError: A process ended that drew.
    """
    if jobs <= 1 or len(poses) < _WORTH:
        artist = _Artist(film)
        return (artist.draw(pose) for pose in poses)
    return _over_processes(film, poses, jobs)


def _over_processes(film: Film, poses: Sequence[Pose], jobs: int) -> Iterator[Picture]:
    context = multiprocessing.get_context("spawn")
    with interrupts_ignored():
        pool = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(film, robot_name()))
        rest = iter(poses)
        waiting = [pool.submit(_draw, pose) for pose in itertools.islice(rest, _AHEAD * jobs)]
    try:
        while waiting:
            picture = _result(waiting.pop(0))
            waiting.extend(pool.submit(_draw, pose) for pose in itertools.islice(rest, 1))
            yield picture
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[Any]) -> Picture:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise CliError(
            "a process ended while it drew, most likely for lack of memory; give fewer --jobs"
        ) from error


def _robot_on(course: Course) -> PosedRobot:
    # Drawing loads the simulator.
    from krabby.mujoco.model import PosedRobot
    from krabby.robot.description import RobotDescription

    return PosedRobot(RobotDescription.load(), course)


class _Artist:
    """Draws a film's pictures in this process."""

    def __init__(self, film: Film) -> None:
        from krabby.mujoco.film import FilmCamera

        self._film = film
        self._robot = _robot_on(make_course(film.course, film.difficulty, film.seed))
        self._camera = FilmCamera(self._robot.model, film.width, film.height)

    def draw(self, pose: Pose) -> Picture:
        from krabby.mujoco.render import write_captions

        self._robot.put(pose.base_pos_w, pose.base_quat_w, pose.joint_pos)
        picture = self._camera.draw(self._robot.data, beside(pose))
        return write_captions(picture, pose.captions) if self._film.captions else picture


def beside(pose: Pose) -> View:
    """From the side and a little ahead; it follows the robot and does not turn with it."""
    from krabby.mujoco import film

    return film.beside(pose.base_pos_w)


_artist: _Artist | None = None
"""Of this process, where it is one of many."""


def _begin(film: Film, robot: str) -> None:
    global _artist
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    choose_robot(robot)
    _artist = _Artist(film)


def _draw(pose: Pose) -> Picture:
    assert _artist is not None, "the pool's initialiser made it"
    return _artist.draw(pose)
