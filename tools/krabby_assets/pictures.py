"""The pictures of the robot that the documentation shows.

Posed by inverse kinematics rather than simulated, so that a picture changes only when the robot,
the course or the renderer does.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from pathlib import Path

import mujoco
import numpy as np
from krabby.course.courses import make_course
from krabby.mujoco.model import VISUAL_GROUP, ModelIndex, build_model, set_robot_state
from krabby.mujoco.render import Picture, View, contact_sheet, render_rays, save_picture
from krabby.robot import kinematics, rotations
from krabby.robot.description import RobotDescription

__all__ = ["write_pictures"]

_PAPER = (0.95, 0.955, 0.96)
"""Background of the views."""


def write_pictures(folder: Path, *, sky_samples: int = 64) -> list[Path]:
    """Write `crab_hex.png` and `views.png` to `folder/pictures`; returns their paths.

    `sky_samples` as in `render_rays`: without them the pictures are quick and flat.
    """
    description = RobotDescription.load(folder / "robot.toml")
    pictures = {
        "crab_hex.png": _on_course(description, sky_samples),
        "views.png": _views(description, sky_samples),
    }
    paths = []
    for name, picture in pictures.items():
        path = folder / "pictures" / name
        save_picture(picture, path)
        paths.append(path)
    return paths


def _on_course(description: RobotDescription, sky_samples: int) -> Picture:
    """The robot in the middle of a step across the first gap of the demo course."""
    course = make_course("demo")
    model = build_model(description, course)
    data = mujoco.MjData(model)
    # Feet on the boxes before and behind the gap at x 5.8; two of them are in the air.
    ground = float(course.height_at(5.3, 0.0)) + description.geometry.foot_radius
    feet_w = {
        "lf": (6.34, 0.93, ground),
        "lm": (5.34, 1.02, ground),
        "lr": (5.06, 0.93, ground),
        "rf": (6.46, -0.78, ground + 0.15),
        "rm": (5.62, -1.00, ground + 0.20),
        "rr": (5.12, -0.93, ground),
    }
    base_pos_w = np.array([5.7, 0.0, ground + 0.47])
    base_quat_w = rotations.from_euler(0.0, -0.05, 0.0)
    offsets_w = np.array([feet_w[leg] for leg in description.leg_names]) - base_pos_w
    set_robot_state(
        model,
        data,
        ModelIndex.of(model, description),
        base_pos_w=base_pos_w,
        base_quat_w=base_quat_w,
        joint_pos=kinematics.leg_ik(description, rotations.rotate_inverse(base_quat_w, offsets_w)),
    )
    view = View(eye=(8.5, 2.3, 2.2), target=(5.72, 0.02, 0.6), fov_rad=0.53)
    return render_rays(
        model, data, view, width=1200, height=600, supersample=2, sky_samples=sky_samples
    )


def _views(description: RobotDescription, sky_samples: int) -> Picture:
    """Front, side and top, nearly orthographic, and one from above the shoulder."""
    model = build_model(description)
    data = mujoco.MjData(model)
    height = kinematics.standing_height(description)
    set_robot_state(
        model,
        data,
        ModelIndex.of(model, description),
        base_pos_w=(0.0, 0.0, height),
        base_quat_w=rotations.IDENTITY,
        joint_pos=description.default_joint_pos,
    )
    middle = (0.0, 0.0, 0.36)
    views = {
        "front": View(eye=(40.0, 0.0, 0.36), target=middle, fov_rad=0.036),
        "side": View(eye=(0.0, -40.0, 0.36), target=middle, fov_rad=0.036),
        "top": View(eye=(0.0, 0.0, 40.0), target=middle, fov_rad=0.050),
        "from the left front": View(eye=(2.6, 1.9, 1.9), target=(0.05, 0, 0.34), fov_rad=0.50),
    }
    pictures = [
        render_rays(
            model,
            data,
            view,
            width=600,
            height=380,
            supersample=3,
            sky_samples=sky_samples,
            groups=(VISUAL_GROUP,),
            background=_PAPER,
        )
        for view in views.values()
    ]
    return contact_sheet(pictures, columns=2, labels=list(views))
