"""`krabby drives identify` with drives in one thread, an operator's answers, simulated time."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from krabby.drivers.can import DriveMode
from krabby.drivers.can.bus import CanJointBus
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import SteppedDrives
from krabby.drivers.can.wiggle import wiggle
from krabby.drivers.errors import DriveError
from krabby.robot.description import RobotDescription
from krabby_cli.identify_drives import identify

DESC = RobotDescription.load()
KNEE, OTHER = DESC.joint_index("lf_knee"), DESC.joint_index("lm_knee")
numbers = itertools.count()


class Rig(SteppedDrives):
    """Drives of which all but one knee of each left leg were confirmed before."""

    def __init__(self):
        super().__init__(HardwareDescription.load(None, DESC), f"identify-{next(numbers)}")
        for number, drive in enumerate(self.drives):
            drive.identity = f"{0x31FFD5054843 + number:016x}"
        known = [drive.identity for drive in self.drives]
        known[KNEE] = known[OTHER] = ""
        calibration = dataclasses.replace(
            Calibration.nominal(self.hardware),
            measured="2026-11-01",
            confirmed="2026-11-01",
            identities=tuple(known),
        )
        self.bus = CanJointBus(self.hardware, calibration, DESC, clock_ns=self.clock_ns)
        self.bus.open()
        pose = self.bus.mounting.drive_pos(DESC.default_joint_pos)
        for drive, position in zip(self.drives, pose, strict=True):
            drive.position = float(position)
        self.move = functools.partial(
            wiggle, period_ns=25_000_000, clock_ns=self.clock_ns, wait=self.wait
        )

    def identify(self):
        return identify(self.bus, DESC, self.hardware, ask_all=False, move=self.move)

    def close(self):
        self.bus.close()
        super().close()


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def operator(monkeypatch):
    """What the operator types, in order; the questions are kept."""
    questions = []

    def answers(*typed):
        left = iter(typed)

        def answer(question):
            questions.append(question)
            return next(left)

        monkeypatch.setattr("builtins.input", answer)
        return questions

    return answers


def test_one_joint_moves_there_and_back_and_all_others_are_limp(rig):
    rig.bus.enable(rig.bus.probe())
    angles, stiff = [], set()
    handle = rig.drives[KNEE].handle

    def watched(frame, now_s):
        answer = handle(frame, now_s)
        angles.append(rig.drives[KNEE].position)
        stiff.update(joint for joint, drive in enumerate(rig.drives) if drive.kp > 0.0)
        return answer

    rig.drives[KNEE].handle = watched
    moved = rig.move(rig.bus, DESC, KNEE)
    assert moved.way == 1  # from -1.95 towards the middle of -2.6 to 0
    assert moved.travel[KNEE] == pytest.approx(0.2, abs=0.01)
    assert np.delete(moved.travel, KNEE).max() < 1e-3
    assert max(angles) == pytest.approx(-1.95 + 0.2, abs=0.01)
    assert angles[-1] == pytest.approx(-1.95, abs=0.01)
    assert stiff == {KNEE}


def test_what_the_operator_confirms_is_written_with_the_drives_numbers(rig, operator):
    questions = operator("y", "y")
    confirmed = rig.identify()
    assert [question.split("?")[0] for question in questions] == [
        "3/18 lf_knee: the left front leg stretched its foot out, and came back",
        "6/18 lm_knee: the left middle leg stretched its foot out, and came back",
    ]
    assert confirmed.identities == tuple(drive.identity for drive in rig.drives)
    assert confirmed.unconfirmed(rig.bus.identities) == ""
    assert confirmed.measured == "2026-11-01"


def test_a_joint_that_went_the_other_way_changes_its_direction_and_needs_its_zero(rig, operator):
    operator("o", "y")
    before = rig.bus.calibration
    confirmed = rig.identify()
    assert confirmed.direction[KNEE] == -before.direction[KNEE]
    # drive at -1.95, direction -1: -1 * -1.95 + offset is -1.95 still with offset -3.9.
    assert confirmed.offset[KNEE] == pytest.approx(-3.9, abs=0.01)
    assert confirmed.direction[OTHER] == before.direction[OTHER]
    assert "never measured; run krabby drives calibrate" in confirmed.unconfirmed(
        rig.bus.identities
    )


def test_another_joint_that_moved_is_named_and_nothing_is_confirmed(rig, operator, capsys):
    operator("n", "lm_knee", "n", "lf_knee")
    assert rig.identify() is None
    out = capsys.readouterr().out
    assert "the drive with id 13 on bus front moves lm_knee, not lf_knee" in out
    assert "the drive with id 23 on bus middle moves lf_knee, not lm_knee" in out


def test_an_operator_may_ask_again_and_quit(rig, operator):
    questions = operator("what", "r", "q")
    assert rig.identify() is None
    assert len(questions) == 3
    assert rig.drives[OTHER].kp == 0.0


def test_a_drive_whose_reading_is_of_another_leg_is_a_fault_that_names_both(rig, operator):
    """The command reaches lm_knee's motor: that is what moves, and what it reports."""
    operator()
    knee, other = rig.drives[KNEE], rig.drives[OTHER]
    follow = knee._follow

    def crossed(frame):
        here = knee.position
        follow(frame)
        other.position += knee.position - here
        knee.position = here

    knee._follow = crossed
    with pytest.raises(DriveError, match=r"lf_knee was commanded and lm_knee moved by 0\.\d\d rad"):
        rig.identify()


def test_a_joint_that_does_not_move_is_a_fault(rig, operator):
    operator()
    rig.drives[KNEE].stuck = True
    with pytest.raises(DriveError, match=r"lf_knee (was commanded to move|has stuck_encoder)"):
        rig.identify()


def test_drives_let_go_while_the_operator_thinks_and_are_asked_anew(rig, operator, monkeypatch):
    def thinks(question):
        rig.wait(5.0)
        return "y"

    monkeypatch.setattr("builtins.input", thinks)
    confirmed = rig.identify()
    assert confirmed is not None
    assert {drive.mode for drive in rig.drives} == {DriveMode.RUN}
