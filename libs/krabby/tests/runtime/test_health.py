"""Proof of life: the file follows the loop, twice a second and no more."""

import os

import pytest
from krabby.runtime.health import Heartbeat, Pulse
from krabby.runtime.testing import FakeClock


def test_the_file_appears_with_the_first_beat_and_goes_with_the_process(tmp_path):
    path = tmp_path / "alive"
    heart = Heartbeat(path)
    assert not path.exists()
    heart.beat()
    assert path.exists()
    heart.clear()
    heart.clear()
    assert not path.exists()


def test_the_file_is_touched_at_most_twice_a_second(tmp_path):
    path, clock = tmp_path / "alive", FakeClock()
    heart = Heartbeat(path, clock=clock)
    heart.beat()
    touches = 0
    for _ in range(100):  # one second at 100 Hz
        os.utime(path, (0, 0))
        clock.advance(0.01)
        heart.beat()
        touches += path.stat().st_mtime > 0
    assert touches == 2


def test_a_loop_that_stops_turning_is_not_healthy():
    clock = FakeClock()
    heart = Heartbeat(clock=clock)
    assert not heart.healthy()
    heart.beat()
    clock.advance(1.9)
    assert heart.healthy()
    clock.advance(0.2)
    assert not heart.healthy()
    heart.beat(clock())
    assert heart.healthy()


def test_a_beat_that_cannot_touch_its_file_does_not_end_the_loop(tmp_path):
    heart = Heartbeat(tmp_path / "missing" / "alive")
    heart.beat()
    assert heart.beats == 1
    assert heart.healthy()


@pytest.fixture
def pulse():
    now_s = [100.0]
    pulse = Pulse(look_s=0.2, starts_s=10.0, clock=lambda: now_s[0])
    pulse.now_s = now_s
    yield pulse
    pulse.close()


def looks(pulse, count, seconds):
    """Whether each of so many looks, so far apart, finds the other process stalled."""
    found = []
    for _ in range(count):
        pulse.now_s[0] += seconds
        found.append(pulse.stalled())
    return found


def test_a_process_that_is_silent_for_two_seconds_has_stalled(pulse):
    pulse.beat()
    assert looks(pulse, 1, 0.2) == [False]
    assert looks(pulse, 11, 0.19) == [False] * 10 + [True]  # 2.09 s
    pulse.beat()
    assert looks(pulse, 1, 0.2) == [False]


def test_the_first_beat_may_take_longer(pulse):
    assert looks(pulse, 63, 0.19) == [False] * 63  # 11.97 s
    assert looks(pulse, 1, 0.19) == [True]


def test_a_process_that_was_frozen_itself_accuses_no_other(pulse):
    pulse.beat()
    assert looks(pulse, 1, 0.2) == [False]
    assert looks(pulse, 1, 3600.0) == [False]
    pulse.beat()
    assert looks(pulse, 1, 0.2) == [False]


def test_beats_that_are_not_read_do_not_block(pulse):
    for _ in range(100_000):  # the pipe holds 65536
        pulse.beat()
    assert looks(pulse, 1, 0.2) == [False]
