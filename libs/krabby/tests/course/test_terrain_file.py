import mujoco
import numpy as np
import pytest
import trimesh
from krabby.course.courses import check_training, make_course
from krabby.course.progress import Pose2
from krabby.course.terrain_file import MAX_BOXES
from krabby.mujoco.depth_camera import DepthRenderer, camera_pose
from krabby.mujoco.world import World
from krabby.robot.description import RobotDescription
from krabby.robot.errors import CourseError

START_M = 2.5


def save(path, heights, cell_m=0.05):
    np.savez(path, heights=heights, cell_m=cell_m)
    return str(path)


@pytest.fixture(scope="module")
def stairs(tmp_path_factory):
    """Two treads 1 m long and 2 m wide, 0.2 and 0.4 m high, as a mesh."""
    path = tmp_path_factory.mktemp("terrain") / "stairs.stl"
    treads = [
        trimesh.creation.box(bounds=[[x, -1.0, -0.1], [x + 1.0, 1.0, top]])
        for x, top in ((5.0, 0.2), (6.0, 0.4))
    ]
    trimesh.util.concatenate(treads).export(path)
    return str(path)


def test_a_mesh_begins_behind_the_start_platform_and_keeps_its_heights(stairs):
    course = make_course(stairs)
    x = START_M + np.array([-0.1, 0.1, 0.9, 1.1, 1.9, 2.1])
    np.testing.assert_allclose(course.height_at(x, 0.0), [0, 0.2, 0.2, 0.4, 0.4, 0], atol=1e-6)
    np.testing.assert_allclose(course.height_at(START_M + 0.5, [-1.1, -0.9, 0.9, 1.1]),
                               [0, 0.2, 0.2, 0], atol=1e-6)  # fmt: skip
    assert course.waypoints.shape == (8, 3)
    assert course.waypoints[-1, 0] == pytest.approx(START_M + 2.0 + 1.0)
    assert [box.kind for box in course.boxes].count("rock") == 2
    assert "the terrain of stairs.stl, in steps of 1 cm" in course.describe()


def test_a_glb_is_turned_back_and_what_is_exported_is_read_again(stairs, tmp_path):
    course = make_course(stairs)
    heights = np.array([[course.height_at(x, y) for y in (-0.5, 0.5)] for x in (2.6, 3.4, 4.2)])
    mesh = trimesh.load(stairs, force="mesh")
    y_up = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)
    path = tmp_path / "stairs.glb"
    mesh.apply_transform(y_up).export(path)
    again = make_course(str(path))
    found = np.array([[again.height_at(x, y) for y in (-0.5, 0.5)] for x in (2.6, 3.4, 4.2)])
    np.testing.assert_allclose(found, heights, atol=1e-6)


def test_height_fields_sink_below_the_start_and_holes_are_pits(tmp_path):
    heights = np.full((40, 40), -0.3)
    heights[10:20] = np.nan
    course = make_course(save(tmp_path / "pit.npz", heights))
    at = course.height_at(START_M + np.array([0.2, 0.7, 1.5]), 0.0)
    np.testing.assert_allclose(at, [-0.3, -1.8, -0.3], atol=1e-6)
    assert course.in_pit(START_M + 0.7, 0.0, -1.0)
    assert not course.in_pit(START_M + 1.5, 0.0, -0.3)


def test_a_slope_takes_coarser_steps_until_its_boxes_are_few(tmp_path):
    x, y = np.meshgrid(np.arange(100) * 0.05, np.arange(60) * 0.05, indexing="ij")
    heights = 0.15 * np.sin(2.0 * x) * np.cos(2.0 * y)
    course = make_course(save(tmp_path / "waves.npz", heights))
    rocks = [box for box in course.boxes if box.kind == "rock"]
    assert len(rocks) <= MAX_BOXES
    x, y, heights = x[::7, ::7], y[::7, ::7], heights[::7, ::7]
    found = course.height_at(START_M + x + 0.025, y + 0.025 - 1.5)
    step_m = float(course.describe().partition("in steps of ")[2].split()[0]) / 100
    assert np.abs(found - heights).max() <= step_m / 2 + 1e-6


def test_physics_and_camera_meet_the_terrain(stairs):
    desc, course = RobotDescription.load(), make_course(stairs)
    world = World(desc, course)
    world.place(Pose2(START_M + 1.5, 0.0, 0.0), desc.default_joint_pos)
    flat = World(desc, make_course("flat"))
    flat.place(Pose2(1.0, 0.0, 0.0), desc.default_joint_pos)
    # Feet are on the tread that is 0.4 m high, or beside it: the base stands on the highest.
    assert world.base_pos_w[2] - flat.base_pos_w[2] == pytest.approx(0.4, abs=1e-3)
    pose = camera_pose(desc.camera, np.array([1.0, 0.0, 0.42]), np.array([0.0, 0.0, 0.0, 1.0]))
    seen = DepthRenderer(desc.camera, course.boxes).render(*pose)
    level = DepthRenderer(desc.camera, make_course("flat").boxes).render(*pose)
    assert (seen < level - 0.05).any()
    assert world.model.geom_type[world.model.geom("course_05_rock").id] == mujoco.mjtGeom.mjGEOM_BOX


def test_training_may_draw_it(stairs):
    check_training(stairs, 1.0)


@pytest.mark.parametrize(
    ("heights", "said"),
    [
        (np.zeros((5, 40)), "0.25 m long"),
        (np.zeros((40, 500)), "25.00 m wide"),
        (np.full((40, 40), 3.0), "heights up to 3.00 m"),
        (np.full((40, 40), np.nan), "heights up to inf"),
        (np.zeros(40), "shape (40,)"),
        (np.random.default_rng(0).uniform(-1, 1, (40, 40)), "boxes in steps of 8 cm"),
    ],
)
def test_surfaces_that_cannot_be_a_course_are_refused(heights, said, tmp_path):
    with pytest.raises(CourseError) as error:
        make_course(save(tmp_path / "bad.npz", heights))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_hold_no_terrain_are_refused(tmp_path):
    text = tmp_path / "text.stl"
    text.write_text("solid nothing\nendsolid")
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    for name, said in (("no.stl", "cannot read"), ("no.npz", "cannot read"),
                       ("other.npz", "is no height field"), ("text.stl", "text.stl")):  # fmt: skip
        with pytest.raises(CourseError, match=said):
            make_course(str(tmp_path / name))
