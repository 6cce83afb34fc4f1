"""The examples run and do what their first lines say; `test_toy_hal.py` has the back end."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from krabby.policy.bundle import OnnxPolicy, PolicyBundle
from krabby.robot.description import RobotDescription

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def desc():
    return RobotDescription.load()


def test_a_yaw_command_turns_the_six_hip_yaws_and_nothing_else(tmp_path, desc):
    example("hand_made_policy").write(tmp_path / "twist", desc)
    policy = OnnxPolicy(PolicyBundle.load(tmp_path / "twist", desc, control_rate_hz=100.0))
    target = policy.step(np.array([[0.3, 0.1, 0.4]], np.float32))
    moved = dict(zip(desc.joint_names, target, strict=True))
    for name, default in zip(desc.joint_names, desc.default_joint_pos, strict=True):
        # 0.4 rad/s times 0.5 s
        expected = default - 0.2 if name.endswith("hip_yaw") else default
        assert moved[name] == pytest.approx(expected, abs=1e-6)


def test_the_twist_stops_at_its_clip(tmp_path, desc):
    example("hand_made_policy").write(tmp_path / "twist", desc)
    policy = OnnxPolicy(PolicyBundle.load(tmp_path / "twist", desc, control_rate_hz=100.0))
    turned = policy.step(np.array([[0.0, 0.0, 2.0]], np.float32)) - desc.default_joint_pos
    assert np.abs(turned).max() == pytest.approx(0.3)


def test_a_gentle_push_is_survived_and_a_hard_one_shifts_the_robot():
    own_trial = example("own_trial")
    gentle, hard = own_trial.run(0.5), own_trial.run(4.0)
    assert (gentle.outcome, gentle.time_s) == ("success", pytest.approx(8.0))
    assert hard.outcome == "missed"
    assert "drifts by" in hard.reason
