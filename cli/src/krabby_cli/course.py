"""`krabby course`: look at a course, or write it to a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby.course.courses import COURSES, EXPORT_SUFFIXES, MAX_DIFFICULTY, make_course

from krabby_cli.errors import UsageError

if TYPE_CHECKING:
    from krabby.course.courses import Course

__all__ = ["add_parser"]

_FOV_RAD: Final = 0.5

_EPILOG: Final = f"""\
courses
{chr(10).join(f"  {name:15} {recipe.summary}" for name, recipe in COURSES.items())}

examples:
  krabby course mixed --difficulty 0.7 --seed 3
  krabby course demo --out demo.png
  krabby course gap --difficulty 1 --out gap.glb
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "course",
        help="describe, render or export a course",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"one of {', '.join(COURSES)}")
    parser.add_argument(
        "--difficulty", type=float, default=0.5, metavar="D", help=f"0 to {MAX_DIFFICULTY} (0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="layout (0)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"a mesh ({', '.join(EXPORT_SUFFIXES)}) or a picture (.png)",
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Describe the course, write the file if one is asked for."""
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
    sys.stdout.write(f"{course.describe()}\n")
    if args.out is not None:
        sys.stdout.write(f"wrote {args.out}\n")
    return 0


def _render(course: Course, path: Path) -> None:
    """The whole course from the side, the robot standing at its start."""
    # Rendering brings the simulator with it; a description does without.
    import mujoco
    from krabby.mujoco.model import ModelIndex, build_model, set_robot_state
    from krabby.mujoco.render import View, render_rays, save_picture
    from krabby.robot import kinematics, rotations
    from krabby.robot.description import RobotDescription

    desc = RobotDescription.load()
    model = build_model(desc, course)
    data = mujoco.MjData(model)  # pyright: ignore[reportAttributeAccessIssue]
    x, y, yaw = course.spawn
    set_robot_state(
        model,
        data,
        ModelIndex.of(model, desc),
        base_pos_w=(x, y, float(course.height_at(x, y)) + kinematics.standing_height(desc)),
        base_quat_w=rotations.from_euler(0.0, 0.0, yaw),
        joint_pos=desc.default_joint_pos,
    )
    used_m = float(course.waypoints[:, 0].max()) + 1.0
    view = View(
        eye=(0.72 * used_m, -0.62 * used_m, 0.45 * used_m),
        target=(0.47 * used_m, 0.0, -0.4),
        fov_rad=_FOV_RAD,
    )
    picture = render_rays(model, data, view, width=1200, height=480, sky_samples=8)
    try:
        save_picture(picture, path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; choose a writable place"
        ) from error
