"""Rewards and terminations, by hand-worked numbers."""

import math
from types import SimpleNamespace

import pytest
import torch
from krabby.robot import kinematics
from krabby_trainer.task import rewards, terminations
from krabby_trainer.task.config import RewardCfg

TERMS = {reward.name: reward for reward in rewards.REWARDS}


def near(values):
    return pytest.approx(values, abs=1e-5)


def term(name, **step):
    """A term of the table, of a step with these values."""
    return TERMS[name].of(SimpleNamespace(**step))


def test_every_term_of_the_table_is_a_key_with_its_weight_and_a_meaning():
    assert vars(RewardCfg()) == {name: reward.weight for name, reward in TERMS.items()}
    assert len(TERMS) == len(rewards.REWARDS)
    assert all(reward.meaning.endswith(".") for reward in rewards.REWARDS)


def test_speed_towards_the_goal_is_a_share_of_what_was_asked_and_no_more_than_one():
    velocity = torch.tensor([[0.3, 0.4, 9.0], [0.8, 0.0, 0.0], [-0.5, 0.0, 0.0], [0.02, 0.0, 0.0]])
    direction = torch.tensor([[0.6, 0.8], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    speed = torch.tensor([1.0, 0.4, 0.5, 0.04])
    # Along the goal: 0.5 of 1; twice what was asked; backwards; and 0.05 m/s at least to divide by.
    assert rewards.goal_velocity(velocity, direction, speed).tolist() == near([0.5, 1.0, -1.0, 0.4])


def test_speed_sideways_to_the_goal_earns_nothing():
    velocity = torch.tensor([[0.0, 1.0, 0.0]])
    assert rewards.goal_velocity(velocity, torch.tensor([[1.0, 0.0]]), torch.ones(1)) == 0.0


def test_who_is_asked_to_stand_still_earns_by_standing_whatever_the_direction():
    velocity = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [-0.06, 0.08, 0.3]])
    earned = rewards.goal_velocity(velocity, torch.tensor([[1.0, 0.0]] * 3), torch.zeros(3))
    # exp(0), and exp(-1) at 0.1 m/s over ground, forwards or not.
    assert earned.tolist() == near([1.0, 0.3678794, 0.3678794])


def test_what_earns_all_is_less_than_commanded_by_the_slack_and_half_of_it_at_least():
    commanded = torch.tensor([0.5, 0.1, 0.02, 0.0])
    # 0.88 of each less 0.02; of 0.02 that would be below half; and standing stays standing.
    assert rewards.enough(commanded, [0.02, 0.12]).tolist() == near([0.42, 0.068, 0.01, 0.0])
    assert rewards.enough(commanded, [0.0, 0.0]).tolist() == near([0.5, 0.1, 0.02, 0.0])


def test_stature_is_what_the_base_is_too_high_above_the_feet_that_carry():
    soles = torch.zeros(4, 6, 3)
    soles[1, :3, 2], soles[1, 3:, 2] = 0.3, 9.0
    contact = torch.ones(4, 6, dtype=torch.bool)
    contact[1, 3:], contact[3] = False, False
    height = torch.tensor([0.5, 0.7, 0.3, 2.0])
    # 0.5 above 0; 0.7 above the three feet at 0.3; low enough; and nothing touches the ground.
    assert rewards.stature(height, soles, contact, 0.35).tolist() == near([0.15, 0.05, 0.0, 0.0])


def test_hurrying_costs_nothing_up_to_the_bound_and_the_excess_beyond():
    velocity = torch.tensor([[0.9, 0.0, 5.0], [0.9, 1.2, 0.0], [0.9, 1.2, 0.0]])
    speed = torch.tensor([0.3, 0.3, 1.3])
    # Over ground 0.9, 1.5 and 1.5 m/s against 1, 1 and 1.3.
    found = term(
        "overspeed",
        free=torch.tensor([False, False, False]),
        base_lin_vel_w=velocity,
        allowed_speed=speed.clamp(min=1.0),
    )
    assert found.tolist() == near([0.0, 0.5, 0.2])


