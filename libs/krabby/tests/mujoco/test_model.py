"""The robot in MuJoCo: addresses, refusals, and that it stands."""

import dataclasses

import mujoco
import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.mujoco.model import (
    TERRAIN_GROUP,
    VISUAL_GROUP,
    ModelIndex,
    build_model,
    from_mujoco_quat,
    set_robot_state,
    to_mujoco_quat,
)
from krabby.robot.description import RobotDescription
from krabby.robot.errors import AssetError, ModelError
from krabby.robot.kinematics import standing_height
from krabby.robot.rotations import IDENTITY, from_euler

ROBOT = RobotDescription.load()


@pytest.fixture(scope="module")
def model():
    return build_model(ROBOT, visuals=False)


@pytest.fixture(scope="module")
def index(model):
    return ModelIndex.of(model, ROBOT)


@pytest.fixture
def standing(model, index):
    """The default pose, feet just touching the ground."""
    data = mujoco.MjData(model)
    set_robot_state(
        model,
        data,
        index,
        base_pos_w=(0.0, 0.0, standing_height(ROBOT)),
        base_quat_w=IDENTITY,
        joint_pos=ROBOT.default_joint_pos,
    )
    return data


def run(model, data, seconds: float) -> None:
    for _ in range(round(seconds / model.opt.timestep)):
        mujoco.mj_step(model, data)


def test_quaternions_cross_the_border_and_come_back():
    assert to_mujoco_quat([0.1, 0.2, 0.3, 0.9]).tolist() == [0.9, 0.1, 0.2, 0.3]
    assert from_mujoco_quat([0.9, 0.1, 0.2, 0.3]).tolist() == [0.1, 0.2, 0.3, 0.9]


def test_default_pose_stands_at_0_42_m_within_the_rated_torque(model, index, standing):
    run(model, standing, 3.0)
    effort = standing.actuator_force[index.actuator]
    assert standing.qpos[index.base_qpos + 2] == pytest.approx(0.42, abs=0.01)
    assert np.sqrt(np.mean(effort**2)) == pytest.approx(9.0, abs=2.0)
    assert (np.abs(effort) < ROBOT.rated_torque).all()
    assert np.abs(standing.qvel).max() < 1e-3


def test_standing_robot_does_not_creep(model, index, standing):
    run(model, standing, 3.0)
    before = standing.site_xpos[index.foot_site].copy()
    run(model, standing, 5.0)
    # Soft contacts let feet creep: measured 0.07 mm/s.
    assert np.abs(standing.site_xpos[index.foot_site] - before).max() < 1e-3


def test_standing_feet_carry_the_whole_weight(model, index, standing):
    run(model, standing, 3.0)
    # 28.6 kg * 9.81 m/s² = 280.6 N
    assert standing.sensordata[index.foot_touch].sum() == pytest.approx(280.6, rel=0.02)
    np.testing.assert_allclose(
        standing.sensordata[index.accelerometer], [0.0, 0.0, 9.81], atol=0.02
    )
    np.testing.assert_allclose(standing.sensordata[index.gyro], 0.0, atol=1e-3)


def test_feet_in_the_air_feel_nothing(model, index):
    data = mujoco.MjData(model)
    set_robot_state(
        model,
        data,
        index,
        base_pos_w=(0.0, 0.0, 1.0),
        base_quat_w=IDENTITY,
        joint_pos=ROBOT.default_joint_pos,
    )
    assert data.sensordata[index.foot_touch].tolist() == [0.0] * 6


def test_state_is_put_where_the_index_says(model, index):
    data = mujoco.MjData(model)
    joint_pos = np.linspace(-0.3, 0.0, 18)
    set_robot_state(
        model,
        data,
        index,
        base_pos_w=(1.0, 2.0, 3.0),
        base_quat_w=from_euler(0.0, 0.0, 1.0),
        joint_pos=joint_pos,
    )
    for i, name in enumerate(ROBOT.joint_names):
        assert data.joint(name).qpos[0] == joint_pos[i]
        assert data.actuator(name).ctrl[0] == joint_pos[i]
        assert model.joint(name).dofadr[0] == index.joint_dof[i]
    assert data.body("base").xpos.tolist() == [1.0, 2.0, 3.0]
    assert data.body("base").xquat.tolist() == pytest.approx([np.cos(0.5), 0, 0, np.sin(0.5)])


