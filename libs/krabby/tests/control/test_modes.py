"""Which mode follows which: the whole table."""

import math

import pytest
from krabby.control.modes import Mode, Situation, holds, next_mode
from krabby_proto import SafetyState

CALM = Situation(
    state_age_s=0.002,
    safety=SafetyState.ACTIVE,
    has_lease=True,
    hal_checked=True,
    stand_requested=True,
    trajectory_done=False,
)


@pytest.mark.parametrize(
    ("mode", "change", "expected"),
    [
        (Mode.SILENT, {}, Mode.STAND_UP),
        (Mode.SILENT, {"state_age_s": math.inf}, Mode.SILENT),
        (Mode.PASSIVE, {}, Mode.STAND_UP),
        (Mode.PASSIVE, {"stand_requested": False}, Mode.PASSIVE),
        (Mode.PASSIVE, {"safety": SafetyState.HOLD}, Mode.PASSIVE),
        (Mode.PASSIVE, {"hal_checked": False}, Mode.PASSIVE),
        (Mode.STAND_UP, {}, Mode.STAND_UP),
        (Mode.STAND_UP, {"trajectory_done": True}, Mode.POLICY),
        (Mode.STAND_UP, {"stand_requested": False}, Mode.SIT_DOWN),
        (Mode.POLICY, {}, Mode.POLICY),
        (Mode.POLICY, {"safety": SafetyState.HOLD}, Mode.POLICY),
        (Mode.POLICY, {"stand_requested": False}, Mode.SIT_DOWN),
        (Mode.SIT_DOWN, {"stand_requested": False}, Mode.SIT_DOWN),
        (Mode.SIT_DOWN, {"stand_requested": False, "trajectory_done": True}, Mode.PASSIVE),
        (Mode.SIT_DOWN, {}, Mode.STAND_UP),
    ],
)
def test_what_follows(mode, change, expected, limits):
    assert next_mode(mode, CALM._replace(**change), limits) is expected


@pytest.mark.parametrize("mode", [m for m in Mode if m is not Mode.SILENT])
@pytest.mark.parametrize(
    "safety",
    [SafetyState.DISARMED, SafetyState.ARMING, SafetyState.DAMP, SafetyState.ESTOP],
)
def test_a_gate_that_does_not_follow_ends_everything(mode, safety, limits):
    assert next_mode(mode, CALM._replace(safety=safety), limits) is Mode.PASSIVE


@pytest.mark.parametrize("mode", list(Mode))
def test_a_hal_that_is_not_known_is_not_moved(mode, limits):
    assert next_mode(mode, CALM._replace(hal_checked=False), limits) is Mode.PASSIVE


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("safety", list(SafetyState))
def test_without_the_lease_it_is_shown_in_every_state_of_the_gate(mode, safety, limits):
    now = CALM._replace(has_lease=False, safety=safety)
    assert next_mode(mode, now, limits) is Mode.NO_LEASE
    assert next_mode(mode, now._replace(state_age_s=0.1), limits) is Mode.SILENT


def test_once_the_lease_is_back_it_is_passive_until_the_gate_follows(limits):
    disarmed = CALM._replace(safety=SafetyState.DAMP)
    assert next_mode(Mode.NO_LEASE, disarmed, limits) is Mode.PASSIVE
    assert next_mode(Mode.NO_LEASE, CALM, limits) is Mode.STAND_UP
    unasked = CALM._replace(stand_requested=False)
    assert next_mode(Mode.NO_LEASE, unasked, limits) is Mode.PASSIVE


@pytest.mark.parametrize("mode", list(Mode))
def test_state_of_100_ms_silences_every_mode_and_99_ms_does_not(mode, limits):
    assert next_mode(mode, CALM._replace(state_age_s=0.1), limits) is Mode.SILENT
    assert next_mode(mode, CALM._replace(state_age_s=0.099), limits) is not Mode.SILENT


def test_state_of_30_ms_holds_and_29_ms_does_not(limits):
    assert holds(CALM._replace(state_age_s=0.030), limits)
    assert not holds(CALM._replace(state_age_s=0.029), limits)
