"""What the networks see is what the runtime builds, and targets are what the safety gate leaves."""

import math

import numpy as np
import pytest
import torch
from krabby.isaac.rotations import rotate_inverse
from krabby.policy.observation import HEIGHT_SCAN_SHAPE, ObservationBuilder, ObservationInputs
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby.safety.gate import GateCfg, SafetyGate
from krabby_proto import CommandStatus, SafetyState
from krabby_trainer.task import observations

ROBOT = RobotDescription.load()
DEFAULT = torch.tensor(ROBOT.default_joint_pos, dtype=torch.float32)
STEP_NS = 10_000_000
UPRIGHT = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
STANDING = torch.tensor([[3.0, -2.0, 0.42]])


def random_quat(count, rng):
    return rotations.normalize(rng.standard_normal((count, 4)))


def single(values):
    return torch.tensor(values, dtype=torch.float32)


# Parity with the runtime.


def scanned(height_at, pos, quat):
    return observations.scan(height_at(observations.scan_points(pos, quat)), pos)


def test_a_frame_is_what_the_runtime_builds_number_for_number():
    rng = np.random.default_rng(0)
    n = 50
    inputs = {
        "base_quat_w": random_quat(n, rng),
        "base_ang_vel_b": rng.normal(0, 2, (n, 3)),
        "joint_pos": rng.normal(0, 1, (n, 18)),
        "joint_vel": rng.normal(0, 5, (n, 18)),
        "foot_contact": rng.integers(0, 2, (n, 6)).astype(float),
        "nav_command": rng.normal(0, 1, (n, 3)),
        "last_action": rng.normal(0, 2, (n, 18)),
    }
    ours = observations.proprio(
        **{name: single(value) for name, value in inputs.items()}, default_joint_pos=DEFAULT
    )
    builder = ObservationBuilder(observations.PROPRIO, ROBOT)
    assert ours.shape == (n, 69)
    for robot in range(n):
        row = {name: value[robot] for name, value in inputs.items()}
        theirs = builder.build(ObservationInputs(**row, base_lin_acc_b=np.zeros(3)))[0]
        np.testing.assert_allclose(ours[robot], theirs, rtol=0, atol=1e-6)


def test_measured_gravity_overrides_what_follows_from_the_quaternion():
    frame = observations.proprio(
        base_quat_w=UPRIGHT,
        base_ang_vel_b=torch.zeros(1, 3),
        joint_pos=DEFAULT[None],
        joint_vel=torch.zeros(1, 18),
        foot_contact=torch.tensor([[True, True, False, False, True, True]]),
        nav_command=torch.tensor([[0.5, 0.0, -0.2]]),
        last_action=torch.zeros(1, 18),
        default_joint_pos=DEFAULT,
        gravity_b=torch.tensor([[0.1, -0.2, -0.9]]),
    )
    expected = torch.zeros(69)
    expected[3:9] = torch.tensor([0.1, -0.2, -0.9, 0.5, 0.0, -0.2])
    expected[63:] = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.5, 0.5])
    torch.testing.assert_close(frame[0], expected)


def test_rotations_are_those_of_the_runtime():
    rng = np.random.default_rng(1)
    quat, vector = random_quat(200, rng), rng.standard_normal((200, 3))
    pairs = (
        (observations.projected_gravity(single(quat)), rotations.projected_gravity(quat)),
        (observations.yaw_of(single(quat)), rotations.yaw(quat)),
        (
            rotate_inverse(single(quat), single(vector)),
            rotations.rotate_inverse(quat, vector),
        ),
    )
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6)


def test_the_grid_is_the_one_that_the_runtime_names():
    assert (len(observations.SCAN_X), len(observations.SCAN_Y)) == HEIGHT_SCAN_SHAPE
    assert math.prod(HEIGHT_SCAN_SHAPE) == observations.SCAN_SIZE


# The scan.


def level(xy):
    return torch.zeros(xy.shape[:-1])


