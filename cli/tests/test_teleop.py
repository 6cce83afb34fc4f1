import contextlib
import itertools
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest
from krabby.runtime.testing import free_ports, until
from krabby_cli.__main__ import main
from krabby_cli.errors import CliError, UsageError
from krabby_cli.keys import JS_EVENT, Nav
from krabby_cli.operator import Operator, describe
from krabby_cli.teleop import GamepadDevice
from krabby_proto import FLAG_OPERATOR, NAV, ControlServer, LatestSubscriber, make_hello
from krabby_proto.testing import FakeHal

HELD = JS_EVENT.pack(0, 1, 1, 4)
PUSHED = JS_EVENT.pack(0, -32767, 2, 1)


@pytest.fixture
def nav():
    """Where the game loop would hear walking commands."""
    with LatestSubscriber("tcp://127.0.0.1:*", NAV, bind=True, queue=10_000) as subscriber:
        yield subscriber


@pytest.fixture
def hal():
    with FakeHal(armed=True) as fake:
        yield fake


@pytest.fixture
def endpoints(nav, hal):
    return {
        "nav": nav.endpoint,
        "safety": hal.endpoints["safety"],
        "control": f"tcp://127.0.0.1:{free_ports(1)[0]}",
    }


def heard(nav, operator, command):
    """Publish until it arrives: a subscriber that has just connected misses the first ones."""
    for _ in range(1200):
        operator.publish(command)
        message = nav.wait(0.05)
        if message is not None:
            return message
    raise AssertionError("nothing arrived within a minute")


def test_a_persons_command_carries_the_operator_flag(nav, endpoints):
    with Operator(endpoints) as operator:
        message = heard(nav, operator, Nav(vx=0.25, yaw_rate=-0.5))
    assert message.flags & FLAG_OPERATOR
    assert message.payload.tolist() == [0.25, 0.0, -0.5]
    assert 0 <= message.age_s(time.monotonic_ns()) < 60


def test_walking_commands_to_a_loop_with_another_clock_are_translated(nav, tmp_path, monkeypatch):
    hour_ns = 3_600_000_000_000
    places = {name: f"ipc://{tmp_path}/{name}" for name in ("safety", "control")}
    done = threading.Event()
    server = ControlServer(places["control"], hello=make_hello(service="gameloop"))
    monkeypatch.setattr(server._hello, "_clock_ns", lambda: time.monotonic_ns() + hour_ns)

    def serve():
        with server:
            while not done.is_set():
                server.poll(0.02, lambda asked: {"ok": True})

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Operator(places | {"nav": nav.endpoint}) as operator:
            until(lambda: operator.publish(Nav()) or operator._loop.clock.known)
            while nav.wait(0.1) is not None:
                pass
            message = heard(nav, operator, Nav(vx=0.25))
    finally:
        done.set()
        thread.join()
    age_s = message.age_s(time.monotonic_ns() + hour_ns)
    assert 0 <= age_s < 60


def test_the_emergency_stop_goes_to_the_gate(hal, endpoints):
    with Operator(endpoints) as operator:
        assert operator.ask("estop") == "estop: gate estop"
        assert operator.ask("arm") == "arm refused: the e-stop is latched; reset first"
    assert hal.operators[0][0] == "estop"


def test_a_stop_that_was_not_confirmed_is_shouted(nav):
    safety, control = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    with Operator({"nav": nav.endpoint, "safety": safety, "control": control}) as operator:
        said = operator.ask("estop")
        assert said.startswith("E-STOP NOT CONFIRMED, use the switch on the robot")
        assert safety in said


def test_requests_are_carried_out_beside_the_walking_commands(nav, hal, endpoints):
    hal.serving = False
    with Operator(endpoints) as operator:
        for _ in range(30):
            operator.request("arm")  # a held key repeats; unanswered it would wait a second each
        operator.request("estop")
        assert heard(nav, operator, Nav()) is not None
        hal.serving = True

        def stopped():
            operator.request("estop")  # pressed again; under way it is not sent twice
            return operator.said == "estop: gate estop"

        until(stopped)
    assert [op for op, _ in hal.operators].count("arm") <= 1


