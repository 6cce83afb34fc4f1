"""Hand-worked numbers for the drive: law, envelope, heat, supply, protection."""

import math

import numpy as np
import pytest
from krabby.drivers.can import DriveFault, DriveMode
from krabby_emulator.config import DriveCfg, SupplyCfg
from krabby_emulator.motor import DriveBank

STEP_S = 0.0025
NOTHING = np.zeros(18)
NO_STUCK = np.zeros(18, bool)


@pytest.fixture
def bank(desc):
    quiet = DriveCfg(position_noise=0.0, velocity_noise=0.0, effort_noise=0.0)
    return DriveBank(desc, quiet, SupplyCfg())


def switched_on(bank, joint=0, timeout_ns=0):
    assert bank.enable(joint, 0)
    bank.timeout_ns[joint] = timeout_ns
    return bank


def torque(law, joint, pos, vel):
    return law.kp[joint] * (law.target[joint] - pos) - law.kd[joint] * vel + law.offset[joint]


def settle(bank, effort=0.0, vel=0.0, seconds=STEP_S, step_s=STEP_S, **extra):
    every = np.ones(18)
    for _ in range(round(seconds / step_s)):
        bank.settle(effort * every, NOTHING, vel * every, step_s, **extra)


def test_power_on_is_off_limp_and_braked_by_the_shorted_winding(bank):
    law = bank.law(NOTHING, NO_STUCK)
    assert (bank.mode == DriveMode.OFF).all()
    # 10 N·m·s/rad against 2 rad/s
    assert torque(law, 3, 0.7, 2.0) == pytest.approx(-20.0)


def test_the_law_is_the_mit_law(bank):
    switched_on(bank).command(0, 0.5, 1.0, 100.0, 4.0, 3.0, now_ns=0)
    law = bank.law(NOTHING, NO_STUCK)
    # 100 (0.5 - 0.2) + 4 (1.0 - 0.6) + 3 = 34.6
    assert torque(law, 0, 0.2, 0.6) == pytest.approx(34.6)


def test_a_drive_that_is_off_hears_a_command_and_does_not_act_on_it(bank):
    bank.command(0, 0.5, 0.0, 100.0, 0.0, 50.0, now_ns=7)
    assert torque(bank.law(NOTHING, NO_STUCK), 0, 0.0, 0.0) == 0.0
    assert bank.command_ns[0] == 7
    # nor does it remember it when it is switched on afterwards
    switched_on(bank)
    assert torque(bank.law(NOTHING, NO_STUCK), 0, 0.0, 0.0) == 0.0


def test_the_envelope_shrinks_with_speed_supply_and_the_written_limit(bank):
    switched_on(bank)
    bank.law(NOTHING, NO_STUCK)
    # At 48 V: 120 (1 - 5 / 20) = 90 forwards, the peak of 120 against the motion.
    low, high = bank.torque_range(np.full(18, 5.0))
    assert (low[0], high[0]) == (pytest.approx(-120.0), pytest.approx(90.0))
    # At 24 V the no-load speed is 10: 120 (1 - 5 / 10) = 60.
    bank.supply_v = 24.0
    assert bank.torque_range(np.full(18, 5.0))[1][0] == pytest.approx(60.0)
    bank.limit_torque(0, 25.0)
    bank.law(NOTHING, NO_STUCK)
    low, high = bank.torque_range(np.full(18, 5.0))
    assert (low[0], high[0]) == (-25.0, 25.0)


def test_forty_newton_metres_for_ever_make_105_degrees(bank):
    for joint in range(18):
        switched_on(bank, joint)
    settle(bank, effort=40.0, seconds=3000.0, step_s=1.0)
    # (40 / 4)² = 100 W over 0.3 + 0.5 K/W above 25 °C
    assert bank.winding_c[0] == pytest.approx(105.0, abs=0.5)
    assert bank.housing_c[0] == pytest.approx(75.0, abs=0.5)


def test_the_peak_torque_heats_the_winding_by_15_degrees_a_second(bank):
    for joint in range(18):
        switched_on(bank, joint)
    settle(bank, effort=120.0, seconds=0.1)
    # (120 / 4)² = 900 W into 60 J/K
    assert bank.winding_c[0] == pytest.approx(25.0 + 1.5, abs=0.01)


def test_a_winding_over_its_limit_switches_the_drive_off_until_it_is_cleared(bank):
    switched_on(bank)
    heat = np.full(18, math.nan)
    heat[0] = 150.0
    settle(bank, heat_c=heat)
    bank.protect(0)
    assert bank.mode[0] == DriveMode.OFF
    assert bank.faults[0] == DriveFault.OVER_TEMPERATURE
    assert bank.faults[1] == 0
    assert not bank.enable(0, 0)
    bank.disable(0, clear=True)
    bank.protect(0)  # still hot
    assert bank.faults[0] == DriveFault.OVER_TEMPERATURE
    bank.winding_c[0] = 60.0
    bank.disable(0, clear=True)
    bank.protect(0)
    assert bank.enable(0, 0)


