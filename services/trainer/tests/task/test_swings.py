"""Swings of feet, by hand-worked numbers."""

import torch
from krabby_trainer.task.swings import Swings


def test_a_swing_rises_above_the_higher_of_lift_off_and_touchdown():
    swings = Swings(1, "cpu", 0.01)
    for touches, height in ((True, 0.0), (False, 0.05), (False, 0.12), (False, 0.08)):
        swings.step(torch.full((1, 6), touches), torch.full((1, 6), height))
        if touches:
            continue
        assert not swings.landed.any()
    swings.step(torch.tensor([[True] * 3 + [False] * 3]), torch.full((1, 6), 0.04))
    assert swings.landed.tolist() == [[True] * 3 + [False] * 3]
    # To 0.12 from 0 to 0.04.
    assert torch.allclose(swings.rise_m[0, :3], torch.tensor(0.08))
    swings.step(torch.ones(1, 6, dtype=torch.bool), torch.full((1, 6), -0.1))
    assert swings.landed.tolist() == [[False] * 3 + [True] * 3]
    # To 0.12 from 0, down to -0.1.
    assert torch.allclose(swings.rise_m[0, 3:], torch.tensor(0.12))


def test_time_in_the_air_counts_from_the_last_contact_of_each_foot():
    swings = Swings(1, "cpu", 0.01)
    for touches in ([True] * 6, [False] * 6, [False] * 6, [True, True, False, False, False, False]):
        swings.step(torch.tensor([touches]), torch.zeros(1, 6))
    assert torch.allclose(swings.air_s, torch.tensor([[0.0, 0.0, 0.03, 0.03, 0.03, 0.03]]))
