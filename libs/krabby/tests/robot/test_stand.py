"""Stand and trestles of the default robot, by hand."""

import pytest
from krabby.robot.description import RobotDescription
from krabby.robot.stand import stand

DESC = RobotDescription.load()


def test_loads_of_the_trestles_are_those_of_two_beams():
    # Tibia 1.0 kg with its centre half-way, foot 0.1 kg: 0.6 kg on the foot's trestle. Femur 1.5 kg
    # half-way, and what the tibia leaves: 0.75 + 1.1 - 0.6 kg on the knee's.
    found = stand(DESC)
    assert found.foot_n == pytest.approx(9.81 * 0.6)
    assert found.knee_n == pytest.approx(9.81 * 1.25)
    assert found.weight_n == pytest.approx(9.81 * 28.6)


def test_a_level_leg_is_held_by_its_hip_alone():
    # 1.5 kg at 0.3048 m, 1.0 kg at 0.6096 + 0.3429 m, 0.1 kg at 1.2954 m.
    assert stand(DESC).hip_pitch_nm == pytest.approx(9.81 * (0.4572 + 0.9525 + 0.12954))


def test_no_foot_reaches_the_floor_and_level_legs_lie_on_their_trestles():
    found = stand(DESC)
    # The base's middle is half of 0.1016 m above its underside, and so are the hips.
    middle = found.underside_m + 0.0508
    assert middle <= 0.6096 + 0.6858 + 0.03 + 0.1  # straight down is the longest that there is
    assert found.foot_m == pytest.approx(middle - 0.03)
    assert found.knee_m == pytest.approx(middle - 0.025)
