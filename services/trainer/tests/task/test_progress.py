"""Waypoints count, and the operator steers, by the rules of the simulated robot's mission."""

import math

import pytest
import torch
from krabby_trainer.task.progress import Progress, nav_command, wrap_angle

DT = 0.01
START = torch.tensor([[0.0, 0.0]])
WAYPOINTS = torch.tensor([[[2.0, 0.0, 0.0], [4.0, 0.0, 0.3], [4.0, 2.0, 0.0]]])


def make(pass_width_m=0.5):
    return Progress(1, "cpu", reach_m=0.2, dwell_s=0.1, pass_width_m=pass_width_m)


def stand(progress, x, y, steps=1):
    for _ in range(steps):
        progress.update(torch.tensor([[x, y]]), WAYPOINTS, START, DT)
    return int(progress.index)


def arrive(progress, count):
    """Reach the first `count` waypoints by standing on each."""
    for x, y, _ in WAYPOINTS[0, :count].tolist():
        stand(progress, x, y, 12)
    assert int(progress.index) == count


def test_a_waypoint_counts_after_a_tenth_of_a_second_near_it():
    progress = make(pass_width_m=0.0)
    assert stand(progress, 1.85, 0.0, 9) == 0
    assert stand(progress, 1.85, 0.0) == 1


def test_nearness_is_counted_anew_after_leaving():
    progress = make(pass_width_m=0.0)
    stand(progress, 1.85, 0.0, 9)
    stand(progress, 1.75, 0.0)
    assert stand(progress, 1.85, 0.0, 9) == 0
    assert stand(progress, 1.85, 0.0) == 1


def test_a_robot_beside_the_circle_never_reaches():
    # 0.15 m short and 0.15 m aside is 0.212 m away.
    assert stand(make(pass_width_m=0.0), 1.85, 0.15, 50) == 0


@pytest.mark.parametrize(
    ("x", "y", "reached"),
    [
        (2.01, 0.45, 1),
        (2.01, -0.45, 1),
        (2.45, 0.45, 1),
        (2.55, 0.0, 0),  # too far behind it
        (1.99, 0.45, 0),  # not yet at its side
        (2.01, 0.55, 0),  # too far to its side
    ],
)
def test_a_waypoint_passed_within_half_a_metre_counts_at_once(x, y, reached):
    assert stand(make(), x, y) == reached


def test_a_passed_waypoint_does_not_count_by_the_published_rule():
    assert stand(make(pass_width_m=0.0), 2.3, 0.0, 50) == 0


def test_passing_is_judged_along_the_leg_from_the_waypoint_before():
    progress = make()
    arrive(progress, 2)
    # The third leg leads to the left: y is ahead, x to the side.
    assert stand(progress, 4.4, 1.9) == 2
    assert stand(progress, 4.6, 2.1) == 2
    assert stand(progress, 4.4, 2.1) == 3


def test_only_one_waypoint_counts_in_a_step():
    progress = Progress(1, "cpu", reach_m=2.5, dwell_s=0.0, pass_width_m=0.0)
    assert stand(progress, 3.0, 0.0) == 1
    assert stand(progress, 3.0, 0.0) == 2


def test_nothing_is_reached_beyond_the_last_waypoint():
    progress = make()
    arrive(progress, 3)
    assert stand(progress, 4.0, 2.0, 30) == 3


def test_distance_is_the_furthest_along_the_lane():
    progress = make()
    stand(progress, 1.2, 0.3)
    stand(progress, 0.4, 0.3)
    assert float(progress.distance_m) == pytest.approx(1.2)


def test_a_reset_starts_over_for_the_robots_it_names():
    progress = Progress(2, "cpu", reach_m=0.2, dwell_s=0.1, pass_width_m=0.0)
    twice = WAYPOINTS.expand(2, -1, -1)
    for _ in range(15):
        progress.update(torch.tensor([[2.0, 0.0]]).expand(2, -1), twice, START.expand(2, -1), DT)
    progress.reset(torch.tensor([False, True]))
    assert progress.index.tolist() == [1, 0]
    assert progress.distance_m.tolist() == [2.0, 0.0]
    # The time near the waypoint is forgotten too.
    for _ in range(9):
        progress.update(torch.tensor([[2.0, 0.0]]).expand(2, -1), twice, START.expand(2, -1), DT)
    assert progress.index.tolist() == [1, 0]


