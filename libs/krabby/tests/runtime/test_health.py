"""Proof of life: the file follows the loop, twice a second and no more."""

import os

from krabby.runtime.health import Heartbeat
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
