import math

import numpy as np
import pytest
from krabby.course.mission import pursue

HERE = np.zeros(2)


def test_straight_ahead_is_walked_at_full_speed():
    command = pursue(HERE, 0.0, np.array([3.0, 0.0]), 0.35)
    assert (command.vx, command.vy, command.yaw_rate) == pytest.approx((0.35, 0.0, 0.0))


def test_a_waypoint_to_the_left_turns_it_left_while_it_walks():
    # 20 degrees: 1.5 / s * 0.349 rad = 0.524, cut to 0.5; cos(20 deg) = 0.940.
    angle = math.radians(20.0)
    command = pursue(HERE, 0.0, np.array([math.cos(angle), math.sin(angle)]), 0.35)
    assert command.yaw_rate == pytest.approx(0.5)
    assert command.vx == pytest.approx(0.35 * 0.9397, abs=1e-4)


def test_small_errors_are_steered_in_proportion():
    command = pursue(HERE, 0.1, np.array([1.0, 0.0]), 0.35)
    assert command.yaw_rate == pytest.approx(-0.15)


def test_a_waypoint_behind_is_turned_to_before_walking():
    command = pursue(HERE, 0.0, np.array([-1.0, 0.1]), 0.35)
    assert command.vx == 0.0
    assert command.yaw_rate == 0.5


def test_headings_beyond_half_a_turn_take_the_short_way():
    # Heading 170 degrees, target at -170: 20 degrees to the left, not 340 to the right.
    target = np.array([math.cos(math.radians(-170)), math.sin(math.radians(-170))])
    assert pursue(HERE, math.radians(170), target, 0.35).yaw_rate == pytest.approx(0.5)


def test_it_never_walks_sideways():
    for angle in np.linspace(-math.pi, math.pi, 37):
        target = np.array([math.cos(angle), math.sin(angle)])
        assert pursue(HERE, 0.0, target, 0.35).vy == 0.0


def test_the_payload_is_three_floats():
    payload = pursue(HERE, 0.0, np.array([1.0, 0.0]), 0.35).as_array()
    assert payload.dtype == np.float32
    assert payload.shape == (3,)
