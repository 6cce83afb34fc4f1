"""Feet and joint angles: hand-worked poses, MuJoCo as the judge, and the way back."""

import math
from dataclasses import replace

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krabby.mujoco.model import ModelIndex, build_model, set_robot_state
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import (
    foot_positions,
    leg_ik,
    standing_height,
    torque_speed_limit,
)
from krabby.robot.rotations import IDENTITY

ROBOT = RobotDescription.load()


@st.composite
def joint_positions(draw):
    shares = np.array([draw(st.floats(0.0, 1.0)) for _ in range(18)])
    return ROBOT.joint_lower + shares * (ROBOT.joint_upper - ROBOT.joint_lower)


def test_a_straight_leg_reaches_its_whole_length_outwards():
    feet = foot_positions(ROBOT, np.zeros(18))
    # Middle left: y = 0.3048 + 0.08 + 0.6096 + 0.6858
    np.testing.assert_allclose(feet[1], [0.0, 1.6802, 0.0], atol=1e-12)
    np.testing.assert_allclose(feet[4], [0.0, -1.6802, 0.0], atol=1e-12)


def test_positive_hip_pitch_lifts_and_positive_yaw_turns_counter_clockwise():
    joints = np.zeros((6, 3))
    joints[:, 1] = math.pi / 2
    lifted = foot_positions(ROBOT, joints.reshape(18))
    np.testing.assert_allclose(lifted[:, 2], 0.6096 + 0.6858)
    joints = np.zeros((6, 3))
    joints[:, 0] = 0.5
    turned = foot_positions(ROBOT, joints.reshape(18))
    assert turned[1, 0] < 0.0 < turned[4, 0]  # left leg goes back, right leg forward


def test_default_pose_stands_0_449_m_high_with_rigid_joints():
    # 0.03 - (0.6096 sin(0.45) + 0.6858 sin(-1.5)) = 0.4489
    assert standing_height(ROBOT) == pytest.approx(0.4489, abs=1e-4)


def test_feet_are_where_mujoco_puts_them():
    model = build_model(ROBOT, visuals=False)
    data = mujoco.MjData(model)
    index = ModelIndex.of(model, ROBOT)
    rng = np.random.default_rng(0)
    for joint_pos in rng.uniform(ROBOT.joint_lower, ROBOT.joint_upper, size=(50, 18)):
        set_robot_state(
            model, data, index, base_pos_w=(0, 0, 0), base_quat_w=IDENTITY, joint_pos=joint_pos
        )
        feet = foot_positions(ROBOT, joint_pos)
        np.testing.assert_allclose(data.site_xpos[index.foot_site], feet, atol=1e-6)
        np.testing.assert_allclose(data.geom_xpos[index.foot_geom], feet, atol=1e-6)


@settings(deadline=None)
@given(joint_positions())
def test_inverse_kinematics_puts_the_feet_back(joint_pos):
    # A foot pulled in behind its own yaw axis is reached by another yaw, or not at all.
    joint_pos = joint_pos.reshape(6, 3)
    joint_pos[:, 1] = np.maximum(joint_pos[:, 1], -0.4 - 0.5 * joint_pos[:, 2])
    joint_pos = np.minimum(joint_pos.reshape(18), ROBOT.joint_upper)
    feet = foot_positions(ROBOT, joint_pos)
    solved = leg_ik(ROBOT, feet)
    np.testing.assert_allclose(foot_positions(ROBOT, solved), feet, atol=1e-7)
    assert (solved.reshape(6, 3)[:, 2] <= 0.0).all()


def test_inverse_kinematics_returns_the_default_pose():
    solved = leg_ik(ROBOT, foot_positions(ROBOT, ROBOT.default_joint_pos))
    np.testing.assert_allclose(solved, ROBOT.default_joint_pos, atol=1e-12)


def test_a_foot_out_of_reach_gets_the_straight_leg_that_points_at_it():
    feet = foot_positions(ROBOT, ROBOT.default_joint_pos)
    feet[1] = (0.0, 5.0, 0.0)
    solved = leg_ik(ROBOT, feet).reshape(6, 3)
    np.testing.assert_allclose(solved[1], [0.0, 0.0, 0.0], atol=1e-12)


def test_batches_give_what_single_poses_give():
    rng = np.random.default_rng(1)
    joint_pos = rng.uniform(ROBOT.joint_lower, ROBOT.joint_upper, size=(4, 5, 18))
    feet = foot_positions(ROBOT, joint_pos)
    assert feet.shape == (4, 5, 6, 3)
    np.testing.assert_array_equal(feet[2, 3], foot_positions(ROBOT, joint_pos[2, 3]))
    assert leg_ik(ROBOT, feet).shape == (4, 5, 18)


def test_torque_falls_to_zero_at_the_no_load_speed_and_brakes_at_peak():
    joint_vel = np.repeat([[0.0], [10.0], [20.0], [30.0], [-10.0]], 18, axis=1)
    lowest, highest = torque_speed_limit(ROBOT, joint_vel)
    # 120 N·m at rest, half of it at half of 20 rad/s, none at or beyond
    assert highest[:, 7].tolist() == [120.0, 60.0, 0.0, 0.0, 120.0]
    assert lowest[:, 7].tolist() == [-120.0, -120.0, -120.0, -120.0, -60.0]


def test_each_drive_has_its_own_torque_and_speed():
    kinds = {"peak_torque": [60.0, 120.0, 90.0] * 6, "no_load_speed": [40.0, 20.0, 10.0] * 6}
    robot = replace(ROBOT, **{key: np.array(values) for key, values in kinds.items()})
    _, highest = torque_speed_limit(robot, np.full(18, 5.0))
    # 60 (1 - 5/40), 120 (1 - 5/20), 90 (1 - 5/10)
    assert highest[:3].tolist() == [52.5, 90.0, 45.0]
