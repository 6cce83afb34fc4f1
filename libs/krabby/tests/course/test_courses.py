import mujoco
import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from krabby.course.boxes import Bounds, Box, BoxField
from krabby.course.courses import COURSES, MAX_DIFFICULTY, make_course
from krabby.course.lanes import PUBLISHED
from krabby.robot.errors import CourseError, UnknownCourse

NAMES = tuple(PUBLISHED)
ALL = tuple(COURSES)
STEPPED = [n for n in NAMES if n != "flat"]


def boxes_of(course, kind):
    return [box for box in course.boxes if box.kind == kind]


def inside_any(course, points):
    """Which points are inside a box, by turning them into each box's frame."""
    hit = np.zeros(len(points), dtype=bool)
    for box in course.boxes:
        local = (points - np.asarray(box.center)) @ box.rotation
        hit |= (np.abs(local) < box.half_extents).all(axis=1)
    return hit


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0, MAX_DIFFICULTY])
def test_a_course_has_eight_goals_one_after_the_other_within_its_tile(name, difficulty):
    course = make_course(name, difficulty, seed=3)

    assert course.waypoints.shape == (8, 3)
    assert (np.diff(course.waypoints[:, 0]) > 0).all()
    assert course.waypoints[0, 0] > course.spawn[0] == 1.0
    assert course.waypoints[-1, 0] <= course.length_m - 1.5
    assert np.abs(course.waypoints[:, 1]).max() <= 0.2
    on_ground = course.height_at(course.waypoints[:, 0], course.waypoints[:, 1])
    assert course.waypoints[:, 2] == pytest.approx(on_ground, abs=1e-6)
    assert not course.in_pit(*course.waypoints.T).any()


@pytest.mark.parametrize("name", NAMES)
def test_lanes_are_wide_enough_for_feet_1_15_m_to_the_side(name):
    for seed in range(20):
        course = make_course(name, 1.0, seed)
        assert course.lane_half_width >= 1.6
        assert course.half_width_m >= 3.0
        assert len(course.boxes) < 60
        assert course.spawn == (1.0, 0.0, 0.0)
        assert (course.height_at(np.linspace(0, 2.4, 25), 0.0) == 0).all()


def test_the_same_seed_gives_the_same_boxes_and_another_seed_others():
    hashes = {name: make_course(name, 0.7, 11).content_hash[:16] for name in NAMES}

    assert hashes == {
        "flat": "1e2e2ffdd314d3dc",
        "steps": "f0d1f0d86137c3e0",
        "gap": "3ee21ba4517d35f8",
        "hurdle": "b3820b83eb4fb5b6",
        "ramps": "ebcdba05a189009c",
        "mixed": "6b3fbb2f870f4cdd",
        "demo": "6f37bf1d5742e0a0",
    }
    for name in NAMES:
        assert make_course(name, 0.7, 12).content_hash[:16] != hashes[name]


def test_risers_are_0_1_m_plus_0_35_m_times_difficulty():
    for difficulty, riser in ((0.0, 0.1), (1.0, 0.45), (2.0, 0.8)):
        course = make_course("steps", difficulty, seed=1)
        tops = [box.center[2] + box.half_extents[2] for box in boxes_of(course, "step")]
        assert tops == pytest.approx([riser * level for level in (1, 2, 3, 3, 2, 1)])


def test_gaps_are_0_1_m_plus_0_7_m_times_difficulty_with_a_pit_deeper_than_a_leg():
    for difficulty, width in ((0.0, 0.1), (1.0, 0.8), (2.143, 1.6)):
        course = make_course("gap", difficulty, seed=1)
        middle = np.arange(2.5, course.length_m, 0.001)
        heights = course.height_at(middle, 0.0)
        over_pit = heights < -1.0
        assert over_pit.sum() * 0.001 == pytest.approx(6 * width, abs=0.02)
        assert heights[over_pit].max() <= -1.6


def test_hurdles_are_as_high_and_as_thick_as_the_formula_says():
    for difficulty, low, high, thick in ((0.0, 0.1, 0.15, 0.1), (1.0, 0.2, 0.4, 0.4)):
        bars = [
            b for s in range(20) for b in boxes_of(make_course("hurdle", difficulty, s), "hurdle")
        ]
        heights = [2 * bar.half_extents[2] for bar in bars]
        assert len(bars) == 120
        assert low <= min(heights) < max(heights) <= high
        assert {round(2 * bar.half_extents[0], 6) for bar in bars} == {thick}


