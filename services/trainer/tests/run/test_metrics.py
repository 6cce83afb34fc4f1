"""What dashboards and alerts ask for is what a run exposes."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from krabby_trainer.run import metrics
from krabby_trainer.run.telemetry import Iteration

MONITORING = Path(__file__).parents[4] / "monitoring"
_NAME = re.compile(r"krabby_training_[a-z0-9_]+")
SCALARS = {
    "Train/mean_reward": 3.0,
    "Train/mean_episode_steps": 500.0,
    "Episode/mxd": 0.5,
    "Episode/mev": 0.1,
    "Episode/fall_rate": 0.2,
    "Episode/completed": 0.3,
    "Level/mean": 2.0,
    "Level/gap": 4.0,
    "Torque/rms_nm": 30.0,
    "Torque/saturation": 0.01,
    "Loss/value": 0.5,
    "Reward/fall": -1.0,
    "Policy/action_std": 0.7,
    "Policy/learning_rate": 1e-4,
    "Policy/kl": 0.01,
    "Perf/env_steps_per_s": 3e5,
    "Perf/collect_s": 0.3,
    "Perf/learn_s": 0.1,
    "Something/else": 1.0,
}


def iteration(number, **scalars):
    return Iteration(
        number=number,
        total=9,
        env_steps=1000 * number,
        wall_s=1.0,
        eta_s=60.0,
        scalars=SCALARS | scalars,
    )


@pytest.fixture
def exposition():
    shown = metrics.Exposition(0)
    yield shown
    shown.close()


def page(exposition, path="metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{exposition.port}/{path}", timeout=5) as answer:
        return answer.read().decode()


def test_every_expression_names_what_is_exposed(exposition):
    exposition.write(iteration(1))
    exposed = set(re.findall(r"(?m)^(krabby_training_\w+)", page(exposition)))
    board = json.loads((MONITORING / "grafana/dashboards/training.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in _NAME.findall(target["expr"])
    }
    assert len(asked) > 15
    rules = (MONITORING / "prometheus/rules/alerts.yml").read_text()
    assert asked | set(_NAME.findall(rules)) <= exposed


def test_values_are_those_of_the_last_iteration(exposition):
    exposition.write(iteration(4))
    exposition.write(iteration(5))
    text = page(exposition)
    for line in (
        "krabby_training_iteration 5.0",
        "krabby_training_iterations 9.0",
        "krabby_training_env_steps_total 1000.0",
        'krabby_training_level{type="gap"} 4.0',
        'krabby_training_loss{term="value"} 0.5',
        "krabby_training_torque_rms_newton_meters 30.0",
        "krabby_training_not_finite 0.0",
    ):
        assert line in text
    assert page(exposition, "healthz") == "ok\n"


def test_what_is_not_finite_is_told(exposition):
    exposition.write(iteration(1, **{"Loss/value": float("nan")}))
    assert "krabby_training_not_finite 1.0" in page(exposition)


def test_health_fails_when_nothing_moves(exposition, monkeypatch):
    now = metrics.time.monotonic()
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now + metrics.STALL_S + 1)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        page(exposition, "healthz")