def test_no_other_answer_hides_an_e_stop_that_was_not_confirmed(nav):
    names = ("safety", "control", "state", "command")
    places = {
        name: f"tcp://127.0.0.1:{port}" for name, port in zip(names, free_ports(4), strict=True)
    }
    with Operator(places | {"nav": nav.endpoint}) as operator:
        operator.request("estop")
        until(lambda: "NOT CONFIRMED" in operator.said)
        assert operator.ask("stand") != operator.said
        operator.request("stand")
        until(lambda: operator.idle)
        assert "NOT CONFIRMED" in operator.said
        with FakeHal(places, armed=True):
            operator.request("estop")
            until(lambda: operator.said == "estop: gate estop")


def test_an_earlier_request_does_not_hide_what_came_of_the_e_stop(endpoints, monkeypatch):
    answered = threading.Event()

    def ask(request):
        return "not confirmed" if request == "estop" else answered.wait(60.0) and "arm refused"

    with Operator(endpoints) as operator:
        monkeypatch.setattr(operator, "ask", ask)
        operator.request("arm")
        operator.request("estop")
        until(lambda: operator.said)
        answered.set()
        operator._asked["arm"].result(60.0)
        assert operator.said == "not confirmed"
        operator.request("arm")
        operator._asked["arm"].result(60.0)
        assert operator.said == "arm refused"


def test_an_e_stop_is_waited_for_when_leaving(hal, endpoints):
    with Operator(endpoints) as operator:
        operator.request("estop")
        operator.leave()
        assert operator.said == "estop: gate estop"


def test_a_gamepad_is_read_without_waiting_and_missed_when_it_goes(tmp_path):
    path = tmp_path / "js0"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    with GamepadDevice(path) as pad:
        assert pad.read() == []
        os.write(writer, HELD + PUSHED + JS_EVENT.pack(0, 1, 1, 1)[:3])
        assert [event[:3] for event in pad.read()] == [("button", 4, 1), ("axis", 1, -32767)]
        os.write(writer, JS_EVENT.pack(0, 1, 1, 1)[3:])
        assert [event[:3] for event in pad.read()] == [("button", 1, 1)]
        os.close(writer)
        with pytest.raises(CliError, match=r"gamepad .* is gone"):
            pad.read()


def test_a_gamepad_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"js0 cannot be opened: No such file.*plug it in"):
        GamepadDevice(tmp_path / "js0")


def test_without_terminal_and_gamepad_there_is_nothing_to_drive_with(monkeypatch, capsys):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(["teleop"]) == 2
    assert "give --gamepad" in capsys.readouterr().err


def test_limits_have_to_be_positive(capsys):
    assert main(["teleop", "--max-speed", "0"]) == 2
    assert "greater than 0" in capsys.readouterr().err


STATUS = {
    "ok": True,
    "walking": "parkour",
    "blind": False,
    "sight": "fresh",
    "abilities": {"stands": True, "reverses": True, "side_steps": None, "turns_in_place": False},
    "command_range": {"vx": [-0.2, 0.6], "vy": [0.0, 0.0], "yaw_rate": [-0.5, 0.5]},
    "nav_asked": [0.25, 0.3, 0.0],
    "nav_clamped": ["vy"],
}


def test_the_range_the_abilities_and_what_is_clamped_are_shown():
    policy = "parkour, vx -0.2..0.6, vy 0..0, yaw_rate -0.5..0.5   parkour cannot turn in place"
    assert describe(STATUS) == f"CLAMPED vy +0.30   {policy}"
    assert describe({**STATUS, "nav_clamped": [], "sight": "lost"}) == (
        f"NO PICTURE: stands   {policy}"
    )
    assert describe({"walking": "gait", "blind": True, "command_range": None}) == (
        "walks blind   gait"
    )


def test_nothing_is_said_about_a_loop_that_does_not_answer():
    assert describe({}) == ""


def test_the_status_of_the_loop_is_asked_beside_the_requests(endpoints):
    with Operator(endpoints) as operator, ControlServer(endpoints["control"], hello={}) as loop:

        def answered():
            operator.watch(time.monotonic())
            loop.poll(0.05, lambda request: STATUS if request["op"] == "status" else None)
            return operator.loop

        until(answered)
        assert operator.loop["nav_clamped"] == ["vy"]
        assert operator.said == ""


