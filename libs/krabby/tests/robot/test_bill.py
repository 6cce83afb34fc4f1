"""The bill of masses: sums worked out by hand, and the robot that can be built."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from krabby.robot.assets import assets_dir
from krabby.robot.bill import LINKS, Bill, Drive, Part, inertials
from krabby.robot.description import RobotDescription

RS = RobotDescription.load(assets_dir() / "crab_hex_rs" / "robot.toml")
DRIVE = Drive(
    rated_torque=40.0,
    peak_torque=120.0,
    no_load_speed=20.0,
    armature=0.04,
    mass=1.2,
    size=(0.06, 0.05),
    source="test",
)
BALL = {"ball": Part(mass=1.0, sphere=0.1, source="test")}


def part(**values):
    return Part(source="test", **values)


def link(*parts, drives=None):
    """Mass properties of a link of these parts."""
    others = dict.fromkeys((name for name in LINKS if name != "hip"), BALL)
    bill = Bill(hip={str(i): each for i, each in enumerate(parts)}, **others)
    return inertials(bill, drives or {"rs": DRIVE})["hip"]


@pytest.mark.parametrize(
    ("values", "mass", "moments"),
    [
        # 12 (0.2² + 0.3²) / 12, and so on
        ({"mass": 12.0, "box": (0.1, 0.2, 0.3)}, 12.0, (0.13, 0.10, 0.05)),
        # 2 0.1² / 2 along x; 2 (3 0.1² + 0.6²) / 12 across
        ({"mass": 2.0, "cylinder": (0.1, 0.6)}, 2.0, (0.01, 0.065, 0.065)),
        # 4 kg/m over 0.5 m; 2 (0.2² + 0.1²) / 2 along y; 2 (3 0.05 + 0.25) / 12 across
        (
            {"per_metre": 4.0, "tube": (0.2, 0.1, 0.5), "axis": "y"},
            2.0,
            (0.2 / 3, 0.05, 0.2 / 3),
        ),
        ({"mass": 5.0, "sphere": 0.1}, 5.0, (0.02, 0.02, 0.02)),
        # 1.2 0.06² / 2 along z; 1.2 (3 0.06² + 0.05²) / 12 across
        ({"drive": "rs", "axis": "z"}, 1.2, (0.00133, 0.00133, 0.00216)),
    ],
)
def test_each_shape_has_the_moments_of_the_textbook(values, mass, moments):
    whole = link(part(**values))
    assert whole.mass == pytest.approx(mass)
    np.testing.assert_allclose(whole.moments, moments)
    assert whole.com.tolist() == [0.0, 0.0, 0.0]


def test_pieces_at_several_places_add_up_about_their_common_centre():
    # Two points of 1 kg at x 0 and 1 and a ball of 2 kg at x 1: 4 kg at x 0.75.
    # About it along y and z: 1 0.75² + 1 0.25² + 2 0.25² = 0.75, and the ball's 0.4 2 0.1² = 0.008.
    whole = link(
        part(mass=1.0, at=((0.0, 0.0, 0.0), (1.0, 0.0, 0.0))),
        part(mass=2.0, sphere=0.1, at=((1.0, 0.0, 0.0),)),
    )
    assert whole.mass == 4.0
    assert whole.com.tolist() == [0.75, 0.0, 0.0]
    np.testing.assert_allclose(whole.moments, [0.008, 0.758, 0.758])
    # Along x about the origin: 1 0² + 1 1² + 2 1², and half the ball's 0.008 that is along x.
    assert whole.spread_x == pytest.approx(3.004)


def test_a_link_that_is_not_level_has_tilted_principal_axes():
    # A dumb-bell along the diagonal between x and z has no moment about that diagonal but its own.
    ends = ((0.5, 0.0, 0.5), (-0.5, 0.0, -0.5))
    whole = link(part(mass=1.0, sphere=0.05, at=ends))
    c, s = math.cos(whole.tilt), math.sin(whole.tilt)
    axes = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    tensor = axes @ np.diag(whole.moments) @ axes.T
    # own 2 0.4 0.05² = 0.002; 2 1 kg 0.5² = 0.5 about x and z, product -0.5
    np.testing.assert_allclose(
        tensor, [[0.502, 0.0, -0.5], [0.0, 1.002, 0.0], [-0.5, 0.0, 0.502]], atol=1e-12
    )


def test_a_link_of_points_has_no_inertia_and_is_refused():
    with pytest.raises(
        ValueError, match=r"bill\.hip has moments .*; give at least one part a shape"
    ):
        link(part(mass=1.0))


def test_an_unknown_drive_is_named_with_those_that_have_a_mass():
    with pytest.raises(ValueError, match=r"bill\.hip\.0\.drive is 'x'; drives .* are rs"):
        link(part(drive="x"))


SIZE = st.floats(0.01, 0.5)
PLACE = st.tuples(st.floats(-1, 1), st.just(0.0), st.floats(-1, 1))


@given(st.lists(st.tuples(SIZE, SIZE, SIZE, PLACE), min_size=1, max_size=5))
def test_moments_are_positive_and_none_exceeds_the_other_two(boxes):
    whole = link(*(part(mass=10 * x, box=(x, y, z), at=(at,)) for x, y, z, at in boxes))
    a, b, c = sorted(whole.moments)
    assert 0.0 < a <= b <= c <= (a + b) * (1 + 1e-9)


def test_the_buildable_robot_weighs_46_9_kg():
    # hip: drive 1.42 + bracket 0.40; femur: 0.467 0.50 + 0.25 + 0.30 + 1.42 + 0.12;
    # tibia: 0.20 + 0.281 0.62 + 0.05; foot 0.12
    assert RS.masses.hip == pytest.approx(1.82)
    assert RS.masses.femur == pytest.approx(2.3235)
    assert RS.masses.tibia == pytest.approx(0.42422)
    assert RS.masses.foot == pytest.approx(0.12)
    # 6 drives 8.52, decks 1.40, mounts 1.20, struts 0.60, battery 3.58, computer 0.90, power 0.90,
    # wiring 0.80, IMU 0.015, camera 0.166 + 0.08, carapace 0.60
    assert RS.masses.body == pytest.approx(18.761)
    assert RS.masses.total == pytest.approx(18.761 + 6 * (1.82 + 2.3235 + 0.42422 + 0.12))


def test_the_drives_alone_leave_3_kg_of_what_crab_hex_declares():
    declared = RobotDescription.load(assets_dir() / "crab_hex" / "robot.toml").masses.total
    assert declared - 18 * 1.42 == pytest.approx(3.04)
    assert RS.rated_torque.tolist() == [40.0] * 18


def test_every_link_of_the_buildable_robot_is_a_body():
    for inertial in RS.inertials.values():
        a, b, c = sorted(inertial.moments)
        assert 0.0 < a <= b <= c < a + b


def test_a_tube_has_a_wall_and_a_robot_a_weight():
    with pytest.raises(ValueError, match="an outer radius above the inner one"):
        part(mass=1.0, tube=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"bill\.hip weighs .*; correct its masses"):
        link(part(mass=1e308, sphere=10.0), part(mass=1e308, sphere=10.0))
