"""What is drawn lies in its range, stays what it is, and is nothing when switched off."""

from dataclasses import replace

import pytest
import torch
from krabby_trainer.task.config import RandomisationCfg
from krabby_trainer.task.observations import privileged
from krabby_trainer.task.randomisation import NOMINAL_DELAY, Bodies, SensorErrors, uniform

N = 4000
CFG = RandomisationCfg()
OFF = replace(CFG, enabled=False)
FRICTION = 0.9
SIZES = {
    "friction": 1,
    "added_mass_kg": 1,
    "com_offset_m": 3,
    "kp_factor": 18,
    "kd_factor": 18,
    "command_delay": 1,
    "mass_factor": 1,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw(cfg, count=N):
    return Bodies.draw(cfg, count, "cpu", friction=FRICTION)


def test_uniform_draws_fill_their_range():
    drawn = uniform((-2.0, 6.0), (10_000,), "cpu")
    assert -2.0 <= float(drawn.min()) < -1.98
    assert 5.98 < float(drawn.max()) <= 6.0
    assert float(drawn.mean()) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", SIZES)
def test_every_robot_is_drawn_from_its_range(name):
    bounds = {"kp_factor": "gain_factor", "kd_factor": "gain_factor"}.get(name, name)
    cfg = replace(CFG, mass_factor=[0.9, 1.6])
    low, high = getattr(cfg, bounds)
    drawn = getattr(draw(cfg), name)
    assert drawn.shape == (N, SIZES[name])
    assert low <= float(drawn.min()) < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < float(drawn.max()) <= high
    assert len(drawn.unique()) > 0.9 * drawn.numel()


def test_without_randomisation_every_robot_is_the_described_one():
    bodies = draw(OFF, 3)
    nominal = {
        "friction": FRICTION,
        "added_mass_kg": 0.0,
        "com_offset_m": 0.0,
        "kp_factor": 1.0,
        "kd_factor": 1.0,
        "command_delay": NOMINAL_DELAY,
        "mass_factor": 1.0,
    }
    for name, size in SIZES.items():
        assert torch.equal(getattr(bodies, name), torch.full((3, size), nominal[name]))


def test_a_range_of_one_number_is_that_number():
    assert draw(replace(CFG, friction=[0.7, 0.7]), 5).friction.flatten().tolist() == pytest.approx(
        [0.7] * 5
    )


def test_networks_see_the_bodies_in_the_order_of_the_privileged_group():
    bodies = draw(CFG, 5)
    seen = bodies.privileged(28.6)
    assert seen.shape == (5, 42)
    untold = ("motor_strength", "mass_factor")
    known = {key: value for key, value in vars(bodies).items() if key not in untold}
    assert torch.equal(seen, privileged(**known))
    torch.testing.assert_close(seen[:, :1] + 1.0, bodies.friction)
    torch.testing.assert_close(3.0 * seen[:, 1:2], bodies.added_mass_kg)
    torch.testing.assert_close(0.05 * seen[:, 2:5], bodies.com_offset_m)
    torch.testing.assert_close(1.0 + 0.1 * seen[:, 5:23], bodies.kp_factor)
    torch.testing.assert_close(1.0 + 0.1 * seen[:, 23:41], bodies.kd_factor)
    torch.testing.assert_close(seen[:, 41:], bodies.command_delay)


def test_nominal_bodies_look_nominal():
    seen = draw(OFF, 1).privileged(28.6)[0]
    assert float(seen[0]) == pytest.approx(-0.1, abs=1e-6)
    assert seen[1:41].abs().max() == 0.0
    assert float(seen[41]) == pytest.approx(0.8)


def test_networks_are_told_how_much_heavier_a_robot_is_in_all():
    bodies = draw(replace(CFG, mass_factor=[1.5, 1.5], added_mass_kg=[2.0, 2.0]), 2)
    # Half of 28 kg more, and 2 kg: 16 kg.
    assert (3.0 * bodies.privileged(28.0)[:, 1]).tolist() == pytest.approx([16.0, 16.0])


def test_bodies_become_others_in_the_same_memory():
    bodies, others = draw(CFG, 4), draw(CFG, 4)
    before = {name: value.data_ptr() for name, value in vars(bodies).items()}
    bodies.copy_(others)
    for name, value in vars(bodies).items():
        assert value.data_ptr() == before[name]
        assert torch.equal(value, getattr(others, name))


# Sensors.

READINGS = {"joint_pos": 18, "joint_vel": 18, "gyro": 3, "gravity": 3, "scan": 325}
NOISE = {"joint_pos_noise": 0.0, "gyro_noise": 0.0, "scan_noise_m": 0.0}


@pytest.mark.parametrize(("sensor", "size"), READINGS.items())
def test_without_randomisation_sensors_tell_the_truth(sensor, size):
    truth = torch.randn(10, size)
    assert torch.equal(getattr(SensorErrors(OFF, 10, "cpu"), sensor)(truth), truth)


@pytest.mark.parametrize(
    ("sensor", "largest"), [("joint_pos", 0.01), ("gyro", 0.03), ("scan", 0.02)]
)
def test_a_bias_is_constant_within_its_bound_and_each_robots_own(sensor, largest):
    size = READINGS[sensor]
    read = getattr(SensorErrors(replace(CFG, **NOISE), N, "cpu"), sensor)
    bias = read(torch.zeros(N, size))
    assert 0.99 * largest < float(bias.abs().max()) <= largest
    assert len(bias[:, 0].unique()) > 0.9 * N
    for truth in (torch.zeros(N, size), torch.ones(N, size)):
        torch.testing.assert_close(read(truth) - truth, bias, rtol=0, atol=1e-6)


def test_a_scan_is_wrong_by_the_same_height_everywhere():
    bias = SensorErrors(replace(CFG, **NOISE), 6, "cpu").scan(torch.zeros(6, 325))
    assert torch.equal(bias, bias[:, :1].expand(-1, 325))


@pytest.mark.parametrize(
    ("sensor", "std"),
    [
        ("joint_pos", 0.005),
        ("joint_vel", 0.1),
        ("gyro", 0.05),
        ("gravity", 0.01),
        ("scan", 0.01),
    ],
)
def test_noise_is_new_in_every_reading_and_as_large_as_configured(sensor, std):
    unbiased = replace(CFG, joint_pos_bias=0.0, gyro_bias=0.0, scan_bias_m=0.0)
    read = getattr(SensorErrors(unbiased, N, "cpu"), sensor)
    truth = torch.full((N, READINGS[sensor]), 0.3)
    first, second = read(truth) - truth, read(truth) - truth
    assert float(first.std()) == pytest.approx(std, rel=0.05)
    assert float(first.mean()) == pytest.approx(0.0, abs=0.1 * std)
    assert abs(float((first * second).mean())) < 0.1 * std**2
