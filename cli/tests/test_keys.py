import pytest
from krabby_cli.keys import (
    DEADMAN_S,
    JS_EVENT,
    Drive,
    Gamepad,
    JoystickEvent,
    Nav,
    NavLimits,
    apply_key,
    parse_js_events,
)

LIMITS = NavLimits(speed=0.5, yaw_rate=0.6, step=0.05)


def typed(keys, nav=None):
    nav = nav or Nav()
    for key in keys:
        nav, _ = apply_key(key, nav, LIMITS)
    return nav


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("w", Nav(vx=0.05)),
        ("W", Nav(vx=0.05)),
        ("up", Nav(vx=0.05)),
        ("s", Nav(vx=-0.05)),
        ("down", Nav(vx=-0.05)),
        ("a", Nav(vy=0.05)),
        ("d", Nav(vy=-0.05)),
        ("q", Nav(yaw_rate=0.1)),
        ("left", Nav(yaw_rate=0.1)),
        ("e", Nav(yaw_rate=-0.1)),
        ("right", Nav(yaw_rate=-0.1)),
        ("z", Nav()),
    ],
)
def test_a_key_changes_the_command_by_one_step(key, expected):
    assert apply_key(key, Nav(), LIMITS) == (expected, None)


def test_keys_add_up_to_the_limits_and_no_further():
    assert typed("w" * 40) == Nav(vx=0.5)
    assert typed("s" * 40) == Nav(vx=-0.5)
    assert typed("q" * 40) == Nav(yaw_rate=0.6)
    assert typed("www" + "sss") == Nav(), "back to exactly zero, without rounding left over"


def test_space_stops():
    assert typed("wwaq ") == Nav()


@pytest.mark.parametrize(
    ("key", "request_"),
    [("x", "estop"), ("X", "estop"), ("1", "stand"), ("2", "sit"),
     ("ctrl-c", "quit"), ("ctrl-d", "quit")],
)  # fmt: skip
def test_requests_stop_the_robot_besides(key, request_):
    assert apply_key(key, Nav(vx=0.3), LIMITS) == (Nav(), request_)


def test_only_x_is_an_e_stop():
    names = [chr(code) for code in range(0x20, 0x7F)]
    names += ["esc", "up", "down", "left", "right", "ctrl-c", "ctrl-d"]
    assert [name for name in names if apply_key(name, Nav(), LIMITS)[1] == "estop"] == ["X", "x"]


def test_arming_does_not_change_the_command():
    assert apply_key("3", Nav(vx=0.3), LIMITS) == (Nav(vx=0.3), "arm")


def js(kind, number, value):
    return JS_EVENT.pack(123, value, kind, number)


def test_events_of_the_linux_joystick_device_are_read_from_their_eight_bytes():
    # time 258 ms, axis 1 pushed fully up (-32767), written out by hand.
    raw = bytes([0x02, 0x01, 0x00, 0x00, 0x01, 0x80, 0x02, 0x01])
    assert parse_js_events(raw) == ([JoystickEvent("axis", 1, -32767, False)], b"")


def test_initial_states_are_marked_and_unknown_types_dropped():
    events, _ = parse_js_events(js(0x82, 0, 100) + js(0x81, 3, 1) + js(0x04, 0, 1))
    assert events == [JoystickEvent("axis", 0, 100, True), JoystickEvent("button", 3, 1, True)]


def test_half_an_event_waits_for_its_other_half():
    whole = js(0x01, 4, 1)
    events, rest = parse_js_events(whole + whole[:5])
    assert len(events) == 1
    assert parse_js_events(rest + whole[5:]) == (events, b"")


def gamepad(*events):
    pad = Gamepad(LIMITS)
    requests = [pad.apply(JoystickEvent(kind, n, value, False)) for kind, n, value in events]
    return pad, [r for r in requests if r]


