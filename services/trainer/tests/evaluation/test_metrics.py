"""The metrics on episodes short enough to count by hand."""

import math

import numpy as np
import pytest
from krabby_trainer.evaluation.metrics import (
    PAPER_WEIGHTS,
    EpisodeRecorder,
    Robots,
    StepFacts,
    combine,
    summarise,
)


def robots(*types):
    count = len(types)
    return Robots(
        type=np.array(types), difficulty=np.full(count, 0.5), course_seed=np.arange(count)
    )


def facts(goals, *, fell=(), timed_out=(), completed=(), edges=None, contact=None, **arrays):
    count = len(goals)

    def which(indices):
        mask = np.zeros(count, bool)
        mask[list(indices)] = True
        return mask

    values = {
        "goal_index": np.array(goals),
        "foot_contact": np.ones((count, 6), bool) if contact is None else contact,
        "feet_on_edge": np.zeros((count, 6), bool) if edges is None else edges,
        "terminated": which(fell),
        "timed_out": which(timed_out),
        "completed": which(completed),
        "torque": np.zeros((count, 18)),
        "saturated": np.zeros((count, 18), bool),
        "base_contact": np.zeros(count, bool),
        "distance_m": np.zeros(count),
    }
    return StepFacts(**(values | arrays))


def run(types, *steps):
    recorder = EpisodeRecorder(robots(*types), step_s=0.01)
    for step in steps:
        recorder.add(step)
    return recorder.finish()


def test_a_robot_that_falls_at_once_scores_nothing():
    result = summarise(run(["gap"], facts([0], fell=[0])))

    assert result["mxd"] == 0.0
    assert result["fall_rate"] == 1.0
    assert result["success"] == 0.0
    assert result["episodes"] == 1


def test_a_robot_stuck_at_the_first_obstacle_scores_a_seventh():
    result = summarise(run(["steps"], facts([0]), facts([1]), facts([1], timed_out=[0])))

    assert result["mxd"] == pytest.approx(1 / 7)
    assert result["mxd_std"] == 0.0
    assert result["time_out_rate"] == 1.0
    assert result["fall_rate"] == 0.0


def test_seven_of_eight_goals_are_an_mxd_of_1_but_no_success():
    result = summarise(run(["steps"], facts([7], timed_out=[0])))

    assert result["mxd"] == 1.0
    assert result["success"] == 0.0


def test_eight_of_eight_goals_are_a_success_and_still_an_mxd_of_1():
    result = summarise(run(["steps"], facts([8], completed=[0])))

    assert result["mxd"] == 1.0
    assert result["success"] == 1.0


def test_a_robot_that_falls_often_weighs_by_its_falls_but_its_first_episode_once():
    # Robot 0 completes once in four steps; robot 1 falls after every step, once past goal 1.
    result = summarise(
        run(
            ["gap", "gap"],
            facts([2, 1], fell=[1]),
            facts([4, 0], fell=[1]),
            facts([6, 0], fell=[1]),
            facts([8, 0], completed=[0], fell=[1]),
        )
    )

    assert result["episodes"] == 5
    assert result["mxd"] == pytest.approx((1 / 7 + 0 + 0 + 0 + 1) / 5)
    assert result["mxd_first"] == pytest.approx((1 + 1 / 7) / 2)
    assert result["success"] == pytest.approx(1 / 5)
    assert result["success_first"] == pytest.approx(1 / 2)
    assert result["fall_rate"] == pytest.approx(4 / 5)


def test_the_episode_that_the_end_of_the_run_cuts_off_is_counted_apart():
    result = summarise(
        run(["gap"], facts([7], timed_out=[0]), facts([0]), facts([1]))
    )  # MXD 1, then 1/7 going on

    assert (result["episodes"], result["episodes_cut_off"]) == (1, 1)
    assert result["mxd"] == 1.0
    assert result["mxd_all"] == pytest.approx((1 + 1 / 7) / 2)
    assert result["mxd_all_std"] == pytest.approx((1 - 1 / 7) / 2)


def test_no_finished_episode_gives_no_mxd_but_all_the_rest():
    result = summarise(run(["gap"], facts([3])))

    assert result["mxd"] is None
    assert result["success"] is None
    assert result["estimates"]["mxd"]["value"] is None
    assert result["mxd_all"] == pytest.approx(3 / 7)
    assert result["mxd_first"] == pytest.approx(3 / 7)
    assert result["mev"] == 0.0


def test_edges_count_per_foot_in_contact_and_robot_step():
    edges = np.zeros((1, 6), bool)
    edges[0, :3] = True
    contact = np.ones((1, 6), bool)
    contact[0, 2] = False  # near an edge, but in the air

    result = summarise(run(["gap"], facts([0], edges=edges, contact=contact), facts([0])))

    # Steps with 2 and 0 feet: mean 1, spread 1; a sixth of it per foot.
    assert result["mev"] == 1.0
    assert result["mev_std"] == 1.0
    assert result["mev_per_foot"] == pytest.approx(1 / 6)


