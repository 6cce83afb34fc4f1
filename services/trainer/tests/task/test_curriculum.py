"""Every branch of the rule that moves robots to harder and easier tiles."""

import pytest
import torch
from krabby_trainer.task.config import CurriculumCfg
from krabby_trainer.task.curriculum import next_level, tile_level

CFG = CurriculumCfg(promote_levels=2, promote_goals=7, demote_goals=3, demote_speed=0.4)


def judge(level, *, goals, fell, distance_m, asked_m=20.0, levels=10):
    moved = next_level(
        torch.tensor([level]),
        goals=torch.tensor([goals]),
        fell=torch.tensor([fell]),
        distance_m=torch.tensor([distance_m]),
        asked_m=torch.tensor([asked_m]),
        levels=levels,
        cfg=CFG,
    )
    return int(moved)


@pytest.mark.parametrize(
    ("goals", "fell", "distance_m", "moved"),
    [
        (8, False, 16.0, +2),
        (7, False, 14.0, +2),
        (7, True, 14.0, +2),  # a fall after the seventh waypoint does not undo it
        (7, False, 1.0, +2),  # nor does being slow
        (6, False, 12.0, 0),
        (6, True, 12.0, 0),
        (3, True, 5.0, 0),
        (2, True, 15.0, -1),
        (0, True, 0.0, -1),
        (6, False, 7.9, -1),  # 8 m is 0.4 of the 20 m asked for
        (6, False, 8.1, 0),
        (0, False, 8.1, 0),
        (3, True, 1.0, 0),  # a fall ends the walk: slowness is judged when time runs out
    ],
)
def test_the_level_moves_by_what_was_reached(goals, fell, distance_m, moved):
    assert judge(5, goals=goals, fell=fell, distance_m=distance_m) == 5 + moved


def test_the_easiest_level_is_not_left_downwards():
    assert judge(0, goals=0, fell=True, distance_m=0.0) == 0


@pytest.mark.parametrize("level", [8, 9])
def test_a_robot_that_goes_up_from_the_top_is_sent_anywhere(level):
    torch.manual_seed(0)
    sent = [judge(level, goals=8, fell=False, distance_m=16.0) for _ in range(200)]
    assert set(sent) == set(range(10))


def test_a_robot_that_stays_on_the_top_level_stays():
    assert {judge(9, goals=6, fell=False, distance_m=12.0) for _ in range(20)} == {9}


def test_two_below_the_top_goes_to_the_top():
    assert {judge(7, goals=8, fell=False, distance_m=16.0) for _ in range(20)} == {9}


def test_robots_are_judged_one_by_one():
    moved = next_level(
        torch.tensor([4, 4, 4]),
        goals=torch.tensor([8, 4, 1]),
        fell=torch.tensor([False, False, True]),
        distance_m=torch.tensor([16.0, 10.0, 3.0]),
        asked_m=torch.full((3,), 20.0),
        levels=10,
        cfg=CFG,
    )
    assert moved.tolist() == [6, 4, 3]
    assert moved.dtype == torch.long


def test_a_share_of_the_episodes_is_on_easier_tiles():
    torch.manual_seed(0)
    level = torch.full((20_000,), 4)
    tiles = tile_level(level, 0.4)
    counts = torch.bincount(tiles, minlength=5) / len(tiles)
    # The easier four share 0.4 alike.
    torch.testing.assert_close(counts, torch.tensor([0.1, 0.1, 0.1, 0.1, 0.6]), rtol=0, atol=0.015)
    assert level.eq(4).all()


def test_no_revisits_and_nothing_easier_leave_robots_on_their_level():
    level = torch.arange(100) % 7
    assert torch.equal(tile_level(level, 0.0), level)
    assert torch.equal(tile_level(torch.zeros(100, dtype=torch.long), 1.0), torch.zeros(100))


def test_all_revisits_are_easier():
    assert (tile_level(torch.full((500,), 3), 1.0) < 3).all()
