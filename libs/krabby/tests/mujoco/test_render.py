"""Pictures by ray casting: small scenes whose colours can be told in advance."""

import shutil

import mujoco
import numpy as np
import pytest
from krabby.mujoco.film import FilmCamera
from krabby.mujoco.rays import Scene
from krabby.mujoco.render import View, contact_sheet, render_rays, save_animation, save_picture
from krabby.robot.assets import robot_dir
from krabby_assets.generate import PICTURES
from krabby_assets.pictures import write_pictures
from PIL import Image

BALL_OVER_FLOOR = """
<mujoco>
  <worldbody>
    <geom type="plane" size="0 0 1" rgba="0.5 0.5 0.5 1"/>
    <body name="ball" pos="0 0 1">
      <geom type="sphere" size="0.1" group="1" mass="1"/>
      <geom type="sphere" size="0.3" group="2" contype="0" conaffinity="0" rgba="1 0 0 1"/>
    </body>
  </worldbody>
</mujoco>
"""
FROM_ABOVE = View(eye=(4.0, 1.0, 3.0), target=(0.0, 0.0, 0.6), fov_rad=0.7)
FROM_THE_SIDE = View(eye=(4.0, 0.0, 1.0), target=(0.0, 0.0, 1.0), fov_rad=0.5)


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(BALL_OVER_FLOOR)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def is_red(picture: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    return (red > 2 * green) & (red > 2 * blue)


def test_a_ball_is_drawn_round_and_in_the_middle(scene):
    picture = render_rays(*scene, FROM_THE_SIDE, width=80, height=80, supersample=2)
    assert picture.shape == (80, 80, 3)
    assert picture.dtype == np.uint8
    rows, columns = np.nonzero(is_red(picture))
    assert rows.mean() == pytest.approx(39.5, abs=0.6)
    assert columns.mean() == pytest.approx(39.5, abs=0.6)
    # 0.3 m seen from 4 m, of a picture 2 * tan(0.25) * 4 m = 2.043 m high: 80 * 0.6 / 2.043 = 23.5
    assert np.ptp(rows) + 1 == pytest.approx(23.5, abs=1.5)


def test_looks_that_reach_beyond_the_collision_shape_are_not_cut_off(scene):
    """MuJoCo skips a body when a ray misses the bounds of its collision shapes, here 0.1 m."""
    picture = render_rays(*scene, FROM_THE_SIDE, width=81, height=81, supersample=1)
    assert is_red(picture)[31, 40]  # 0.2 m above the middle


def test_the_ball_casts_a_shadow(scene):
    above = View(eye=(0.0, 0.0, 8.0), target=(0.0, 0.0, 0.0), fov_rad=0.5)
    picture = render_rays(*scene, above, width=80, height=80, supersample=1).astype(int)
    floor = picture[~is_red(picture)].sum(axis=-1)
    shadow = floor < 0.6 * np.median(floor)
    # A disc of 0.3 m radius, stretched by the sun's height, of 4.1 x 4.1 m: 1 to 3 percent
    assert 0.01 < shadow.mean() < 0.03


def test_the_sky_s_shadow_is_soft_and_under_the_ball(scene):
    above = View(eye=(0.0, 0.0, 8.0), target=(0.0, 0.0, 0.0), fov_rad=0.5)
    hard = render_rays(*scene, above, width=40, height=40, supersample=2)
    soft = render_rays(*scene, above, width=40, height=40, supersample=2, sky_samples=16)
    change = (soft.astype(int) - hard).sum(axis=-1)
    # On open ground nothing changes; beside the ball the sky is partly hidden.
    assert abs(change[2, 2]) < 12
    assert change.min() < -12


def test_groups_choose_what_is_drawn(scene):
    only_floor = render_rays(*scene, FROM_THE_SIDE, width=20, height=20, groups=(0,))
    assert not is_red(only_floor).any()


def test_background_replaces_sky_and_haze(scene):
    picture = render_rays(
        *scene, FROM_THE_SIDE, width=20, height=20, groups=(2,), background=(1.0, 1.0, 1.0)
    )
    assert picture[0, 0].tolist() == [255, 255, 255]


def test_the_model_is_left_as_it_was(scene):
    model, data = scene
    before = model.bvh_aabb.copy()
    render_rays(model, data, FROM_THE_SIDE, width=8, height=8)
    np.testing.assert_array_equal(model.bvh_aabb, before)


def test_the_same_scene_gives_the_same_picture(scene):
    pictures = [
        render_rays(*scene, FROM_THE_SIDE, width=24, height=16, sky_samples=8) for _ in range(2)
    ]
    np.testing.assert_array_equal(*pictures)


def test_pictures_and_animations_can_be_read_back(tmp_path):
    red = np.full((16, 24, 3), (200, 0, 0), dtype=np.uint8)
    blue = np.full((16, 24, 3), (0, 0, 200), dtype=np.uint8)
    save_picture(red, tmp_path / "new" / "red.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "red.png")), red)
    for suffix in (".gif", ".webp"):
        path = tmp_path / f"both{suffix}"
        save_animation([red, blue], path, fps=10)
        with Image.open(path) as image:
            assert image.n_frames == 2
            assert image.info["loop"] == 0
    with pytest.raises(ValueError, match="at least one picture"):
        save_animation([], tmp_path / "none.gif", fps=10)


def test_a_contact_sheet_holds_every_picture_in_reading_order():
    shades = [np.full((10, 20, 3), 40 * i, dtype=np.uint8) for i in range(3)]
    sheet = contact_sheet(shades, columns=2, gap=2)
    assert sheet.shape == (22, 42, 3)
    assert sheet[5, 5, 0] == 0
    assert sheet[5, 30, 0] == 40
    assert sheet[15, 5, 0] == 80
    assert sheet[15, 30, 0] == 255  # no fourth picture
    assert sheet[10, 5, 0] == 255  # gap


def test_labels_are_written_into_the_pictures():
    blank = [np.full((40, 120, 3), 255, dtype=np.uint8)] * 2
    sheet = contact_sheet(blank, columns=2, labels=["front", "side"], gap=0)
    assert sheet[:, :120].min() < 120
    assert sheet[:, 120:].min() < 120


def test_a_contact_sheet_refuses_what_does_not_fit():
    small, large = np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((8, 4, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="pictures of one size"):
        contact_sheet([small, large], columns=2)
    with pytest.raises(ValueError, match="1 pictures need as many labels, not 2"):
        contact_sheet([small], columns=1, labels=["a", "b"])


@pytest.mark.slow
def test_pictures_drawn_anew_look_like_the_committed_ones(tmp_path):
    shutil.copy(robot_dir() / "robot.toml", tmp_path)
    paths = write_pictures(tmp_path, sky_samples=0)
    assert [path.name for path in paths] == list(PICTURES)
    for path in paths:
        drawn, committed = (
            np.asarray(Image.open(file).convert("RGB")).astype(int)
            for file in (path, robot_dir() / "pictures" / path.name)
        )
        assert drawn.shape == committed.shape
        # Without the sky's soft shadows, which darken a little here and there.
        assert np.abs(drawn - committed).mean() < 6.0


@pytest.mark.parametrize("name", PICTURES)
def test_the_documentation_s_pictures_are_there_and_show_the_robot(name):
    picture = np.asarray(Image.open(robot_dir() / "pictures" / name).convert("RGB"))
    assert picture.shape[1] >= 1000
    assert is_red(picture).mean() > 0.02


@pytest.mark.parametrize(("width", "height"), [(160, 100), (340, 212)])
def test_a_film_s_picture_is_that_of_all_rays(scene, width, height):
    """Every second or third pixel is asked: the ball, its shadow and the horizon are where they are
    in a picture with a ray for each, within the edges' width of one pixel."""
    model, data = scene
    film = FilmCamera(model, width, height).draw(data, FROM_ABOVE)
    full = render_rays(model, data, FROM_ABOVE, width=width, height=height, supersample=3)

    difference = np.abs(film.astype(int) - full.astype(int)).max(axis=-1)
    assert np.mean(difference > 40) < 0.01
    assert difference.mean() < 2.0
    assert np.mean(is_red(film) != is_red(full)) < 0.01


def test_a_film_s_picture_costs_a_part_of_the_rays(scene, monkeypatch):
    model, data = scene
    asked = []
    cast = Scene.cast
    monkeypatch.setattr(
        Scene,
        "cast",
        lambda self, origin, rays: asked.append(len(rays)) or cast(self, origin, rays),
    )
    FilmCamera(model, 340, 212).draw(data, FROM_ABOVE)
    film, asked[:] = sum(asked), []
    render_rays(model, data, FROM_ABOVE, width=340, height=212, supersample=2)
    assert film < 0.15 * sum(asked)