def test_edges_before_a_fall_are_counted_although_the_episode_is_over():
    edges = np.ones((1, 6), bool)

    result = run(["gap"], facts([0], edges=edges, fell=[0]), facts([0]), facts([0]))

    assert summarise(result)["mev"] == 2.0  # 6 feet in one of three steps
    assert result.episodes["steps"].tolist() == [1, 2]


def test_torque_is_a_root_mean_square_over_robots_steps_and_joints():
    # Joint 3 gives 60 N·m in one of two steps, all others nothing: mean square 1800 for the joint.
    torque = np.zeros((1, 18))
    torque[0, 3] = -60.0
    saturated = np.zeros((1, 18))
    saturated[0, 3] = 0.5

    result = summarise(run(["gap"], facts([0], torque=torque, saturated=saturated), facts([0])))

    assert result["torque_rms_hardest_nm"] == pytest.approx(math.sqrt(1800))
    assert result["torque_rms_hardest_joint"] == 3
    assert result["torque_rms_nm"] == pytest.approx(math.sqrt(1800 / 18))
    assert result["saturation_share"] == pytest.approx(0.5 / 2 / 18)


def test_collisions_are_a_share_of_steps():
    touch = np.array([True])

    result = summarise(
        run(["gap"], facts([0], base_contact=touch, fell=[0]), facts([0]), facts([0]), facts([0]))
    )

    assert result["collision_share"] == 0.25


def test_groups_are_summarised_apart():
    both = run(["gap", "ramps"], facts([7, 0], timed_out=[0], fell=[1]))

    assert summarise(both, both.robots.type == "gap")["mxd"] == 1.0
    assert summarise(both, both.robots.type == "ramps")["mxd"] == 0.0
    assert summarise(both)["mxd"] == 0.5
    assert summarise(both)["mxd_std"] == 0.5


def test_the_papers_total_counts_the_ramps_twice():
    # The paper's own NoInner column: 0.90, 0.14, 0.86, 0.92 make 0.75; spreads make 0.36.
    column = {
        "hurdle": (0.90, 0.12), "steps": (0.14, 0.00), "gap": (0.86, 0.26), "ramps": (0.92, 0.24),
    }  # fmt: skip
    groups = {name: group(mxd, std) for name, (mxd, std) in column.items()}

    total = combine(groups, PAPER_WEIGHTS)

    assert total["mxd"] == pytest.approx(0.748)
    assert total["mxd_std"] == pytest.approx(0.36, abs=0.01)


def test_a_group_without_a_finished_episode_leaves_no_total():
    groups = {name: group(1.0, 0.0) for name in PAPER_WEIGHTS}
    groups["gap"]["mxd"] = None

    total = combine(groups, PAPER_WEIGHTS)

    assert total["mxd"] is None
    assert total["mev"] == pytest.approx(0.0)


def test_intervals_are_over_robots_and_their_first_episodes():
    # Three robots: two succeed, one falls, then succeeds; 10 m are walked in each of 4 episodes.
    ten = {"distance_m": np.full(3, 10.0)}
    found = summarise(
        run(
            ["gap"] * 3,
            facts([8, 8, 0], completed=[0, 1], fell=[2], **ten),
            facts([0, 0, 8], completed=[2], distance_m=np.array([0.0, 0.0, 10.0])),
        )
    )["estimates"]

    assert (found["success"]["value"], found["success"]["n"]) == (pytest.approx(2 / 3), 3)
    # Wilson: centre (2 + 1.9207) / 6.8415 = 0.5731, half 0.3654
    assert found["success"]["low"] == pytest.approx(0.2077, abs=1e-4)
    assert found["fell"]["value"] == pytest.approx(1 / 3)
    assert found["mxd"]["value"] == pytest.approx(3 / 4)
    assert found["mxd"]["n"] == 3
    # 1 fall in 40 m, exact bounds 0.0253 and 5.572
    assert found["falls_per_100m"]["value"] == pytest.approx(2.5)
    assert found["falls_per_100m"]["high"] == pytest.approx(5.572 / 0.4, abs=1e-2)


def group(mxd, std):
    names = ("mxd_first", "mev", "mev_std", "mev_per_foot", "success", "success_first", "fall_rate",
             "time_out_rate", "collision_share", "saturation_share", "torque_rms_nm")  # fmt: skip
    return dict.fromkeys(names, 0.0) | {
        "mxd": mxd, "mxd_std": std, "mxd_all": mxd, "mxd_all_std": std,
    }  # fmt: skip
