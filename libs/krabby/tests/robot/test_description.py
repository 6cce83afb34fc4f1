"""robot.toml: what it says, and that nothing else gets through."""

import copy
import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from krabby.robot.assets import ASSETS_ENV, ROBOT_ENV, assets_dir, robot_dir, robot_file
from krabby.robot.description import RobotDescription
from krabby.robot.errors import AssetError, DescriptionError, RobotError


@pytest.fixture(scope="module")
def source() -> dict[str, Any]:
    return tomllib.loads((robot_dir() / "robot.toml").read_text())


@pytest.fixture
def values(source) -> dict[str, Any]:
    return copy.deepcopy(source)


@pytest.fixture(scope="module")
def robot() -> RobotDescription:
    return RobotDescription.load()


def test_joint_order_is_leg_by_leg_from_the_body_outwards(robot):
    assert robot.leg_names == ("lf", "lm", "lr", "rf", "rm", "rr")
    assert robot.joint_names[:4] == ("lf_hip_yaw", "lf_hip_pitch", "lf_knee", "lm_hip_yaw")
    assert robot.joint_names[17] == "rr_knee"
    assert robot.joint_index("lm_hip_yaw") == 3
    assert robot.foot_names[5] == "rr_foot"


def test_every_leg_stands_in_the_spider_stance(robot):
    assert robot.default_joint_pos.reshape(6, 3).tolist() == [[0.0, 0.45, -1.95]] * 6
    assert robot.joint_lower.reshape(6, 3)[4].tolist() == [-0.9, -1.2, -2.6]
    assert robot.joint_upper.reshape(6, 3)[4].tolist() == [0.9, 1.3, 0.0]
    assert set(robot.kp) == {250.0}
    assert set(robot.kd) == {10.0}


def test_masses_add_up_to_28_6_kg(robot):
    # 10 + 6 * (0.5 + 1.5 + 1.0 + 0.1)
    assert robot.masses.total == pytest.approx(28.6)


def test_front_legs_are_fanned_forward_and_rear_legs_back(robot):
    forward = np.cos(robot.geometry.leg_yaw)
    outward = np.sin(robot.geometry.leg_yaw)
    # cos(pi/2 - 0.3) = sin(0.3) = 0.2955
    np.testing.assert_allclose(forward, [0.29552, 0, -0.29552] * 2, atol=1e-5)
    assert np.sign(outward).tolist() == [1, 1, 1, -1, -1, -1]


def test_camera_has_square_pixels_and_an_87_degree_view(robot):
    camera = robot.camera
    # 53 / tan(43.5 deg) = 55.850; vertical: 2 * atan(30 / 55.850) = 56.48 deg
    assert camera.fx == pytest.approx(55.850, abs=1e-3)
    assert camera.fy == camera.fx
    assert math.degrees(camera.vfov_rad) == pytest.approx(56.48, abs=0.01)
    assert camera.K[0].tolist() == [camera.fx, 0.0, 52.5]
    assert camera.K[1].tolist() == [0.0, camera.fx, 29.5]


def test_camera_looks_forward_and_30_degrees_down(robot):
    optical, right, down = robot.camera.axes_b
    np.testing.assert_allclose(optical, [math.cos(math.pi / 6), 0.0, -0.5], atol=1e-12)
    np.testing.assert_allclose(right, [0.0, -1.0, 0.0])
    np.testing.assert_allclose(np.cross(optical, right), down, atol=1e-12)


def test_arrays_cannot_be_written_to(robot):
    with pytest.raises(ValueError, match="read-only"):
        robot.default_joint_pos[0] = 1.0


def test_hash_follows_values_and_not_comments(tmp_path, robot):
    text = (robot_dir() / "robot.toml").read_text()
    path = tmp_path / "robot.toml"
    path.write_text("# another remark\n" + text)
    assert RobotDescription.load(path).content_hash == robot.content_hash
    path.write_text(text.replace("kp = 250.0", "kp = 251.0"))
    assert RobotDescription.load(path).content_hash != robot.content_hash


def test_an_unknown_joint_is_named_with_those_that_exist(robot):
    with pytest.raises(DescriptionError, match=r"no joint 'lf_elbow'.*lf_hip_yaw, lf_hip_pitch"):
        robot.joint_index("lf_elbow")


def test_unknown_key_is_refused_and_the_nearest_named(values):
    values["legs"]["femur_lenght"] = 0.6
    with pytest.raises(
        DescriptionError, match=r"unknown key legs\.femur_lenght; did you mean legs\.femur_length\?"
    ):
        RobotDescription.parse(values)