def test_sticks_move_only_while_the_shoulder_button_is_held():
    pad, _ = gamepad(("axis", 1, -32767))
    assert pad.nav == Nav()
    pad.apply(JoystickEvent("button", 4, 1, False))
    assert pad.nav == pytest.approx((0.5, 0.0, 0.0))
    pad.apply(JoystickEvent("button", 4, 0, False))
    assert pad.nav == Nav()


def test_sticks_have_the_directions_of_the_base_frame():
    pad, _ = gamepad(("button", 4, 1), ("axis", 0, -32767), ("axis", 3, 32767), ("axis", 1, 32767))
    assert pad.nav == pytest.approx((-0.5, 0.5, -0.6))


def test_the_dead_zone_swallows_a_stick_at_rest_and_starts_from_zero():
    at = {value: gamepad(("button", 4, 1), ("axis", 1, value))[0].nav.vx for value in
          (-3900, -4000, -18350)}  # fmt: skip
    assert at[-3900] == 0.0
    assert 0.0 < at[-4000] < 0.005
    assert at[-18350] == pytest.approx(0.5 * (0.56 - 0.12) / 0.88, abs=1e-4)


def test_the_lowest_value_of_an_axis_is_no_more_than_full():
    assert gamepad(("button", 4, 1), ("axis", 1, -32768))[0].nav.vx == pytest.approx(0.5)


def test_buttons_ask_when_pressed_not_when_released_or_opened():
    _, requests = gamepad(("button", 1, 1), ("button", 1, 0), ("button", 0, 1), ("button", 9, 1))
    assert requests == ["estop", "stand"]
    assert Gamepad(LIMITS).apply(JoystickEvent("button", 0, 1, True)) is None


FORWARD = [JoystickEvent("button", 4, 1, False), JoystickEvent("axis", 1, -32767, False)]


@pytest.fixture
def drive():
    return Drive(LIMITS)


def turns(drive, start_s, end_s, keys="", events=()):
    """Turns every 50 ms; the keys and events come with the first. Command at the end."""
    command = Nav()
    for n in range(round((end_s - start_s) / 0.05) + 1):
        command, _ = drive.turn(
            keys if n == 0 else "", events if n == 0 else (), start_s + n * 0.05
        )
    return command


def test_two_seconds_without_a_key_end_motion(drive):
    assert DEADMAN_S == 2.0
    assert turns(drive, 10.0, 11.95, "www") == Nav(vx=0.15)
    assert drive.countdown(11.95) == "stops in 0.1 s"
    assert turns(drive, 12.0, 12.0) == Nav()
    assert drive.countdown(12.0) == "STOPPED: no input for 2 s"
    assert turns(drive, 12.05, 60.0) == Nav()


def test_motion_that_ended_does_not_come_back_with_the_next_key(drive):
    turns(drive, 0.0, 3.0, "wwww")
    assert turns(drive, 3.05, 3.1, "w") == Nav(vx=0.05)
    assert drive.countdown(3.05) == "stops in 2.0 s"


@pytest.mark.parametrize("key", ["h", "H", " ", "1", "w"])
def test_every_key_with_a_meaning_is_a_sign_of_life(drive, key):
    turns(drive, 0.0, 1.5, "a")
    command = turns(drive, 1.55, 3.5, key)
    assert command == {"w": Nav(vx=0.05, vy=0.05)}.get(key, Nav(vy=0.05) if key in "hH" else Nav())
    assert "STOPPED" not in drive.countdown(3.5)


@pytest.mark.parametrize("key", ["z", "?", "\\", "9"])
def test_a_key_without_a_meaning_is_none(drive, key):
    turns(drive, 0.0, 1.5, "w")
    assert turns(drive, 1.55, 2.0, key) == Nav()


def test_nothing_counts_down_while_nothing_moves(drive):
    turns(drive, 0.0, 0.5, "w ")
    assert drive.countdown(0.5) == ""
    turns(drive, 0.5, 60.0)
    assert drive.countdown(60.0) == ""


def test_a_held_key_goes_on_at_the_limit(drive):
    command = Nav()
    for n in range(100):
        command = turns(drive, n * 0.5, n * 0.5 + 0.45, "w")
    assert command == Nav(vx=0.5)


