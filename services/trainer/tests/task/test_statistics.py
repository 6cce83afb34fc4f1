"""The log: means of what was added, by hand-worked numbers."""

import math
from types import SimpleNamespace

import pytest
import torch
from krabby_trainer.task.rewards import REWARDS
from krabby_trainer.task.statistics import Statistics

TYPES = ("steps", "flat")


def step(**changes):
    """Two robots at rest; the second is free."""
    values = {
        "failed": torch.tensor([False, False]),
        "free": torch.tensor([False, True]),
        "torque": torch.zeros(2, 18),
        "on_edge": torch.zeros(2, 6, dtype=torch.bool),
        "base_lin_vel_w": torch.zeros(2, 3),
        "weight_n": torch.full((2,), 280.0),
    }
    return SimpleNamespace(**values | changes)


def add(statistics, terms=None, completed=False, index=0, **changes):
    zeros = {reward.name: torch.zeros(2) for reward in REWARDS}
    statistics.add(
        step(**changes),
        zeros | (terms or {}),
        saturated=torch.zeros(2, 18, dtype=torch.bool),
        index=torch.tensor([index, 0]),
        completed=torch.tensor([completed, False]),
        time_out=torch.tensor([False, True]),
        kind=torch.tensor([0, 1]),
    )


def test_rewards_are_logged_by_term_with_their_weights():
    statistics = Statistics({"torque": -0.5, "power": 0.0}, TYPES, "cpu")
    add(statistics, {"torque": torch.tensor([1.0, 3.0]), "power": torch.tensor([10.0, 30.0])})
    add(statistics, {"torque": torch.tensor([4.0, 4.0])})
    log = {name: float(value) for name, value in statistics.take().items()}
    assert log["Reward/torque"] == pytest.approx(-1.5)  # -0.5 times the mean of 2 and 4
    assert "Reward/power" not in log
    assert log["Gait/power_w"] == pytest.approx(10.0)
    again = {name: float(value) for name, value in statistics.take().items()}
    assert all(value == 0.0 for name, value in again.items() if not name.endswith(TYPES))


def test_episodes_of_robots_that_are_not_free_are_counted():
    statistics = Statistics({}, TYPES, "cpu")
    add(statistics, completed=True, index=8)
    add(statistics, failed=torch.tensor([True, True]), index=3)
    log = {name: float(value) for name, value in statistics.take().items()}
    # Two episodes ended: 7 of 7 waypoints and 3; one fell, one was completed.
    assert log["Episode/mxd"] == pytest.approx(10 / 14)
    assert (log["Episode/fall_rate"], log["Episode/completed"]) == (0.5, 0.5)
    assert (log["Success/steps"], log["Fell/steps"]) == (0.5, 0.5)
    assert math.isnan(log["Success/flat"])  # its robot is free