def test_tracking_is_half_the_share_that_is_done_and_half_a_bell_round_what_is_asked():
    asked = torch.tensor([[0.4, 0.0]] * 4 + [[0.1, 0.0]] + [[0.0, 0.0]] * 3)
    velocity = torch.zeros(8, 2)
    velocity[:, 0] = torch.tensor([0.4, 0.8, -0.9, 0.4, 0.1, 0.0, 0.05, 0.05])
    velocity[3, 1] = 0.2
    width = torch.tensor([0.2] * 5 + [0.1] * 3)
    stands = torch.tensor([False] * 5 + [True, True, False])
    # As asked; twice as fast, exp(-4); far behind, at most -1; 0.2 m/s across, half of 0.4, and
    # exp(-1); 0.1 of 0.15 m/s at least; as still as asked; exp(-1) and exp(-1/4) at 5 cm/s; the
    # same while turning, 1 - 0.05 / 0.4.
    assert rewards.track(velocity, asked, width, stands).tolist() == near(
        [1.0, 0.5091578, -0.5, 0.4339397, 0.8333333, 1.0, 0.5733401, 0.8269004]
    )


def test_a_zero_command_earns_as_far_as_the_rest_of_the_command_is_obeyed():
    asked = torch.zeros(4, 2)
    other = torch.tensor([1.0, 0.5, -1.0, 0.0])
    stands = torch.tensor([False, False, False, True])
    found = rewards.tracks(asked, asked, torch.ones(4), other, stands)
    # 0.3 + 0.7 of the share; of a robot that is to stand nothing else is asked.
    assert found.tolist() == near([1.0, 0.65, 0.3, 1.0])
    walking = torch.tensor([[0.4, 0.0]])
    found = rewards.tracks(walking, walking, torch.ones(1), torch.zeros(1), stands[:1])
    assert found.tolist() == near([1.0])


def test_the_share_of_a_command_that_is_obeyed_counts_what_is_along_it():
    asked = torch.tensor([[0.3, 0.4], [0.3, 0.4], [0.0, 0.0], [-0.05, 0.0]])
    velocity = torch.tensor([[0.3, 0.4], [0.0, 0.25], [0.7, 0.0], [0.05, 0.0]])
    # 0.25 m/s to the left are 0.2 of 0.5 along it; a zero command is always obeyed.
    assert rewards.obeyed(velocity, asked, 0.1).tolist() == near([1.0, 0.4, 1.0, -0.5])


def test_heading_is_one_towards_the_goal_and_alike_to_both_sides():
    heading = term(
        "goal_heading",
        free=torch.tensor([False, False, False]),
        speed=torch.ones(3),
        goal=SimpleNamespace(heading_error=torch.tensor([0.0, 1.0, -1.0])),
    )
    assert heading.tolist() == near([1.0, 0.3678794, 0.3678794])


@pytest.mark.parametrize(
    ("reward", "key", "argument", "expected"),
    [
        ("vertical_velocity", "base_lin_vel_w", [5.0, 5.0, -0.3], 0.09),
        ("roll_pitch_rate", "base_ang_vel_b", [0.3, -0.4, 7.0], 0.25),
        ("orientation", "gravity_b", [0.3, -0.4, -0.8], 0.25),
    ],
)
def test_squares_are_summed_over_what_they_are_about(reward, key, argument, expected):
    assert term(reward, **{key: torch.tensor([argument])}).tolist() == near([expected])


def test_distances_from_the_pose_and_from_the_last_action_are_squared_and_summed():
    now, before = torch.tensor([[0.1, -0.2, 0.5]]), torch.tensor([0.0, 0.2, 0.5])
    deviation = term("joint_deviation", joint_pos=now, default_joint_pos=before)
    assert deviation.tolist() == near([0.17])
    assert term("action_rate", action=now, previous_action=before[None]).tolist() == near([0.17])