@pytest.mark.parametrize("difficulty", [0.0, 1.0, 2.5])
def test_hurdles_leave_room_for_a_run_up(difficulty):
    for seed in range(20):
        bars = boxes_of(make_course("hurdle", difficulty, seed), "hurdle")
        fronts = np.array([bar.center[0] - bar.half_extents[0] for bar in bars])
        backs = np.array([bar.center[0] + bar.half_extents[0] for bar in bars])
        assert (fronts[1:] - backs[:-1]).min() > 0.79


def test_stones_rise_a_quarter_metre_to_the_left_and_to_the_right_in_turn():
    course = make_course("ramps", 1.0, seed=4)
    for index, stone in enumerate(boxes_of(course, "stone")):
        right, left = stone.corners[0, 2], stone.corners[3, 2]
        expected = 0.25 * (-1) ** index
        assert (left, right) == pytest.approx((expected, -expected), abs=1e-6)
        width = stone.corners[3, 1] - stone.corners[0, 1]
        assert width == pytest.approx(3.2, abs=1e-6)
        assert abs(stone.corners[:4, 1].mean()) <= 0.2


def test_mixed_has_every_kind_of_obstacle_in_one_lane():
    for seed in range(20):
        course = make_course("mixed", 0.5, seed)
        kinds = [box.kind for box in course.boxes]
        assert {"hurdle", "step", "stone"} <= set(kinds)
        # One pit at least is a bare gap of 0.1 + 0.7 * 0.5 m.
        assert any(2 * b.half_extents[0] == pytest.approx(0.45) for b in boxes_of(course, "floor"))


def test_demo_is_the_same_at_every_difficulty():
    assert make_course("demo", 0.0).content_hash == make_course("demo", 1.0).content_hash


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_above_the_surface_and_something_is_right_below_it(name):
    course = make_course(name, 0.9, seed=5)
    rng = np.random.default_rng(0)
    x = rng.uniform(-2.0, course.length_m + 2.0, 4000)
    y = rng.uniform(course.bounds.y_min, course.bounds.y_max, 4000)
    z = course.height_at(x, y)
    if name == "cliff":  # deeper than what is reported
        x, y, z = x[z > -1.0], y[z > -1.0], z[z > -1.0]

    assert inside_any(course, np.column_stack([x, y, z - 1e-4])).all()
    for lift in (1e-4, 0.05, 0.3):
        assert not inside_any(course, np.column_stack([x, y, z + lift])).any()


def test_height_at_keeps_the_shape_of_a_scan_and_is_a_pit_outside():
    course = make_course("steps", 0.5)
    x, y = np.meshgrid(np.linspace(0, 5, 12), np.linspace(-1, 1, 11), indexing="ij")

    assert course.height_at(x, y).shape == (12, 11)
    assert float(course.height_at(1.0, 0.0)) == 0.0
    assert float(course.height_at(-50.0, 0.0)) == -1.8


def test_a_foot_below_the_ground_over_a_gap_is_in_the_pit():
    course = make_course("gap", 1.0, seed=0)
    pit_x = boxes_of(course, "landing")[0].corners[0, 0] - 0.4

    assert course.in_pit(pit_x, 0.0, -0.6)
    assert not course.in_pit(pit_x, 0.0, -0.1), "a foot may swing low over a gap"
    assert not course.in_pit(1.0, 0.0, -0.6), "on solid ground it would be inside the ground"
    assert course.in_pit(-50.0, 0.0, -0.6), "off the course"
    assert course.in_pit([pit_x, 1.0], [0.0, 0.0], [-0.6, 0.0]).tolist() == [True, False]


def test_a_flat_course_has_no_edges_and_no_distance_to_one():
    course = make_course("flat")
    assert course.edges.shape == (0, 2, 3)
    assert course.distance_to_edge(np.zeros((6, 3))).tolist() == [np.inf] * 6


def test_a_hurdle_has_its_four_top_edges():
    course = make_course("hurdle", 0.5, seed=2)
    bar = boxes_of(course, "hurdle")[0]
    around = course.edges[:4]

    assert len(course.edges) == 4 * 6
    top = {tuple(c) for c in bar.corners[:4].round(6)}
    assert {tuple(p) for p in around.reshape(-1, 3).round(6)} == top


def test_edges_between_treads_of_one_height_do_not_count():
    course = make_course("steps", 0.5, seed=0)
    third = boxes_of(course, "step")[2]
    level_seam = third.corners[1, 0], 0.0, third.corners[1, 2]
    riser = third.corners[0, 0], 0.0, third.corners[0, 2]

    assert course.distance_to_edge(level_seam) > 0.2
    assert course.distance_to_edge(riser) == pytest.approx(0.0, abs=1e-9)


