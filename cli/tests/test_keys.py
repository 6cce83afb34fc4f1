import pytest
from hypothesis import given
from hypothesis import strategies as st
from krabby_cli.keys import (
    JS_EVENT,
    Gamepad,
    JoystickEvent,
    Nav,
    NavLimits,
    apply_key,
    parse_js_events,
    split_keys,
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
    [("x", "estop"), ("X", "estop"), ("esc", "estop"), ("1", "stand"), ("2", "sit"),
     ("ctrl-c", "quit"), ("ctrl-d", "quit")],
)  # fmt: skip
def test_requests_stop_the_robot_besides(key, request_):
    assert apply_key(key, Nav(vx=0.3), LIMITS) == (Nav(), request_)


def test_arming_does_not_change_the_command():
    assert apply_key("3", Nav(vx=0.3), LIMITS) == (Nav(vx=0.3), "arm")


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"w", ["w"]),
        (b"ww ", ["w", "w", " "]),
        (b"\x1b", ["esc"]),
        (b"\x1b[A\x1b[D", ["up", "left"]),
        (b"w\x1b", ["w", "esc"]),
        (b"\x1bx", ["esc", "x"]),
        (b"\x1b[15~w", ["w"]),
        (b"\x1bOPw", ["w"]),
        (b"\x03\x04", ["ctrl-c", "ctrl-d"]),
        (b"\xc3\xa4\x00", []),
        (b"\x1b[", []),
    ],
)
def test_terminal_bytes_become_keys(data, keys):
    assert split_keys(data) == keys


@given(st.binary(max_size=40))
def test_no_bytes_break_the_keyboard(data):
    nav = Nav()
    for key in split_keys(data):
        nav, _ = apply_key(key, nav, LIMITS)
    assert abs(nav.vx) <= 0.5
    assert abs(nav.yaw_rate) <= 0.6


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
    assert pad.nav.values == pytest.approx((0.5, 0.0, 0.0))
    pad.apply(JoystickEvent("button", 4, 0, False))
    assert pad.nav == Nav()


def test_sticks_have_the_directions_of_the_base_frame():
    pad, _ = gamepad(("button", 4, 1), ("axis", 0, -32767), ("axis", 3, 32767), ("axis", 1, 32767))
    assert pad.nav.values == pytest.approx((-0.5, 0.5, -0.6))


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