def test_state_stays_in_the_same_memory():
    # What is recorded on a device reads and writes where it did when it was recorded.
    progress = make()
    before = [t.data_ptr() for t in (progress.index, progress.distance_m, progress._near_s)]
    arrive(progress, 2)
    after = [t.data_ptr() for t in (progress.index, progress.distance_m, progress._near_s)]
    assert before == after


# What lies ahead.


def test_the_goal_is_the_next_waypoint_seen_from_the_robot():
    progress = make()
    arrive(progress, 1)
    goal = progress.goal(torch.tensor([[1.0, -4.0]]), torch.tensor([0.5]), WAYPOINTS)
    assert goal.direction_w[0].tolist() == pytest.approx([0.6, 0.8])
    assert float(goal.distance_m) == pytest.approx(5.0)
    assert float(goal.heading_error) == pytest.approx(math.atan2(4, 3) - 0.5)
    assert float(goal.next_heading_error) == pytest.approx(math.atan2(6, 3) - 0.5)


def test_the_last_waypoint_stays_the_goal_and_the_one_after_it():
    progress = make()
    for reached in (2, 3):
        progress.index[:] = reached
        goal = progress.goal(torch.tensor([[4.0, 0.0]]), torch.zeros(1), WAYPOINTS)
        assert float(goal.distance_m) == pytest.approx(2.0)
        assert float(goal.heading_error) == pytest.approx(math.pi / 2)
        assert float(goal.next_heading_error) == pytest.approx(math.pi / 2)


def test_a_robot_on_its_goal_has_finite_directions():
    goal = make().goal(torch.tensor([[2.0, 0.0]]), torch.zeros(1), WAYPOINTS)
    assert goal.direction_w.tolist() == [[0.0, 0.0]]
    assert float(goal.distance_m) == 0.0


@pytest.mark.parametrize(
    ("angle", "expected"),
    [(0.0, 0.0), (3.5, 3.5 - math.tau), (-3.5, math.tau - 3.5), (7.0, 7.0 - math.tau), (3.0, 3.0)],
)
def test_angles_are_wrapped_to_half_a_turn(angle, expected):
    assert float(wrap_angle(torch.tensor(angle))) == pytest.approx(expected, abs=1e-6)


def test_heading_errors_are_the_short_way_round():
    waypoints = torch.tensor([[[-2.0, -0.2, 0.0]]])
    # The goal is behind, a little to the right; the robot looks behind, a little to the left.
    goal = make().goal(torch.zeros(1, 2), torch.tensor([3.1]), waypoints)
    expected = math.atan2(-0.2, -2.0) + math.tau - 3.1
    assert float(goal.heading_error) == pytest.approx(expected, abs=1e-6)


# What the operator says: the yaw rate is 1.5 per second of the error, 0.5 rad/s at most; the speed
# falls with its cosine, to nothing beyond 60 degrees.


@pytest.mark.parametrize(
    ("error", "vx", "yaw_rate"),
    [
        (0.0, 0.8, 0.0),
        (0.2, 0.784053, 0.3),
        (-0.2, 0.784053, -0.3),
        (0.4, 0.736849, 0.5),
        (-1.0, 0.432242, -0.5),
        (math.radians(59.9), 0.401209, 0.5),
        (math.radians(60.1), 0.0, 0.5),
        (-3.0, 0.0, -0.5),
    ],
)
def test_the_operator_turns_the_nose_to_the_goal_and_slows_down_while_turning(error, vx, yaw_rate):
    command = nav_command(torch.tensor([error]), torch.tensor([0.8]))
    assert command[0].tolist() == pytest.approx([vx, 0.0, yaw_rate], abs=1e-5)
