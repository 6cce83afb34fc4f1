"""`krabby course`: describe a course, draw it or write it to a mesh file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import numpy as np
from krabby.course.courses import COURSES, EXPORT_SUFFIXES, Course, make_course

from krabby_cli.errors import UsageError, writing
from krabby_cli.options import add_command, add_difficulty_options, option, print_line

__all__ = ["add_parser"]

_EPILOG: Final = f"""\
courses:
{chr(10).join(f"  {name:15} {recipe.summary}" for name, recipe in COURSES.items())}

examples:
  krabby course mixed --difficulty 0.7 --seed 3
  krabby course demo --out demo.png
  krabby course gap --difficulty 1 --out gap.glb
  krabby course gap --out gap.usdc                 boxes with colliders, friction and waypoints
  krabby course yard.stl --out yard.png            a mesh, or heights and cell_m in an .npz
  krabby sim --course yard.stl --policy parkour
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "course", run, "describe, draw or export a course", __doc__, _EPILOG
    )
    parser.add_argument("name", metavar="NAME", help=f"course: {', '.join(COURSES)}, or a file")
    add_difficulty_options(parser)
    text = f"mesh ({', '.join(EXPORT_SUFFIXES)}) or picture (.png) to write"
    option(parser, "--out", "FILE", None, text, type=Path)


def run(args: argparse.Namespace) -> int:
    course = make_course(args.name, args.difficulty, args.seed)
    if args.out is not None:
        if args.out.suffix.lower() == ".png":
            _render(course, args.out)
        elif args.out.suffix.lower() in EXPORT_SUFFIXES:
            course.export(args.out)
        else:
            raise UsageError(
                f"--out {args.out}: choose a name ending in .png, {', '.join(EXPORT_SUFFIXES)}"
            )
    print_line(course.describe())
    if args.out is not None:
        print_line(f"wrote {args.out}")
    return 0


def _render(course: Course, path: Path) -> None:
    """The whole course from the side, the robot standing at its start."""
    # Drawing loads the simulator; a description does without.
    from krabby.mujoco.render import View, save_picture
    from krabby.robot import kinematics, rotations
    from krabby.robot.description import RobotDescription

    from krabby_cli.film_draw import draw
    from krabby_cli.film_poses import Pose

    desc = RobotDescription.load()
    x, y, yaw = course.spawn
    z = float(course.height_at(x, y)) + kinematics.standing_height(desc)
    quat = rotations.from_euler(0.0, 0.0, yaw)
    pose = Pose(0.0, np.array((x, y, z)), quat, desc.default_joint_pos)
    used_m = float(course.waypoints[:, 0].max()) + 1.0
    view = View(
        eye=(0.72 * used_m, -0.62 * used_m, 0.45 * used_m),
        target=(0.47 * used_m, 0.0, -0.4),
        fov_rad=0.5,
    )
    (picture,) = draw(course, [pose], lambda _: view, width=1200, height=480)
    with writing(path):
        save_picture(picture, path)
