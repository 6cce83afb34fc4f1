import math
from dataclasses import replace

import numpy as np
import pytest
from krabby.policy.depth_image import (
    COLUMN_WEIGHTS,
    CROP,
    IMAGE_SHAPE,
    RAW_SHAPE,
    DepthError,
    DepthPreprocessor,
    column_weights,
)
from krabby.robot.description import CameraModel, RobotDescription


@pytest.fixture(scope="module")
def camera() -> CameraModel:
    return RobotDescription.load().camera


@pytest.fixture
def preprocess(camera) -> DepthPreprocessor:
    return DepthPreprocessor(camera)


def raw(value: float) -> np.ndarray:
    return np.full(RAW_SHAPE, value, dtype=np.float32)


def reference(depth: np.ndarray, far: float = 4.0) -> np.ndarray:
    """Without holes: crop, matrix product, cut, normalise."""
    return np.clip(depth[CROP] @ COLUMN_WEIGHTS, 0.0, far) / far - 0.5


@pytest.mark.parametrize(
    ("metres", "value"), [(0.1, -0.475), (1.0, -0.25), (2.0, 0.0), (4.0, 0.5), (9.0, 0.5)]
)
def test_a_wall_gives_one_value(preprocess, metres, value):
    image = preprocess(raw(metres))
    assert image.shape == IMAGE_SHAPE
    assert image.dtype == np.float32
    assert image == pytest.approx(np.full(IMAGE_SHAPE, value), abs=1e-6)
    assert preprocess.valid_ratio == 1.0


def test_the_edges_are_cropped(preprocess):
    depth = raw(2.0)
    depth[:, :4] = depth[:, -4:] = depth[-2:] = 0.5
    assert preprocess(depth) == pytest.approx(np.zeros(IMAGE_SHAPE), abs=1e-6)


def test_rows_stay_and_columns_shrink_evenly(preprocess):
    rows, columns = np.mgrid[: RAW_SHAPE[0], : RAW_SHAPE[1]].astype(np.float32)
    image = preprocess(1.0 + 0.02 * rows)
    assert image[:, 40] == pytest.approx((1.0 + 0.02 * np.arange(58)) / 4.0 - 0.5, abs=1e-6)
    image = preprocess(1.0 + 0.02 * columns)
    # Output column j has its centre over cropped column (j + 0.5) 98 / 87 - 0.5, raw 4 further.
    centre = (np.arange(87) + 0.5) * 98 / 87 - 0.5 + 4
    middle = slice(1, -1)  # at the very edge the triangle is cut off
    expected = (1.0 + 0.02 * centre) / 4.0 - 0.5
    assert image[30, middle] == pytest.approx(expected[middle], abs=5e-4)  # a tenth of a pixel


def test_the_exposed_matrix_is_what_is_computed(preprocess):
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.1, 4.0, RAW_SHAPE).astype(np.float32)
    assert preprocess(depth) == pytest.approx(reference(depth), abs=1e-6)


def test_the_resize_averages_and_never_overshoots():
    assert COLUMN_WEIGHTS.shape == (98, 87)
    assert (COLUMN_WEIGHTS >= 0.0).all()
    assert COLUMN_WEIGHTS.sum(axis=0) == pytest.approx(np.ones(87), abs=1e-6)
    # Every pixel counts, none much more than another.
    assert COLUMN_WEIGHTS.sum(axis=1)[1:-1] == pytest.approx(np.full(96, 87 / 98), rel=0.1)


def test_four_columns_resized_to_two_by_hand():
    # Step 2: triangles of half width 2 over 1.0 and 3.0; pixel centres at 0.5, 1.5, 2.5, 3.5.
    # First output: distances 0.5, 0.5, 1.5, 2.5, weights 0.75, 0.75, 0.25, 0, over 1.75.
    expected = np.array([[3, 0], [3, 1], [1, 3], [0, 3]]) / 7
    assert column_weights(4, 2) == pytest.approx(expected)
    assert column_weights(3, 3) == pytest.approx(np.eye(3))


