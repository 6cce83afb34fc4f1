"""`krabby drives` against drives that need no hardware, on real sockets."""

import itertools
import socket

import numpy as np
import pytest
from krabby.drivers.can import DriveFault
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import FakeDrive, FakeDrives, free_multicast_channels
from krabby.robot.description import RobotDescription
from krabby_cli import drives as command
from krabby_cli.__main__ import main


@pytest.fixture
def hardware():
    plain = HardwareDescription.load(None, RobotDescription.load())
    return plain.with_interface("udp_multicast", free_multicast_channels(plain))


@pytest.fixture
def fakes(hardware):
    with FakeDrives(hardware) as fakes:
        yield fakes


@pytest.fixture
def drives(fakes):
    return fakes.drives


@pytest.fixture
def run(hardware, tmp_path, monkeypatch):
    """Run a subcommand on those buses; its exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(command, "_STATE_PORT", free.getsockname()[1])
    options = ["--interface", "udp_multicast", "--calibration", str(tmp_path / "calibration.toml")]
    options += [f"--channel={bus.channel}:{bus.port}" for bus in hardware.buses]
    return lambda *words: main(["drives", *options, *words])


def test_probe_lists_every_drive(run, drives, capsys):
    assert run("probe") == 0
    out = capsys.readouterr().out
    assert "18 drives answer; calibrated: never" in out
    assert len([line for line in out.splitlines() if line.endswith("none")]) == len(drives)


def test_probe_waits_for_a_drive_that_was_silent_when_its_half_second_was_over(run, drives, capsys):
    asked, first, third = itertools.count(1), drives[0].handle, drives[2].handle
    silent = False

    def count(frame, now_s):  # asked some ten times, then in each of 100 cycles
        nonlocal silent
        silent = 60 < next(asked) <= 130
        return first(frame, now_s)

    drives[0].handle = count
    drives[2].handle = lambda frame, now_s: None if silent else third(frame, now_s)
    assert run("probe") == 0
    assert "no_reply" not in capsys.readouterr().out


def test_probe_names_a_drive_that_does_not_answer(run, drives, capsys):
    drives[2].muted = True
    assert run("probe") == 1
    assert "lf_knee" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("probe",), ("watch",), ("calibrate", "--yes")], ids=lambda words: words[0]
)
def test_two_drives_under_one_id_are_refused(run, fakes, tmp_path, capsys, words):
    spec = fakes.drives[2].spec
    fakes.twins.append(FakeDrive(spec, fakes.drives[2].codec, position=-0.4))
    assert run(*words) == 1
    assert capsys.readouterr().err == (
        f"krabby drives: {words[0]}: two drives answer to id 13 on bus front, joint lf_knee: "
        "unplug one, give it another id\n"
    )
    assert not (tmp_path / "calibration.toml").exists()


def test_probe_names_a_second_drive_that_answers_now_and_then(run, fakes, capsys):
    twin = FakeDrive(fakes.drives[2].spec, fakes.drives[2].codec, position=-0.4)
    turn, handle = itertools.count(1), twin.handle

    def handle_some(frame, now_s):
        answer = handle(frame, now_s)
        return None if next(turn) % 12 else answer

    twin.handle = handle_some
    fakes.twins.append(twin)
    assert run("probe") == 1
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.endswith("shared_id")]
    assert row.startswith("lf_knee ")
    assert "id 13 on bus front, joint lf_knee: unplug one, give it another id" in out


def test_probe_says_what_to_do_about_a_fault(run, drives, capsys):
    drives[5].hard_faults = int(DriveFault.ENCODER)
    drives[5].faults = int(DriveFault.ENCODER)
    assert run("probe") == 1
    out = capsys.readouterr().out
    assert "encoder" in out
    assert "do: " in out


def test_calibrating_makes_the_pose_it_was_told_the_measured_one(run, drives, hardware, tmp_path):
    """Joint 3 is lf_knee, direction 1: a drive that says 0.25 rad at joint angle 0."""
    drives[2].position = 0.25
    assert run("calibrate", "--yes") == 0
    written = Calibration.load(tmp_path / "calibration.toml", hardware)
    expected = np.zeros(18)
    expected[2] = -0.25
    np.testing.assert_allclose(written.offset, expected, atol=1e-3)
    assert written.measured


def test_it_keeps_off_the_drives_of_a_running_hal(run, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as hal:
        monkeypatch.setattr(command, "_STATE_PORT", hal.getsockname()[1])
        assert run("probe") == 1
    assert "stop it first" in capsys.readouterr().err