def test_folded_neighbouring_legs_collide_with_each_other(model, index):
    """Front leg swung back, middle leg forward: the femurs cross 0.25 m apart."""
    data = mujoco.MjData(model)
    joint_pos = ROBOT.default_joint_pos.copy()
    joint_pos[ROBOT.joint_index("lf_hip_yaw")] = 0.9
    joint_pos[ROBOT.joint_index("lm_hip_yaw")] = -0.9
    set_robot_state(
        model, data, index, base_pos_w=(0, 0, 2), base_quat_w=IDENTITY, joint_pos=joint_pos
    )
    legs = {model.geom(geom).name[:2] for contact in data.contact for geom in contact.geom}
    assert legs == {"lf", "lm"}


def test_no_pose_of_one_leg_collides_with_the_robot_s_own_hip(model, index):
    data = mujoco.MjData(model)
    rng = np.random.default_rng(0)
    lower, upper = ROBOT.joint_lower.copy(), ROBOT.joint_upper.copy()
    # Knees no further in than -2: beyond, a foot can reach the body, and then it should collide.
    lower.reshape(6, 3)[:, 2] = -2.0
    lower.reshape(6, 3)[:, 0] = upper.reshape(6, 3)[:, 0] = 0.0
    lower.reshape(6, 3)[:, 1] = 0.0
    for joint_pos in rng.uniform(lower, upper, size=(200, 18)):
        set_robot_state(
            model, data, index, base_pos_w=(0, 0, 2), base_quat_w=IDENTITY, joint_pos=joint_pos
        )
        assert data.ncon == 0


def test_visuals_change_nothing_but_the_looks(index):
    with_looks = build_model(ROBOT)
    without = build_model(ROBOT, visuals=False)
    assert (with_looks.geom_group == VISUAL_GROUP).sum() > 100
    assert (without.geom_group == VISUAL_GROUP).sum() == 0
    results = []
    for model in (with_looks, without):
        data = mujoco.MjData(model)
        mujoco.mj_resetDataKeyframe(model, data, 0)
        run(model, data, 0.5)
        results.append(data.qpos.copy())
    np.testing.assert_array_equal(*results)


def test_timestep_can_be_chosen():
    assert build_model(ROBOT, timestep_s=0.005, visuals=False).opt.timestep == 0.005


def test_a_course_takes_the_place_of_the_plane():
    course = make_course("steps")
    model = build_model(ROBOT, course, visuals=False)
    terrain = model.geom_type[model.geom_group == TERRAIN_GROUP]
    assert len(terrain) == len(course.boxes)
    assert set(terrain.tolist()) == {int(mujoco.mjtGeom.mjGEOM_BOX)}


def test_friction_is_the_foot_s_whatever_it_stands_on(model, standing):
    run(model, standing, 0.5)
    assert standing.ncon == 6
    for contact in standing.contact:
        assert contact.friction[0] == pytest.approx(ROBOT.contact.foot_friction)


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("joint_lower", "lower limit of lf_knee"),
        ("kp", "kp of lf_knee"),
        ("kd", "kd of lf_knee"),
    ],
)
def test_a_model_of_another_robot_is_refused_and_the_first_difference_named(field, what):
    values = getattr(ROBOT, field).copy()
    values[2] *= 0.5
    with pytest.raises(ModelError, match=rf"crab_hex\.xml: {what} is .* run `make assets`"):
        build_model(dataclasses.replace(ROBOT, **{field: values}))


def test_a_heavier_robot_than_the_model_is_refused():
    masses = dataclasses.replace(ROBOT.masses, body=12.0)
    with pytest.raises(ModelError, match=r"total mass is 28\.6 kg, robot\.toml says 30\.6 kg"):
        build_model(dataclasses.replace(ROBOT, masses=masses))


def test_joints_in_another_order_are_refused():
    names = ("rr_knee", *ROBOT.joint_names[1:17], "lf_hip_yaw")
    with pytest.raises(ModelError, match=r"joint 0 is lf_hip_yaw, robot\.toml says rr_knee"):
        build_model(dataclasses.replace(ROBOT, joint_names=names))


def test_missing_and_broken_files_say_what_to_run(tmp_path):
    path = tmp_path / "robot.xml"
    with pytest.raises(AssetError, match=r"cannot read .*; run `make assets`"):
        build_model(ROBOT, mjcf=path)
    path.write_text("<mujoco><nonsense/></mujoco>")
    with pytest.raises(AssetError, match=r"is not MJCF: .*; run `make assets`"):
        build_model(ROBOT, mjcf=path)
    path.write_text("<mujoco/>")
    with pytest.raises(ModelError, match=r"number of joints is 0, robot\.toml says 18"):
        build_model(ROBOT, mjcf=path)
