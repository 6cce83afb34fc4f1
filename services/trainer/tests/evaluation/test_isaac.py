"""The same evaluation in Isaac Lab."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from krabby_trainer.evaluation.isaac import evaluate_isaac, to_numpy
from krabby_trainer.evaluation.metrics import summarise
from krabby_trainer.evaluation.suite import SUITES


def test_a_completed_episode_is_neither_a_fall_nor_a_time_out():
    # Isaac Lab files completion under time-outs, and a robot may tip over as it arrives.
    facts = SimpleNamespace(
        goal_index=torch.tensor([8, 8, 3]),
        foot_contact=torch.ones(3, 6, dtype=torch.bool),
        feet_on_edge=torch.zeros(3, 6, dtype=torch.bool),
        terminated=torch.tensor([False, True, True]),
        timed_out=torch.tensor([True, True, False]),
        completed=torch.tensor([True, True, False]),
        torque=torch.zeros(3, 18),
        saturated=torch.zeros(3, 18, dtype=torch.bool),
        base_contact=torch.zeros(3, dtype=torch.bool),
        distance_m=torch.zeros(3),
    )

    found = to_numpy(facts)

    assert found.terminated.tolist() == [False, False, True]
    assert found.timed_out.tolist() == [False, False, False]
    assert found.ended.all()


@pytest.mark.isaac
@pytest.mark.slow
def test_a_policy_that_stands_stands_on_the_courses_of_the_suite():
    def stand(obs):
        return torch.zeros(obs.batch_size[0], 18)

    # Robots on other courses than `assign` says would be refused.
    cfg = SUITES["smoke"].env_cfg(robots=4, seed=1)
    result = summarise(evaluate_isaac(stand, cfg, seconds=0.5, seed=1, device="cpu").run)

    assert (result["episodes"], result["episodes_cut_off"]) == (0, 4)
    assert result["collision_share"] == 0.0
    assert 5.0 < result["torque_rms_nm"] < 25.0
    assert np.isfinite(result["mev"])
