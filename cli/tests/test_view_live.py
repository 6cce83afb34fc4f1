"""What the cockpit is told of a running robot's host."""

from krabby_cli.view.live import Ticks


def counted(*counts):
    """Words after statuses half a second apart: (ticks, late ones)."""
    ticks, words = Ticks(), ""
    for number, (done, late) in enumerate(counts):
        words = ticks.take({"ticks": done, "late": late}, 0.5 * number)
    return words


def test_more_than_five_in_a_hundred_late_ticks_are_too_busy():
    # 200 ticks in 2 s: 10 late ones are 5 %, 12 are 6 %.
    assert counted((100, 3), (150, 4), (200, 6), (250, 9), (300, 13)) == ""
    busy = "too busy: 6% of the ticks late"
    assert counted((100, 3), (150, 4), (200, 6), (250, 9), (300, 15)) == busy


def test_only_the_last_five_seconds_count():
    early = [(50 * number, 40) for number in range(13)]  # all 40 before the first status
    assert counted((0, 0), *early) == ""
    assert counted((0, 0), *early[:5]) == "too busy: 20% of the ticks late"


def test_a_loop_that_started_again_or_tells_no_ticks_begins_anew():
    assert counted((900, 0), (1000, 90), (50, 0), (100, 0), (150, 0)) == ""
    ticks = Ticks()
    ticks.take({"ticks": 0, "late": 0}, 0.0)
    assert ticks.take({}, 0.5) == ""
    assert ticks.take({"ticks": 200, "late": 100}, 1.0) == ""
