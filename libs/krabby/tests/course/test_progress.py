import math

import numpy as np
import pytest
from krabby.course.progress import CourseProgress, FallCfg, FallMonitor, FallReason, Pose2

MS = 1_000_000
WAYPOINTS = np.array([[2.0, 0.0, 0.0], [4.0, 0.0, 0.0], [4.0, 2.0, 0.0]])


@pytest.fixture
def progress():
    return CourseProgress(Pose2(1.0, 0.0, 0.0), WAYPOINTS, reach_m=0.25)


def walk(progress, points, start_ms=0):
    for step, point in enumerate(points):
        progress.update(np.array(point), (start_ms + 10 * step) * MS)


def line(begin, end, steps=101):
    return np.linspace(begin, end, steps)


def test_a_waypoint_counts_after_a_tenth_of_a_second_within_reach(progress):
    near = np.array([1.8, 0.0])
    reached = [progress.update(near, 10 * k * MS) for k in range(12)]
    assert reached.index(True) == 10  # 100 ms after the first
    assert progress.index == 1
    assert progress.target_xy == pytest.approx([4.0, 0.0])


def test_brushing_a_waypoint_for_a_moment_does_not_count(progress):
    for k in range(5):
        progress.update(np.array([1.8, 0.0]), 10 * k * MS)
    progress.update(np.array([1.5, 0.0]), 50 * MS)
    for k in range(6, 14):
        progress.update(np.array([1.8, 0.0]), 10 * k * MS)
    assert progress.index == 0


def test_walking_past_half_a_metre_beside_counts_further_out_does_not(progress):
    progress.update(np.array([2.05, 0.45]), 0)
    assert progress.index == 1
    progress.update(np.array([4.05, 0.55]), 10 * MS)
    assert progress.index == 1
    progress.update(np.array([4.55, 0.0]), 20 * MS)  # on the line, but too far behind it
    assert progress.index == 1
    progress.update(np.array([4.45, 0.0]), 30 * MS)
    assert progress.index == 2


def test_distance_is_measured_along_the_way(progress):
    walk(progress, line([1.0, 0.0], [3.0, 0.3]))
    assert progress.distance_m == pytest.approx(2.0)
    walk(progress, line([3.0, 0.3], [4.0, 0.0]), 2000)
    walk(progress, line([4.0, 0.0], [4.1, 1.0]), 4000)
    assert progress.distance_m == pytest.approx(3.0 + 1.0)


def test_walking_back_takes_nothing_away_and_adds_nothing(progress):
    walk(progress, line([1.0, 0.0], [1.6, 0.0]))
    walk(progress, line([1.6, 0.0], [1.2, 0.0]), 2000)
    walk(progress, line([1.2, 0.0], [1.5, 0.0]), 4000)
    assert progress.distance_m == pytest.approx(0.6)


def test_a_reset_keeps_what_was_walked_and_adds_nothing(progress):
    walk(progress, line([1.0, 0.0], [3.5, 0.0]))
    assert progress.restart_pose() == Pose2(2.0, 0.0, 0.0)
    progress.restart()
    assert progress.distance_m == pytest.approx(2.5)
    walk(progress, line([2.0, 0.0], [2.5, 0.0]), 5000)
    assert progress.distance_m == pytest.approx(3.0)
    assert progress.furthest_m == pytest.approx(2.5)


def test_before_the_first_waypoint_a_reset_goes_back_to_the_spawn(progress):
    walk(progress, line([1.0, 0.0], [1.4, 0.0]))
    assert progress.restart_pose() == Pose2(1.0, 0.0, 0.0)


def test_the_restart_faces_the_next_waypoint(progress):
    walk(progress, line([1.0, 0.0], [4.05, 0.0]))
    assert progress.index == 2
    pose = progress.restart_pose()
    assert (pose.x, pose.y, pose.yaw) == pytest.approx((4.0, 0.0, math.pi / 2))


def test_after_the_last_waypoint_the_course_is_completed(progress):
    walk(progress, line([1.0, 0.0], [4.05, 0.0]))
    walk(progress, line([4.0, 0.0], [4.0, 2.1]), 3000)
    assert progress.completed
    assert progress.target_xy is None
    assert progress.distance_m == pytest.approx(5.0)
    progress.update(np.array([4.0, 9.0]), 9000 * MS)
    assert progress.distance_m == pytest.approx(5.0)


@pytest.fixture
def falls():
    return FallMonitor(FallCfg(tilt_rad=1.0))


def judge(falls, ms, *, tilt=0.0, in_pit=False, touches=False, stance=0.42):
    return falls.update(
        ms * MS, tilt_rad=tilt, in_pit=in_pit, base_contact=touches, stance_m=stance
    )


def test_tilting_beyond_the_limit_is_a_fall_at_once(falls):
    assert judge(falls, 0, tilt=0.99) is None
    assert judge(falls, 5, tilt=1.01) is FallReason.TILT


def test_being_in_a_pit_is_a_fall_at_once(falls):
    assert judge(falls, 0, in_pit=True) is FallReason.PIT


def test_the_belly_on_the_ground_for_half_a_second_is_a_fall(falls):
    assert judge(falls, 0, touches=True) is None
    assert judge(falls, 495, touches=True) is None
    assert judge(falls, 500, touches=True) is FallReason.GROUNDED


def test_scraping_over_an_obstacle_is_no_fall(falls):
    judge(falls, 0, touches=True)
    judge(falls, 300, touches=False)
    assert judge(falls, 600, touches=True) is None
    assert judge(falls, 1000, touches=True) is None


def test_sitting_with_folded_legs_is_no_fall(falls):
    for ms in range(0, 5000, 100):
        assert judge(falls, ms, touches=True, stance=0.05) is None


def test_a_limp_robot_on_its_belly_is_no_fall(falls):
    for ms in range(0, 5000, 100):
        assert judge(falls, ms, touches=True, stance=0.0) is None


def test_after_a_reset_the_half_second_begins_anew(falls):
    judge(falls, 0, touches=True)
    falls.reset()
    assert judge(falls, 600, touches=True) is None
    assert judge(falls, 1100, touches=True) is FallReason.GROUNDED