def test_feet_that_hang_for_longer_than_a_step_cost_their_height_where_there_is_ground():
    soles = torch.zeros(2, 6, 3)
    soles[:, :, 2] = torch.tensor([0.1, 0.1, 0.1, 0.4, 0.02, 0.0])
    air_s = torch.tensor([[0.5, 0.8, 2.0, 2.0, 1.0, 9.0]] * 2)
    ground = torch.zeros(2, 6)
    ground[1, 2:4] = -0.7  # out of reach from a base 0.42 m above 0
    found = term(
        "hanging_feet",
        soles_w=soles,
        air_s=air_s,
        foot_ground_w=ground,
        base_pos_w=torch.tensor([[0.0, 0.0, 0.42]] * 2),
    )
    # A step; half of 0.1; 0.1; at most 0.15; 0.02; on the ground. Then the same without two feet.
    assert found.tolist() == near([0.05 + 0.1 + 0.15 + 0.02, 0.05 + 0.02])


def test_torque_costs_its_square_above_four_fifths_of_the_rating():
    torque = torch.zeros(1, 18)
    torque[0, :4] = torch.tensor([32.0, -64.0, 48.0, 20.0])
    # At the bound; four times its square; 2.25 times; below. The rating of the others is no matter.
    found = term("overload", torque=torque, rated_torque=torch.full((18,), 40.0))
    assert found.tolist() == near([0.0 + 3.0 + 1.25])


def test_feet_cost_what_they_are_higher_above_the_base_than_is_free():
    soles = torch.zeros(2, 6, 3)
    soles[:, 0, 2], soles[:, 1, 2], soles[:, 2, 2] = 0.75, 0.52, 0.44
    # Above a base at 0.4 m and 5 cm: 0.3 and 0.07, the third 1 cm below; above one at 0.8 m none.
    base = torch.tensor([[0.0, 0.0, 0.4], [0.0, 0.0, 0.8]])
    high = term("feet_high", base_pos_w=base, soles_w=soles)
    assert high.tolist() == near([0.37, 0.0])


def test_torque_counts_relative_to_what_its_drive_is_rated_for():
    torque = torch.tensor([[3.0, -4.0, 6.0]])
    rated = torch.full((3,), 40.0)
    assert term("torque", torque=torque, rated_torque=rated).tolist() == near([61.0])
    # A drive rated at 20 N·m counts as if it gave twice the torque: 9 + 16 + 12².
    rated = torch.tensor([40.0, 40.0, 20.0])
    assert term("torque", torque=torque, rated_torque=rated).tolist() == near([169.0])


def test_power_is_torque_times_speed_in_either_direction():
    torque = torch.tensor([[10.0, -10.0, 30.0, 0.0]])
    joint_vel = torch.tensor([[2.0, 0.5, -1.0, 9.0]])
    assert term("power", torque=torque, joint_vel=joint_vel).tolist() == near(
        [55.0]
    )  # 20 + 5 + 30 + 0


def test_acceleration_is_the_change_of_speed_over_the_step():
    now, before = torch.tensor([[0.3, -0.4, 1.0]]), torch.tensor([[0.2, -0.2, 1.0]])
    # 10, -20 and 0 rad/s².
    found = term("joint_acceleration", joint_vel=now, previous_joint_vel=before, dt=0.01)
    assert found.tolist() == pytest.approx([500.0], rel=1e-5)


def test_joints_cost_from_the_margin_before_either_limit_on():
    position = torch.tensor([[0.0, -0.97, 0.99, 1.2, -1.3]])
    lower, upper = torch.full((5,), -1.0), torch.full((5,), 1.0)
    # Within 5 cm of a radian: 0.02, 0.04; beyond the limit: 0.2 and 0.3, and the margin.
    found = rewards.joint_limits(position, lower, upper, 0.05)
    assert found.tolist() == near([0.02 + 0.04 + 0.25 + 0.35])


def test_feet_cost_what_they_carry_beyond_the_robots_weight():
    force = torch.zeros(2, 6, 3)
    force[:, 0] = torch.tensor([0.0, 300.0, 400.0])  # 500 N
    force[:, 3] = torch.tensor([0.0, 0.0, 280.0])
    # 500 N are 2.5 weights of 200 N and 280 N are 1.4; of 400 N 1.25 and less than one.
    weight = torch.tensor([200.0, 400.0])
    found = term("contact_force", foot_force_w=force, weight_n=weight)
    assert found.tolist() == near([1.9, 0.25])


