"""A robot whose state is not finite is found, and its state kept, without reading the device."""

from __future__ import annotations

import math

import pytest
import torch
from krabby_trainer.task.broken import LIMIT, BrokenRobots, not_finite


def state(n=3):
    quat = torch.zeros(n, 4)
    quat[:, 3] = 1.0
    return {
        "base_pos_w": torch.arange(3.0 * n).view(n, 3),
        "base_quat_w": quat.clone(),
        "joint_pos": torch.full((n, 18), 0.5),
        "foot_force_w": torch.ones(n, 6, 3),
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0 * LIMIT])
@pytest.mark.parametrize("name", ["base_pos_w", "base_quat_w", "foot_force_w"])
def test_one_bad_number_makes_one_robot_broken(name, value):
    values = state()
    values[name].view(3, -1)[1, -1] = value
    assert not_finite(values).tolist() == [False, True, False]


def test_the_largest_finite_states_are_left_alone():
    values = state()
    values["base_pos_w"][0, 0] = -LIMIT
    assert not not_finite(values).any()


def test_the_first_break_is_kept_with_the_step_before_it():
    broken = BrokenRobots(3, ("base_pos_w", "joint_pos"), "cpu")
    assert broken.take() is None
    good, bad, worse = state(), state(), state()
    good["base_pos_w"][1, 0] = 7.0
    bad["base_pos_w"][1, 0] = math.nan
    worse["base_pos_w"][1, 0] = math.inf
    broken.step(good)
    broken.step(bad)
    assert broken.mask.tolist() == [False, True, False]
    broken.step(worse)
    broken.step(good)
    assert not broken.mask.any()
    assert int(broken.count) == 2
    kept = broken.take()
    assert kept is not None
    assert kept["robot"].tolist() == [1]
    assert kept["step"].tolist() == [1]
    assert kept["before.base_pos_w"][0].tolist() == [7.0, 4.0, 5.0]
    assert math.isnan(kept["broken.base_pos_w"][0, 0])
    assert set(kept) == {
        *("robot", "step", "before.base_pos_w", "before.joint_pos"),
        *("broken.base_pos_w", "broken.joint_pos"),
    }
    assert broken.take() is None


def test_a_step_reads_nothing_from_the_device():
    """On torch's meta device there are no values to read: any read raises."""
    with torch.device("meta"):
        broken = BrokenRobots(3, ("base_pos_w",), "meta")
        broken.step({name: value.to("meta") for name, value in state().items()})
    assert broken.mask.shape == (3,)
