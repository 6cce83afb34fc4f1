"""Feet told from torques: hand-worked statics, MuJoCo as the judge, hysteresis."""

import mujoco
import numpy as np
import pytest
from krabby.mujoco.model import ModelIndex, build_model, set_robot_state
from krabby.robot import rotations
from krabby.robot.contact import ContactCfg, FootContacts
from krabby.robot.description import RobotDescription

ROBOT = RobotDescription.load()
LEVEL = rotations.IDENTITY
STILL = np.zeros(18)


def effort_for(joint_pos, load_n, quat_wb=LEVEL, joint_vel=STILL, joint_acc=STILL):
    """Torques of a robot whose feet push up with `load_n` (6,) and whose base rests, by MuJoCo."""
    model = build_model(ROBOT, visuals=False)
    data = mujoco.MjData(model)
    index = ModelIndex.of(model, ROBOT)
    set_robot_state(
        model, data, index, base_pos_w=(0, 0, 5), base_quat_w=quat_wb, joint_pos=joint_pos
    )
    data.qvel[index.joint_dof] = joint_vel
    mujoco.mj_forward(model, data)
    acceleration, inertial = np.zeros(model.nv), np.zeros(model.nv)
    acceleration[index.joint_dof] = joint_acc
    mujoco.mj_mulM(model, data, inertial, acceleration)
    effort = (data.qfrc_bias + inertial)[index.joint_dof]
    for leg, site in enumerate(index.foot_site):
        jacobian = np.zeros((3, model.nv))
        mujoco.mj_jacSite(model, data, jacobian, None, site)
        effort -= jacobian[2, index.joint_dof] * load_n[leg]
    return effort


def test_a_leg_stretched_out_sideways_weighs_at_its_hip_pitch_as_worked_by_hand():
    # Middle legs straight: 9.81 (1.5 * 0.3048 + 1.0 * (0.6096 + 0.3429) + 0.1 * 1.2954) = 15.0998
    effort = effort_for(STILL, np.zeros(6))
    assert effort[4] == pytest.approx(15.0998, abs=1e-3)
    contacts = FootContacts(ROBOT)
    contacts.update(ROBOT.default_joint_pos, STILL, effort_for(ROBOT.default_joint_pos,
        np.zeros(6)), LEVEL, 0)  # fmt: skip
    assert contacts.load_n == pytest.approx(np.zeros(6), abs=0.5)


@pytest.mark.parametrize("tilt", [0.0, 0.4])
def test_the_load_of_every_foot_is_what_presses_on_it(tilt):
    quat_wb = rotations.from_euler(tilt, -0.5 * tilt, 0.3)
    load_n = np.array([0.0, 30.0, 60.0, 90.0, 120.0, 10.0])
    joint_pos = ROBOT.default_joint_pos + 0.1 * np.sin(np.arange(18))
    contacts = FootContacts(ROBOT)
    contacts.update(joint_pos, STILL, effort_for(joint_pos, load_n, quat_wb), quat_wb, 0)
    assert contacts.load_n == pytest.approx(load_n, rel=0.03, abs=0.5)


def test_touching_takes_20_n_and_lifting_off_less_than_10():
    contacts = FootContacts(ROBOT)
    seen = []
    for load in (0.0, 15.0, 25.0, 15.0, 5.0, 15.0):
        effort = effort_for(ROBOT.default_joint_pos, np.full(6, load))
        # a second apart: no motion between
        down = contacts.update(ROBOT.default_joint_pos, STILL, effort, LEVEL, 0)
        seen.append(bool(down.all()) if down.all() == down.any() else None)
    assert seen == [False, False, True, True, False, False]


def test_the_torque_of_a_swing_is_not_taken_for_load():
    # A leg in the air that is being lifted faster: its torque alone looks like a pull on the foot.
    step_ns = 5_000_000
    joint_vel, joint_acc = STILL.copy(), STILL.copy()
    joint_vel[1], joint_acc[1] = 30.0 * 0.005, 30.0
    effort = effort_for(ROBOT.default_joint_pos, np.zeros(6), joint_acc=joint_acc)
    naive, contacts = FootContacts(ROBOT), FootContacts(ROBOT)
    naive.update(ROBOT.default_joint_pos, STILL, effort, LEVEL, 0)
    assert naive.load_n[0] < -20.0
    contacts.update(ROBOT.default_joint_pos, STILL, effort, LEVEL, 0)
    contacts.update(ROBOT.default_joint_pos, joint_vel, effort, LEVEL, step_ns)
    assert contacts.load_n[0] == pytest.approx(0.0, abs=1.0)


@pytest.mark.parametrize("seed", range(6))
def test_loads_are_found_in_any_pose_while_every_joint_speeds_up(seed):
    rng = np.random.default_rng(seed)
    quat_wb = rotations.from_euler(*rng.uniform(-0.4, 0.4, 2), rng.uniform(-3.0, 3.0))
    load_n = rng.uniform(0.0, 150.0, 6)
    step_s = 0.001
    joint_acc = rng.uniform(-30.0, 30.0, 18)
    joint_vel = rng.uniform(-4.0, 4.0, 18)
    joint_pos = ROBOT.default_joint_pos + rng.uniform(-0.3, 0.3, 18)
    contacts = FootContacts(ROBOT)
    for turn in range(2):
        effort = effort_for(joint_pos, load_n, quat_wb, joint_vel, joint_acc)
        contacts.update(joint_pos, joint_vel, effort, quat_wb, round(turn * step_s * 1e9))
        joint_pos = joint_pos + step_s * (joint_vel + 0.5 * step_s * joint_acc)
        joint_vel = joint_vel + step_s * joint_acc
    assert contacts.load_n == pytest.approx(load_n, rel=0.03, abs=1.0)


def test_thresholds_that_are_no_hysteresis_are_refused():
    with pytest.raises(ValueError, match="give 0 < off_n <= on_n"):
        ContactCfg(on_n=5.0, off_n=10.0)
