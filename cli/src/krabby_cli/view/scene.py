"""What the page is told once: the robot's description, the course, policies; faults in words."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from krabby.control.policy_manager import check_measurable
from krabby.course.courses import COLOURS, Course
from krabby.policy.bundle import MANIFEST_FILE, PolicyBundle
from krabby.robot.assets import assets_dir
from krabby.robot.description import RobotDescription
from krabby.robot.errors import AssetError, BundleError

from krabby_cli.view.frames import state_layout

__all__ = [
    "CourseName",
    "course_message",
    "load_robot",
    "robot_message",
]


class CourseName(NamedTuple):
    """What makes a course."""

    name: str
    difficulty: float
    seed: int


def load_robot(name: str) -> RobotDescription:
    """A robot of the assets folder by the name in a HAL's hello.

    Raises:
        AssetError: The folder has no such robot.
    """
    there = sorted(path.parent.name for path in assets_dir().glob("*/robot.toml"))
    if name not in there:
        raise AssetError(
            f"the robot is a {name!r}; {assets_dir()} has {', '.join(there)}. Set KRABBY_ASSETS to "
            "the folder that has it"
        )
    return RobotDescription.load(assets_dir() / name / "robot.toml")


def robot_message(desc: RobotDescription) -> dict[str, Any]:
    """Description, order of the joints and layout of the frames."""
    folder = assets_dir() / desc.name
    return {
        "t": "robot",
        "name": desc.name,
        "urdf": (folder / f"{desc.name}.urdf").read_text(encoding="utf-8"),
        "joints": list(desc.joint_names),
        "legs": list(desc.leg_names),
        "peak_torque": [round(float(value), 1) for value in desc.peak_torque],
        "rated_torque": [round(float(value), 1) for value in desc.rated_torque],
        "foot_radius": desc.geometry.foot_radius,
        "policies": _policies(desc),
        "layout": state_layout(),
    }


def _policies(desc: RobotDescription) -> list[str]:
    """Names that the game loop takes: no teacher, no bundle that is damaged or of another robot."""
    names = set()
    for shelf in (assets_dir() / desc.name / "policies", assets_dir() / "policies"):
        for file in shelf.glob(f"*/{MANIFEST_FILE}"):
            with contextlib.suppress(BundleError):
                check_measurable(PolicyBundle.load(file.parent, desc))
                names.add(file.parent.name)
    return sorted(names)


def course_message(course: Course | None) -> dict[str, Any]:
    """The boxes [m], half extents and (x, y, z, w), the waypoints; none on unknown ground."""
    if course is None:
        return {"t": "course", "name": None, "boxes": [], "waypoints": [], "colours": {}}
    return {
        "t": "course",
        "name": course.name,
        "difficulty": course.difficulty,
        "seed": course.seed,
        "boxes": [
            [box.kind, *(round(float(v), 4) for v in (*box.center, *box.half_extents, *box.quat))]
            for box in course.boxes
        ],
        "waypoints": course.waypoints.round(3).tolist(),
        "colours": dict(COLOURS),
    }
