"""The ground where the mount says it must be, and what is said when it is not."""

import math

import msgspec
import numpy as np
import pytest
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import FakeClock, captured_logs, until
from krabby_camera.config import SelfCheckCfg
from krabby_camera.selfcheck import SelfCheck, compare, expect, fit_ground
from krabby_proto import STATE, Publisher, pack

DESC = RobotDescription.load()
CAMERA = DESC.camera
LEVEL = np.array(rotations.IDENTITY)


def ground(pitch_deg=30.0, roll_deg=0.0, height=0.5, tan_scale=1.0):
    """Depth of a plane seen from `height`, by a camera whose view is `tan_scale` times as wide."""
    pitch, roll = math.radians(pitch_deg), math.radians(roll_deg)
    right = (np.arange(106) - CAMERA.cx) / CAMERA.fx * tan_scale
    down = (np.arange(60) - CAMERA.cy) / CAMERA.fy * tan_scale
    right, down = np.meshgrid(right, down)
    n = (math.sin(roll), math.cos(roll) * math.cos(pitch), math.cos(roll) * math.sin(pitch))
    inverse = (n[0] * right + n[1] * down + n[2]) / height
    return np.where(inverse > 1 / 15, 1 / np.maximum(inverse, 1e-6), 0.0).astype(np.float32)


def test_a_plane_gives_its_pitch_roll_and_height():
    plane = fit_ground(ground(33.0, 4.0, 0.6), CAMERA)
    assert plane is not None
    assert math.degrees(plane.pitch_rad) == pytest.approx(33.0, abs=0.01)
    assert math.degrees(plane.roll_rad) == pytest.approx(4.0, abs=0.01)
    assert plane.height_m == pytest.approx(0.6, abs=1e-4)


def test_noise_holes_and_a_box_on_the_floor_do_not_matter():
    rng = np.random.default_rng(3)
    depth = ground() * (1 + 0.02 * rng.standard_normal((60, 106)))
    depth[rng.random(depth.shape) < 0.1] = 0.0
    depth[20:35, 60:75] = 0.7
    plane = fit_ground(depth.astype(np.float32), CAMERA)
    assert plane is not None
    assert math.degrees(plane.pitch_rad) == pytest.approx(30.0, abs=0.3)
    assert plane.height_m == pytest.approx(0.5, abs=0.01)


def test_a_sky_or_a_dead_camera_has_no_ground():
    assert fit_ground(np.zeros((60, 106), np.float32), CAMERA) is None


def test_the_prediction_follows_the_robot_s_own_tilt():
    # nose 5 deg down about y: the camera looks 35 deg down
    expected = expect(DESC, rotations.from_euler(0, math.radians(5), 0), None)
    assert math.degrees(expected.pitch_rad) == pytest.approx(35.0)
    # leaning to its right about x: the camera's right side sinks, more the less it looks down
    leaning = expect(DESC, rotations.from_euler(math.radians(5), 0, 0), None)
    assert math.degrees(leaning.roll_rad) == pytest.approx(5.0, abs=1e-6)


def test_the_prediction_stands_on_the_feet_or_lies_on_the_belly():
    standing = expect(DESC, LEVEL, DESC.default_joint_pos)
    assert standing.height_m == pytest.approx(0.5289, abs=1e-4)
    up = DESC.default_joint_pos.copy()
    up[1::3] = 1.2  # legs in the air
    # the belly is half the body's height below the base, the camera 0.08 m above it
    lying = expect(DESC, LEVEL, up)
    assert lying.height_m == pytest.approx(0.08 + DESC.geometry.body_size[2] / 2)


