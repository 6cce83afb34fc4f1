"""`krabby drives bench` against one drive that needs no hardware, on a real socket."""

import numpy as np
import pytest
from krabby.drivers.can.bus import CanJointBus
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import SteppedDrives
from krabby.robot.description import RobotDescription
from krabby_cli.bench_drive import alone, bench

JOINT = "lm_knee"


class Bench:
    """The drive of one joint; its time passes when it is waited for."""

    def __init__(self, name):
        whole = RobotDescription.load()
        hardware = HardwareDescription.load(None, whole)
        self.desc, single = alone(whole, hardware, whole.joint_index(JOINT))
        self.drives = SteppedDrives(single, name)
        hardware = self.drives.hardware
        calibration = Calibration.nominal(hardware)
        self.bus = CanJointBus(hardware, calibration, self.desc, clock_ns=self.drives.clock_ns)
        self.bus.open()

    @property
    def drive(self):
        return self.drives.drives[0]

    def run(self, capsys, plug=None):
        """Whether all is well, and the rows as printed."""
        clock = {"clock_ns": self.drives.clock_ns, "wait": self.drives.wait}
        good = bench(self.bus, self.desc, plug=plug, cycles=40, **clock)
        rows = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
        return good, [(state, text) for state, text in rows]

    def close(self):
        self.bus.close()
        self.drives.close()


@pytest.fixture
def one(request):
    made = Bench(request.node.name)
    yield made
    made.close()


def row(rows, name):
    (found,) = ((state, text) for state, text in rows if text.startswith(name))
    return found


def test_a_robot_of_one_joint_has_its_drive_its_bus_and_its_limits():
    whole = RobotDescription.load()
    joint = whole.joint_index(JOINT)
    desc, hardware = alone(whole, HardwareDescription.load(None, whole), joint)
    assert (desc.joint_names, [bus.name for bus in hardware.buses]) == ((JOINT,), ["middle"])
    assert hardware.drives[0].can_id == 23
    assert desc.kp == np.array([whole.kp[joint]])


def test_a_drive_that_does_all_it_has_to_passes_every_row(one, capsys):
    good, rows = one.run(capsys)
    assert good, rows
    assert [state for state, _ in rows] == ["ok"] * 8
    assert "turned by 0.20 rad" in row(rows, "motion")[1]
    assert "150 ms without a command: let go" in row(rows, "time-out")[1]


def test_a_drive_whose_time_out_does_nothing_fails_that_row(one, monkeypatch, capsys):
    monkeypatch.setattr(one.drive, "tick", lambda now_s: None)
    good, rows = one.run(capsys)
    assert not good
    assert row(rows, "time-out") == (
        "fail", "time-out     150 ms without a command: it still runs: look at canTimeout with the "
        "maker's tool",
    )  # fmt: skip
    assert sum(state == "fail" for state, _ in rows) == 1


def test_a_drive_that_does_not_turn_fails_the_motion(one, capsys):
    one.drive.stuck = True
    good, rows = one.run(capsys)
    assert not good
    assert row(rows, "motion")[0] == "fail"


def test_a_plug_that_is_pulled_is_named_and_found_again(one, capsys):
    told = []

    def plug(text):
        told.append(text)
        one.drive.muted = text.startswith("pull")

    good, rows = one.run(capsys, plug)
    assert good, rows
    assert row(rows, "unplugged") == ("ok", "unplugged    named")
    assert row(rows, "plugged in")[1].endswith("found, asked and switched on again")
    assert told == ["pull the adapter's plug, or the drive's", "plug it in again"]
