"""The gait generator as arrays: what it promises for any command."""

import numpy as np
import pytest
from krabby.policy.gait import OBSERVATION, STATE_SHAPES, Gait, GaitCfg
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions

DESC = RobotDescription.load()
FEET = foot_positions(DESC, DESC.default_joint_pos)


class Walker:
    """A generator with its state, and what it did."""

    def __init__(self, cfg=None, joint_pos=None):
        self.gait = Gait(DESC, cfg)
        self.state = {name: np.zeros(shape, np.float32) for name, shape in STATE_SHAPES.items()}
        self.obs = np.zeros((1, OBSERVATION.size), np.float32)
        if joint_pos is not None:
            self.obs[0, 3:] = joint_pos - DESC.default_joint_pos
        self.targets, self.airborne, self.feet, self.twists, self.duty = [], [], [], [], []

    def walk(self, command, seconds):
        self.obs[0, :3] = command
        for _ in range(round(seconds * 100)):
            out = self.gait.step(self.obs, **self.state)
            self.state = {name: out[f"{name}_out"] for name in STATE_SHAPES}
            self.targets.append(out["actions"][0] + DESC.default_joint_pos)
            self.airborne.append(out["legs_out"][0] > 0.0)
            self.feet.append(out["feet_out"][:2].T)
            self.twists.append(out["twist_out"])
            self.duty.append(float(out["clock_out"][2]))
        return self


def test_without_a_command_it_stands_still_on_six_feet():
    walker = Walker().walk((0.0, 0.0, 0.0), 3.0)
    assert not np.any(walker.airborne)
    assert np.abs(walker.targets[-1] - walker.targets[50]).max() < 1e-5


def test_the_first_target_supports_the_weight_from_where_the_joints_are():
    lying = DESC.default_joint_pos + np.tile([0.05, 0.3, -0.2], 6)
    first = Walker(joint_pos=lying).walk((0.0, 0.0, 0.0), 0.01).targets[0]
    # Moved by what the drives give way under the weight, 28.6 kg * 9.81 / 6 = 47 N a foot.
    offset = (first - lying).reshape(6, 3)
    assert np.abs(offset).max() < 35.0 / 250.0
    assert (offset[:, 1] < 0.0).all()  # hip_pitch presses the foot down


@pytest.mark.parametrize(
    ("speed", "most", "mean"),
    # mean: 6 (1 - duty) * 0.36 / 0.44, duty = 0.4 / (0.4 + 0.44 speed)
    [(0.1, 1, 0.82), (0.3, 2, 1.22), (0.45, 2, 1.63), (0.7, 3, 2.13)],
)
def test_more_feet_are_in_the_air_the_faster_it_walks(speed, most, mean):
    walker = Walker().walk((speed, 0.0, 0.0), 20.0)
    count = np.sum(walker.airborne[800:], axis=1)
    assert count.max() == most
    assert count.mean() == pytest.approx(mean, rel=0.05)


def test_a_slow_walk_lifts_rear_middle_front_of_one_side_then_of_the_other():
    airborne = np.array(Walker().walk((0.1, 0.0, 0.0), 12.0).airborne)
    lifts = [int(leg) for _, leg in np.argwhere(airborne[1:] & ~airborne[:-1])]
    names = [DESC.leg_names[leg] for leg in lifts]
    start = names.index("lr", 6)
    assert names[start : start + 6] == ["lr", "lm", "lf", "rr", "rm", "rf"]


def test_backwards_the_wave_runs_the_other_way():
    airborne = np.array(Walker().walk((-0.1, 0.0, 0.0), 12.0).airborne)
    lifts = [int(leg) for _, leg in np.argwhere(airborne[1:] & ~airborne[:-1])]
    names = [DESC.leg_names[leg] for leg in lifts]
    start = names.index("lf", 6)
    assert names[start : start + 6] == ["lf", "lm", "lr", "rf", "rm", "rr"]


def test_to_reverse_it_comes_to_rest_on_six_feet_first():
    walker = Walker().walk((0.4, 0.0, 0.0), 6.0)
    walker.walk((-0.3, 0.0, 0.0), 8.0)
    speed = np.array(walker.twists)[:, 0]
    turned = int(np.argmax(speed < -GaitCfg().still_speed))
    assert not np.any(walker.airborne[turned - 5])
    assert 600 < turned < 800  # within two seconds
    assert speed[-1] == pytest.approx(-0.3, abs=0.01)


def test_a_little_backwards_while_it_goes_sideways_does_not_stop_it():
    walker = Walker().walk((0.03, 0.3, 0.0), 6.0)
    walker.walk((-0.03, 0.3, 0.0), 3.0)
    assert min(twist[1] for twist in walker.twists[500:]) > 0.28


def test_feet_on_the_ground_move_opposite_to_the_twist():
    walker = Walker().walk((0.2, 0.05, 0.1), 10.0)
    vx, vy, wz = walker.twists[-1]
    before, after = walker.feet[-2], walker.feet[-1]
    down = ~walker.airborne[-1]
    expected = -np.stack([vx - wz * before[:, 1], vy + wz * before[:, 0]], axis=1)
    assert np.allclose((after - before)[down] * 100.0, expected[down], atol=2e-5)


def test_steps_are_centred_on_the_default_stance():
    feet = np.array(Walker().walk((0.3, 0.0, 0.0), 30.0).feet[1000:])
    middle = (feet.max(axis=0) + feet.min(axis=0)) / 2.0
    assert np.abs(middle - FEET[:, :2]).max() < 0.02


def test_after_a_stop_the_feet_return_to_their_places_and_stay():
    walker = Walker().walk((0.5, 0.1, 0.3), 8.0).walk((0.0, 0.0, 0.0), 8.0)
    assert not np.any(walker.airborne[-200:])
    assert np.abs(walker.feet[-1] - FEET[:, :2]).max() < GaitCfg().still_offset_m
    assert np.abs(walker.twists[-1]).max() < 1e-3


def test_a_command_beyond_what_legs_can_do_is_scaled_down_and_keeps_its_direction():
    vx, vy, wz = Walker().walk((2.0, 1.0, 1.0), 12.0).twists[-1]
    assert vy == pytest.approx(vx / 2.0, rel=1e-3)
    assert wz == pytest.approx(vx / 2.0, rel=1e-3)
    corner = np.hypot(vx + wz * np.abs(FEET[:, 1]).max(), vy + wz * np.abs(FEET[:, 0]).max())
    assert corner <= GaitCfg().speed_max + 0.01


@pytest.mark.parametrize("seed", range(4))
def test_no_sequence_of_commands_leaves_limits_rates_or_the_ground(seed):
    rng = np.random.default_rng(seed)
    walker = Walker()
    for _ in range(8):
        command = rng.uniform((-0.5, -0.4, -0.8), (0.8, 0.4, 0.8)) * rng.choice([0.0, 1.0, 1.0])
        walker.walk(command, rng.uniform(0.2, 4.0))
    targets = np.array(walker.targets)
    assert (targets > DESC.joint_lower + DESC.safety.position_margin_rad).all()
    assert (targets < DESC.joint_upper - DESC.safety.position_margin_rad).all()
    assert (np.abs(np.diff(targets, axis=0)) * 100.0 < DESC.velocity_limit).all()
    assert np.sum(walker.airborne, axis=1).max() <= 3
    assert np.abs(np.array(walker.feet) - FEET[:, :2]).max() < 0.4