def test_effort_costs_from_the_folding_of_the_limit_on():
    # 0.8 of 40² is 1280: two joints below or at it, one at twice, one at 1.5 times.
    mean_square = torch.tensor([[0.0, 1280.0, 2560.0, 1920.0]])
    assert rewards.effort_budget(mean_square, 40.0, 0.8).tolist() == near([1.5 / 4])


def test_bodies_count_when_pressed_by_more_than_the_threshold_from_any_side():
    force = torch.tensor([[[0.6, 0.8, 0.0], [0.0, 0.0, -1.1], [3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]])
    assert rewards.bodies_touching(force).tolist() == [2.0]


@pytest.mark.parametrize(
    ("force", "stumbles"),
    [
        ([0.0, 9.0, 2.0], 1.0),  # 9 to the side, 8 allowed
        ([0.0, 7.0, 2.0], 0.0),
        ([3.0, 4.0, -1.0], 1.0),  # 5 to the side, 4 allowed, pulled or pushed
        ([0.9, 0.0, 0.0], 0.0),  # hardly a touch
    ],
)
def test_a_foot_pushed_sideways_more_than_four_times_its_load_stumbles(force, stumbles):
    feet = torch.zeros(1, 6, 3)
    feet[0, 4] = torch.tensor(force)
    assert rewards.stumble(feet).tolist() == [stumbles]


def test_two_stumbling_feet_are_one_stumble():
    assert rewards.stumble(torch.tensor([[[5.0, 0.0, 0.0], [0.0, 5.0, 1.0]]])).tolist() == [1.0]


def test_feet_on_an_edge_and_in_a_pit_are_counted():
    feet = torch.tensor([[True, False, True, True, False, False], [False] * 6])
    assert term("edge", on_edge=feet).tolist() == [3.0, 0.0]
    assert term("pit", in_pit=feet).tolist() == [3.0, 0.0]


def test_torque_is_squared_as_if_all_drives_were_rated_at_40():
    torque, rated = torch.tensor([[3.0, -4.0, 12.0]]), torch.tensor([40.0, 40.0, 20.0])
    # 9 + 16, and 24 squared for the drive of half the rating.
    assert term("torque", torque=torque, rated_torque=rated).tolist() == near([601.0])


def test_a_drive_gives_less_the_faster_it_turns_and_its_peak_against_the_motion():
    share = torch.tensor([0.0, 0.25, 1.0, 1.5, -0.75])
    low, high = kinematics.torque_envelope(share, 120.0, lambda x: x.clamp(0.0, 1.0))
    assert high.tolist() == near([120.0, 90.0, 0.0, 0.0, 120.0])
    assert low.tolist() == near([-120.0, -120.0, -120.0, -120.0, -30.0])


def test_a_robot_has_fallen_beyond_the_tilt_limit():
    tilt = torch.tensor([0.0, 0.99, 1.01, math.pi])
    gravity = torch.stack((torch.sin(tilt), torch.zeros(4), -torch.cos(tilt)), dim=-1)
    assert terminations.fallen(gravity, 1.0).tolist() == [False, False, True, True]


def test_rounding_does_not_make_an_upright_robot_fall():
    assert terminations.fallen(torch.tensor([[0.0, 0.0, -1.0000002]]), 1.0).tolist() == [False]


def test_a_robot_has_left_its_lane_beyond_half_its_width_to_either_side():
    y = torch.tensor([9.0, 11.9, 12.1, 5.9])
    position = torch.stack((torch.zeros(4), y, torch.zeros(4)), dim=-1)
    lost = terminations.left_lane(position, torch.full((4,), 9.0), 3.0)
    assert lost.tolist() == [False, False, True, True]


def test_a_crouch_is_what_the_base_lacks_to_ten_centimetres_below_the_stand():
    soles = torch.zeros(3, 6, 3)
    soles[1, :, 2] = 0.3
    base = torch.tensor([[0.0, 0.0, 0.21], [0.0, 0.0, 0.58], [0.0, 0.0, 0.35]])
    contact = torch.ones(3, 6, dtype=torch.bool)
    found = term(
        "crouch", base_pos_w=base, soles_w=soles, foot_contact=contact, stand_height_m=0.42
    )
    # 0.32 - 0.21; 0.32 - 0.28 above feet at 0.3; high enough.
    assert found.tolist() == near([0.11, 0.04, 0.0])


def test_targets_count_by_how_far_they_are_beyond_what_the_gate_lets_through():
    action = torch.tensor([[1.0, -2.0, 9.0], [0.0, 0.0, 0.0]])
    lower, upper = torch.full((3,), -0.5), torch.full((3,), 0.5)
    found = rewards.beyond_limits(action, torch.tensor([0.0, 0.0, 0.1]), lower, upper)
    # 0.4 is within, -0.8 is 0.3 beyond; 9 is cut to 6: 0.1 + 2.4 is 2 beyond.
    assert found.tolist() == near([2.3, 0.0])


def test_touchdowns_count_per_second_and_low_swings_by_what_they_lack():
    landed = torch.tensor([[True, True, True, False, False, False], [False] * 6])
    rise = torch.tensor([[0.0, 0.03, 0.2, 0.0, 0.0, 0.0], [0.0] * 6])
    assert term("touchdowns", landed=landed, dt=0.01).tolist() == near([300.0, 0.0])
    # Nothing of 6 cm, half of it, more.
    found = term("low_swing", landed=landed, rise_m=rise, dt=0.01)
    assert found.tolist() == near([150.0, 0.0])


def test_feet_that_are_missing_to_three_on_the_ground_count():
    contact = torch.tensor([[True] * n + [False] * (6 - n) for n in (6, 3, 1, 0)])
    assert term("few_feet", foot_contact=contact).tolist() == [0.0, 0.0, 2.0, 3.0]


def test_a_slope_is_what_rises_on_one_side_as_it_falls_on_the_other():
    # 30 degrees up, down; level; a riser ahead; the brink of a pit; 45 degrees; a slope that ends.
    ahead = torch.tensor([0.2887, -0.2887, 0.0, 0.3, -1.0, 0.5, 0.2])
    behind = torch.tensor([-0.2887, 0.2887, 0.0, 0.0, 0.0, -0.5, -0.15])
    found = rewards.ground_direction(ahead, behind)
    # Sine of the angle; that of atan(0.35) for the last.
    assert found.tolist() == pytest.approx([-0.5, 0.5, 0.0, 0.0, 0.0, 0.0, -0.33035], abs=1e-4)


def test_between_level_and_parallel_to_the_ground_no_tilt_counts():
    ground = torch.tensor([[-0.5, 0.0]]).expand(5, 2)
    gravity = torch.zeros(5, 3)
    gravity[:, 0] = torch.tensor([0.0, -0.5, -0.3, -0.7, 0.2])
    gravity[4, 1] = 0.1
    # Level, parallel, between; 0.2 beyond; the other way, and sideways.
    assert rewards.tilt(gravity, ground).tolist() == near([0.0, 0.0, 0.0, 0.04, 0.05])
    flat = rewards.tilt(gravity, torch.zeros(5, 2))
    assert torch.equal(flat, term("orientation", gravity_b=gravity))


def test_a_robot_that_approaches_something_impassable_may_walk_on_or_stand():
    velocity = torch.tensor([[0.4, 0.0, 0.0], [0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.4, 0.0, 0.0]])
    earned = term(
        "goal_velocity",
        free=torch.zeros(4, dtype=torch.bool),
        base_lin_vel_w=velocity,
        goal=SimpleNamespace(direction_w=torch.tensor([[1.0, 0.0]] * 4)),
        speed=torch.zeros(4),
        onward_speed=torch.full((4,), 0.4),
        approaches=torch.tensor([True, True, True, False]),
    )
    # As commanded; at rest; half of it; and near the obstacle exp(-4).
    assert earned.tolist() == near([1.0, 1.0, 0.5, 0.0183156])
