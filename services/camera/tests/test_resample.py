"""A real camera's depth on the pixels of the robot's."""

import numpy as np
import pytest
from krabby.policy.depth_image import DepthPreprocessor
from krabby.robot.description import RobotDescription
from krabby_camera.errors import CameraError
from krabby_camera.resample import FAR_READING_M, Intrinsics, Resampler

CAMERA = RobotDescription.load().camera
HALF_VGA = Intrinsics(336, 188, 175.0, 175.0, 166.0, 94.5)


def test_the_same_camera_gives_the_same_image():
    same = Intrinsics(106, 60, CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy)
    depth = np.random.default_rng(0).uniform(0.2, 5.0, (60, 106)).astype(np.float32)
    assert np.array_equal(Resampler(same, CAMERA)(depth), depth)


def test_a_pixel_takes_the_reading_that_lies_in_its_direction():
    # robot: f 55.85 px, centre 52.5, 29.5. Column 80, row 40 looks along (27.5, 10.5) / 55.85;
    # there the ZED has column 166 + 175 * 0.49239 = 252.17 and row 94.5 + 175 * 0.18800 = 127.4
    depth = np.ones((188, 336), np.float32)
    depth[127, 252] = 2.5
    image = Resampler(HALF_VGA, CAMERA)(depth)
    assert CAMERA.fx == pytest.approx(55.85, abs=0.005)
    assert image[40, 80] == 2.5
    assert np.count_nonzero(image == 2.5) == 1


@pytest.mark.parametrize("name", ["flat", "leaning", "post", "wall", "steps", "gaps"])
def test_what_a_zed_sees_becomes_what_the_simulator_s_camera_sees(scene, name):
    recorded = scene(name)
    image = Resampler(HALF_VGA, CAMERA)(recorded.zed)
    seen = (image > 0) & (recorded.robot > 0) & (recorded.robot < 4.0)
    error = np.abs(image - recorded.robot)[seen] / recorded.robot[seen]
    # nearest reading: a third of a pixel at most, which matters on grazing ground and at edges
    assert np.median(error) < 0.003
    assert np.quantile(error, 0.95) < 0.01
    assert np.mean((image > 0) != (recorded.robot > 0)) < 0.002


@pytest.mark.parametrize("name", ["flat", "post", "gaps"])
def test_a_policy_s_image_is_that_of_the_simulator(scene, name):
    recorded = scene(name)
    image = Resampler(HALF_VGA, CAMERA)(recorded.zed)
    preprocess = DepthPreprocessor(CAMERA)
    difference = np.abs(preprocess(image) - preprocess(recorded.robot))
    assert np.median(difference) < 0.001
    assert np.quantile(difference, 0.95) < 0.01


def test_what_has_no_depth_means_the_same_as_in_training():
    depth = np.full((188, 336), 2.0, np.float32)
    depth[:, :84] = np.nan  # hidden from one eye
    depth[:, 84:168] = -np.inf  # too near
    depth[:, 252:] = np.inf  # too far
    image = Resampler(HALF_VGA, CAMERA)(depth)
    # columns of the robot whose direction the ZED's column 167.5 has: 52.5 + 55.85 * 1.5 / 175 = 53
    assert np.all(image[:, :53] == 0.0)
    assert np.all(image[:, 54:79] == 2.0)
    assert np.all(image[:, 80:] == FAR_READING_M)
    assert np.isfinite(image).all()
    preprocess = DepthPreprocessor(CAMERA)
    raw = depth[:60, :106].copy()
    for hole in (np.nan, -np.inf, 0.0):
        raw[...] = hole
        assert np.allclose(preprocess(raw), 0.5)  # holes without neighbours are far
        assert preprocess.valid_ratio == 0.0
    raw[...] = np.inf
    far = preprocess(raw)
    assert preprocess.valid_ratio == 1.0
    raw[...] = FAR_READING_M
    assert np.array_equal(preprocess(raw), far)


def test_a_view_that_is_too_narrow_is_refused_with_both_figures():
    # ZED Mini at hd720: 1280 px at 700 px are 84.9 deg, 720 px 54.4 deg
    hd720 = Intrinsics(640, 360, 350.0, 350.0, 319.5, 179.5)
    assert hd720.fov_deg == pytest.approx((84.9, 54.4), abs=0.05)
    # tan(27.2 deg) = 0.514 against 30/55.85 = 0.537: the topmost row and a bit, of 58; still good
    Resampler(hd720, CAMERA)
    narrow = Intrinsics(640, 360, 450.0, 450.0, 319.5, 179.5)
    with pytest.raises(CameraError, match=r"sees 70.8 x 43.6 deg, robot.toml's camera 87.0 x 5"):
        Resampler(narrow, CAMERA)


def test_a_row_beyond_the_view_is_a_hole_not_a_copy():
    low = Intrinsics(336, 188, 175.0, 175.0, 166.0, 91.0)  # its centre is 3.5 px too high
    image = Resampler(low, CAMERA)(np.ones((188, 336), np.float32))
    # row 0 is at 91 - 175 * 29.5 / 55.85 = -1.4, row 1 at 1.7
    assert np.all(image[0] == 0.0)
    assert np.all(image[1:] == 1.0)


def test_a_depth_of_another_size_than_the_calibration_is_refused():
    with pytest.raises(CameraError, match=r"\(376, 672\), its calibration is for \(188, 336\)"):
        Resampler(HALF_VGA, CAMERA)(np.ones((376, 672), np.float32))
