import contextlib
import itertools
import os
import pty
import select
import termios

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from krabby_cli.errors import CliError
from krabby_cli.keys import Nav, NavLimits, apply_key
from krabby_cli.terminal import Keyboard, KeyDecoder, StatusLine


def keys_of(*chunks):
    decoder = KeyDecoder()
    return [key for chunk in chunks for key in decoder.feed(chunk)]


def requests_of(*chunks):
    limits = NavLimits()
    requests = [apply_key(key, Nav(), limits)[1] for key in keys_of(*chunks)]
    return [request for request in requests if request is not None]


# What terminals send (xterm, rxvt, Linux console, tmux), and the keys it is.
SEQUENCES = {
    b"w": ["w"],
    b"x": ["x"],
    b"X": ["X"],
    b" ": [" "],
    b"\x03\x04": ["ctrl-c", "ctrl-d"],
    b"\x00\x7f\t\r": [],
    b"\x1b[A": ["up"],
    b"\x1b[B": ["down"],
    b"\x1b[C": ["right"],
    b"\x1b[D": ["left"],
    b"\x1bOA": ["up"],
    b"\x1bOD": ["left"],
    b"\x1b[1;5A": ["up"],  # with Ctrl
    b"\x1b[1;2D": ["left"],  # with Shift
    b"\x1bO5A": ["up"],  # with Ctrl, old terminals
    b"\x1b\x1b[A": ["up"],  # with Alt, rxvt
    b"\x1bw": ["w"],  # Alt and w, or Esc and then w
    b"\x1bx": ["x"],
    b"\x1bX": ["X"],
    b"\x1b\x1bx": ["x"],
    b"\x1b[3~": [],
    b"\x1b[15~": [],
    b"\x1b[7$": [],
    b"\x1b[7^": [],
    b"\x1b[[A": [],
    b"\x1bOP": [],
    b"\x1bOx": [],  # keypad 8
    b"\x1b[Z": [],
    b"\x1b[I": [],  # focus
    b"\x1b[O": [],
    b"\x1b[M x!": [],  # mouse, column 88
    b"\x1b[Mxxx": [],
    b"\x1b[<0;120;88M": [],
    b"\x1b[<0;120;88m": [],
    b"\x1b[32;120;88M": [],
    b"\x1b[2;1;1;112;112;1;0x": [],  # answer to a request for parameters
    b"\x1b[?2026;1$y": [],
    b"\x1b[24;80R": [],
    b"\x1b[?62;22c": [],
    b"\x1b]11;rgb:dada/eded/1212\x07": [],
    b"\x1b]11;rgb:dada/eded/1212\x1b\\": [],
    b"\x1bP1$r0m\x1b\\": [],
    b"\x1b[200~wwaa1\x1b[Aq3\x1b[201~": [],
    "\u00e4\u20ac\U0001f980".encode(): [],
}


@pytest.mark.parametrize(("data", "keys"), SEQUENCES.items(), ids=map(repr, SEQUENCES))
def test_what_a_terminal_sends_is_these_keys(data, keys):
    assert keys_of(data) == keys
    assert keys_of(*(bytes([byte]) for byte in data)) == keys
    assert keys_of(data, b"s") == [*keys, "s"], "and nothing of it is left over"


@pytest.mark.parametrize("chunks", [(b"\x1b", b"[A"), (b"\x1b[", b"A"), (b"\x1b", b"[", b"A"),
                                    (b"\x1b", b"O", b"A")])  # fmt: skip
def test_an_arrow_split_over_reads_is_an_arrow(chunks):
    assert keys_of(*chunks) == ["up"]


def test_esc_alone_is_nothing_however_often():
    assert keys_of(b"\x1b", b"\x1b\x1b") == []
    assert requests_of(b"\x1b\x1b", b"x") == ["estop"]


typed = st.lists(st.sampled_from(sorted(SEQUENCES)), max_size=12)


def cut(data, at):
    """Split at these places."""
    places = sorted({place % (len(data) + 1) for place in at})
    edges = [0, *places, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.one_of(typed.map(b"".join), st.binary(max_size=60)), st.lists(st.integers(0, 200)))
@example(b"\x1b[A", [1, 2])
def test_however_bytes_are_split_they_are_the_same_keys(data, at):
    assert keys_of(*cut(data, at)) == keys_of(data)


@given(typed, st.lists(st.integers(0, 200)))
def test_whole_sequences_are_their_keys_one_after_the_other(sequences, at):
    expected = [key for each in sequences for key in SEQUENCES[each]]
    assert keys_of(*cut(b"".join(sequences), at)) == expected


@given(
    st.binary(max_size=80).map(lambda data: data.translate(None, b"xX")), st.lists(st.integers(0))
)
@example(b"\x1b", [])
@example(b"\x1b[", [1])
def test_without_the_e_stop_byte_nothing_is_an_e_stop(data, at):
    assert "estop" not in requests_of(*cut(data, at))


@given(st.binary(max_size=80).map(lambda data: data.translate(None, b"xX")))
@example(b"\x1b[M")
@example(b"\x1b[200~")
@example(b"\x1bP")
@example(b"\x1b]")
def test_after_any_bytes_the_fourth_x_at_the_latest_is_an_e_stop(data):
    assert "estop" in requests_of(data, b"xxxx")


