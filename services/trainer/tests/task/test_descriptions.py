"""The robot's URDF as pinocchio loads it, which Isaac Lab brings."""

import numpy as np
import pinocchio
import pytest
from krabby.robot.assets import assets_dir
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions


@pytest.mark.parametrize("name", ["crab_hex", "crab_hex_rs"])
def test_pinocchio_has_the_joints_masses_and_feet_of_the_table(name):
    folder = assets_dir() / name
    desc = RobotDescription.load(folder / "robot.toml")
    urdf = str(folder / f"{name}.urdf")
    model = pinocchio.buildModelFromUrdf(urdf, pinocchio.JointModelFreeFlyer())
    assert (model.nq, model.nv) == (7 + 18, 6 + 18)
    assert sorted(list(model.names)[2:]) == sorted(desc.joint_names)
    data = model.createData()
    assert pinocchio.computeTotalMass(model, data) == pytest.approx(desc.masses.total, rel=1e-6)

    angles = desc.default_joint_pos + np.linspace(-0.3, 0.3, 18)
    q = pinocchio.neutral(model)
    for joint, angle in zip(desc.joint_names, angles, strict=True):
        index = model.joints[model.getJointId(joint)].idx_q
        q[index] = angle
        low, high = model.lowerPositionLimit[index], model.upperPositionLimit[index]
        i = desc.joint_index(joint)
        assert (low, high) == pytest.approx((desc.joint_lower[i], desc.joint_upper[i]))
        effort = model.effortLimit[model.joints[model.getJointId(joint)].idx_v]
        assert effort == pytest.approx(np.broadcast_to(desc.peak_torque, 18)[i])
    pinocchio.framesForwardKinematics(model, data, q)
    feet = [data.oMf[model.getFrameId(foot)].translation for foot in desc.foot_names]
    np.testing.assert_allclose(feet, foot_positions(desc, angles), atol=1e-9)
