"""The suites: robots, courses, sizes."""

import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby_trainer.errors import EvaluationError
from krabby_trainer.evaluation.suite import (
    SUITES,
    TYPES,
    find_suite,
    obedient_score,
    obstacle_size,
    published_tilt_deg,
)


def test_the_paper_suite_is_the_published_protocol():
    suite = SUITES["paper"]
    cfg = suite.env_cfg(robots=suite.robots, seed=1)

    assert (suite.robots, suite.seconds, cfg.episode_s) == (256, 30.0, 20.0)
    assert (cfg.command.speed_low, cfg.command.speed_high) == (0.3, 0.8)
    assert cfg.command.pass_width_m == 0.0
    assert cfg.randomisation.push_interval_s == [6.0, 6.0]
    assert cfg.terrain.random_difficulty
    assert not cfg.curriculum.enabled
    assert cfg.terrain.levels * cfg.terrain.columns == 256  # one course for each robot


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fixed", (0.25, 0.5, 0.75, 1.0)), ("open", (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5))],
)
def test_fixed_difficulties_are_the_rows_of_the_terrain(name, expected):
    suite = SUITES[name]
    cfg = suite.env_cfg(robots=suite.robots, seed=0)

    assert suite.difficulties == expected
    assert cfg.terrain.levels == len(expected)
    rows = np.linspace(cfg.terrain.difficulty_low, cfg.terrain.difficulty_high, cfg.terrain.levels)
    assert rows == pytest.approx(expected)
    assert cfg.terrain.levels * cfg.terrain.columns == cfg.num_envs == suite.robots


def test_too_few_robots_are_refused_with_the_number_that_is_enough():
    with pytest.raises(EvaluationError, match="robots=28 or more"):
        SUITES["open"].env_cfg(robots=27, seed=0)


def test_an_unknown_suite_is_refused_with_the_nearest_name():
    with pytest.raises(EvaluationError, match="did you mean 'paper'"):
        find_suite("papers")


def test_runs_with_other_seeds_walk_other_courses():
    def seeds(seed):
        return SUITES["paper"].env_cfg(robots=256, seed=seed).terrain.seed

    assert seeds(1) - seeds(0) == 1_000_000


@pytest.mark.parametrize("d", [0.0, 0.5, 1.0, 2.5])
def test_sizes_are_those_of_the_formulas(d):
    gap, steps, hurdle, ramps = (
        obstacle_size(make_course(name, d, 5)) for name in ("gap", "steps", "hurdle", "ramps")
    )

    assert (gap.low, gap.high) == pytest.approx((0.1 + 0.7 * d,) * 2, abs=2e-3)
    assert (steps.low, steps.high) == pytest.approx((0.1 + 0.35 * d,) * 2, abs=2e-3)
    assert 0.1 + 0.1 * d - 1e-3 <= hurdle.low <= hurdle.high <= 0.15 + 0.25 * d + 1e-3
    # The last stone rises 0.1 + 0.15 d over 1.6 m, the others 0.25 d.
    rises = sorted((0.1 + 0.15 * d, 0.25 * d))
    assert ramps.low == pytest.approx(np.degrees(np.arctan(rises[0] / 1.6)), abs=1e-3)
    assert ramps.high == pytest.approx(np.degrees(np.arctan(rises[1] / 1.6)), abs=1e-3)


def test_our_stones_are_less_steep_than_the_published_ones():
    ours = obstacle_size(make_course("ramps", 1.0, 0))

    assert published_tilt_deg(1.0) == pytest.approx(26.565, abs=1e-3)
    assert ours.high == pytest.approx(8.88, abs=0.01)


def test_a_size_over_courses_is_a_range():
    size = obstacle_size(*(make_course("gap", d, 0) for d in (0.0, 1.0)))

    assert str(size) == "0.10 to 0.80 m"
    assert str(obstacle_size(make_course("gap", 1.0, 0))) == "0.80 m"


def test_obedience_is_limited_by_the_clock():
    # 20 s at 0.5 m/s are 10 m of this lane, which starts 1 m behind the first goal.
    course = make_course("flat", 0.0, 3)
    reached = int((np.cumsum(_legs(course)) <= 10.0)[:7].sum())

    assert obedient_score(course, (0.5, 0.5), 20.0) == (pytest.approx(reached / 7), 0.0)
    assert obedient_score(course, (5.0, 6.0), 20.0) == (1.0, 1.0)
    assert obedient_score(course, (0.0, 0.01), 20.0) == (0.0, 0.0)


def test_obedience_over_a_range_is_the_mean_over_its_speeds():
    course = make_course("flat", 0.0, 3)
    one_by_one = [obedient_score(course, (v, v), 20.0) for v in np.linspace(0.3, 0.8, 2001)]

    assert obedient_score(course, (0.3, 0.8), 20.0) == pytest.approx(
        np.mean(one_by_one, axis=0), abs=1e-3
    )


@pytest.mark.parametrize("type_", TYPES)
def test_the_fixed_suite_leaves_time_for_every_course_at_almost_any_speed(type_):
    suite = SUITES["fixed"]
    scores = [
        obedient_score(make_course(type_, 1.0, seed), suite.speed, suite.episode_s)
        for seed in range(10)
    ]

    assert min(success for _, success in scores) > 0.9


def _legs(course):
    points = np.vstack([course.spawn[:2], course.waypoints[:, :2]])
    return np.linalg.norm(np.diff(points, axis=0), axis=1)


def test_types_are_those_of_the_published_table():
    assert set(TYPES) == {"steps", "gap", "hurdle", "ramps"}