def test_feet_within_5_cm_of_an_edge_count_whichever_way_it_runs():
    course = make_course("gap", 0.5, seed=0)
    landing = boxes_of(course, "landing")[2]
    x0, y0 = landing.corners[0, :2]
    x1, y1 = landing.corners[2, :2]
    middle = (x0 + x1) / 2
    feet = [
        (x0 + 0.04, 0.0, 0.0),
        (x0 + 0.06, 0.0, 0.0),
        (middle, y1 - 0.04, 0.0),
        (middle, y0 + 0.06, 0.0),
        (x1 + 0.03, 0.0, -0.04),
        (x0 + 0.04, 0.0, 0.2),
    ]
    assert course.feet_on_edge(feet).tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("difficulty", [0.3, 1.0, 2.5])
def test_beside_every_edge_the_ground_falls_and_the_edge_itself_is_bare(name, difficulty):
    course = make_course(name, difficulty, seed=6)
    start, stop = course.edges[:, 0], course.edges[:, 1]
    along = stop - start
    outward = np.cross(along, (0, 0, 1.0))
    outward[:, 2] = 0.0
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    for share in (0.01, 0.5, 0.99):
        point = start + share * along
        inner, outer = point - 1e-5 * outward, point + 0.03 * outward
        assert course.height_at(inner[:, 0], inner[:, 1]) == pytest.approx(point[:, 2], abs=1e-3)
        assert (point[:, 2] - course.height_at(outer[:, 0], outer[:, 1]) > 0.05).all()


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("outward", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_wherever_a_foothold_falls_away_there_is_an_edge(name, outward):
    course = make_course(name, 0.8, seed=7)
    x, y = np.meshgrid(
        np.arange(0.0, course.length_m, 0.083), np.arange(-2.9, 2.9, 0.037), indexing="ij"
    )

    along_x, along_y = outward

    def height(forward_m, sideways_m=0.0):
        return course.height_at(
            x + forward_m * along_x - sideways_m * along_y,
            y + forward_m * along_y + sideways_m * along_x,
        )

    here = height(0.0)
    # The steep sides of tilted stones are no footholds.
    beside = (height(-0.01), height(0.0, 0.01), height(0.0, -0.01))
    level = np.logical_and.reduce([np.abs(z - here) < 0.01 for z in beside])
    falls = (here - height(0.04) > 0.12) & (here - height(0.08) > 0.12)
    points = np.stack([x, y, here], axis=-1)[level & falls]
    assert len(points) > 0
    assert course.distance_to_edge(points).max() < 0.06


def test_an_edge_that_runs_into_another_box_is_cut_where_it_is_covered():
    ground = Box(center=(0, 0, -1), half_extents=(5, 5, 1), kind="ground")
    long = Box(center=(0, 0, 0.1), half_extents=(2, 0.5, 0.1), kind="step")
    tall = Box(center=(1.5, 0, 0.25), half_extents=(0.5, 1, 0.25), kind="step")
    field = BoxField([ground, long, tall], void_height=-2)
    bounds = Bounds(x_min=-5, x_max=5, y_min=-5, y_max=5)

    edges = field.exposed_edges(min_drop_m=0.05, bounds=bounds)
    low = sorted(tuple(e[:, 0].round(6)) for e in edges if e[0, 2] == e[1, 2] == 0.2)
    # Its two long sides are bare from x -2 to 1, where the tall box begins; its back end is whole.
    assert [sorted(pair) for pair in low] == [[-2, -2], [-2, 1], [-2, 1]]
    assert sum(e[0, 2] == 0.5 for e in edges) == 4


def test_an_edge_is_cut_where_a_slope_rises_through_it():
    ground = Box(center=(0, 0, -3), half_extents=(5, 5, 1), kind="ground")
    level = Box(center=(-0.5, 0, -0.5), half_extents=(1, 1, 0.5), kind="step")
    half = np.arctan2(0.5, 1.0) / 2
    tilted = Box(
        center=(0.5, 0, 0),
        half_extents=(1, 2, 0.001),
        quat=(float(np.sin(half)), 0, 0, float(np.cos(half))),
        kind="stone",
    )
    field = BoxField([ground, level, tilted], void_height=-4)
    bounds = Bounds(x_min=-5, x_max=5, y_min=-5, y_max=5)

    edges = field.exposed_edges(min_drop_m=0.05, bounds=bounds)
    ends = [e[:, 1] for e in edges if np.allclose(e[:, 0], 0.5) and np.allclose(e[:, 2], 0.0)]
    # Half the slope (z = y / 2) is above the level box: only y < 0 is bare, and it drops by more
    # than 0.05 m where y < -0.1.
    assert len(ends) == 1
    assert sorted(ends[0]) == pytest.approx([-1.0, -0.1], abs=5e-3)


@given(
    name=st.sampled_from(NAMES),
    difficulty=st.floats(0, MAX_DIFFICULTY),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=30, deadline=None)
def test_any_course_in_range_can_be_built(name, difficulty, seed):
    course = make_course(name, difficulty, seed)
    assert len(course.waypoints) == 8
    assert (np.diff(course.waypoints[:, 0]) > 0).all()
    assert np.isfinite(course.edges).all()
    assert course.lane_half_width >= 1.6


def test_a_tile_without_border_has_no_edges_on_its_rim():
    tile = make_course("gap", 0.5, border_m=0.0)
    assert not boxes_of(tile, "border")
    assert tile.edges[..., 0].min() > 2.5
    assert np.abs(tile.edges[..., 1]).max() < 3.0 + 1e-9
    whole = make_course("gap", 0.5)
    assert np.allclose(whole.waypoints, tile.waypoints)


def test_a_course_cannot_be_changed():
    course = make_course("steps")
    with pytest.raises(ValueError, match="read-only"):
        course.waypoints[0, 0] = 1.0
    with pytest.raises(AttributeError):
        course.length_m = 3.0


def test_an_unknown_course_names_the_nearest_and_all():
    with pytest.raises(UnknownCourse, match=r"'hurdles'; did you mean 'hurdle'\? choose from flat"):
        make_course("hurdles")
    with pytest.raises(UnknownCourse, match=r"'xyzzy'; choose from flat, steps, gap"):
        make_course("xyzzy")


@pytest.mark.parametrize("difficulty", [-0.1, 2.6, float("nan")])
def test_difficulty_out_of_range_is_refused_with_the_range(difficulty):
    with pytest.raises(CourseError, match=r"outside 0 to 2\.5"):
        make_course("gap", difficulty)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(CourseError, match="whole number"):
        make_course("gap", 0.5, seed)


def test_a_negative_border_is_refused():
    with pytest.raises(CourseError, match="border_m"):
        make_course("gap", border_m=-1.0)


@pytest.mark.parametrize("name", ALL)
def test_every_box_of_the_mesh_is_closed_and_has_the_right_volume(name):
    course = make_course(name, 0.5)
    mesh = course.to_trimesh()
    assert len(mesh.faces) == 12 * len(course.boxes)
    for index, box in enumerate(course.boxes):
        part = trimesh.Trimesh(box.corners, mesh.faces[12 * index : 12 * index + 12] - 8 * index)
        assert part.is_watertight
        assert part.is_winding_consistent
        assert part.volume == pytest.approx(8 * np.prod(box.half_extents))


def test_stl_is_z_up_and_glb_y_up(tmp_path):
    course = make_course("steps", 1.0)
    for name, up in (("course.stl", 2), ("course.glb", 1)):
        course.export(tmp_path / name)
        mesh = trimesh.load(tmp_path / name, force="mesh")
        assert mesh.bounds[1, up] == pytest.approx(1.35, abs=1e-5)
        assert mesh.bounds[1, 0] == pytest.approx(course.bounds.x_max, abs=1e-5)


def test_export_to_an_unknown_suffix_names_the_possible_ones(tmp_path):
    with pytest.raises(CourseError, match=r"'course\.step'.*\.glb, \.stl, \.obj, \.ply"):
        make_course("flat").export(tmp_path / "course.step")


def test_export_into_a_missing_folder_says_so(tmp_path):
    with pytest.raises(CourseError, match="cannot write"):
        make_course("flat").export(tmp_path / "missing" / "course.stl")


def test_mujoco_sees_the_same_ground(tmp_path):

    course = make_course("ramps", 1.0, seed=2)
    spec = mujoco.MjSpec()
    course.add_to_mjspec(spec)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)

    assert model.ngeom == len(course.boxes)
    assert set(model.geom_group) == {0}
    rng = np.random.default_rng(1)
    geom = np.zeros(1, dtype=np.int32)
    for x, y in rng.uniform((0, -3), (12, 3), (200, 2)):
        hit = mujoco.mj_ray(
            model, data, np.array([x, y, 5.0]), np.array([0, 0, -1.0]), None, 1, -1, geom
        )
        assert 5.0 - hit == pytest.approx(float(course.height_at(x, y)), abs=1e-5)


def test_describe_tells_what_there_is_to_climb():
    text = make_course("hurdle", 0.5, 3).describe()
    assert "hurdle: six bars to climb over" in text
    assert "difficulty 0.5, seed 3" in text
    assert "6 hurdle; no pit" in text
    assert "8 waypoints" in text
