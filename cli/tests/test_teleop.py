import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest
from krabby.runtime.testing import free_ports
from krabby_cli.__main__ import main
from krabby_cli.errors import CliError, UsageError
from krabby_cli.keys import JS_EVENT, Nav, NavLimits
from krabby_cli.teleop import GamepadDevice, Keyboard, Operator
from krabby_proto import FLAG_OPERATOR, NAV, LatestSubscriber
from krabby_proto.testing import FakeHal


@pytest.fixture
def nav():
    """Where the game loop would hear walking commands."""
    with LatestSubscriber("tcp://127.0.0.1:*", NAV, bind=True) as subscriber:
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
    for _ in range(100):
        operator.publish(command)
        message = nav.wait(0.05)
        if message is not None:
            return message
    raise AssertionError("nothing arrived within 5 s")


def test_a_persons_command_carries_the_operator_flag(nav, endpoints):
    with Operator(endpoints) as operator:
        message = heard(nav, operator, Nav(vx=0.25, yaw_rate=-0.5))
    assert message.flags & FLAG_OPERATOR
    assert message.payload.tolist() == [0.25, 0.0, -0.5]
    assert 0 <= message.age_s(time.monotonic_ns()) < 5


def test_the_emergency_stop_goes_to_the_gate(hal, endpoints):
    with Operator(endpoints) as operator:
        assert operator.ask("estop") == "estop: estop"
        assert operator.ask("arm") == "arm refused: the e-stop is latched; reset first"
    assert hal.operators[0][0] == "estop"


def test_a_stop_that_nobody_confirmed_is_shouted(nav):
    safety, control = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    with Operator({"nav": nav.endpoint, "safety": safety, "control": control}) as operator:
        said = operator.ask("estop")
        assert said.startswith("E-STOP NOT CONFIRMED, use the switch on the robot")
        assert safety in said


def test_the_terminal_is_given_back_as_it_was():
    leader, follower = pty.openpty()
    try:
        before = termios.tcgetattr(follower)
        with Keyboard(follower) as keyboard:
            assert not termios.tcgetattr(follower)[3] & termios.ECHO
            assert keyboard.read() == []
            os.write(leader, b"w\x1b[A ")
            assert keyboard.read() == ["w", "up", " "]
        assert termios.tcgetattr(follower) == before
    finally:
        os.close(leader)
        os.close(follower)


def test_a_gamepad_is_read_without_waiting_and_missed_when_it_goes(tmp_path):
    path = tmp_path / "js0"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    with GamepadDevice(path, NavLimits()) as pad:
        assert pad.read() == []
        pressed = JS_EVENT.pack(0, 1, 1, 4) + JS_EVENT.pack(0, -32767, 2, 1)
        os.write(writer, pressed + JS_EVENT.pack(0, 1, 1, 1)[:3])
        assert pad.read() == []
        assert pad.nav.vx == pytest.approx(0.5)
        os.write(writer, JS_EVENT.pack(0, 1, 1, 1)[3:])
        assert pad.read() == ["estop"]
        os.close(writer)
        with pytest.raises(CliError, match=r"gamepad .* is gone"):
            pad.read()


def test_a_gamepad_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"js0 cannot be opened: No such file.*plug it in"):
        GamepadDevice(tmp_path / "js0", NavLimits())


def test_without_terminal_and_gamepad_there_is_nothing_to_drive_with(monkeypatch, capsys):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(["teleop"]) == 2
    assert "give --gamepad" in capsys.readouterr().err


def test_limits_have_to_be_positive(capsys):
    assert main(["teleop", "--max-speed", "0"]) == 2
    assert "greater than 0" in capsys.readouterr().err


def press_ctrl_d(process, leader):
    os.write(leader, b"\x04")


def interrupt(process, leader):
    process.send_signal(signal.SIGINT)


def terminate(process, leader):
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("leave", [press_ctrl_d, interrupt, terminate])
def test_driving_in_a_terminal(nav, hal, endpoints, leave):
    leader, follower = pty.openpty()
    before = termios.tcgetattr(follower)
    options = [f"--endpoint={name}={endpoint}" for name, endpoint in endpoints.items()]
    with subprocess.Popen(
        [sys.executable, "-m", "krabby_cli", "teleop", *options],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    ) as process:
        try:
            assert nav.wait(20.0) is not None
            os.write(leader, b"ww")
            _until(nav, leader, lambda vx: vx == pytest.approx(0.1))
            os.write(leader, b"x")
            _until(nav, leader, lambda vx: vx == 0.0)
            assert hal.operators[0][0] == "estop"
            leave(process, leader)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
    assert termios.tcgetattr(follower) == before
    os.close(leader)
    os.close(follower)


def _until(nav, leader, is_right):
    """Follow the commands, and empty the terminal, until one is right."""
    os.set_blocking(leader, False)
    for _ in range(200):
        message = nav.wait(1.0)
        assert message is not None
        with contextlib.suppress(BlockingIOError):
            os.read(leader, 65536)
        if is_right(float(message.payload[0])):
            return
    raise AssertionError("the command never came")
