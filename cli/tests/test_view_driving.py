"""The deadmen of a browser, by a clock that passes only when told to; times in seconds."""

import pytest
from krabby_cli.keys import DEADMAN_S, Nav, NavLimits
from krabby_cli.view.driving import FRESH_S, Driving, clamped

LIMITS = NavLimits(speed=0.5, yaw_rate=0.6)
FORWARD = (1.0, 0.0, 0.0)
REST = (0.0, 0.0, 0.0)


class Page:
    """A page whose clock began 1000 s after ours, and whose messages take `delay_s`."""

    def __init__(self, driving, number=1):
        self.driving = driving
        self.number = number
        self.inputs = 0

    def hold(self, now_s, sticks=FORWARD, *, inputs=1, delay_s=0.005):
        self.inputs += inputs
        return self.driving.hear(self.number, sticks, self.inputs, now_s - 1000 - delay_s, now_s)


@pytest.fixture
def driving():
    return Driving(LIMITS)


def held(page, begin_s, end_s, *, inputs=1):
    """A stick held from begin to end, 20 messages a second, as the page sends them."""
    count = round((end_s - begin_s) / 0.05)
    for i in range(count + 1):
        page.hold(begin_s + 0.05 * i, inputs=inputs)


def test_a_robot_that_no_person_took_gets_no_command(driving):
    assert driving.command(0.0) is None


def test_a_stick_is_a_share_of_the_largest_speed(driving):
    page = Page(driving)
    page.hold(1.0, (0.5, -1.0, 1.0))
    assert driving.command(1.0) == Nav(0.25, -0.5, 0.6)


def test_a_stick_beyond_its_end_is_at_its_end(driving):
    Page(driving).hold(1.0, (7.0, 0.0, 0.0))
    assert driving.command(1.0) == Nav(0.5, 0.0, 0.0)


def test_letting_go_stops_at_once_and_the_robot_stays_taken(driving):
    page = Page(driving)
    held(page, 1.0, 2.0)
    page.hold(2.05, REST)
    assert driving.command(2.05) == Nav()


def test_a_page_that_falls_silent_stops_the_robot_within_a_quarter_second(driving):
    held(Page(driving), 1.0, 3.0)
    assert driving.command(3.0 + 0.9 * FRESH_S) == Nav(0.5)
    assert driving.command(3.0 + 1.01 * FRESH_S) == Nav()
    assert FRESH_S + 0.05 < 0.5  # with a period of the walking commands


def test_a_key_held_without_input_stops_after_the_deadman(driving):
    page = Page(driving)
    page.hold(1.0)
    held(page, 1.05, 1.0 + DEADMAN_S - 0.05, inputs=0)
    assert driving.command(1.0 + DEADMAN_S - 0.01) == Nav(0.5)
    assert driving.left_s(1.0 + DEADMAN_S - 0.5) == pytest.approx(0.5)
    held(page, 1.0 + DEADMAN_S, 5.0, inputs=0)
    assert driving.command(1.0 + DEADMAN_S) == Nav()
    assert driving.command(5.0) == Nav()
    page.hold(5.05)  # the person moved the stick
    assert driving.command(5.05) == Nav(0.5)


def test_repeated_keys_feed_the_deadman(driving):
    held(Page(driving), 1.0, 11.0)
    assert driving.command(11.0) == Nav(0.5)


def test_what_a_stalled_link_delivers_late_does_not_move_the_robot(driving):
    page = Page(driving)
    held(page, 1.0, 2.0)
    assert driving.command(2.5) == Nav()
    for i in range(20):  # one second of messages, all at 4.0
        page.hold(4.0, delay_s=2.0 - 0.05 * i)
    assert driving.command(4.0) == Nav()
    page.hold(4.05, delay_s=0.01)  # the link is as fast as before
    assert driving.command(4.05) == Nav(0.5)


def test_a_late_message_that_lets_go_counts(driving):
    page = Page(driving)
    held(page, 1.0, 2.0)
    page.hold(2.1, REST, delay_s=0.9)
    assert driving.command(2.1) == Nav()


def test_a_browsers_clock_that_runs_away_slowly_is_followed(driving):
    """100 ppm over two hours is 0.72 s, more than a message may be late."""
    page = Page(driving)
    for second in range(7200):
        page.hold(float(second), delay_s=0.005 + 1e-4 * second)
    assert driving.command(7199.0) == Nav(0.5)


def test_closing_the_page_leaves_the_robot_commanded_to_stand(driving):
    page = Page(driving)
    held(page, 1.0, 2.0)
    driving.leave(page.number)
    assert driving.driver is None
    assert driving.command(2.0) == Nav()
    assert driving.command(3600.0) == Nav()


def test_a_robot_is_handed_back_by_its_driver_alone_while_there_is_one(driving):
    Page(driving, 1).hold(1.0)
    driving.hand_back(2)
    assert driving.command(1.0) == Nav(0.5)
    driving.hand_back(1)
    assert driving.command(1.0) is None


def test_after_the_drivers_page_has_gone_another_may_hand_the_robot_back(driving):
    Page(driving, 1).hold(1.0)
    driving.leave(1)
    driving.hand_back(2)
    assert driving.command(1.0) is None


def test_a_second_page_drives_only_after_it_took_the_robot(driving):
    first, second = Page(driving, 1), Page(driving, 2)
    first.hold(1.0)
    assert not second.hold(1.0, (-1.0, 0.0, 0.0))
    assert driving.command(1.0) == Nav(0.5)
    driving.take(2)
    assert driving.command(1.0) == Nav()  # from rest
    assert not first.hold(1.05)
    assert second.hold(1.05, (-1.0, 0.0, 0.0))
    assert driving.command(1.05) == Nav(-0.5)


def test_after_an_e_stop_a_stick_that_is_only_held_moves_nothing(driving):
    page = Page(driving)
    held(page, 1.0, 2.0)
    driving.stop()
    held(page, 2.05, 3.0, inputs=0)
    assert driving.command(3.0) == Nav()
    page.hold(3.05)
    assert driving.command(3.05) == Nav(0.5)


def test_a_command_is_cut_to_the_range_of_the_policy():
    within = {"vx": [0.0, 0.3], "vy": [-0.1, 0.1], "unknown": [0, 1]}
    assert clamped(Nav(0.5, -0.5, 0.6), within) == Nav(0.3, -0.1, 0.6)
    assert clamped(Nav(-0.5, 0.0, 0.0), within) == Nav()
    assert clamped(Nav(0.5, 0.1, 0.2), None) == Nav(0.5, 0.1, 0.2)
