"""hardware.toml, the plan made from it, the calibration file, and the fault table."""

import re
import tomllib

import numpy as np
import pytest
from krabby.drivers.can import calibration as calibration_module
from krabby.drivers.can.calibration import Calibration, Mounting, calibrate
from krabby.drivers.can.faults import FAULTS, fault_names, markdown, remedy
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.plan import frame_bits, plan
from krabby.drivers.can.types import DriveFault
from krabby.drivers.errors import HardwareError
from krabby.robot.assets import robot_dir
from krabby.robot.description import RobotDescription

DESC = RobotDescription.load()
HARDWARE = HardwareDescription.load(None, DESC)


def values():
    return tomllib.loads((robot_dir() / "hardware.toml").read_text())


def parse(values):
    return HardwareDescription.parse(values, DESC)


# --- the file ----------------------------------------------------------------------------------


def test_the_robot_has_a_drive_for_every_joint_six_to_a_bus():
    assert tuple(drive.joint for drive in HARDWARE.drives) == DESC.joint_names
    assert [len(HARDWARE.drives_of(bus.name)) for bus in HARDWARE.buses] == [6, 6, 6]
    assert HARDWARE.imu.mount_quat == (1.0, 0.0, 0.0, 0.0)


def change(path, value):
    def apply(values):
        *tables, key = path
        for table in tables:
            values = values[table]
        values[key] = value

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change(["robot"], "ant"), "robot is 'ant'; expected 'crab_hex'"),
        (change(["rate"], 1.0), "unknown key rate; did you mean rate_hz?"),
        (change(["can_timeout"], 0.2), "can_timeout is 0.2; expected a number from 0.01 to 0.15"),
        (change(["can_timeout"], 0.009), "can_timeout is 0.009; expected a number from 0.01"),
        (change(["buses", "front", "interface"], "slcan"), "buses.front.interface is 'slcan'"),
        (
            change(["buses", "front", "port"], 5000),
            "buses.front.port is 5000; expected a port with",
        ),
        (change(["joints", "lf_knee", "bus"], "left"), "joints.lf_knee.bus is 'left'; the buses"),
        (
            change(["joints", "lf_knee", "id"], 128),
            "joints.lf_knee.id is 128; expected a whole number from 1 to 127",
        ),
        (change(["joints", "lf_knee", "id"], 11), "id is 11, which lf_hip_yaw has on bus front"),
        (
            change(["joints", "lf_knee", "model"], "rs9"),
            "model is 'rs9'; expected a known model: no",
        ),
        (
            change(["joints", "lf_knee", "model"], "damiao-j8009p"),
            "lf_knee.model is damiao-j8009p on bus front, where lf_hip_yaw has robstride-rs04",
        ),
        (change(["joints", "lf_knee", "direction"], 0), "direction is 0; expected one of -1, 1"),
        (change(["joints", "lf_knee", "gear"], 0.0), "gear is 0.0; expected a number above 0"),
        (change(["joints", "tail"], {}), "unknown key joints.tail"),
        (change(["supply", "derate_from"], 30.0), "supply.derate_from is 30.0; expected"),
        (
            change(["imu", "mount_quat"], [1.0, 1.0, 0.0, 0.0]),
            "expected a unit quaternion xyzw, it has norm 1.41421",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(apply, message):
    wrong = values()
    apply(wrong)
    with pytest.raises(HardwareError, match=re.escape(message)):
        parse(wrong)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(HardwareError, match="check the path"):
        HardwareDescription.load(tmp_path / "none.toml", DESC)


def test_the_emulated_robot_gets_a_group_and_a_port_for_each_bus():
    buses = HARDWARE.with_interface("udp_multicast").buses
    assert [(bus.channel, bus.port) for bus in buses] == [
        ("239.74.163.1", 43113),
        ("239.74.163.2", 43114),
        ("239.74.163.3", 43115),
    ]
    named = HARDWARE.with_interface("udp_multicast", {"rear": "239.1.2.3:5000"}).buses[2]
    assert (named.channel, named.port) == ("239.1.2.3", 5000)
    assert HARDWARE.with_interface("socketcan", {"rear": "vcan2"}).buses[2].channel == "vcan2"


def test_channels_of_unknown_buses_are_refused():
    with pytest.raises(HardwareError, match="channels are given for left; the buses are front"):
        HARDWARE.with_interface("udp_multicast", {"left": "239.1.2.3"})
    with pytest.raises(HardwareError, match="give group:port"):
        HARDWARE.with_interface("udp_multicast", {"rear": "239.1.2.3:none"})


def test_multicast_frames_stay_on_this_host_unless_they_may_hop():
    def hops(hardware):
        return {bus.hops for bus in hardware.buses}

    assert hops(HARDWARE.with_interface("udp_multicast")) == {0}
    assert hops(HARDWARE.with_interface("udp_multicast", hops=1)) == {1}
    with pytest.raises(HardwareError, match="hops is 9; give 0"):
        HARDWARE.with_interface("udp_multicast", hops=9)


# --- the plan ----------------------------------------------------------------------------------


def test_frame_bits_are_those_of_iso_11898():
    # 1 + 11 + 3 + 4 + 64 + 15 + 1 + 2 + 7 + 3; stuffed (34 + 63) // 4 = 24 more.
    assert frame_bits(is_extended=False, stuffed=False) == 111
    assert frame_bits(is_extended=False, stuffed=True) == 135
    # 20 bits more of id; stuffed (54 + 63) // 4 = 29 more.
    assert frame_bits(is_extended=True, stuffed=False) == 131
    assert frame_bits(is_extended=True, stuffed=True) == 160


def test_the_robot_s_plan():
    # 200 Hz x (12 + 1) frames = 2600 frames/s; x 131 bits = 34.06 %, x 160 = 41.6 %.
    for row in plan(HARDWARE):
        assert row.frames_per_s == 2600
        assert row.load == pytest.approx(0.3406)
        assert row.worst_load == pytest.approx(0.416)


def test_a_plan_that_does_not_fit_is_refused_with_what_would():
    crowded = values()
    for joint in crowded["joints"].values():
        joint["bus"] = "front"
    del crowded["buses"]["middle"], crowded["buses"]["rear"]
    # 200 Hz x 37 frames x 160 bits = 118.4 %; 18 x 0.7 / 1.184 = 10.6.
    with pytest.raises(HardwareError, match=r"18 drives at 200 Hz with up to 118%.*at most 10"):
        plan(parse(crowded))
    assert plan(HARDWARE, 330.0)
    with pytest.raises(HardwareError, match="lower rate_hz"):
        plan(HARDWARE, 340.0)


# --- calibration -------------------------------------------------------------------------------


def test_a_calibration_puts_the_measured_robot_into_the_reference_pose(tmp_path):
    nominal = Calibration.nominal(HARDWARE)
    reference = DESC.default_joint_pos
    # The drives as they are: joint angle = direction * drive + true offset.
    true_offset = np.linspace(-0.3, 0.3, 18)
    drive_pos = (reference - true_offset) * nominal.direction
    mounting = Mounting(HARDWARE, nominal)
    readings = np.stack([mounting.joint_pos(drive_pos) + shake for shake in (-1e-3, 1e-3)])
    found = calibrate(nominal, readings, reference, DESC, date="2026-11-03T10:00:00Z")
    np.testing.assert_allclose(found.offset, true_offset, atol=1e-12)

    path = tmp_path / "calibration.toml"
    found.save(path)
    read = Calibration.load(path, HARDWARE)
    np.testing.assert_array_equal(read.offset, found.offset)
    np.testing.assert_array_equal(read.direction, found.direction)
    assert read.measured == "2026-11-03T10:00:00Z"
    assert [entry.name for entry in tmp_path.iterdir()] == ["calibration.toml"]


def test_a_joint_that_moves_or_is_not_read_cannot_be_calibrated():
    nominal, pose = Calibration.nominal(HARDWARE), DESC.default_joint_pos
    moving = np.stack([pose, pose])
    moving[1, 4] += 0.02
    with pytest.raises(HardwareError, match=r"lm_hip_pitch moved by 0\.020 rad"):
        calibrate(nominal, moving, pose, DESC, date="now")
    silent = pose.copy()
    silent[0] = np.nan
    with pytest.raises(HardwareError, match="lf_hip_yaw was not measured"):
        calibrate(nominal, silent, pose, DESC, date="now")
    with pytest.raises(HardwareError, match=r"lf_hip_yaw at 2 rad; its range is -0\.9 to 0\.9"):
        calibrate(nominal, pose, np.full(18, 2.0), DESC, date="now")
    with pytest.raises(HardwareError, match=r"give \(k, 18\) and \(18,\)"):
        calibrate(nominal, pose[:3], pose, DESC, date="now")


def test_a_power_cut_while_writing_leaves_the_old_calibration(tmp_path, monkeypatch):
    path = tmp_path / "calibration.toml"
    Calibration.nominal(HARDWARE).save(path)
    before = path.read_bytes()

    def cut(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(calibration_module.os, "fsync", cut)
    with pytest.raises(HardwareError, match="nothing was changed"):
        Calibration.nominal(HARDWARE).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["calibration.toml"]


def test_a_calibration_is_read_strictly(tmp_path):
    path = tmp_path / "calibration.toml"
    with pytest.raises(HardwareError, match="calibrate this robot first"):
        Calibration.load(path, HARDWARE)
    found = calibrate(
        Calibration.nominal(HARDWARE),
        DESC.default_joint_pos,
        DESC.default_joint_pos,
        DESC,
        date="2026-11-03",
    )
    found.save(path)
    path.write_text(path.read_text().replace("rr_knee", "rr_toe"))
    with pytest.raises(
        HardwareError, match=r"unknown key joints\.rr_toe; did you mean joints\.rr_knee"
    ):
        Calibration.load(path, HARDWARE)
    path.write_text("robot = ")
    with pytest.raises(HardwareError, match="is not TOML"):
        Calibration.load(path, HARDWARE)


# --- faults ------------------------------------------------------------------------------------


def test_every_fault_has_a_full_row_in_the_table():
    assert set(FAULTS) == set(DriveFault)
    for info in FAULTS.values():
        assert all(text.endswith(".") for text in info)
    assert markdown().count("\n") == 2 + len(DriveFault)


def test_faults_are_named_and_the_first_has_a_remedy():
    both = DriveFault.BUS_OFF | DriveFault.NO_REPLY
    assert fault_names(both) == "no_reply, bus_off"
    assert remedy(both) == FAULTS[DriveFault.NO_REPLY].remedy
    assert fault_names(0) == remedy(0) == ""
