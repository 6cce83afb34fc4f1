"""`krabby film`: a recorded run as people see it, an animation or a strip of pictures."""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from krabby.course.courses import COURSES, MAX_DIFFICULTY, make_course
from krabby_proto import STATE, TRUTH, unpack
from krabby_proto.recording import Recording

from krabby_cli.errors import CliError, UsageError
from krabby_cli.plan import DEFAULT_COURSE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from krabby.course.courses import Course
    from krabby.mujoco.render import Picture
    from numpy.typing import NDArray

__all__ = ["Pose", "add_parser", "along", "read_poses"]

_ANIMATIONS: Final = (".webp", ".gif")
_STRIPS: Final = (".png",)
_SKY_SAMPLES: Final = 8
_STRIP_COLUMNS: Final = 4

_EPILOG: Final = """\
examples:
  make sim DURATION=25 COURSE=steps SEED=3 RECORD=run.mcap
  krabby film run.mcap run.webp --course steps --seed 3
  krabby film run.mcap run.png --course steps --seed 3 --pictures 8

Course, difficulty and seed are those of the run: a recording holds what was on the wire, and the
ground was not.
"""


class Pose(NamedTuple):
    """Where the robot was."""

    time_s: float
    """Since the first pose of the recording."""
    base_pos_w: NDArray[np.float64]
    base_quat_w: NDArray[np.float64]
    joint_pos: NDArray[np.float64]


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "film",
        help="a recorded run as an animation or a strip of pictures",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recording", type=Path, help="MCAP file of a run in simulation")
    parser.add_argument(
        "out",
        type=Path,
        help=f"{', '.join(_ANIMATIONS)}: an animation; {', '.join(_STRIPS)}: a strip of pictures",
    )
    parser.add_argument(
        "--course", default=DEFAULT_COURSE, help=f"one of {', '.join(COURSES)} (%(default)s)"
    )
    parser.add_argument(
        "--difficulty", type=float, default=0.5, metavar="D", help=f"0 to {MAX_DIFFICULTY} (0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="layout (0)")
    parser.add_argument("--begin", type=float, default=0.0, metavar="S", help="from there (0)")
    parser.add_argument(
        "--end", type=float, default=float("inf"), metavar="S", help="to there (the end)"
    )
    parser.add_argument("--fps", type=float, default=10.0, metavar="N", help="pictures a second")
    parser.add_argument("--pictures", type=int, default=4, metavar="N", help="of a strip (4)")
    parser.add_argument("--width", type=int, default=400, metavar="PX", help="of a picture (400)")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Read the recording, draw, write."""
    suffix = args.out.suffix.lower()
    if suffix not in (*_ANIMATIONS, *_STRIPS):
        raise UsageError(
            f"{args.out}: choose a name ending in {', '.join((*_ANIMATIONS, *_STRIPS))}"
        )
    for name, low, high in (("fps", 0.5, 50.0), ("pictures", 1, 100), ("width", 64, 1920)):
        if not low <= getattr(args, name) <= high:
            raise UsageError(f"--{name} {getattr(args, name)}: give {low:g} to {high:g}")
    course = make_course(args.course, args.difficulty, args.seed)
    poses = [pose for pose in read_poses(args.recording) if args.begin <= pose.time_s <= args.end]
    if not poses:
        raise UsageError(
            f"nothing between {args.begin:g} and {args.end:g} s in {args.recording}; give other "
            "--begin and --end"
        )
    moving = suffix in _ANIMATIONS
    chosen = _every(poses, 1.0 / args.fps) if moving else along(poses, args.pictures)
    pictures = _draw(course, chosen, args.width)
    _write(pictures, args.out, fps=args.fps if moving else None)
    sys.stdout.write(f"wrote {args.out}: {len(pictures)} pictures\n")
    return 0


def read_poses(path: Path) -> list[Pose]:
    """Of a robot in simulation, in order of time: joints as measured, the base as it really was.

    Raises:
        RecordingError: The file cannot be read.
        CliError: It has no ground truth, as on a robot.
    """
    joints: list[tuple[int, NDArray[np.float64]]] = []
    bases: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []
    for recorded in Recording(path):
        message = recorded.message
        if recorded.stream is STATE:
            values = unpack(STATE, message.payload)
            joints.append((message.header.capture_ns, values["joint_pos"].astype(np.float64)))
        elif recorded.stream is TRUTH:
            values = unpack(TRUTH, message.payload)
            pos = values["base_pos_w"].astype(np.float64)
            quat = values["base_quat_w"].astype(np.float64)
            bases.append((message.header.capture_ns, pos, quat))
    if not joints or not bases:
        missing = "state" if not joints else "truth"
        raise CliError(
            f"{path} has no stream {missing!r}: only a run in simulation, with every stream "
            "recorded, can be drawn"
        )
    joints.sort(key=lambda each: each[0])
    bases.sort(key=lambda each: each[0])
    times = [stamp for stamp, _ in joints]
    return [
        Pose((stamp - bases[0][0]) * 1e-9, pos, quat, joints[_newest(times, stamp)][1])
        for stamp, pos, quat in bases
    ]


def along(poses: Sequence[Pose], count: int) -> list[Pose]:
    """So many poses, spread evenly over the way that the robot made along the course."""
    furthest = np.maximum.accumulate([pose.base_pos_w[0] for pose in poses])
    shares = (np.arange(count) + 0.5) / count
    wanted = furthest[0] + shares * (furthest[-1] - furthest[0])
    return [poses[i] for i in np.searchsorted(furthest, wanted)]


def _every(poses: Sequence[Pose], period_s: float) -> list[Pose]:
    times = [pose.time_s for pose in poses]
    count = int((times[-1] - times[0]) / period_s + 1e-9) + 1
    return [poses[_newest(times, times[0] + i * period_s)] for i in range(count)]


def _newest(times: Sequence[float], time: float) -> int:
    """Index of the last one not after `time`, or of the first."""
    return max(bisect_right(times, time) - 1, 0)


def _draw(course: Course, poses: Iterable[Pose], width: int) -> list[Picture]:
    # Rendering brings the simulator with it; the help does without.
    import mujoco
    from krabby.mujoco.model import ModelIndex, build_model, set_robot_state
    from krabby.mujoco.render import View, render_rays
    from krabby.robot.description import RobotDescription

    desc = RobotDescription.load()
    model = build_model(desc, course)
    data = mujoco.MjData(model)  # pyright: ignore[reportAttributeAccessIssue]
    index = ModelIndex.of(model, desc)
    pictures = []
    for pose in poses:
        set_robot_state(
            model, data, index,
            base_pos_w=pose.base_pos_w, base_quat_w=pose.base_quat_w, joint_pos=pose.joint_pos,
        )  # fmt: skip
        x, _, z = pose.base_pos_w
        # From the side and a little ahead, turned with nothing: the course stands still.
        view = View(eye=(x + 2.4, -3.8, z + 1.7), target=(x + 0.15, 0.0, z - 0.25), fov_rad=0.62)
        pictures.append(
            render_rays(
                model,
                data,
                view,
                width=width,
                height=round(0.625 * width),
                supersample=2,
                sky_samples=_SKY_SAMPLES,
            )
        )
    return pictures


def _write(pictures: Sequence[Picture], path: Path, *, fps: float | None) -> None:
    from krabby.mujoco.render import contact_sheet, save_animation, save_picture

    try:
        if fps is None:
            columns = min(_STRIP_COLUMNS, len(pictures))
            save_picture(contact_sheet(pictures, columns=columns), path)
        else:
            save_animation(pictures, path, fps=fps)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; choose a writable place"
        ) from error