class Teleop:
    """The whole command on a pseudo-terminal, and what the game loop would hear of it."""

    def __init__(self, nav, endpoints, *options, fill=None):
        self.nav = nav
        self.leader, self.follower = pty.openpty()
        self.before = termios.tcgetattr(self.follower)
        self.reads = fill is None
        self.shown = b""
        self.moved_s = 0.0
        self.typed_ns = 0
        self.heard = []
        """Commands not looked at yet: this process may be late, and none is passed over."""
        if fill is not None:
            fill(self.follower)
        os.set_blocking(self.leader, False)
        where = [f"--endpoint={name}={endpoint}" for name, endpoint in endpoints.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "krabby_cli", "teleop", *where, *options],
            stdin=self.follower,
            stdout=self.follower,
            stderr=self.follower,
            start_new_session=True,
        )

    def __enter__(self):
        assert self.nav.wait(60.0) is not None
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for fd in (self.leader, self.follower):
            with contextlib.suppress(OSError):
                os.close(fd)

    def type(self, keys):
        self.typed_ns = time.monotonic_ns()
        os.write(self.leader, keys)

    def until(self, is_right):
        """Follow the commands since a key was typed until one's vx is right; its stamp [s]."""
        for _ in range(1200):
            until(lambda: self.heard or self.heard.extend(self.nav.drain()), 20.0)
            message = self.heard.pop(0)
            assert message.flags & FLAG_OPERATOR
            self.read()
            if message.capture_ns < self.typed_ns:
                continue
            if message.payload.any():
                self.moved_s = message.capture_ns * 1e-9
            if is_right(float(message.payload[0])):
                return message.capture_ns * 1e-9
        raise AssertionError("the command never came")

    def drive(self, keys, vx):
        """Type keys until they count, those that a busy machine delays by 2 s do not; as `until`.

        A space goes in front, so that keys which are typed again lead to the same speed.
        """
        seen = itertools.count(1)

        def is_right(now):
            if next(seen) % 60 == 0:
                self.type(b" " + keys)
            return now == pytest.approx(vx)

        self.type(b" " + keys)
        return self.until(is_right)

    def read(self):
        if self.reads:
            with contextlib.suppress(BlockingIOError):
                self.shown += os.read(self.leader, 65536)

    def last(self):
        """What was heard last, once the command has ended: what it sent may be on its way still."""
        until(lambda: self.heard.extend(self.nav.drain()) or self.heard)
        while (message := self.nav.wait(0.3)) is not None:
            self.heard += [message, *self.nav.drain()]
        return self.heard[-1].payload.tolist()


def test_the_keys_are_told_before_the_line_with_the_velocities_and_fit_44_columns(nav, endpoints):
    with Teleop(nav, endpoints) as teleop:
        # Again and again: a key that a busy machine delays by 2 s does not count.
        teleop.until(lambda vx: teleop.type(b"w") or vx > 0.0)
        until(lambda: teleop.read() or b"vx" in teleop.shown)
    keys = teleop.shown.partition(b"\r\x1b")[0].decode().splitlines()
    assert keys[0] == "hold w s a d to walk, q e to turn"
    assert "x e-stop" in keys[1]
    assert max(map(len, keys)) <= 43


def test_on_44_columns_the_answer_to_an_e_stop_is_shown(nav, endpoints):
    with Teleop(nav, endpoints) as teleop:
        termios.tcsetwinsize(teleop.follower, (20, 44))
        # Again and again: an answer that takes over a second is not waited for.
        until(lambda: teleop.type(b"x") or teleop.read() or b"estop: gate estop" in teleop.shown)


def check_two_seconds(began_s, moved_s, zero_s):
    """By the stamps of the first command that moved, the last one that did, and the zero after it.

    The event was read before the first was sent, so on no machine is the last one 2 s later (and
    the 50 ms are the time from reading the clock to the stamp); the first may come late, though.
    """
    assert moved_s - began_s <= 2.05
    assert zero_s - began_s > 1.5


def press_ctrl_d(teleop):
    teleop.type(b"\x04")


def send(number):
    def leave(teleop):
        teleop.process.send_signal(number)

    return leave


