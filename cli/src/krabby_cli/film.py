"""`krabby film`: draw a recorded run in simulation as a video, an animation or a strip."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby.course.courses import COURSES, make_course
from krabby.robot.assets import choose_robot
from krabby_proto.recording import Recording

from krabby_cli.errors import CliError, UsageError, writing
from krabby_cli.film_draw import Film, beside, draw, draw_film
from krabby_cli.film_poses import along, every, read_poses
from krabby_cli.film_write import STRIPS, SUFFIXES, check_writer, write_film
from krabby_cli.options import add_command, flag, option, print_line

if TYPE_CHECKING:
    from krabby.course.courses import Course
    from krabby.mujoco.render import Picture
    from krabby_proto.recording import RunFacts

    from krabby_cli.film_poses import Pose

__all__ = ["add_parser", "recorded_course"]

_STRIP_COLUMNS: Final = 4
_PROGRESS_S: Final = 2.0
_STEPS: Final = 0.625
"""Height of a picture, of its width."""

_DESCRIPTION: Final = """\
Draw a recorded run in simulation. Course, difficulty, seed and robot are those that the recording
names. A video and an animation show time, commanded and walked velocity, policy, mode and gate.
"""
_EPILOG: Final = """\
examples:
  make sim DURATION=25 COURSE=steps SEED=3 RECORD=run.mcap
  krabby film run.mcap run.mp4
  krabby film run.mcap run.webp --begin 5 --end 12
  krabby film run.mcap run.png --pictures 8

Ctrl-C ends it and leaves no file. Videos need PyAV: make setup-film, or pip install av.
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "film", run, "draw a recorded run as video, animation or strip",
        _DESCRIPTION, _EPILOG,
    )  # fmt: skip
    parser.add_argument(
        "recording", type=Path, metavar="RECORDING", help="MCAP file of a run in simulation"
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help=f"file to write: {', '.join(SUFFIXES)}"
    )
    option(parser, "--begin", "S", 0.0, "begin of the part to draw")
    option(parser, "--end", "S", float("inf"), "end of the part to draw")
    option(parser, "--fps", "N", 10.0, "pictures per second of a video or an animation")
    option(parser, "--pictures", "N", 4, "pictures of a strip")
    option(parser, "--width", "PX", 400, "width of a picture")
    option(parser, "--jobs", "N", len(os.sched_getaffinity(0)), "processes that draw")
    flag(parser, "--plain", "without captions")
    old = parser.add_argument_group("for recordings that do not name their course")
    option(old, "--course", "NAME", None, f"course: {', '.join(COURSES)}")
    option(old, "--difficulty", "D", None, "difficulty of the course", type=float)
    option(old, "--seed", "N", None, "seed of the course's layout", type=int)
    option(old, "--robot", "NAME", None, "robot: a folder of the assets folder")


def run(args: argparse.Namespace) -> int:
    started_s = time.monotonic()
    check_writer(args.out)
    limits = (("fps", 0.5, 50.0), ("pictures", 1, 100), ("width", 64, 1920), ("jobs", 1, 256))
    for name, low, high in limits:
        if not low <= getattr(args, name) <= high:
            raise UsageError(f"--{name} {getattr(args, name)}: give {low:g} to {high:g}")
    facts = Recording(args.recording).run
    course = recorded_course(args, facts)
    poses = read_poses(args.recording, args.begin, args.end)
    if not poses:
        raise UsageError(
            f"nothing between {args.begin:g} and {args.end:g} s in {args.recording}; give other "
            "--begin and --end"
        )
    if args.out.suffix.lower() in STRIPS:
        count = _strip(args, course, along(poses, args.pictures))
    else:
        count = _moving(args, course, every(poses, 1.0 / args.fps))
    print_line(f"wrote {args.out}: {count} pictures in {time.monotonic() - started_s:.1f} s")
    return 0


def recorded_course(args: argparse.Namespace, facts: RunFacts) -> Course:
    """The course of the recording, or of the options when that names none."""
    robot = _one("robot", args.robot, facts.robot)
    name = _one("course", args.course, facts.course)
    if name is None:
        raise UsageError(
            f"{args.recording} does not name its course; give --course, --difficulty and --seed "
            "of the run"
        )
    difficulty = _one("difficulty", args.difficulty, facts.difficulty)
    seed = _one("seed", args.seed, facts.seed)
    choose_robot(robot or "")
    course = make_course(name, 0.5 if difficulty is None else difficulty, seed or 0)
    recorded = facts.course_hash
    if facts.course is not None and recorded and recorded != course.content_hash:
        raise CliError(
            f"course {name} of this release has hash {course.content_hash[:12]}, that of the "
            f"recording {recorded[:12]}; draw it with the release that recorded it "
            f"({facts.revision or 'unknown'})"
        )
    return course


def _one(what: str, given: Any, recorded: Any) -> Any:
    """The recorded value, or the given one where none is recorded.

    Raises:
        UsageError: Both are there and differ.
    """
    if given is not None and recorded is not None and given != recorded:
        raise UsageError(f"--{what} {given}: the run had {what} {recorded}; leave the option out")
    return given if recorded is None else recorded


def _strip(args: argparse.Namespace, course: Course, poses: list[Pose]) -> int:
    from krabby.mujoco.render import contact_sheet, save_picture

    width, height = _size(args.width)
    pictures = draw(course, poses, beside, width=width, height=height)
    with writing(args.out):
        columns = min(_STRIP_COLUMNS, len(pictures))
        save_picture(contact_sheet(pictures, columns=columns), args.out)
    return len(pictures)


def _moving(args: argparse.Namespace, course: Course, poses: list[Pose]) -> int:
    width, height = _size(args.width)
    film = Film(
        course=course.name,
        difficulty=course.difficulty,
        seed=course.seed,
        width=width,
        height=height,
        captions=not args.plain,
    )
    pictures = _told(draw_film(film, poses, jobs=args.jobs), len(poses))
    try:
        with writing(args.out):
            return write_film(pictures, args.out, fps=args.fps)
    except KeyboardInterrupt:
        sys.stderr.write(f"krabby film: stopped, {args.out} was not written\n")
        raise
    finally:
        pictures.close()


def _told(pictures: Iterable[Picture], count: int) -> Generator[Picture, None, None]:
    """The same pictures, with a line on stderr now and then."""
    began_s = shown_s = time.monotonic()
    sys.stderr.write(f"krabby film: drawing {count} pictures\n")
    for done, picture in enumerate(pictures, 1):
        yield picture
        now_s = time.monotonic()
        if done == 1:
            began_s = shown_s = now_s  # the first one waits for the renderers to start
        elif now_s - shown_s >= _PROGRESS_S:
            shown_s = now_s
            left_s = (now_s - began_s) * (count - done) / (done - 1)
            sys.stderr.write(f"krabby film: {done} of {count} pictures, {left_s:.0f} s left\n")


def _size(width: int) -> tuple[int, int]:
    """Width and height [px], both even: video codecs take no others."""
    return width - width % 2, round(0.5 * _STEPS * width) * 2
