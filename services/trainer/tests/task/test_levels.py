"""A resumed run keeps what was learned of every obstacle type."""

from __future__ import annotations

import pytest
import torch
from krabby_trainer.task.config import TerrainCfg
from krabby_trainer.task.levels import column_of, taken_over
from krabby_trainer.task.terrain import column_types

MASTERED = {"steps": 12, "gap": 2, "hurdle": 9, "ramps": 0, "mixed": 5, "flat": 12}


def by_type(level, types):
    column = column_of(len(level), len(types))
    return {
        name: sorted({int(each) for each, c in zip(level, column, strict=True) if types[c] == name})
        for name in dict.fromkeys(types)
    }


@pytest.mark.parametrize(("before", "after"), [(8192, 4096), (4096, 8192), (4096, 6000), (16, 7)])
@pytest.mark.parametrize(
    "now",
    [
        TerrainCfg(),
        TerrainCfg(shares=[1, 8, 1, 1, 1, 1], columns=30),
        TerrainCfg(types=["flat", "gap", "steps"], shares=[1, 1, 1], columns=6),
    ],
)
def test_every_type_keeps_its_levels(before, after, now):
    old, new = column_types(TerrainCfg()), column_types(now)
    column = column_of(before, len(old))
    level = torch.tensor([MASTERED[old[c]] for c in column])
    taken = taken_over(level, old, torch.full((after,), 1), new, 13)
    # Few robots do not reach every column; those that walk in one have its type's level.
    for name, found in by_type(taken, new).items():
        reached = name in {old[c] for c in column}
        assert found in ([], [MASTERED[name]] if reached else [1])


def test_shares_of_the_levels_stay_in_order():
    level = torch.tensor([0, 1, 2, 3, 9, 9])  # four robots on gap, two on flat
    theirs = ["gap", "gap", "flat"]
    fresh = torch.zeros(12, dtype=torch.long)
    assert taken_over(level, theirs, fresh, theirs, 13).tolist() == [
        *(0, 0, 1, 1, 2, 2, 3, 3),
        *(9, 9, 9, 9),
    ]
    assert taken_over(level, theirs, fresh[:3], theirs, 13).tolist() == [0, 2, 9]


def test_a_type_that_is_new_begins_as_in_a_new_run():
    level = torch.tensor([7, 7])
    taken = taken_over(level, ["gap", "gap"], torch.tensor([1, 0, 2, 1]), ["gap", "stairs"], 13)
    assert taken.tolist() == [7, 7, 2, 1]


def test_levels_beyond_the_terrain_become_its_highest():
    taken = taken_over(torch.tensor([12, 12]), ["gap"], torch.tensor([0]), ["gap"], 5)
    assert taken.tolist() == [4]


def test_the_same_run_is_unchanged():
    types = column_types(TerrainCfg())
    level = torch.randint(0, 13, (100,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(taken_over(level, types, torch.zeros_like(level), types, 13), level)