def index(ix, iy):
    """Where the point `ix` ahead and `iy` to the left lies: all of one x lie together."""
    return 13 * ix + iy


def test_scan_points_run_to_the_left_first_and_ahead_last():
    points = observations.SCAN_POINTS_B
    assert points.shape == (325, 2)
    for (ix, iy), expected in {
        (0, 0): (-0.8, -1.2),
        (0, 1): (-0.8, -1.0),
        (8, 6): (0.0, 0.0),
        (24, 12): (1.6, 1.2),
    }.items():
        assert points[index(ix, iy)].tolist() == pytest.approx(expected, abs=1e-6)


def test_level_ground_under_a_standing_robot_scans_as_zero():
    quat = rotations.from_euler(0.2, -0.1, 1.0)
    scan = scanned(level, STANDING, single(quat)[None])
    assert scan.shape == (1, 325)
    assert scan.abs().max() < 1e-6


def test_a_step_up_ahead_shows_as_negative_where_it_begins():
    def ground(xy):
        return torch.where(xy[..., 0] > 3.0 + 0.55, 0.3, 0.0)

    scan = scanned(ground, STANDING, UPRIGHT).reshape(25, 13)
    # 0.55 m ahead lies between index 13 (0.5 m) and 14 (0.6 m).
    assert scan[:14].abs().max() < 1e-6
    torch.testing.assert_close(scan[14:], torch.full((11, 13), -0.3))


def test_yaw_turns_the_grid_with_the_robot():
    def ground(xy):
        return torch.where(xy[..., 1] > -2.0 + 0.55, 0.3, 0.0)

    # With its nose to the left, the step on the world's left lies ahead of it.
    quat = single(rotations.from_yaw(math.pi / 2))[None]
    scan = scanned(ground, STANDING, quat).reshape(25, 13)
    assert scan[:14].abs().max() < 1e-5
    torch.testing.assert_close(scan[14:], torch.full((11, 13), -0.3))


def test_one_stone_to_the_right_shows_at_one_point():
    def ground(xy):
        near = (xy - torch.tensor([3.0 + 0.4, -2.0 - 0.8])).norm(dim=-1) < 0.04
        return torch.where(near, 0.2, 0.0)

    scan = scanned(ground, STANDING, UPRIGHT)[0]
    # 0.4 m ahead is index 12, 0.8 m to the right index 2.
    assert torch.nonzero(scan.abs() > 1e-6).flatten().tolist() == [index(12, 2)]
    assert float(scan[index(12, 2)]) == pytest.approx(-0.2, abs=1e-6)


@pytest.mark.parametrize(("ground_m", "seen"), [(-1.8, 1.5), (-1.0, 1.0), (0.5, -0.5), (2.0, -1.5)])
def test_depths_and_heights_are_cut_at_one_and_a_half_metres(ground_m, seen):
    scan = scanned(lambda xy: level(xy) + ground_m, STANDING, UPRIGHT)
    torch.testing.assert_close(scan, torch.full((1, 325), seen))


def test_sizes_and_layout_follow_from_the_table_of_terms():
    assert observations.GROUP_SIZES == {
        "proprio": 69, "scan": 325, "velocity": 3, "privileged": 42, "history": 690, "critic": 14,
    }  # fmt: skip
    assert observations.described()["proprio"] == {
        term.name: term.width for term in observations.PROPRIO.terms
    }


# What no sensor tells.


def test_privileged_numbers_lie_in_their_order_scaled_to_about_one():
    numbers = observations.privileged(
        friction=torch.tensor([[1.25]]),
        added_mass_kg=torch.tensor([[-1.5]]),
        com_offset_m=torch.tensor([[0.05, -0.025, 0.0]]),
        kp_factor=torch.linspace(0.9, 1.1, 18)[None],
        kd_factor=torch.full((1, 18), 0.95),
        command_delay=torch.tensor([[0.8]]),
    )[0]
    assert numbers.shape == (observations.GROUP_SIZES["privileged"],) == (42,)
    assert numbers[:5].tolist() == pytest.approx([0.25, -0.5, 1.0, -0.5, 0.0])
    torch.testing.assert_close(numbers[5:23], torch.linspace(-1, 1, 18), rtol=0, atol=1e-5)
    torch.testing.assert_close(numbers[23:41], torch.full((18,), -0.5), rtol=0, atol=1e-5)
    assert float(numbers[41]) == pytest.approx(0.8)


