"""Colour images show what the depth camera sees, in the same view."""

import dataclasses

import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.hal.jpeg import from_jpeg, to_jpeg
from krabby.mujoco.colour_camera import ColourCamera, view_of
from krabby.mujoco.depth_camera import DepthRenderer, camera_pose
from krabby.mujoco.rays import camera_rays
from krabby.robot.rotations import from_euler

BASE = np.array([1.2, 0.1, 0.45])
TILTED = from_euler(0.15, -0.1, 0.4)


def test_every_pixel_looks_where_the_depth_cameras_does(desc):
    """A pinhole's ray through column c and row r is (c - cx) / f right, (r - cy) / f down."""
    camera = desc.camera
    eye, axes_w = camera_pose(camera, BASE, TILTED)
    directions, origin = camera_rays(view_of(camera, eye, axes_w), camera.width, camera.height)
    right = (np.arange(camera.width) - camera.cx) / camera.fx
    down = (np.arange(camera.height) - camera.cy) / camera.fy
    rays = np.stack([*np.meshgrid(right, down), np.ones((camera.height, camera.width))], axis=-1)
    rays = (rays @ axes_w.T).reshape(-1, 3)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    assert directions == pytest.approx(rays, abs=1e-9)
    assert origin == pytest.approx(eye)


def test_the_sky_begins_where_the_depth_image_ends(desc):
    """Level and 5 degrees up: without a mount pitch the horizon is at 60 % of the height."""
    camera = dataclasses.replace(desc.camera, mount_pitch_rad=np.radians(-5.0))
    course = make_course("flat")
    level = np.array([0.0, 0.0, 0.0, 1.0])
    depth = DepthRenderer(camera, course.boxes, range_m=1e3).render(
        *camera_pose(camera, BASE, level)
    )
    picture = ColourCamera(desc, course, camera=camera, scale=2).draw(
        BASE, level, desc.default_joint_pos
    )
    assert picture.shape == (120, 212, 3)
    red, _, blue = picture[::2, ::2].astype(int).transpose(2, 0, 1)
    middle = np.s_[:, 45:60]  # legs stand beside it
    sky, nothing = (blue - red > 10)[middle], (depth == 0.0)[middle]
    assert nothing.any()
    assert not nothing.all()
    assert (sky == nothing).mean() > 0.95, "but for the haze at the horizon"


def test_a_picture_keeps_its_colours_as_jpeg():
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (200, 40, 40), (40, 40, 200)
    content = to_jpeg(picture)
    assert len(content) < picture.nbytes / 4
    back = from_jpeg(content).astype(int)
    assert back.shape == picture.shape
    assert back[24, 8] == pytest.approx(picture[24, 8].astype(int), abs=8)
    assert back[24, 56] == pytest.approx(picture[24, 56].astype(int), abs=8)


def test_what_is_no_jpeg_is_refused():
    with pytest.raises(OSError, match="cannot identify"):
        from_jpeg(b"\x89PNG and so on")
