"""What the controller counts in plain attributes shows in the metrics."""

from types import SimpleNamespace

import numpy as np
import pytest
from krabby.control.modes import Mode
from krabby_gameloop.metrics import ControlMetrics
from prometheus_client import REGISTRY


def runner(name):
    bundle = SimpleNamespace(name=name, kind="test", hashes={"policy.onnx": f"hash of {name}"})
    bundle.features_age_s = 0.5
    return SimpleNamespace(bundle=bundle, infer_s=0.0012, needs_features=name == "two")


@pytest.fixture
def controller():
    policies = SimpleNamespace(
        chosen=runner("one"), blind=False, sight="none", blind_switches=0, bad_outputs=0
    )
    steps = {"vx": 5, "vy": 0, "yaw_rate": 0}
    nav = SimpleNamespace(command=np.array([0.4, 0.0, -0.2]), clamped_steps=steps)
    return SimpleNamespace(mode=Mode.SILENT, holds=0, lease_losses=0, policies=policies, nav=nav)


def value(name, /, **labels):
    return REGISTRY.get_sample_value(name, labels)


def shown_modes():
    return [mode for mode in Mode if value("krabby_gameloop_mode", mode=mode.value)]


def test_a_change_of_mode_shows_after_its_tick_with_the_time_of_the_tick(controller):
    for mode in Mode:  # of an earlier test
        REGISTRY._names_to_collectors["krabby_gameloop_mode"].labels(mode.value).set(0.0)
    watch = ControlMetrics(controller)
    assert shown_modes() == [Mode.SILENT]
    controller.mode = Mode.PASSIVE
    watch.note_tick(1_500_000_000)
    watch.note_tick(1_510_000_000)
    assert shown_modes() == [Mode.PASSIVE]
    assert value("krabby_gameloop_mode_entered_seconds", mode="passive") == 1.5


def test_blindness_and_a_swapped_policy_show_after_the_tick(controller):
    watch = ControlMetrics(controller)
    assert value("krabby_gameloop_blind") == 0.0
    one = {"name": "one", "kind": "test", "policy": "hash of one"}
    assert value("krabby_policy_info", **one) == 1.0
    assert value("krabby_gameloop_sight", sight="none") == 1.0
    assert value("krabby_policy_features_age_limit_seconds") == 0.0
    controller.policies.blind = True
    controller.policies.sight = "lost"
    controller.policies.chosen = runner("two")
    watch.note_tick(0)
    assert value("krabby_gameloop_blind") == 1.0
    assert value("krabby_gameloop_sight", sight="none") == 0.0
    assert value("krabby_gameloop_sight", sight="lost") == 1.0
    assert value("krabby_policy_features_age_limit_seconds") == 0.5
    assert value("krabby_policy_info", **one) is None
    two = {"name": "two", "kind": "test", "policy": "hash of two"}
    assert value("krabby_policy_info", **two) == 1.0


def test_totals_and_the_walking_command_show_at_the_next_update(controller):
    names = (
        "krabby_gameloop_holds_total", "krabby_gameloop_lease_losses_total",
        "krabby_gameloop_blind_switches_total", "krabby_policy_bad_outputs_total",
    )  # fmt: skip
    before = [value(name) for name in names]
    watch = ControlMetrics(controller)
    controller.holds, controller.permission = 7, SimpleNamespace(lease_losses=1)
    controller.policies.blind_switches, controller.policies.bad_outputs = 2, 3
    watch.update()
    watch.update()
    assert [value(name) - was for name, was in zip(names, before, strict=True)] == [7, 1, 2, 3]
    axes = [value("krabby_nav_command", axis=axis) for axis in ("vx", "vy", "yaw_rate")]
    assert axes == [0.4, 0.0, -0.2]
    clamped = "krabby_nav_clamped_ticks_total"
    assert [value(clamped, axis=axis) for axis in ("vx", "vy")] == [5, 0]


def test_a_step_of_a_policy_is_counted_under_its_name(controller):
    watch = ControlMetrics(controller)
    before = value("krabby_inference_seconds_count", policy="one") or 0
    watch.note_inference(controller.policies.chosen)
    assert value("krabby_inference_seconds_count", policy="one") - before == 1
    assert value("krabby_inference_seconds_sum", policy="one") == pytest.approx(0.0012)