def test_the_critic_sees_angles_as_sine_and_cosine():
    numbers = observations.critic_extra(
        heading_error=torch.tensor([math.pi / 6]),
        next_heading_error=torch.tensor([-math.pi / 2]),
        goal_distance_m=torch.tensor([1.5]),
        base_height_m=torch.tensor([0.4]),
        feet_height_m=torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5]]),
        speed=torch.tensor([0.7]),
        episode_progress=torch.tensor([0.25]),
    )[0]
    assert numbers.shape == (observations.GROUP_SIZES["critic"],) == (14,)
    angles = [0.5, 0.8660254, -1.0, 0.0]
    rest = [0.5, 0.4, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.25]
    assert numbers.tolist() == pytest.approx(angles + rest, abs=1e-6)


# From action to target.


def active_gate(cfg):
    """A gate that follows commands from the default pose on, and its time [ns]."""
    gate, now_ns = SafetyGate(cfg), 0
    observe(gate, now_ns)
    assert gate.request("arm", now_ns).ok
    while gate.state is SafetyState.ARMING:
        now_ns += STEP_NS
        observe(gate, now_ns)
        gate.step(now_ns)
    assert gate.state is SafetyState.ACTIVE
    return gate, now_ns


def observe(gate, now_ns):
    pose, rest = ROBOT.default_joint_pos, np.zeros(18)
    gate.observe(pose, rest, rest, np.array([0.0, 0.0, 0.0, 1.0]), now_ns)


@pytest.mark.parametrize("spread", [0.02, 1.0, 8.0])
def test_targets_are_those_that_the_safety_gate_lets_through(spread):
    cfg = GateCfg.from_description(ROBOT)
    gate, now_ns = active_gate(cfg)
    rng = np.random.default_rng(2)
    target, moved = DEFAULT[None], 0.0
    for _ in range(200):
        action = spread * rng.standard_normal(18)
        clipped = np.clip(action, -observations.ACTION_CLIP, observations.ACTION_CLIP)
        now_ns += STEP_NS
        observe(gate, now_ns)
        wanted = ROBOT.default_joint_pos + observations.ACTION_SCALE * clipped
        assert gate.command(wanted, now_ns).status is CommandStatus.APPLIED
        before, target = (
            target,
            observations.joint_pos_target(
                single(action)[None],
                target,
                default_joint_pos=DEFAULT,
                lower=single(cfg.target_lower),
                upper=single(cfg.target_upper),
                max_step=0.01 * single(cfg.max_rate),
            ),
        )
        moved = max(moved, float((target - before).abs().max()))
        np.testing.assert_allclose(target[0], gate.target, rtol=0, atol=1e-5)
    assert moved <= 0.12 + 1e-5
    assert (moved == pytest.approx(0.12, abs=1e-5)) == (spread >= 1.0)


def test_a_target_stops_at_its_limit_and_moves_no_faster_than_allowed():
    target = observations.joint_pos_target(
        torch.tensor([[1.0, 100.0, -0.1]]),
        torch.tensor([[0.0, 0.85, 0.0]]),
        default_joint_pos=torch.zeros(3),
        lower=torch.full((3,), -0.88),
        upper=torch.full((3,), 0.88),
        max_step=0.12,
    )
    # 0.4 is wanted and 0.12 allowed; 0.4 * 6 is cut to 0.88; -0.04 is as wanted.
    torch.testing.assert_close(target, torch.tensor([[0.12, 0.88, -0.04]]))
