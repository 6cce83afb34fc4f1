import math

import mujoco
import numpy as np
import pytest
from krabby.mujoco.model import ModelIndex, build_model, from_mujoco_quat, set_robot_state
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions
from krabby.safety.trajectories import JointTrajectory, rest_joint_pos, sit_down, stand_up

BELLY = 0.0508
"""Base height with the belly on the ground: half the body box."""
STEP_S = 0.01


@pytest.fixture(scope="module")
def desc() -> RobotDescription:
    return RobotDescription.load()


def raised_middle_leg(desc):
    pose = desc.default_joint_pos.copy()
    pose[4] = 1.0
    return pose


def stretched(desc):
    return np.zeros(18)


def starts(desc):
    rng = np.random.default_rng(4)
    random = rng.uniform(desc.joint_lower, desc.joint_upper, (20, 18))
    return [rest_joint_pos(desc), stretched(desc), raised_middle_leg(desc), *random]


def test_at_rest_belly_and_feet_are_on_the_ground(desc):
    feet = foot_positions(desc, rest_joint_pos(desc))
    # In the base frame the ground is 0.0508 below; the centre of a foot is 0.03 above it.
    assert feet[:, 2] == pytest.approx(0.03 - BELLY)
    standing = foot_positions(desc, desc.default_joint_pos)
    assert feet[:, :2] == pytest.approx(standing[:, :2])


def test_the_resting_pose_is_one_that_the_gate_lets_through(desc):
    margin = desc.safety.position_margin_rad
    assert (rest_joint_pos(desc) >= desc.joint_lower + margin).all()
    assert (rest_joint_pos(desc) <= desc.joint_upper - margin).all()


def test_trajectories_begin_where_the_robot_is_and_end_in_the_pose_itself(desc):
    for start in starts(desc):
        for plan, end in ((stand_up, desc.default_joint_pos), (sit_down, rest_joint_pos(desc))):
            trajectory = plan(desc, start)
            assert trajectory.at(0.0).tolist() == start.tolist()
            assert trajectory.at(-1.0).tolist() == start.tolist()
            assert trajectory.at(trajectory.duration_s) == pytest.approx(end, abs=1e-12)
            assert trajectory.at(1e9) == pytest.approx(end, abs=1e-12)
            assert trajectory.duration_s < 5.0


def test_trajectories_are_slow_smooth_and_begin_and_end_at_rest(desc):
    for start in starts(desc):
        for plan in (stand_up, sit_down):
            speed = np.diff(plan(desc, start).points, axis=0) / STEP_S
            assert np.abs(speed).max() <= 0.151 * desc.velocity_limit.min()
            assert np.abs(speed[[0, -1]]).max() < 0.1
            assert np.abs(np.diff(speed, axis=0)).max() / STEP_S < 20.0  # [rad/s²]


def test_between_two_samples_a_trajectory_is_straight(desc):
    trajectory = JointTrajectory(np.array([[0.0], [0.1], [0.4]]))
    assert trajectory.duration_s == pytest.approx(0.02)
    assert trajectory.at(0.005) == pytest.approx(0.05)
    assert trajectory.at(0.0175) == pytest.approx(0.325)


def test_a_robot_on_its_feet_is_not_sat_down_to_stand_up(desc):
    trajectory = stand_up(desc, raised_middle_leg(desc))
    heights = foot_positions(desc, trajectory.points)[..., 2]
    assert heights[:, [0, 2, 3, 5]].max() < -0.4


def test_sitting_down_lowers_the_body_straight_between_the_feet(desc):
    trajectory = sit_down(desc, desc.default_joint_pos)
    feet = foot_positions(desc, trajectory.points)
    standing = foot_positions(desc, desc.default_joint_pos)
    assert np.abs(feet[..., :2] - standing[:, :2]).max() < 1e-9
    assert np.ptp(feet[..., 2], axis=1).max() < 1e-9


def test_a_robot_that_walks_gets_its_feet_under_itself_before_it_is_lowered(desc):
    pose = raised_middle_leg(desc)
    trajectory = sit_down(desc, pose, walking=True)
    assert trajectory.at(0.0).tolist() == pose.tolist()
    # Half-way after 0.15 s, standing from 0.3 to 0.6 s, lowered in 1.2 s.
    assert trajectory.at(0.15) == pytest.approx(0.5 * (pose + desc.default_joint_pos))
    for t_s in (0.3, 0.45, 0.6):
        assert trajectory.at(t_s) == pytest.approx(desc.default_joint_pos)
    assert trajectory.duration_s == pytest.approx(0.3 + 0.3 + 1.2)
    assert trajectory.at(1.8) == pytest.approx(rest_joint_pos(desc))