@pytest.mark.parametrize("hole", [0.0, math.nan, -math.inf, -1.0, 0.05])
def test_a_missing_pixel_takes_the_farther_of_its_neighbours(preprocess, hole):
    depth = raw(1.0)
    depth[:, 54:] = 3.0  # an edge between columns 53 and 54
    whole = preprocess(depth)
    damaged = depth.copy()
    damaged[10, 30] = damaged[20, 80] = hole
    assert preprocess(damaged) == pytest.approx(whole, abs=1e-6)
    assert preprocess.valid_ratio == pytest.approx(1 - 2 / (58 * 98))
    beside = depth.copy()
    beside[:, 53] = hole  # the shadow beside the edge belongs to what is behind
    filled = depth.copy()
    filled[:, 53] = 3.0
    assert preprocess(beside) == pytest.approx(preprocess(filled), abs=1e-6)


def test_a_hole_of_six_pixels_closes_from_its_sides_and_a_wider_one_is_far(preprocess):
    depth = raw(1.0)
    depth[:, 50:56] = 0.0
    assert preprocess(depth) == pytest.approx(np.full(IMAGE_SHAPE, -0.25), abs=1e-6)
    depth[:, 50:57] = 0.0  # seven: the middle one, column 53, stays
    filled = raw(1.0)
    filled[:, 53] = 4.0
    assert preprocess(depth) == pytest.approx(reference(filled), abs=1e-6)


def test_an_object_against_the_sky_does_not_fill_its_rows(preprocess):
    depth = raw(0.0)
    depth[20:40, 40:60] = 1.0
    image = preprocess(depth)
    assert image[30, 43] == pytest.approx(-0.25)
    far = pytest.approx(0.5, abs=1e-6)
    assert image[30, :29].min() == far
    assert image[30, 58:].min() == far
    assert image[:20].min() == far


def test_nothing_seen_is_far(preprocess):
    assert preprocess(raw(0.0)).min() == pytest.approx(0.5, abs=1e-6)
    assert preprocess.valid_ratio == 0.0
    assert preprocess(raw(math.inf)).min() == pytest.approx(0.5, abs=1e-6)
    assert preprocess.valid_ratio == 1.0


def test_no_input_leaves_the_range(preprocess):
    rng = np.random.default_rng(1)
    for _ in range(50):
        bits = rng.integers(0, 2**32, RAW_SHAPE, dtype=np.uint32)
        image = preprocess(bits.view(np.float32))
        assert np.isfinite(image).all()
        assert image.min() >= -0.5
        assert image.max() <= 0.5


def test_a_batch_gives_what_its_images_give(preprocess):
    rng = np.random.default_rng(2)
    depth = rng.uniform(-0.5, 5.0, (2, 3, *RAW_SHAPE)).astype(np.float32)
    images = preprocess(depth)
    assert images.shape == (2, 3, *IMAGE_SHAPE)
    for i in np.ndindex(2, 3):
        assert images[i].tolist() == preprocess(depth[i]).tolist()


def test_the_input_is_left_alone_and_the_output_is_the_callers(preprocess):
    depth = raw(0.0)
    first = preprocess(depth)
    assert (depth == 0.0).all()
    assert not np.shares_memory(first, preprocess(raw(1.0)))


@pytest.mark.parametrize("shape", [(106, 60), (58, 87), (60,), (60, 106, 1)])
def test_another_shape_is_refused(preprocess, shape):
    with pytest.raises(DepthError, match=r"expected \(\.\.\., 60, 106\)"):
        preprocess(np.zeros(shape, dtype=np.float32))


def test_another_camera_is_refused(camera):
    with pytest.raises(DepthError, match="the camera has 720 x 1280 pixels"):
        DepthPreprocessor(replace(camera, width=1280, height=720))


def test_near_and_far_are_the_cameras(camera):
    short = DepthPreprocessor(replace(camera, near_m=0.5, far_m=2.0))
    assert short(raw(1.0)) == pytest.approx(np.zeros(IMAGE_SHAPE), abs=1e-6)
    short(raw(0.4))
    assert short.valid_ratio == 0.0