def test_drives_are_per_joint(values):
    values["drives"]["small"] = values["drives"]["design"] | {
        "rated_torque": 20.0,
        "armature": 0.02,
    }
    values["joints"]["hip_yaw"]["drive"] = "small"
    robot = RobotDescription.parse(values)
    assert robot.rated_torque.reshape(6, 3)[4].tolist() == [20.0, 40.0, 40.0]
    assert robot.armature.reshape(6, 3)[0].tolist() == [0.02, 0.05, 0.05]
    assert robot.peak_torque.tolist() == [120.0] * 18


def test_unknown_table_is_refused_and_the_nearest_named(values):
    values["safty"] = {}
    with pytest.raises(DescriptionError, match="unknown key safty; did you mean safety"):
        RobotDescription.parse(values)


def test_missing_key_is_named(values):
    del values["legs"]["femur_length"]
    with pytest.raises(DescriptionError, match=r"legs\.femur_length is missing; add it"):
        RobotDescription.parse(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("camera.mount_xyz", [0.3, 0.0], r"camera\.mount_xyz is \[0\.3, 0\.0\]; expected .*3"),
        ("camera.mount_xyz", 0.3, r"camera\.mount_xyz is 0\.3; expected"),
        ("camera.width", 106.5, r"camera\.width is 106\.5; .*whole number"),
        ("camera.width", True, r"camera\.width is True; .*whole number"),
        (
            "camera.latency_jitter_s",
            0.05,
            r"latency_jitter_s is 0\.05; expected at most lat.*0\.04",
        ),
        ("camera.far_m", 0.05, r"camera\.far_m is 0\.05; expected a number above near_m, 0\.1"),
        ("camera.drop_probability", 1.5, r"is 1\.5; expected a number"),
        (
            "bill.foot.ball.mass",
            math.nan,
            r"bill\.foot\.ball\.mass is nan; expected a finite number",
        ),
        ("bill.foot.ball.mass", math.inf, r"mass is inf; expected a finite number"),
        ("bill.foot.ball.mass", 0.0, r"bill\.foot\.ball\.mass is 0\.0; expected a number above 0"),
        ("bill.foot.ball.mass", "light", r"mass is 'light'; expected a number"),
        ("bill.foot.ball.mass", False, r"mass is False; expected a number"),
        (
            "bill.foot.ball.drive",
            "design",
            r"bill\.foot\.ball\.drive is \['mass', 'drive'\]; expected one of mass",
        ),
        (
            "bill.foot.ball.box",
            [1, 1, 1],
            r"sphere is \['box', 'sphere'\]; expected at most one of",
        ),
        ("bill.foot.ball.at", [], r"bill\.foot\.ball\.at is \(\); expected at least one place"),
        (
            "bill.foot.ball.at",
            [[0, 0.01, 0], [0.1, 0, 0]],
            r"bill\.foot is lopsided, with products",
        ),
        ("bill.foot", {}, r"bill\.foot is {}; expected at least one part"),
        (
            "bill.hip.link.per_metre",
            2.0,
            r"per_metre is \['mass', 'per_metre'\]; expected one of",
        ),
        ("name", "", r"name is ''; expected"),
        ("body.size", [0.6, math.nan, 0.1], r"body\.size\[1\] is nan; expected a finite number"),
        ("legs.hips", {}, r"legs\.hips is \[\]; expected 6 legs"),
        (
            "legs.hips.lm.at",
            [0.0, 0.0, 0.0],
            r"legs\.hips\.lm\.at .*expected y off the centre line",
        ),
        ("joints.order", ["lf_hip_yaw"], r"joints\.order is '1 of them'; expected 18 names"),
        ("joints.knee.default", 0.5, r"joints\.knee\.default is 0\.5; .*from -2\.6 to 0"),
        ("joints.knee.lower", 0.0, r"joints\.knee\.lower is 0\.0; expected less than upper, 0"),
        ("joints.knee.drive", "rs05", r"joints\.knee\.drive is 'rs05'; expected one of design"),
        (
            "drives.design.rated_torque",
            130.0,
            r"rated_torque is 130\.0; expected at most peak.*, 120",
        ),
        (
            "safety.damp_after_s",
            0.05,
            r"damp_after_s is 0\.05; expected a number above hold.*, 0\.05",
        ),
        ("safety.fold_start", 1.0, r"safety\.fold_start is 1\.0; expected a number .*0\.999"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(values, path, value, message):
    *tables, key = path.split(".")
    table = values
    for name in tables:
        table = table[name]
    table[key] = value
    with pytest.raises(DescriptionError, match=message):
        RobotDescription.parse(values)


def test_joints_in_another_order_are_refused_and_the_first_difference_named(values):
    order = values["joints"]["order"]
    order[1], order[2] = order[2], order[1]
    with pytest.raises(DescriptionError, match=r"order\[1\] is 'lf_knee'; expected 'lf_hip_pitch'"):
        RobotDescription.parse(values)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AssetError, match=r"cannot read .*nowhere\.toml: No such file"):
        RobotDescription.load(tmp_path / "nowhere.toml")


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path):
    path = tmp_path / "robot.toml"
    path.write_text("name = \n")
    with pytest.raises(DescriptionError, match=r"robot\.toml is not TOML: .*line 1"):
        RobotDescription.load(path)