@pytest.mark.parametrize(
    "leave", [press_ctrl_d, send(signal.SIGINT), send(signal.SIGTERM), send(signal.SIGHUP)]
)
def test_driving_in_a_terminal(nav, hal, endpoints, leave):
    with Teleop(nav, endpoints) as teleop:
        teleop.drive(b"ww", 0.1)
        teleop.type(b"x")
        teleop.until(lambda vx: vx == 0.0)
        until(lambda: hal.operators)
        assert hal.operators[0][0] == "estop"
        teleop.drive(b"wwh", 0.1)
        leave(teleop)
        assert teleop.process.wait(timeout=60) == 0
        assert teleop.last() == [0.0, 0.0, 0.0]
        assert termios.tcgetattr(teleop.follower) == teleop.before


def test_a_terminal_that_goes_away_ends_it_with_a_zero(nav, endpoints):
    with Teleop(nav, endpoints) as teleop:
        teleop.drive(b"ww", 0.1)
        os.close(teleop.leader)
        assert teleop.process.wait(timeout=60) == 1
        assert teleop.last() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("unread", [False, True], ids=["read", "not read"])
def test_a_terminal_that_falls_silent_stops_the_robot_after_two_seconds(
    nav, endpoints, fill_terminal, unread
):
    with Teleop(nav, endpoints, fill=fill_terminal if unread else None) as teleop:
        began_s = teleop.drive(b"www", 0.15)
        zero_s = teleop.until(lambda vx: vx == 0.0)
        check_two_seconds(began_s, teleop.moved_s, zero_s)
        for _ in range(10):  # and keeps saying so: no mission may take over
            teleop.until(lambda vx: vx == 0.0)
        teleop.type(b"w")
        teleop.until(lambda vx: vx == pytest.approx(0.05))
        if not unread:
            assert re.search(rb"stops in 0\.\d s", teleop.shown)
            assert b"STOPPED: no input for 2 s" in teleop.shown
        teleop.process.terminate()
        assert teleop.process.wait(timeout=60) == 0


def test_a_gamepad_that_falls_silent_stops_the_robot_while_its_button_is_held(
    nav, endpoints, tmp_path
):
    path = tmp_path / "js0"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    with Teleop(nav, endpoints, f"--gamepad={path}") as teleop:
        os.write(writer, HELD + PUSHED)
        began_s = teleop.until(lambda vx: vx == pytest.approx(0.5))
        zero_s = teleop.until(lambda vx: vx == 0.0)
        check_two_seconds(began_s, teleop.moved_s, zero_s)
        teleop.until(lambda vx: vx == 0.0)
        os.write(writer, JS_EVENT.pack(0, -32000, 2, 1))
        teleop.until(lambda vx: vx > 0.45)
        os.close(writer)
        assert teleop.process.wait(timeout=60) == 1
        assert teleop.last() == [0.0, 0.0, 0.0]


def test_an_arrow_in_two_reads_is_an_arrow_and_no_e_stop(nav, hal, endpoints):
    with Teleop(nav, endpoints) as teleop:
        teleop.type(b"\x1b")
        teleop.until(lambda vx: vx == 0.0)
        teleop.until(lambda vx: vx == 0.0)  # a period later the first byte has been read for sure
        teleop.type(b"[A")
        teleop.until(lambda vx: vx == pytest.approx(0.05))
        assert not hal.operators


@pytest.mark.slow
def test_after_a_stop_the_keys_work_and_what_was_typed_meanwhile_does_not(nav, hal, endpoints):
    """As with Ctrl-Z and fg: the shell has made the terminal wait for whole lines."""
    with Teleop(nav, endpoints) as teleop:
        teleop.until(lambda vx: vx == 0.0)
        os.kill(teleop.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, teleop.process.pid, os.WSTOPPED)
        teleop.type(b"w" * 1500 + b"31")
        time.sleep(2.1)  # longer than the deadman
        os.kill(teleop.process.pid, signal.SIGCONT)
        for _ in range(10):
            teleop.until(lambda vx: vx == 0.0)
        assert teleop.moved_s == 0.0
        assert not hal.operators
        termios.tcsetattr(teleop.follower, termios.TCSANOW, teleop.before)
        teleop.type(b"x")
        until(lambda: hal.operators)
        assert hal.operators[0][0] == "estop"
