"""`krabby film`: draw a recorded run in simulation as an animation or a strip of pictures."""

from __future__ import annotations

import argparse
import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from krabby.course.courses import Course, make_course
from krabby_proto import STATE, TRUTH, unpack
from krabby_proto.recording import Recording
from numpy.typing import NDArray

from krabby_cli.errors import CliError, UsageError, writing
from krabby_cli.options import add_command, add_course_options, option, print_line

if TYPE_CHECKING:
    from krabby.mujoco.render import Picture, View

__all__ = ["Pose", "add_parser", "along", "draw", "read_poses"]

_ANIMATIONS: Final = (".webp", ".gif")
_STRIPS: Final = (".png",)
_SKY_SAMPLES: Final = 8
_STRIP_COLUMNS: Final = 4
_MOST_POSES: Final = 1_000_000
"""States and poses that are held, over an hour of them; some 300 MB."""
_BEFORE_S: Final = 1.0
"""States of that long before the first pose are kept: one of them belongs to it."""

_EPILOG: Final = """\
examples:
  make sim DURATION=25 COURSE=steps SEED=3 RECORD=run.mcap
  krabby film run.mcap run.webp --course steps --seed 3
  krabby film run.mcap run.png --course steps --seed 3 --pictures 8

Give the course, difficulty and seed of the run: a recording has the streams and not the course.
"""


class Pose(NamedTuple):
    time_s: float
    """Since the first pose of the recording."""
    base_pos_w: NDArray[np.float64]
    base_quat_w: NDArray[np.float64]
    joint_pos: NDArray[np.float64]


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "film", run, "draw a recorded run as animation or strip", __doc__, _EPILOG
    )
    parser.add_argument(
        "recording", type=Path, metavar="RECORDING", help="MCAP file of a run in simulation"
    )
    parser.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help=f"animation ({', '.join(_ANIMATIONS)}) or strip of pictures ({', '.join(_STRIPS)})",
    )
    add_course_options(parser)
    option(parser, "--begin", "S", 0.0, "begin of the part to draw")
    option(parser, "--end", "S", float("inf"), "end of the part to draw")
    option(parser, "--fps", "N", 10.0, "pictures per second of an animation")
    option(parser, "--pictures", "N", 4, "pictures of a strip")
    option(parser, "--width", "PX", 400, "width of a picture")


def run(args: argparse.Namespace) -> int:
    # Drawing loads the simulator; the help does without.
    from krabby.mujoco.render import View, contact_sheet, save_animation, save_picture

    suffix = args.out.suffix.lower()
    if suffix not in (*_ANIMATIONS, *_STRIPS):
        raise UsageError(
            f"{args.out}: choose a name ending in {', '.join((*_ANIMATIONS, *_STRIPS))}"
        )
    for name, low, high in (("fps", 0.5, 50.0), ("pictures", 1, 100), ("width", 64, 1920)):
        if not low <= getattr(args, name) <= high:
            raise UsageError(f"--{name} {getattr(args, name)}: give {low:g} to {high:g}")
    course = make_course(args.course, args.difficulty, args.seed)
    poses = read_poses(args.recording, args.begin, args.end)
    if not poses:
        raise UsageError(
            f"nothing between {args.begin:g} and {args.end:g} s in {args.recording}; give other "
            "--begin and --end"
        )

    def view(pose: Pose) -> View:
        # From the side and a little ahead; it follows the robot and does not turn with it.
        x, _, z = pose.base_pos_w
        return View(eye=(x + 2.4, -3.8, z + 1.7), target=(x + 0.15, 0.0, z - 0.25), fov_rad=0.62)

    moving = suffix in _ANIMATIONS
    chosen = _every(poses, 1.0 / args.fps) if moving else along(poses, args.pictures)
    height = round(0.625 * args.width)
    pictures = draw(course, chosen, view, width=args.width, height=height)
    with writing(args.out):
        if moving:
            save_animation(pictures, args.out, fps=args.fps)
        else:
            columns = min(_STRIP_COLUMNS, len(pictures))
            save_picture(contact_sheet(pictures, columns=columns), args.out)
    print_line(f"wrote {args.out}: {len(pictures)} pictures")
    return 0


def read_poses(path: Path, begin_s: float = 0.0, end_s: float = math.inf) -> list[Pose]:
    """Of a robot in simulation, in order of time: joints as measured, the base as it really was.

    A file that is damaged or cut short gives what is readable, with a line on stderr.

    Raises:
        RecordingError: The file cannot be read.
        CliError: It has no ground truth, as on a robot, or more poses than are held.
    """
    recording = Recording(path)
    seen: set[str] = set()
    first_ns: int | None = None
    joints: list[tuple[int, NDArray[np.float64]]] = []
    bases: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []
    for message in recording:
        seen.add(message.stream.name)
        stamp_ns = message.capture_ns
        if message.stream is TRUTH and first_ns is None:
            first_ns = stamp_ns
        time_s = 0.0 if first_ns is None else (stamp_ns - first_ns) * 1e-9
        if time_s > end_s or time_s < begin_s - _BEFORE_S:
            continue
        if len(joints) + len(bases) >= _MOST_POSES:
            raise CliError(
                f"{path} has more than {_MOST_POSES} states and poses in that time; give a shorter "
                "one with --begin and --end"
            )
        if message.stream is STATE:
            values = unpack(STATE, message.payload)
            joints.append((stamp_ns, values["joint_pos"].astype(np.float64)))
        elif message.stream is TRUTH:
            values = unpack(TRUTH, message.payload)
            pos = values["base_pos_w"].astype(np.float64)
            quat = values["base_quat_w"].astype(np.float64)
            bases.append((stamp_ns, pos, quat))
    if recording.damage:
        sys.stderr.write(f"krabby film: {path} is not complete: {recording.damage}\n")
    for stream in (STATE, TRUTH):
        if stream.name not in seen:
            raise CliError(
                f"{path} has no stream {stream.name!r}: only a run in simulation, with every "
                "stream recorded, can be drawn"
            )
    if first_ns is None or not joints:
        return []
    joints.sort(key=lambda each: each[0])
    bases.sort(key=lambda each: each[0])
    times = [stamp for stamp, _ in joints]
    poses = (
        Pose((stamp - first_ns) * 1e-9, pos, quat, joints[_newest(times, stamp)][1])
        for stamp, pos, quat in bases
    )
    return [pose for pose in poses if begin_s <= pose.time_s <= end_s]


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


def draw(
    course: Course, poses: Iterable[Pose], view: Callable[[Pose], View], *, width: int, height: int
) -> list[Picture]:
    """One picture per pose, `width` x `height` pixels."""
    import mujoco
    from krabby.mujoco.model import ModelIndex, build_model, set_robot_state
    from krabby.mujoco.render import render_rays
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
        pictures.append(
            render_rays(
                model, data, view(pose), width=width, height=height, sky_samples=_SKY_SAMPLES
            )
        )
    return pictures
