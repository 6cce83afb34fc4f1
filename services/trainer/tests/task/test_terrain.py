"""The ground that thousands of robots learn on is the courses that the runtime simulates."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from krabby.course.courses import EDGE_DISTANCE_M, PIT_DEPTH_M
from krabby_trainer.errors import ConfigError
from krabby_trainer.task.config import TerrainCfg
from krabby_trainer.task.terrain import BORDER_M, Terrain

TYPES = ["steps", "gap", "hurdle", "ramps", "mixed", "flat"]
CFG = TerrainCfg(types=TYPES, shares=[1.0] * 6, levels=2, columns=6)
BESIDE_M = 0.025 * np.arange(-3, 4)


@pytest.fixture(scope="module")
def terrain():
    return Terrain(CFG)


@pytest.fixture(scope="module")
def ground(terrain):
    return terrain.to("cpu")


def tiles(terrain):
    """Tile number, course and corner of every tile."""
    for level in range(terrain.levels):
        for column in range(terrain.columns):
            tile = level * terrain.columns + column
            yield tile, terrain.courses[level][column], terrain.corner(level, column)


def spread_around(course, xy):
    """How much the height varies round each point: large at an edge, 0 on level ground."""
    around = np.stack(np.meshgrid(BESIDE_M, BESIDE_M), axis=-1).reshape(-1, 2)
    heights = course.height_at(*(xy[:, None] + around).transpose(2, 0, 1))
    return np.ptp(heights, axis=1)


def random_points(course, count, rng):
    """In the middle of the tile, where the obstacles are."""
    return rng.uniform((0.1, -2.9), (course.length_m - 0.1, 2.9), (count, 2))


def single(values):
    return torch.tensor(values, dtype=torch.float32)


# Lookups against the courses.


def test_heights_are_those_of_the_courses_away_from_edges(terrain, ground):
    rng = np.random.default_rng(0)
    for _, course, corner in tiles(terrain):
        xy = random_points(course, 1500, rng)
        spread = spread_around(course, xy)
        clear = spread < 0.06
        assert clear.mean() > 0.7
        xy, spread = xy[clear], spread[clear]
        seen = ground.height_at(single(xy + corner[:2])).numpy()
        exact = course.height_at(*xy.T)
        # A cell has one height: that of its middle, which is one of those around the point.
        assert (np.abs(seen - exact) <= spread + 1e-5).all(), course.name


def test_a_slope_is_found_within_half_a_cell(terrain, ground):
    _, course, corner = next(t for t in tiles(terrain) if t[1].name == "ramps" and t[0] > 6)
    stone = next(box for box in course.boxes if box.kind == "stone")
    middle = np.array(stone.center[:2])
    steps = np.linspace(-0.3, 0.3, 61)[:, None] * np.array([0.0, 1.0])
    exact = course.height_at(*(middle + steps).T)
    seen = ground.height_at(single(middle + steps + corner[:2])).numpy()
    slope = np.abs(np.diff(exact)).max() / 0.01
    assert slope > 0.1
    assert np.abs(seen - exact).max() <= slope * 0.05


def test_beyond_the_tiles_the_ground_is_level(terrain, ground):
    length = terrain.levels * terrain.tile_length_m
    outside = [[-0.01, 3.0], [length + 0.01, 3.0], [3.0, -0.01], [3.0, 36.01], [-100.0, 1e5]]
    assert ground.height_at(single(outside)).tolist() == [0.0] * 5


def test_ground_beyond_a_short_course_is_filled_to_the_length_of_the_longest(terrain, ground):
    lengths = {round(course.length_m, 6) for _, course, _ in tiles(terrain)}
    assert len(lengths) > 1
    assert max(lengths) <= terrain.tile_length_m < max(lengths) + 0.05
    for _, course, corner in tiles(terrain):
        x = np.linspace(course.length_m + 0.03, terrain.tile_length_m - 0.03, 5)
        filled = single(np.stack((x, np.full(5, 1.3)), axis=-1) + corner[:2])
        if x[0] < x[-1]:
            assert ground.height_at(filled).abs().max() == 0.0


def test_feet_are_on_edges_where_the_courses_say_so(terrain, ground):
    rng = np.random.default_rng(1)
    for tile, course, corner in tiles(terrain):
        edges = course.edges
        if len(edges) == 0:
            points = np.column_stack([random_points(course, 60, rng), np.zeros(60)])
        else:
            start, stop = edges[rng.integers(len(edges), size=600)].transpose(1, 0, 2)
            points = start + rng.uniform(0, 1, (600, 1)) * (stop - start)
            points = points + rng.uniform(-0.08, 0.08, (600, 3))
        # Points where single precision could decide are left out.
        points = points[np.abs(course.distance_to_edge(points) - EDGE_DISTANCE_M) > 1e-4][:540]
        soles = single((points + corner)[: len(points) // 6 * 6].reshape(-1, 6, 3))
        found = ground.feet_on_edge(torch.full((len(soles),), tile), soles)
        expected = course.feet_on_edge(points)[: found.numel()].reshape(found.shape)
        assert np.array_equal(found.numpy(), expected), course.name
        assert expected.any() == (len(edges) > 0)
        assert not expected.all()


def test_points_are_in_pits_where_the_courses_say_so(terrain, ground):
    rng = np.random.default_rng(2)
    sunk = {}
    for tile, course, corner in tiles(terrain):
        xy = random_points(course, 2000, rng)
        xy = xy[spread_around(course, xy) < 0.1][:1200]
        z = rng.uniform(-PIT_DEPTH_M, 0.5, len(xy))
        z = np.where(np.abs(z - course.pit_entry_z) < 1e-4, 0.0, z)
        points = np.column_stack([xy, z]) + corner
        found = ground.in_pit(torch.tensor([tile]), single(points)[None])[0]
        expected = course.in_pit(*xy.T, z)
        assert np.array_equal(found.numpy(), expected), course.name
        sunk[course.name] = sunk.get(course.name, 0) + expected.sum()
    assert {name for name, count in sunk.items() if count > 0} == {"gap", "ramps", "mixed"}


def test_every_robot_is_looked_up_on_its_own_tile(terrain, ground):
    # The same place beside an edge of tile 1: an edge for a robot of tile 1 alone.
    beside = terrain.courses[0][1].edges[0].mean(axis=0) + terrain.corner(0, 1)
    beside = single(beside).expand(2, 1, 3)
    assert ground.feet_on_edge(torch.tensor([1, 8]), beside).flatten().tolist() == [True, False]


# Courses of other sizes.


@pytest.fixture(scope="module")
def wild():
    types = ["u-turn", "stepping-stones", "flat", "figure-eight", "gap-30"]
    return Terrain(
        TerrainCfg(types=types, shares=[1.0] * 5, levels=2, columns=5, difficulty_high=0.7)
    )


def test_columns_are_as_wide_as_their_courses(wild):
    assert wild.column_y.tolist() == [0.0, 8.0, 14.0, 20.0, 34.0, 42.0]
    ground = wild.to("cpu")
    assert ground.lane_y.tolist() == 2 * [4.0, 11.0, 17.0, 27.0, 38.0]
    assert ground.half_width.tolist() == 2 * [4.0, 3.0, 3.0, 7.0, 4.0]
    assert ground.raster.shape == (2 * round(wild.tile_length_m / 0.05), 840)
    assert wild.mesh.is_watertight


def test_lookups_agree_with_courses_of_every_size(wild):
    ground = wild.to("cpu")
    test_heights_are_those_of_the_courses_away_from_edges(wild, ground)
    test_feet_are_on_edges_where_the_courses_say_so(wild, ground)
    test_every_robot_is_looked_up_on_its_own_tile(wild, ground)


def test_edges_are_looked_up_among_those_nearby(wild):
    most = max(len(course.edges) for _, course, _ in tiles(wild))
    assert most > 200
    assert wild.to("cpu").edges.shape[2] < 80


# Layout.


def test_robots_start_in_the_middle_of_their_lane_a_metre_in(terrain, ground):
    length = terrain.tile_length_m
    assert terrain.tiles == 12
    assert terrain.origins.shape == (2, 6, 3)
    assert terrain.origins[0, 0].tolist() == [1.0, 3.0, 0.0]
    assert terrain.origins[1, 4].tolist() == pytest.approx([length + 1.0, 27.0, 0.0])
    np.testing.assert_allclose(ground.spawn, terrain.origins.reshape(-1, 3)[:, :2], atol=1e-5)
    assert ground.lane_y.tolist() == 2 * [3.0, 9.0, 15.0, 21.0, 27.0, 33.0]


def test_every_tile_has_its_course_in_the_world(terrain, ground):
    for tile, course, corner in tiles(terrain):
        assert course.name == TYPES[ground.type_id[tile]]
        assert course.seed == int(ground.seed[tile])
        assert course.difficulty == pytest.approx(float(ground.difficulty[tile]))
        np.testing.assert_allclose(ground.waypoints[tile], course.waypoints + corner, atol=1e-5)
        assert float(ground.pit_entry_z[tile]) == pytest.approx(course.pit_entry_z)


def test_the_mesh_is_closed_and_has_twelve_triangles_a_box(terrain):
    boxes = sum(len(course.boxes) for _, course, _ in tiles(terrain))
    short = sum(course.length_m < terrain.tile_length_m - 1e-6 for _, course, _ in tiles(terrain))
    assert terrain.mesh.is_watertight
    assert len(terrain.mesh.faces) == 12 * (boxes + short + 4)
    low, high = terrain.mesh.bounds
    length = terrain.levels * terrain.tile_length_m
    assert low[:2].tolist() == pytest.approx([-BORDER_M, -BORDER_M])
    assert high[:2].tolist() == pytest.approx([length + BORDER_M, 36.0 + BORDER_M])


def test_the_mesh_holds_every_box_where_its_tile_lies(terrain):
    vertices = {tuple(vertex) for vertex in terrain.mesh.vertices.round(4)}
    for _, course, corner in tiles(terrain):
        for box in course.boxes:
            assert {tuple(vertex) for vertex in (box.corners + corner).round(4)} <= vertices


# Which tiles there are.


def columns_per_type(shares, columns):
    types = TYPES[: len(shares)]
    terrain = Terrain(TerrainCfg(types=types, shares=shares, levels=1, columns=columns))
    assert (np.diff(terrain.type_id) >= 0).all()
    return np.bincount(terrain.type_id, minlength=len(shares)).tolist()


@pytest.mark.parametrize(
    ("shares", "columns", "expected"),
    [
        # 4.8, 4.8, 4.8, 6, 2.4 and 1.2 columns.
        ([0.2, 0.2, 0.2, 0.25, 0.1, 0.05], 24, [5, 5, 5, 6, 2, 1]),
        ([0.5, 0.5], 8, [4, 4]),
        ([3.0, 1.0], 8, [6, 2]),
        ([0.98, 0.01, 0.01], 5, [3, 1, 1]),
        ([0.5, 0.3, 0.2], 3, [1, 1, 1]),
    ],
)
def test_columns_follow_the_shares_and_every_type_has_one(shares, columns, expected):
    assert columns_per_type(shares, columns) == expected


def test_rows_rise_from_the_lowest_difficulty_to_the_highest():
    cfg = TerrainCfg(
        types=["flat"],
        shares=[1.0],
        levels=4,
        columns=2,
        difficulty_low=0.3,
        difficulty_high=1.5,
    )
    assert Terrain(cfg).difficulty.tolist() == [[0.3] * 2, [0.7] * 2, [1.1] * 2, [1.5] * 2]
    assert Terrain(replace(cfg, levels=1)).difficulty.tolist() == [[1.5, 1.5]]


def test_a_type_can_have_difficulties_of_its_own():
    cfg = TerrainCfg(
        types=["flat", "beam"],
        shares=[1.0, 1.0],
        levels=3,
        columns=2,
        difficulty_high=1.8,
        ranges={"beam": [0.25, 0.75]},
    )
    assert Terrain(cfg).difficulty.tolist() == [[0.0, 0.25], [0.9, 0.5], [1.8, 0.75]]
    drawn = Terrain(replace(cfg, levels=50, random_difficulty=True)).difficulty[:, 1]
    assert 0.25 <= drawn.min() < 0.35
    assert 0.65 < drawn.max() <= 0.75


@pytest.mark.parametrize(
    "name", ["stepping-stones", "beam", "rubble", "side-slope", "gap-45", "spiral"]
)
def test_what_is_held_out_cannot_be_trained_on(name):
    cfg = TerrainCfg(types=[name], shares=[1.0], levels=2, columns=1, difficulty_high=1.0)
    with pytest.raises(ConfigError, match=f"'{name}' is held out of training"):
        Terrain(cfg)


def test_drawn_difficulties_are_within_the_range_and_the_same_for_a_seed():
    cfg = TerrainCfg(types=["flat"], shares=[1.0], levels=8, columns=8, random_difficulty=True)
    drawn = Terrain(cfg).difficulty
    assert drawn.min() >= 0.0
    assert drawn.max() <= 1.8
    assert len(np.unique(drawn)) > 50
    assert np.array_equal(drawn, Terrain(cfg).difficulty)
    assert not np.array_equal(drawn, Terrain(replace(cfg, seed=1)).difficulty)


def test_every_tile_has_a_layout_of_its_own(terrain):
    assert len(np.unique(terrain.seeds)) == terrain.tiles
    assert not np.array_equal(terrain.seeds, Terrain(replace(CFG, seed=7)).seeds)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"types": ["steps", "stares"], "shares": [1.0, 1.0]}, ["types", "stares", "stairs"]),
        ({"types": [], "shares": []}, ["types", "nothing"]),
        ({"shares": [1.0, 1.0]}, ["shares", "[1.0, 1.0]", "each of"]),
        ({"shares": [1.0] * 5 + [0.0]}, ["shares", "0.0", "positive"]),
        ({"levels": 0}, ["0 levels", "at least 1 level"]),
        ({"columns": 5}, ["5 columns", "6 types"]),
        ({"difficulty_high": 2.6}, ["difficulty", "2.6", "0 to 2.5"]),
        ({"difficulty_low": -0.1}, ["difficulty", "-0.1"]),
        ({"difficulty_low": 1.0, "difficulty_high": 0.5}, ["from 1.0 to 0.5"]),
        ({"ranges": {"gap": [0.0, 2.6]}}, ["difficulty of gap", "2.6", "0 to 2.5"]),
        ({"ranges": {"beam": [0.0, 0.5]}}, ["ranges", "beam", "steps"]),
    ],
)
def test_a_terrain_that_cannot_be_is_refused_with_its_key_and_values(change, words):
    with pytest.raises(ConfigError) as refused:
        Terrain(replace(CFG, **change))
    for word in ["env.terrain", *words]:
        assert word in str(refused.value)


def test_half_of_the_waypoints_of_an_impassable_course_can_be_reached():
    terrain = Terrain(TerrainCfg(types=["wall", "flat"], shares=[1, 1], levels=1, columns=2))
    assert terrain.to("cpu").goals.tolist() == [4, 8]
    course = terrain.courses[0][0]
    front = next(box for box in course.boxes if box.kind == "wall")
    before = front.center[0] - front.half_extents[0]
    assert course.waypoints[3, 0] == pytest.approx(before - 0.8)
    assert course.waypoints[4, 0] > before
    ground = terrain.to("cpu")
    assert ground.barrier_x.tolist() == pytest.approx([before, math.inf])


def test_a_user_s_height_field_is_laid_out_beside_other_courses(tmp_path):
    path = tmp_path / "yard.npz"
    heights = np.zeros((60, 40))
    heights[20:40] = 0.2
    np.savez(path, heights=heights, cell_m=0.05)
    cfg = TerrainCfg(types=[str(path), "flat"], shares=[1.0, 1.0], levels=1, columns=2)
    terrain = Terrain(cfg)
    ground = terrain.to("cpu")
    # Its middle third, 1 to 2 m behind the platform of 2.5 m, is 0.2 m high; flat beside it is not.
    x = 2.5 + torch.tensor([0.5, 1.5, 2.5])
    for column, expected in ((0, [0.0, 0.2, 0.0]), (1, [0.0, 0.0, 0.0])):
        y = float(terrain.corner(0, column)[1])
        found = ground.height_at(torch.stack([x, torch.full_like(x, y)], dim=-1))
        assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert terrain.mesh.bounds[1, 2] == pytest.approx(0.2)
    assert ground.goals.tolist() == [8, 8]