@pytest.fixture
def terminal():
    """Both ends of a pseudo-terminal; what is still open is closed."""
    leader, follower = pty.openpty()
    yield leader, follower
    for fd in (leader, follower):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_the_terminal_is_given_back_as_it_was(terminal):
    leader, follower = terminal
    before = termios.tcgetattr(follower)
    with Keyboard(follower) as keyboard:
        assert not termios.tcgetattr(follower)[3] & termios.ECHO
        assert keyboard.read() == []
        os.write(leader, b"w\x1b[A ")
        assert keyboard.read() == ["w", "up", " "]
    assert termios.tcgetattr(follower) == before


def test_an_arrow_in_two_reads_of_a_terminal_is_an_arrow(terminal):
    leader, follower = terminal
    with Keyboard(follower) as keyboard:
        os.write(leader, b"\x1b")
        assert keyboard.read() == []
        os.write(leader, b"[A")
        assert keyboard.read() == ["up"]


def test_keys_typed_before_are_not_for_the_robot(terminal):
    leader, follower = terminal
    os.write(leader, b"www\n")
    with Keyboard(follower) as keyboard:
        assert keyboard.read() == []


def test_settings_that_a_shell_put_back_are_made_again(terminal):
    """Ctrl-Z and fg: the shell sets the terminal as it likes it, and x would wait for Enter."""
    leader, follower = terminal
    before = termios.tcgetattr(follower)
    with Keyboard(follower) as keyboard:
        termios.tcsetattr(follower, termios.TCSANOW, before)
        os.write(leader, b"x")
        assert keyboard.read() == ["x"]
        assert not termios.tcgetattr(follower)[3] & (termios.ECHO | termios.ICANON)
    assert termios.tcgetattr(follower) == before


def test_pastes_are_asked_to_be_marked_as_such(terminal):
    leader, follower = terminal
    with StatusLine(follower) as line:
        line.show("text")
        seen = b""
        while b"text" not in seen:
            seen += os.read(leader, 65536)
        assert b"\x1b[?2004h" in seen
    while b"\x1b[?2004l" not in seen:
        seen += os.read(leader, 65536)


def test_a_terminal_that_is_gone_is_an_error_and_needs_no_settings(terminal):
    leader, follower = terminal
    with Keyboard(follower) as keyboard:
        os.close(leader)
        with pytest.raises(CliError, match="terminal is gone"):
            keyboard.read()


def test_a_terminal_that_is_not_read_holds_up_neither_lines_nor_settings(terminal, fill_terminal):
    _, follower = terminal
    fill_terminal(follower)
    with Keyboard(follower), StatusLine(follower) as line:
        for n in range(1000):
            line.show(f"line {n} " + "." * 200)
    assert line._thread.is_alive(), "it did block, and only itself"


def test_the_newest_line_is_shown_once_the_terminal_is_read_again(terminal, fill_terminal):
    leader, follower = terminal
    fill_terminal(follower)
    line = StatusLine(follower)
    line.show("first")
    for n in range(100):
        line.show(f"line {n}")
    seen = b""
    while b"line 99" not in seen:
        seen += os.read(leader, 65536)
    line.close()
    assert not line._thread.is_alive()
    assert b"line 50" not in seen


def test_a_line_is_cut_to_the_width_of_the_terminal(terminal):
    leader, follower = terminal
    termios.tcsetwinsize(follower, (24, 30))
    line = StatusLine(follower)
    line.show("vx +0.10 m/s  vy +0.00 m/s  yaw +0.00 rad/s   walks blind")
    seen = b""
    while b"vy +0.00" not in seen:
        seen += os.read(leader, 65536)
    line.close()
    while select.select([leader], (), (), 0)[0]:
        seen += os.read(leader, 65536)
    assert b"vx +0.10 m/s  vy +0.00 m/s  y" in seen  # 29 columns
    assert b"  ya" not in seen


def test_what_is_said_is_wrapped_below_the_first_line_and_replaced_as_a_whole(terminal):
    leader, follower = terminal
    termios.tcsetwinsize(follower, (24, 20))
    line = StatusLine(follower)
    seen = b""
    for text, end in (("vx 0\nstand refused: latched; reset it", b"it"), ("vx 1\ndone\n", b"done")):
        line.show(text)
        while end not in seen:
            seen += os.read(leader, 65536)
    line.close()
    while select.select([leader], (), (), 0)[0]:
        seen += os.read(leader, 65536)
    first, second = b"vx 0\r\nstand refused:\r\nlatched; reset it", b"vx 1\r\ndone\r\n"
    assert seen.split(b"\x1b[?2004h")[1:] == [first + b"\r\x1b[2A\x1b[J", second + b"\x1b[?2004l"]


def test_a_status_has_five_rows_at_most(terminal):
    leader, follower = terminal
    termios.tcsetwinsize(follower, (24, 20))
    line = StatusLine(follower)
    line.show("vx 0\n" + "no answer " * 20 + "\n")
    line.close()
    line._thread.join()
    seen = b""
    while select.select([leader], (), (), 0)[0]:
        seen += os.read(leader, 65536)
    assert seen.count(b"\n") == 5  # the fifth at the end of the fifth row


def test_a_line_that_cannot_be_written_is_no_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    line = StatusLine(write_end)
    line.show("text")
    line.close()
    assert not line._thread.is_alive()
    os.close(write_end)