def test_a_gamepad_without_an_event_for_two_seconds_stops_until_the_next_one(drive):
    assert turns(drive, 0.0, 1.95, events=FORWARD) == Nav(vx=0.5)
    assert drive.countdown(1.5) == "stops in 0.5 s"
    assert turns(drive, 2.0, 9.0) == Nav(), "the shoulder button is still held, as far as we hear"
    assert drive.countdown(9.0) == "STOPPED: no input for 2 s"
    trembles = JoystickEvent("axis", 1, -32700, False)
    assert turns(drive, 9.05, 9.05, events=[trembles]).vx == pytest.approx(0.5, abs=0.01)


def test_what_the_kernel_says_when_the_device_is_opened_moves_nothing(drive):
    initial = [event._replace(is_initial=True) for event in FORWARD]
    assert turns(drive, 0.0, 0.1, events=initial) == Nav()
    assert turns(drive, 0.15, 0.15, events=[JoystickEvent("axis", 0, 0, False)]) == Nav(vx=0.5)


def test_keys_do_not_vouch_for_the_gamepad_nor_the_gamepad_for_keys(drive):
    turns(drive, 0.0, 1.5, events=FORWARD)
    assert turns(drive, 1.55, 1.95, "h") == Nav(vx=0.5)
    assert turns(drive, 2.0, 2.0, "h") == Nav()
    turns(drive, 2.05, 9.95)
    turns(drive, 10.0, 11.5, "a")
    idle = JoystickEvent("axis", 7, 5, False)
    assert (
        turns(drive, 11.55, 11.55, events=[idle, JoystickEvent("button", 4, 0, False)]).vy == 0.05
    )
    assert turns(drive, 11.6, 12.05, events=[idle]) == Nav()


def test_keys_that_waited_longer_than_the_deadman_move_and_arm_nothing(drive):
    turns(drive, 0.0, 0.1, "w")
    assert drive.turn("ww13", FORWARD, 5.0) == (Nav(), [])
    turns(drive, 5.05, 5.1)
    assert drive.turn("w", (), 5.15) == (Nav(vx=0.05), [])
    assert drive.turn("wx2", (), 60.0) == (Nav(), ["estop", "sit"])


def test_the_rest_of_a_backlog_is_as_late_as_its_begin(drive):
    """A terminal holds up to 4 KiB, and one read takes 1 KiB of them."""
    turns(drive, 0.0, 0.1, "w")
    assert drive.turn("w" * 15, (), 5.0) == (Nav(), [])
    assert drive.turn("w" * 15, (), 5.001) == (Nav(), [])
    assert drive.turn("13x", (), 5.002) == (Nav(), ["estop"])
    assert drive.turn("", (), 5.05) == (Nav(), [])
    assert drive.turn("w1", (), 5.1)[1] == ["stand"]


def test_keys_that_cannot_have_been_pressed_just_now_move_and_arm_nothing(drive):
    """More than half a second of a held key at once: a link's backlog, or a paste."""
    turns(drive, 0.0, 0.1)
    assert drive.turn("w" * 16, (), 0.15) == (Nav(), [])
    assert drive.turn("w", (), 0.151) == (Nav(), []), "until a turn without a key"
    assert drive.turn("", (), 0.2) == (Nav(), [])
    assert drive.turn("w" * 15, (), 0.25) == (Nav(vx=0.5), [])
    assert drive.turn("a long line: 3, then 1, eXit", (), 0.3) == (Nav(), ["estop"])


def test_a_backlog_proves_no_person(drive):
    turns(drive, 0.0, 0.05, "w")
    assert turns(drive, 0.1, 1.95, "h" * 16) == Nav(vx=0.05)
    assert turns(drive, 2.0, 2.0) == Nav()


def test_the_e_stop_of_a_gamepad_is_one_however_late(drive):
    drive.turn("", (), 0.0)
    assert drive.turn("", [JoystickEvent("button", 1, 1, False)], 100.0)[1] == ["estop"]