def test_the_battery_sags_with_what_the_drives_draw(bank):
    for joint in range(18):
        switched_on(bank, joint)
    settle(bank, effort=20.0, vel=2.0, seconds=0.1)
    # a drive: 20 · 2 + (20 / 4)² = 65 W; all: 1170 + 40 idle = 1210 W. V (48 - V) = 0.06 · 1210
    supply = 24.0 + math.sqrt(24.0**2 - 0.06 * 1210.0)
    assert bank.supply_v == pytest.approx(supply, abs=0.01)
    assert bank.supply_a == pytest.approx(1210.0 / supply, abs=0.05)


def test_too_little_voltage_switches_every_drive_off(bank):
    switched_on(bank)
    settle(bank, sag_v=23.0)
    bank.protect(0)
    assert bank.mode[0] == DriveMode.RUN
    settle(bank, sag_v=25.0)
    bank.protect(0)
    assert bank.mode[0] == DriveMode.OFF
    assert (bank.faults == DriveFault.UNDERVOLTAGE).all()
    assert bank.trips == 1


def test_silence_longer_than_the_time_out_lets_go_and_brakes(bank):
    switched_on(bank, timeout_ns=100_000_000)
    bank.command(0, 0.5, 0.0, 250.0, 10.0, 0.0, now_ns=1_000_000_000)
    bank.protect(1_100_000_000)
    assert bank.mode[0] == DriveMode.RUN
    bank.protect(1_100_000_001)
    assert bank.mode[0] == DriveMode.OFF
    assert bank.faults[0] == DriveFault.CAN_TIMEOUT
    assert torque(bank.law(NOTHING, NO_STUCK), 0, 0.0, 1.0) == pytest.approx(-10.0)


def test_time_that_the_emulator_slept_is_no_silence(bank):
    switched_on(bank, timeout_ns=100_000_000)
    bank.command(0, 0.5, 0.0, 250.0, 10.0, 0.0, now_ns=1_000_000_000)
    bank.stood_still(500_000_000)
    bank.protect(1_600_000_000)
    assert bank.mode[0] == DriveMode.RUN
    bank.protect(1_600_000_001)
    assert bank.mode[0] == DriveMode.OFF


def test_without_a_time_out_a_drive_holds_for_ever(bank):
    switched_on(bank).command(0, 0.5, 0.0, 250.0, 10.0, 0.0, now_ns=0)
    bank.protect(10**12)
    assert bank.mode[0] == DriveMode.RUN


def test_a_stuck_encoder_makes_the_drive_push_with_what_it_believes(bank):
    switched_on(bank).command(0, 0.5, 0.0, 100.0, 4.0, 0.0, now_ns=0)
    stuck = NO_STUCK.copy()
    stuck[0] = True
    at = NOTHING.copy()
    at[0] = 0.3
    bank.law(at, stuck)
    at[0] = 0.45
    law = bank.law(at, stuck)
    # 100 (0.5 - 0.3), independent of the joint
    assert torque(law, 0, 0.45, 3.0) == pytest.approx(20.0)
    bank.settle(NOTHING, at, np.ones(18), STEP_S)
    assert bank.reported.pos[0] == 0.3
    assert bank.reported.vel[0] == 0.0
    assert bank.reported.vel[1] == pytest.approx(1.0)


def test_angles_come_in_steps_of_the_encoder(desc):
    coarse = DriveCfg(encoder_counts=360, position_noise=0.0)
    bank = DriveBank(desc, coarse, SupplyCfg())
    bank.report(np.full(18, math.radians(10.6)), NOTHING)
    assert bank.reported.pos[0] == pytest.approx(math.radians(11.0))


def test_noise_has_the_size_that_was_asked_for(desc):
    bank = DriveBank(desc, DriveCfg(velocity_noise=0.3), SupplyCfg(), seed=4)
    speeds = []
    for _ in range(500):
        bank.report(NOTHING, NOTHING)
        speeds.extend(bank.reported.vel)
    assert np.std(speeds) == pytest.approx(0.3, rel=0.05)


def test_a_reset_forgets_parameters_and_faults(bank):
    switched_on(bank, timeout_ns=100_000_000)
    bank.limit_torque(0, 30.0)
    bank.reboot(0, now_ns=1_000_000_000)
    assert bank.mode[0] == DriveMode.OFF
    assert bank.timeout_ns[0] == 0
    assert bank.torque_limit[0] == 120.0
    assert bank.ready_ns[0] == 1_250_000_000