@pytest.mark.parametrize("name", ["flat", "leaning", "post", "wall"])
def test_the_simulator_s_camera_is_mounted_as_the_description_says(scene, name):
    recorded = scene(name)
    plane = fit_ground(recorded.robot, CAMERA)
    assert plane is not None
    report = compare(plane, expect(DESC, recorded.base_quat, DESC.default_joint_pos), CAMERA)
    assert abs(math.degrees(report.pitch_error_rad)) < 0.05
    assert abs(math.degrees(report.roll_error_rad)) < 0.05
    assert report.height_error_m == pytest.approx(0.0, abs=0.002)
    assert report.hfov_rad == pytest.approx(CAMERA.hfov_rad, abs=0.002)


def test_a_wrong_field_of_view_is_told_from_a_wrong_pitch_by_the_height():
    # the real view is 1.1 times as wide in tangents: 2 atan(1.1 tan 43.5 deg) = 92.5 deg
    plane = fit_ground(ground(30.0, 0.0, 0.5289, tan_scale=1.1), CAMERA)
    assert plane is not None
    report = compare(plane, expect(DESC, LEVEL, DESC.default_joint_pos), CAMERA)
    assert report.hfov_rad is not None
    assert math.degrees(report.hfov_rad) == pytest.approx(92.5, abs=0.1)


def run(depth, cfg=None, clock=None, endpoint="inproc://absent"):
    clock = clock or FakeClock()
    check = SelfCheck(cfg or SelfCheckCfg(frames=3), DESC, endpoint, clock)
    for _ in range(1000):
        if check.see(depth):
            break
        clock.advance(1 / 30)
    check.close()
    return check


def test_without_a_state_the_robot_is_taken_to_be_level_after_three_seconds():
    clock = FakeClock()
    start_ns = clock()
    with captured_logs() as events:
        check = run(ground(30.5), clock=clock)
    assert check.problems == ()
    assert 3.0 <= (clock() - start_ns) * 1e-9 < 3.2
    assert events[-1]["against"] == "robot taken to be level"
    assert events[-1]["pitch_error_deg"] == pytest.approx(0.5, abs=0.01)


def test_a_camera_that_hangs_down_is_named_with_its_error_and_the_remedy():
    check = run(ground(34.0))
    assert len(check.problems) == 1
    assert "looks 4.0 deg too far down: turn its mount to 30.0 deg" in check.problems[0]
    # 34 deg are 0.5934 rad
    assert "camera.mount_pitch of robot.toml to 0.5934" in check.problems[0]


def test_every_kind_of_error_is_named():
    check = run(ground(30.0, roll_deg=-5.0))
    assert "leans 5.0 deg to its left" in check.problems[0]


def test_a_wall_is_no_ground_and_no_verdict():
    with captured_logs() as events:
        check = run(np.full((60, 106), 1.0, np.float32))
    assert "only 0 of 3 frames show flat ground" in check.problems[0]
    assert events[-1]["event"] == "camera self-check impossible"


def test_the_state_tells_how_the_robot_stands(scene, tmp_path):
    recorded = scene("leaning")
    endpoint = f"ipc://{tmp_path}/state"
    payload = pack(
        STATE,
        base_quat_w=recorded.base_quat,
        base_ang_vel_b=np.zeros(3),
        base_lin_acc_b=(0, 0, 9.81),
        joint_pos=DESC.default_joint_pos,
        joint_vel=np.zeros(18),
        joint_effort=np.zeros(18),
        foot_contact=np.ones(6),
    )
    clock = FakeClock()
    with Publisher(endpoint, STATE) as states, captured_logs() as events:
        check = SelfCheck(SelfCheckCfg(frames=3), DESC, endpoint, clock)

        def seen():
            states.publish(payload, capture_ns=1)
            return check.see(recorded.robot)

        until(seen)
    assert check.problems == ()
    assert events[-1]["against"] == "state: orientation and feet"
    assert events[-1]["hfov_deg"] == pytest.approx(87.0, abs=0.2)
    assert events[-1]["height_error_m"] == pytest.approx(0.0, abs=0.002)


def test_the_limits_are_the_operator_s():
    strict = msgspec.structs.replace(SelfCheckCfg(frames=3), max_pitch_deg=0.1)
    assert run(ground(30.5), strict).problems != ()