class Bench:
    """The robot on flat ground in MuJoCo, its drives obeying targets and the peak torque."""

    def __init__(self, desc: RobotDescription) -> None:
        self.model = build_model(desc, visuals=False)
        self.index = ModelIndex.of(self.model, desc)
        self.data = mujoco.MjData(self.model)
        self.desc = desc

    def place(self, joint_pos, height) -> None:
        set_robot_state(
            self.model,
            self.data,
            self.index,
            base_pos_w=[0.0, 0.0, height],
            base_quat_w=rotations.IDENTITY,
            joint_pos=joint_pos,
        )

    def damp(self, duration_s: float) -> float:
        """Lets the drives give way as the gate does; the fastest fall of the base [m/s]."""
        gain, bias = self.model.actuator_gainprm.copy(), self.model.actuator_biasprm.copy()
        self.model.actuator_gainprm[:] = 0.0
        self.model.actuator_biasprm[:, 1] = 0.0
        self.model.actuator_biasprm[:, 2] = -self.desc.safety.damp_kd
        fastest = 0.0
        for _ in range(round(duration_s / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)
            fastest = max(fastest, -self.data.qvel[self.index.base_dof + 2])
        self.model.actuator_gainprm[:], self.model.actuator_biasprm[:] = gain, bias
        return fastest

    def follow(self, trajectory: JointTrajectory) -> tuple[float, float]:
        """Runs it and one second more; largest torque [N·m] and tilt [rad] on the way."""
        torque = tilt = 0.0
        for i in range(round((trajectory.duration_s + 1.0) / STEP_S)):
            self.data.ctrl[self.index.actuator] = trajectory.at(i * STEP_S)
            for _ in range(round(STEP_S / self.model.opt.timestep)):
                mujoco.mj_step(self.model, self.data)
                torque = max(torque, np.abs(self.data.actuator_force).max())
            tilt = max(tilt, float(rotations.tilt(self.quat)))
        return torque, tilt

    @property
    def quat(self):
        start = self.index.base_qpos + 3
        return from_mujoco_quat(self.data.qpos[start : start + 4])

    @property
    def height(self) -> float:
        return self.data.qpos[self.index.base_qpos + 2]

    @property
    def joint_pos(self):
        return self.data.qpos[self.index.joint_qpos].copy()


@pytest.fixture
def bench(desc) -> Bench:
    return Bench(desc)


def test_a_robot_at_rest_stays_as_it_is_when_limp(bench, desc):
    bench.place(rest_joint_pos(desc), BELLY + 0.001)
    bench.damp(1.0)
    assert bench.height == pytest.approx(BELLY, abs=0.001)
    assert bench.joint_pos == pytest.approx(rest_joint_pos(desc), abs=0.01)


def test_standing_up_from_rest_and_sitting_down_again(bench, desc):
    bench.place(rest_joint_pos(desc), BELLY)
    torque, tilt = bench.follow(stand_up(desc, bench.joint_pos))
    assert torque < desc.rated_torque.min()
    assert tilt < 0.02
    assert bench.height == pytest.approx(0.42, abs=0.015)
    assert np.abs(bench.joint_pos - desc.default_joint_pos).max() < 0.08  # it sags a little
    assert math.hypot(*bench.data.qpos[:2]) < 0.01

    torque, tilt = bench.follow(sit_down(desc, desc.default_joint_pos))
    assert torque < desc.rated_torque.min()
    assert tilt < 0.02
    assert bench.height == pytest.approx(BELLY, abs=0.001)


def test_standing_up_with_the_legs_stretched_out_flat(bench, desc):
    bench.place(stretched(desc), BELLY)
    torque, tilt = bench.follow(stand_up(desc, bench.joint_pos))
    assert torque < desc.rated_torque.min()
    assert tilt < 0.02
    assert bench.height == pytest.approx(0.42, abs=0.015)


def test_standing_up_after_the_drives_gave_way(bench, desc):
    bench.place(desc.default_joint_pos, 0.42)
    fall_m_s = bench.damp(2.0)
    assert fall_m_s < 1.0  # free fall from there would be 2.7 m/s: damping lowers the body
    assert bench.height == pytest.approx(BELLY, abs=0.005)
    torque, tilt = bench.follow(stand_up(desc, bench.joint_pos))
    assert torque < desc.rated_torque.min()
    assert tilt < 0.02
    assert bench.height == pytest.approx(0.42, abs=0.015)


def test_standing_up_from_a_crooked_heap(bench, desc):
    rng = np.random.default_rng(0)
    pose = rest_joint_pos(desc) + rng.uniform(-0.3, 0.3, 18)
    bench.place(np.clip(pose, desc.joint_lower, desc.joint_upper), 0.5)
    bench.damp(2.0)
    torque, tilt = bench.follow(stand_up(desc, bench.joint_pos))
    assert torque < desc.peak_torque.min()
    assert tilt < 0.3
    assert bench.height == pytest.approx(0.42, abs=0.015)