def test_a_robot_is_like_another_but_for_what_its_file_says(tmp_path, robot):
    for name in ("crab_hex", "crab_hex_rs"):
        (tmp_path / name).mkdir()
        shutil.copy(assets_dir() / name / "robot.toml", tmp_path / name)
    other = RobotDescription.load(tmp_path / "crab_hex_rs" / "robot.toml")
    assert other.name == "crab_hex_rs"
    assert other.camera == robot.camera
    assert other.joint_names == robot.joint_names
    assert other.geometry_hash == robot.geometry_hash
    assert other.content_hash != robot.content_hash
    assert set(other.inertials["foot"].com) == {0.0}


def test_a_file_like_itself_or_like_a_path_is_refused(tmp_path):
    (tmp_path / "ant").mkdir()
    path = tmp_path / "ant" / "robot.toml"
    for like in ("ant", "../ant", ""):
        path.write_text(f'like = "{like}"\n')
        with pytest.raises(DescriptionError, match="expected the folder of another robot"):
            RobotDescription.load(path)


def test_robots_like_each_other_are_refused(tmp_path):
    for name, like in (("ant", "bee"), ("bee", "ant")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "robot.toml").write_text(f'like = "{like}"\n')
    with pytest.raises(DescriptionError, match=r"like is 'ant'.* not like ant or bee in turn"):
        RobotDescription.load(tmp_path / "ant" / "robot.toml")


def test_longer_legs_are_another_geometry_and_heavier_ones_are_not(values, robot):
    values["bill"]["tibia"]["link"]["mass"] = 2.0
    assert RobotDescription.parse(values).geometry_hash == robot.geometry_hash
    values["legs"]["tibia_length"] = 0.7
    assert RobotDescription.parse(values).geometry_hash != robot.geometry_hash


def test_the_robot_can_be_named_by_environment(monkeypatch):
    monkeypatch.setenv(ROBOT_ENV, "crab_hex_rs")
    assert robot_file("xml").name == "crab_hex_rs.xml"
    assert RobotDescription.load().name == "crab_hex_rs"
    for wrong in ("spot", "../assets/crab_hex", "policies"):
        monkeypatch.setenv(ROBOT_ENV, wrong)
        with pytest.raises(AssetError, match=r"has no such robot; it has crab_hex, crab_hex_rs"):
            robot_dir()


def test_assets_are_found_from_anywhere_in_the_repository(monkeypatch, tmp_path):
    monkeypatch.delenv(ASSETS_ENV, raising=False)
    monkeypatch.chdir(robot_dir() / "pictures")
    assert assets_dir() == robot_dir().parent
    monkeypatch.chdir(tmp_path)
    assert assets_dir() == Path(__file__).resolve().parents[4] / "assets"


def test_assets_folder_can_be_named_by_environment(monkeypatch, tmp_path):
    (tmp_path / "crab_hex").mkdir()
    (tmp_path / "crab_hex" / "robot.toml").touch()
    monkeypatch.setenv(ASSETS_ENV, str(tmp_path))
    assert assets_dir() == tmp_path.resolve()


def test_a_named_assets_folder_without_the_robot_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(ASSETS_ENV, str(tmp_path))
    with pytest.raises(AssetError, match=r"KRABBY_ASSETS=.* holds no crab_hex/robot\.toml; set it"):
        assets_dir()


def test_no_assets_anywhere_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv(ASSETS_ENV, raising=False)
    monkeypatch.setattr("krabby.robot.assets._candidates", lambda: iter([tmp_path / "assets"]))
    with pytest.raises(AssetError, match="run from inside the repository or set KRABBY_ASSETS"):
        assets_dir()


def test_every_error_of_the_package_can_be_caught_as_one():
    assert issubclass(DescriptionError, RobotError)
    assert issubclass(AssetError, RobotError)
