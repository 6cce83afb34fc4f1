"""The mirror image: an involution that agrees with kinematics, terrain and the observations."""

import pytest
import torch
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions
from krabby_trainer.errors import ConfigError
from krabby_trainer.learn.networks import GROUP_SIZES
from krabby_trainer.learn.symmetry import action_reflection, mirror, reflections
from krabby_trainer.task import observations
from tensordict import TensorDict

ROBOT = RobotDescription.load()
DEFAULT = torch.tensor(ROBOT.default_joint_pos, dtype=torch.float32)
MIRRORED_LEGS = [3, 4, 5, 0, 1, 2]
VECTOR = torch.tensor([1.0, -1.0, 1.0])
ROTATION = -VECTOR


def random_groups(count):
    return TensorDict(
        {name: torch.randn(count, size) for name, size in GROUP_SIZES.items()}, batch_size=[count]
    )


@pytest.mark.parametrize("name", [*GROUP_SIZES, "actions"])
def test_twice_mirrored_is_as_before(name):
    reflect = reflections()[name]
    values = torch.randn(5, GROUP_SIZES.get(name, 18))
    assert not torch.equal(reflect(values), values)
    torch.testing.assert_close(reflect(reflect(values)), values, rtol=0.0, atol=0.0)


def test_mirrored_joint_angles_give_mirrored_feet():
    generator = torch.Generator().manual_seed(0)
    joint_pos = 0.5 * torch.randn(20, 18, generator=generator, dtype=torch.float64)
    feet = foot_positions(ROBOT, joint_pos)
    reflected = foot_positions(ROBOT, action_reflection()(joint_pos))
    expected = torch.tensor(feet)[:, MIRRORED_LEGS] * VECTOR
    torch.testing.assert_close(torch.tensor(reflected), expected, rtol=0.0, atol=1e-12)


def test_left_front_yaw_becomes_right_front_yaw_the_other_way_round():
    actions = torch.zeros(1, 18)
    actions[0, ROBOT.joint_index("lf_hip_yaw")] = 0.3
    actions[0, ROBOT.joint_index("lf_knee")] = -0.2
    reflected = action_reflection()(actions)[0]
    assert reflected[ROBOT.joint_index("rf_hip_yaw")] == pytest.approx(-0.3)
    assert reflected[ROBOT.joint_index("rf_knee")] == pytest.approx(-0.2)
    assert reflected.count_nonzero() == 2


def test_the_default_pose_is_its_own_mirror_image():
    torch.testing.assert_close(action_reflection()(DEFAULT), DEFAULT)


def test_a_scan_point_goes_to_the_point_across_the_middle():
    points = observations.SCAN_POINTS_B[reflections()["scan"].index]
    torch.testing.assert_close(points, observations.SCAN_POINTS_B * torch.tensor([1.0, -1.0]))


def test_the_scan_of_mirrored_ground_is_the_mirrored_scan():
    def ground(xy):
        return 0.1 * xy[..., 0] + 0.3 * torch.tanh(xy[..., 1]) + 0.2 * xy[..., 0] * xy[..., 1]

    def mirrored_ground(xy):
        return ground(xy * torch.tensor([1.0, -1.0]))

    position = torch.tensor([[0.4, 0.7, 0.5]])
    yaw = torch.tensor([0.0, 0.0, 0.2, 0.98])[None]
    yaw = yaw / yaw.norm()

    def scanned(height_at, pos, quat):
        return observations.scan(height_at(observations.scan_points(pos, quat)), pos)

    seen = scanned(ground, position, yaw)
    across = scanned(mirrored_ground, position * VECTOR, mirrored_quat(yaw))
    torch.testing.assert_close(across, reflections()["scan"](seen), rtol=0.0, atol=1e-6)


def mirrored_quat(quat):
    return quat * torch.tensor([-1.0, 1.0, -1.0, 1.0])


def test_the_observation_of_a_mirrored_robot_is_the_mirrored_observation():
    torch.manual_seed(1)
    quat = torch.nn.functional.normalize(torch.randn(3, 4), dim=-1)
    joints, speeds, actions = torch.randn(3, 3, 18)
    rates, nav, contact = torch.randn(3, 3), torch.randn(3, 3), torch.rand(3, 6) < 0.5
    flip = action_reflection()
    seen = observations.proprio(
        base_quat_w=quat,
        base_ang_vel_b=rates,
        joint_pos=joints,
        joint_vel=speeds,
        foot_contact=contact,
        nav_command=nav,
        last_action=actions,
        default_joint_pos=DEFAULT,
    )
    across = observations.proprio(
        base_quat_w=mirrored_quat(quat),
        base_ang_vel_b=rates * ROTATION,
        joint_pos=flip(joints),
        joint_vel=flip(speeds),
        foot_contact=contact[:, MIRRORED_LEGS],
        nav_command=nav * torch.tensor([1.0, -1.0, -1.0]),
        last_action=flip(actions),
        default_joint_pos=DEFAULT,
    )
    torch.testing.assert_close(across, reflections()["proprio"](seen), rtol=0.0, atol=1e-5)


def test_every_frame_of_the_history_is_mirrored_like_the_newest():
    frames = torch.randn(2, observations.HISTORY, observations.PROPRIO_SIZE)
    expected = reflections()["proprio"](frames)
    torch.testing.assert_close(reflections()["history"](frames.flatten(1)), expected.flatten(1))


def test_of_the_privileged_only_the_sideways_centre_of_mass_and_the_legs_change():
    kp, kd = 1.0 + 0.1 * torch.rand(2, 2, 18)
    values = {
        "friction": torch.rand(2, 1),
        "added_mass_kg": torch.rand(2, 1),
        "command_delay": torch.rand(2, 1),
    }
    com = torch.randn(2, 3)
    swap = [leg * 3 + joint for leg in MIRRORED_LEGS for joint in range(3)]
    seen = observations.privileged(**values, com_offset_m=com, kp_factor=kp, kd_factor=kd)
    across = observations.privileged(
        **values, com_offset_m=com * VECTOR, kp_factor=kp[:, swap], kd_factor=kd[:, swap]
    )
    torch.testing.assert_close(across, reflections()["privileged"](seen))


def test_the_critic_sees_headings_turned_round_and_feet_swapped():
    torch.manual_seed(2)
    heading, following, distance, base, speed, progress = torch.randn(6, 4)
    feet = torch.randn(4, 6)
    same = {
        "goal_distance_m": distance,
        "base_height_m": base,
        "speed": speed,
        "episode_progress": progress,
    }
    seen = observations.critic_extra(
        heading_error=heading, next_heading_error=following, feet_height_m=feet, **same
    )
    across = observations.critic_extra(
        heading_error=-heading,
        next_heading_error=-following,
        feet_height_m=feet[:, MIRRORED_LEGS],
        **same,
    )
    torch.testing.assert_close(across, reflections()["critic"](seen))


def test_a_batch_is_followed_by_its_mirror_image():
    batch = {**dict(random_groups(3).items()), "actions": torch.randn(3, 18)}
    both = mirror(batch)
    assert set(both) == {*GROUP_SIZES, "actions"}
    for name, values in batch.items():
        assert torch.equal(both[name][:3], values)
        assert torch.equal(both[name][3:], reflections()[name](values))


def test_a_group_without_a_mirror_image_is_refused_by_name():
    with pytest.raises(ConfigError, match="'camera' has no mirror image"):
        mirror({"camera": torch.zeros(2, 5)})
