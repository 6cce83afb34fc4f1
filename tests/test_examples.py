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


def driven(manoeuvre, seconds=200.0):
    """A driver, and the end of the way of a robot that follows every command exactly."""
    drive = example("scripted_drive")
    driver = drive.Driver(drive.MANOEUVRES[manoeuvre]())
    xy, yaw, commands = np.zeros(2), 0.0, []
    for step in range(round(seconds / 0.05)):
        if driver.done:
            break
        commands.append(driver.command(0.05 * step, xy, yaw))
        vx, rate = commands[-1]
        yaw += 0.05 * rate
        xy = xy + 0.05 * vx * np.array([np.cos(yaw), np.sin(yaw)])
    return driver, driver.report(xy, yaw), np.array(commands)


@pytest.mark.parametrize(
    ("manoeuvre", "metres"),
    # Two circles of 2 m; 11 m of slalom and its curves; 3 m ahead, a quarter of 1.5 m and 1 m back.
    [("figure-eight", 25.1), ("slalom", 12.0), ("reverse-parking", 6.4)],
)
def test_a_driver_keeps_a_robot_that_obeys_on_the_path(manoeuvre, metres):
    _, report, commands = driven(manoeuvre)
    assert report["completed"]
    assert report["path_error_rms_m"] < 0.06
    assert report["end_error_m"] < 0.1
    assert abs(report["end_heading_error_rad"]) < 0.15
    walked = 0.05 * np.abs(commands[:, 0]).sum()
    assert walked == pytest.approx(metres, rel=0.03)
    assert np.abs(commands[:, 1]).max() <= 0.5


def test_a_driver_releases_the_stick_for_five_seconds_at_each_stop():
    driver, report, commands = driven("stop-on-stairs")
    assert report["completed"]
    assert driver.drifts_m_s == [0.0, 0.0]
    # 7 m at 0.3 m/s, two stops of 5 s
    assert 0.05 * np.count_nonzero(commands[:, 0] == 0.0) == pytest.approx(10.0, abs=0.3)
    assert 0.05 * len(commands) == pytest.approx(33.3, abs=0.5)
