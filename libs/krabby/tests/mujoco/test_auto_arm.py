import pytest
from krabby.mujoco.auto_arm import AutoArm
from krabby_proto import SafetyState

MS = 1_000_000
DISARMED = SafetyState.DISARMED


def commands(auto, begin_ms, end_ms, every_ms=10):
    for ms in range(begin_ms, end_ms + 1, every_ms):
        auto.command(ms * MS)


def test_it_arms_after_commands_have_come_steadily_for_a_fifth_of_a_second():
    auto = AutoArm(enabled=True)
    commands(auto, 0, 190)
    assert not auto.due(195 * MS, DISARMED)
    commands(auto, 200, 200)
    assert auto.due(200 * MS, DISARMED)


def test_a_pause_starts_the_wait_anew():
    auto = AutoArm(enabled=True)
    commands(auto, 0, 150)
    commands(auto, 210, 300)  # 60 ms of silence in between
    assert not auto.due(300 * MS, DISARMED)
    commands(auto, 310, 410)
    assert auto.due(410 * MS, DISARMED)


def test_a_few_probing_commands_do_not_arm():
    auto = AutoArm(enabled=True)
    commands(auto, 0, 1000, every_ms=100)
    assert not auto.due(1000 * MS, DISARMED)


def test_it_does_not_arm_once_commands_have_stopped():
    auto = AutoArm(enabled=True)
    commands(auto, 0, 500)
    assert not auto.due(551 * MS, DISARMED)


def test_a_refused_attempt_is_repeated_after_half_a_second():
    auto = AutoArm(enabled=True)
    commands(auto, 0, 2000)
    commands(auto, 2000, 2000)
    assert auto.due(2000 * MS, SafetyState.DAMP)
    commands(auto, 2010, 2490)
    assert not auto.due(2495 * MS, SafetyState.DAMP)
    commands(auto, 2500, 2500)
    assert auto.due(2500 * MS, SafetyState.DAMP)


def test_an_armed_or_stopped_robot_is_left_alone():
    auto = AutoArm(enabled=True)
    commands(auto, 0, 500)
    for state in (SafetyState.ACTIVE, SafetyState.ARMING, SafetyState.HOLD, SafetyState.ESTOP):
        assert not auto.due(500 * MS, state)


def test_an_operators_disarm_outlasts_it_until_an_operator_arms():
    auto = AutoArm(enabled=True)
    auto.operator("disarm", granted=True)
    commands(auto, 0, 500)
    assert not auto.due(500 * MS, DISARMED)
    auto.operator("reset", granted=True)
    assert not auto.due(500 * MS, DISARMED)
    auto.operator("arm", granted=True)
    assert auto.due(500 * MS, DISARMED)


def test_an_operators_estop_outlasts_it():
    auto = AutoArm(enabled=True)
    auto.operator("estop", granted=True)
    auto.operator("reset", granted=True)
    commands(auto, 0, 500)
    assert not auto.due(500 * MS, DISARMED)


@pytest.mark.parametrize("op", ["disarm", "estop"])
def test_a_robot_that_was_put_back_does_not_undo_an_operators_stop(op):
    auto = AutoArm(enabled=True)
    commands(auto, 0, 500)
    auto.operator(op, granted=True)
    auto.operator("reset", granted=True)
    auto.reset()
    commands(auto, 510, 1500)
    assert not auto.due(1500 * MS, DISARMED)
    assert not auto.due(1500 * MS, SafetyState.DAMP)


def test_an_arm_that_was_refused_gives_no_permission():
    auto = AutoArm(enabled=True)
    auto.operator("estop", granted=True)
    auto.operator("arm", granted=False)
    auto.operator("reset", granted=True)
    commands(auto, 0, 500)
    assert not auto.due(500 * MS, DISARMED)


def test_switched_off_it_never_arms():
    auto = AutoArm(enabled=False)
    commands(auto, 0, 500)
    assert not auto.due(500 * MS, DISARMED)


def test_after_a_reset_steady_commands_are_waited_for_again():
    auto = AutoArm(enabled=True)
    commands(auto, 0, 500)
    auto.reset()
    commands(auto, 510, 700)
    assert not auto.due(700 * MS, DISARMED)
    commands(auto, 710, 710)
    assert auto.due(710 * MS, DISARMED)
