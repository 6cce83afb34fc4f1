"""Abilities of the shipped bundles, in the benchmark's trials."""

import pytest
from krabby.policy.bundle import bundle_dir
from krabby.robot.description import RobotDescription
from krabby_trainer.evaluation.abilities import ABILITIES, measure

pytestmark = pytest.mark.slow

DESC = RobotDescription.load()


def test_the_gait_can_do_all_of_them():
    found = measure(bundle_dir("gait"), DESC)
    assert [name for name, (able, _) in found.items() if able] == list(ABILITIES)
    assert found["stands"][1] < 0.001
    assert all(found[name][1] > 0.9 for name in ABILITIES if name != "stands")


def test_a_policy_trained_to_walk_ahead_alone_can_do_none():
    found = measure(bundle_dir("parkour"), DESC)
    assert [name for name, (able, _) in found.items() if able] == []


def test_only_the_abilities_asked_for_are_tried():
    assert list(measure(bundle_dir("gait"), DESC, ["reverses"])) == ["reverses"]
