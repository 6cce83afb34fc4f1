"""What free robots are asked for, and how well they do it, by hand-worked numbers."""

import pytest
import torch
from krabby_trainer.task.commands import Tracking, VelocityCommands
from krabby_trainer.task.config import CommandCfg

N = 40_000
CFG = CommandCfg()
RANGES = (CFG.free_vx, CFG.free_vy, CFG.free_yaw_rate)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def commands(count=4):
    return VelocityCommands(CFG, count, "cpu")


def share(which):
    return float(which.float().mean())


def test_commands_fill_their_ranges_in_every_direction():
    drawn = commands().draw(N)
    assert drawn.shape == (N, 3)
    for values, (low, high) in zip(drawn.T, RANGES, strict=True):
        assert low <= float(values.min()) < 0.99 * low
        assert 0.99 * high < float(values.max()) <= high


def test_some_commands_ask_for_nothing_and_some_for_one_axis():
    drawn = commands().draw(N)
    axes = (drawn != 0.0).sum(-1)
    assert share(axes == 0) == pytest.approx(0.15, abs=0.01)
    assert share(axes == 1) == pytest.approx(0.85 * 0.6, abs=0.01)
    assert share(axes == 3) == pytest.approx(0.85 * 0.4, abs=0.01)
    along = drawn[axes == 1] != 0.0
    assert along.float().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_two_speeds_forward_in_five_are_backward():
    forward = commands().draw(N)[:, 0]
    assert share(forward[forward != 0.0] < 0.0) == pytest.approx(0.4, abs=0.01)
    one_way = VelocityCommands(CommandCfg(free_vx=[0.2, 1.0]), 4, "cpu").draw(N)[:, 0]
    assert float(one_way.min()) >= 0.0


def test_slow_commands_are_asked_for_more_often_than_the_range_alone_would():
    drawn = commands().draw(N)
    forwards = drawn[(drawn[:, 0] > 0.0), 0]
    # A tenth of the way by the range alone; of the quarter that is scaled by 0.1 to 0.5 far more.
    assert 0.14 < share(forwards < 0.1) < 0.25


def test_three_commands_in_ten_hold_four_times_as_long():
    hold = commands().draw_hold(N)
    long = hold > 5.0
    assert share(long) == pytest.approx(0.3, abs=0.01)
    assert 3.0 <= float(hold[~long].min()) < 3.1
    assert 12.0 <= float(hold[long].min()) < 12.1
    assert 19.9 < float(hold.max()) <= 20.0


def test_a_command_holds_until_its_time_is_over_and_stays_in_its_memory():
    asked = commands(2)
    asked.value[:] = 9.0
    asked.left_s[:], asked.since_s[:] = torch.tensor([0.025, 0.01]), torch.tensor([1.0, 2.0])
    where = asked.value.data_ptr()
    asked.step(0.01)
    assert asked.value.data_ptr() == where
    assert asked.value[0].tolist() == [9.0] * 3
    assert asked.value[1].abs().max() <= 1.0
    assert asked.left_s[0] == pytest.approx(0.015)
    assert 3.0 <= float(asked.left_s[1]) <= 20.0
    assert asked.since_s.tolist() == pytest.approx([1.01, 0.0])


def test_a_reset_gives_a_new_command_to_those_named_alone():
    asked = commands(3)
    asked.value[:], asked.since_s[:] = 9.0, 1.0
    asked.reset(torch.tensor([False, True, False]))
    assert (asked.value.abs().amax(-1) > 1.0).tolist() == [True, False, True]
    assert asked.since_s.tolist() == [1.0, 0.0, 1.0]
    assert asked.left_s[1] >= 3.0


def test_tracking_counts_free_robots_once_they_have_had_time():
    tracking = Tracking(4, "cpu")
    velocity = torch.tensor([[0.4, 0.0, 0.1], [0.03, 0.04, 0.0], [5.0, 5.0, 5.0], [7.0, 7.0, 7.0]])
    asked = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    # Robot 2 walks to waypoints; robot 3 was told a second ago, and falls.
    free = torch.tensor([True, True, False, True])
    fell = torch.tensor([False, False, True, True])
    tracking.add(velocity, asked, torch.tensor([2.0, 2.0, 2.0, 1.0]), free, fell, 0.5)
    log = {key: float(value) for key, value in tracking.log().items()}
    assert log == pytest.approx(
        {
            "Free/error_vx": 0.1,
            "Free/error_vy": 0.0,
            "Free/error_yaw": 0.1,
            "Free/gain_vx": 0.8,
            "Free/gain_vy": float("nan"),  # none was commanded
            "Free/gain_yaw": float("nan"),
            "Free/gain_back": float("nan"),
            "Free/gain_turn": float("nan"),
            "Free/still_speed": 0.05,
            "Free/falls_per_min": 40.0,  # one in three times half a second
        },
        abs=1e-6,
        nan_ok=True,
    )
    assert all(value.isnan() for value in tracking.log().values())


def test_backing_up_and_turning_in_place_have_gains_beside_those_of_the_axes():
    tracking = Tracking(4, "cpu")
    asked = torch.tensor([[-0.4, 0, 0], [0.8, 0, 0], [0, 0, 0.8], [0.4, 0, 0.8]])
    velocity = torch.tensor([[-0.1, 0, 0], [0.8, 0, 0], [0, 0, 0.2], [0.4, 0, 0.8]])
    free, fell = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    tracking.add(velocity, asked, torch.full((4,), 2.0), free, fell, 0.5)
    log = tracking.log()
    assert float(log["Free/gain_back"]) == pytest.approx(0.25)
    assert float(log["Free/gain_turn"]) == pytest.approx(0.25)


def test_tracking_looks_at_the_mean_of_half_a_second():
    tracking = Tracking(1, "cpu")
    asked, settled = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([9.0])
    true, none = torch.tensor([True]), torch.tensor([False])
    tracking.add(torch.tensor([[1.0, 0.0, 0.0]]), asked, settled, true, none, 0.1)
    # A fifth of the way from rest: 0.2 of 1 m/s.
    assert float(tracking.log()["Free/error_vx"]) == pytest.approx(0.8)
    tracking.reset(torch.tensor([True]))
    tracking.add(torch.zeros(1, 3), asked, settled, true, none, 0.1)
    assert float(tracking.log()["Free/error_vx"]) == pytest.approx(1.0)
