"""Rotations: hand-worked cases, and agreement with rotation matrices."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krabby.robot import rotations

HALF = math.sqrt(0.5)

angles = st.floats(-3.1, 3.1)
components = st.floats(-1.0, 1.0)
vectors = st.tuples(components, components, components).map(np.array)


@st.composite
def quats(draw):
    raw = np.array([draw(components) for _ in range(4)])
    norm = np.linalg.norm(raw)
    return rotations.IDENTITY if norm < 1e-3 else raw / norm


def test_a_quarter_turn_left_takes_forward_to_left():
    left_w = rotations.rotate([0.0, 0.0, HALF, HALF], [1.0, 0.0, 0.0])
    np.testing.assert_allclose(left_w, [0.0, 1.0, 0.0], atol=1e-15)


def test_gravity_points_down_the_base_when_upright():
    np.testing.assert_array_equal(rotations.projected_gravity(rotations.IDENTITY), [0.0, 0.0, -1.0])


def test_gravity_points_forward_when_the_nose_is_down():
    # A quarter turn about +y (nose down) brings the base's x axis to world -z.
    nose_down = rotations.from_euler(0.0, math.pi / 2, 0.0)
    np.testing.assert_allclose(rotations.projected_gravity(nose_down), [1.0, 0.0, 0.0], atol=1e-15)


def test_tilt_is_the_angle_to_the_vertical_whatever_the_heading():
    assert rotations.tilt(rotations.from_euler(0.3, 0.0, 2.0)) == pytest.approx(0.3)
    assert rotations.tilt(rotations.from_euler(math.pi, 0.0, 0.0)) == pytest.approx(math.pi)


def test_multiplication_applies_the_right_hand_rotation_first():
    turn_left = rotations.from_yaw(math.pi / 2)
    nose_down = rotations.from_euler(0.0, math.pi / 2, 0.0)
    # x goes down under nose_down, and stays down under a turn about z.
    down_w = rotations.rotate(rotations.mul(turn_left, nose_down), [1.0, 0.0, 0.0])
    np.testing.assert_allclose(down_w, [0.0, 0.0, -1.0], atol=1e-15)


def test_half_turns_survive_the_matrix_round_trip():
    # w is 0 here: the case where reading the quaternion off the trace divides by zero.
    for half_turn in np.eye(4)[:3]:
        np.testing.assert_allclose(rotations.from_matrix(rotations.to_matrix(half_turn)), half_turn)


def test_batches_keep_their_shape():
    quat = np.tile(rotations.IDENTITY, (5, 4, 1))
    assert rotations.rotate(quat, [1.0, 2.0, 3.0]).shape == (5, 4, 3)
    assert rotations.rotate([0, 0, 0, 1], np.ones((7, 3))).shape == (7, 3)
    assert rotations.yaw(quat).shape == (5, 4)
    assert rotations.from_yaw(np.zeros(6)).shape == (6, 4)
    assert rotations.normalize(2.0 * quat).tolist() == quat.tolist()


@settings(deadline=None)
@given(quats(), vectors)
def test_rotation_agrees_with_its_matrix_and_inverse(quat, vector):
    rotated = rotations.rotate(quat, vector)
    np.testing.assert_allclose(rotated, rotations.to_matrix(quat) @ vector, atol=1e-12)
    np.testing.assert_allclose(rotations.rotate_inverse(quat, rotated), vector, atol=1e-12)
    np.testing.assert_allclose(
        rotations.rotate(rotations.conjugate(quat), rotated), vector, atol=1e-12
    )


@settings(deadline=None)
@given(quats())
def test_projected_gravity_is_world_down_seen_from_the_base(quat):
    expected = rotations.rotate_inverse(quat, [0.0, 0.0, -1.0])
    np.testing.assert_allclose(rotations.projected_gravity(quat), expected, atol=1e-12)


@settings(deadline=None)
@given(quats())
def test_matrix_round_trip_returns_the_same_rotation(quat):
    back = rotations.from_matrix(rotations.to_matrix(quat))
    assert abs(np.dot(back, quat)) == pytest.approx(1.0, abs=1e-9)
    assert back[3] >= 0.0


@settings(deadline=None)
@given(angles, st.floats(-1.5, 1.5), angles)
def test_euler_angles_compose_as_in_urdf(roll, pitch, yaw):
    def about(axis: int, angle: float) -> np.ndarray:
        quat = np.zeros(4)
        quat[axis], quat[3] = math.sin(angle / 2), math.cos(angle / 2)
        return quat

    expected = rotations.mul(about(2, yaw), rotations.mul(about(1, pitch), about(0, roll)))
    quat = rotations.from_euler(roll, pitch, yaw)
    np.testing.assert_allclose(quat, expected, atol=1e-12)
    assert math.remainder(float(rotations.yaw(quat)) - yaw, 2 * math.pi) == pytest.approx(
        0, abs=1e-9
    )
