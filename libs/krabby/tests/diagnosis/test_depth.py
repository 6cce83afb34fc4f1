"""Normals of the ground in a depth picture."""

import dataclasses
import math

import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.diagnosis.depth import tile_normals
from krabby.mujoco.depth_camera import DepthRenderer, camera_pose
from krabby.robot import rotations
from krabby.robot.description import RobotDescription

DESC = RobotDescription.load()


def normals(pitch_error_deg=0.0, roll_rad=0.0, mirrored=False):
    """Of flat ground, by the described mount, from a camera that is mounted otherwise."""
    camera = dataclasses.replace(
        DESC.camera, mount_pitch_rad=DESC.camera.mount_pitch_rad + math.radians(pitch_error_deg)
    )
    course = make_course("flat", 0.5, 0)
    quat = rotations.from_euler(roll_rad, 0.0, 0.0)
    x, y, _ = course.spawn
    pose = camera_pose(camera, np.array([x, y, 0.42]), quat)
    depth = DepthRenderer(camera, course.boxes).render(*pose)
    image = depth[:, ::-1] if mirrored else depth
    found, good = tile_normals(image[None], DESC.camera)
    assert good.sum() >= 8
    return np.median(found[good], axis=0)


def test_level_ground_has_an_upright_normal():
    assert normals() == pytest.approx([0.0, 0.0, 1.0], abs=2e-3)


def test_ground_seen_by_a_camera_five_degrees_down_leans_back_by_five_degrees():
    seen = normals(pitch_error_deg=5.0)
    assert math.degrees(math.atan2(seen[0], seen[2])) == pytest.approx(-5.0, abs=0.1)


@pytest.mark.parametrize(("mirrored", "sign"), [(False, 1.0), (True, -1.0)])
def test_a_mirrored_picture_rolls_the_other_way(mirrored, sign):
    seen = normals(roll_rad=0.1, mirrored=mirrored)
    # rolled by 0.1 rad to the right, up in the base is (0, sin 0.1, cos 0.1)
    assert math.atan2(seen[1], seen[2]) == pytest.approx(sign * 0.1, abs=3e-3)
