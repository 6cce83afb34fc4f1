"""Normals of the ground in a depth picture."""

import dataclasses
import math

import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.diagnosis.depth import check_camera, tile_normals
from krabby.diagnosis.log import Frames, RunLog
from krabby.mujoco.depth_camera import DepthRenderer, camera_pose
from krabby.robot import rotations
from krabby.robot.description import RobotDescription

DESC = RobotDescription.load()


def picture(pitch_error_deg=0.0, roll_rad=0.0, mirrored=False):
    """Of flat ground, from a camera that is mounted otherwise."""
    camera = dataclasses.replace(
        DESC.camera, mount_pitch_rad=DESC.camera.mount_pitch_rad + math.radians(pitch_error_deg)
    )
    course = make_course("flat", 0.5, 0)
    quat = rotations.from_euler(roll_rad, 0.0, 0.0)
    x, y, _ = course.spawn
    pose = camera_pose(camera, np.array([x, y, 0.42]), quat)
    depth = DepthRenderer(camera, course.boxes).render(*pose)
    return depth[:, ::-1] if mirrored else depth


def normals(**otherwise):
    """Of flat ground, by the described mount."""
    found, good = tile_normals(picture(**otherwise)[None], DESC.camera)
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


def walking(sway_deg, lean_deg=0.0, *, mirrored):
    """Four seconds in which the body sways 1.5 times a second and rolls over by `lean_deg`, on
    ground that tilts by twice as much."""
    time_s = np.arange(120) / 30.0
    sway = np.radians(sway_deg) * np.sin(3.0 * np.pi * time_s)
    lean = np.radians(lean_deg) * time_s / 4.0
    joined = np.ones(120, bool)
    depth = np.stack([picture(roll_rad=roll, mirrored=mirrored) for roll in sway - lean])
    return RunLog(
        time_s=time_s, joined=joined, following=joined,
        base_quat_w=np.stack([rotations.from_euler(roll, 0.0, 0.0) for roll in sway + lean]),
        base_ang_vel_b=np.zeros((120, 3)), base_lin_acc_b=np.zeros((120, 3)),
        joint_pos=np.zeros((120, 18)), joint_vel=np.zeros((120, 18)),
        joint_effort=np.zeros((120, 18)), foot_contact=np.ones((120, 6), bool),
        frames=Frames(time_s=time_s, depth=depth.reshape(120, -1), published=120, span_s=4.0),
    )  # fmt: skip


@pytest.mark.parametrize("lean_deg", [0.0, 2.0])
@pytest.mark.parametrize(("mirrored", "kinds"), [(False, []), (True, ["camera-mirrored"])])
def test_a_sway_of_two_tenths_of_a_degree_tells_left_from_right(mirrored, kinds, lean_deg):
    log = walking(0.2, lean_deg, mirrored=mirrored)
    assert [finding.kind for finding in check_camera(log, DESC)] == kinds


def test_a_body_that_does_not_sway_tells_nothing():
    assert check_camera(walking(0.04, mirrored=True), DESC) == []
