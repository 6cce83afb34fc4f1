"""When answers that nothing asked for are a second drive, by the rule's own numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.ids import IdWatch
from krabby.drivers.can.types import DriveFault, IdConflict
from krabby.robot.description import RobotDescription

MS = 1_000_000
HARDWARE = HardwareDescription.load(None, RobotDescription.load())
KNEE = IdConflict("front", 13, "lf_knee")


def noted(*times_ms, bus="front", can_id=13, given_up_ms=()):
    watch = IdWatch(HARDWARE)
    for time_ms in given_up_ms:
        watch.excuse(bus, can_id, round(time_ms * MS))
    for time_ms in times_ms:
        watch.note(bus, can_id, round(time_ms * MS))
    return watch


@pytest.mark.parametrize(
    ("times_ms", "is_found"),
    [
        ((0, 5), False),
        ((0, 5, 10), True),
        ((0, 500, 1000), True),
        ((0, 500, 1001), False),
        ((0, 500, 1001, 1400), True),
        ((0, 2, 4), True),
        ((0, 0.2, 0.4, 0.6, 1.9), False),
        ((0, 1.9, 2, 3.9), False),
    ],
)
def test_three_times_within_a_second_two_milliseconds_apart(times_ms, is_found):
    assert noted(*times_ms).conflicts == ((KNEE,) if is_found else ())


@pytest.mark.parametrize(
    ("given_up_ms", "is_found"),
    [((0,), False), ((0, 1), False), ((), True), ((-996,), True), ((-995,), False)],
)
def test_a_request_that_was_given_up_excuses_one_answer_for_a_second(given_up_ms, is_found):
    watch = noted(5, 10, 15, given_up_ms=given_up_ms)
    assert bool(watch.conflicts) == is_found


def test_repeats_of_a_late_answer_leave_the_excuses_of_others():
    watch = noted(5, 5, 5.5, 6, given_up_ms=(0, 1, 2))
    for time_ms in (10, 15, 20, 25):
        watch.note("front", 13, time_ms * MS)
    assert watch.conflicts == ()  # 5, 10 and 15 are excused, 20 and 25 are counted
    watch.note("front", 13, 30 * MS)
    assert watch.conflicts == (KNEE,)


def test_buses_and_ids_are_counted_apart():
    watch = noted(0, 5)
    watch.note("middle", 13, 10 * MS)
    watch.note("front", 12, 10 * MS)
    assert watch.conflicts == ()
    assert watch.suspects(1005 * MS)
    assert not watch.suspects(1011 * MS)


def test_it_is_kept_until_reset_and_marks_the_joint_or_the_bus():
    watch = noted(0, 5, 10)
    for time_ms in (15, 20, 25):
        watch.note("rear", 99, time_ms * MS)
    assert watch.conflicts == (KNEE, IdConflict("rear", 99, ""))
    faults = np.zeros(18, np.uint32)
    watch.mark(faults)
    rear = list(HARDWARE.drives_of("rear"))
    assert np.flatnonzero(faults == DriveFault.SHARED_ID).tolist() == [2]
    assert np.flatnonzero(faults == DriveFault.UNKNOWN_ID).tolist() == rear
    watch.reset()
    assert watch.conflicts == ()
    watch.note("front", 13, 30 * MS)
    assert watch.conflicts == ()


@given(st.lists(st.integers(0, 3000), max_size=40).map(sorted))
def test_it_is_found_exactly_when_the_rule_says(times_ms):
    counted = []
    for time_ms in times_ms:
        if not counted or time_ms - counted[-1] >= 2:
            counted.append(time_ms)
    expected = any(
        third - first <= 1000 for first, third in zip(counted, counted[2:], strict=False)
    )
    assert bool(noted(*times_ms).conflicts) == expected
