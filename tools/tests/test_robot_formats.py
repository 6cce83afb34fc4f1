"""URDF, MJCF, USD and robot.toml describe the same robot.

Each format is read by its own program (ElementTree, MuJoCo, pxr) and walked by its own forward
kinematics; only the numbers that come out are compared. Nothing here uses the code that writes the
files.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
import pytest
from krabby.robot.assets import assets_dir
from krabby.robot.description import RobotDescription
from pxr import Gf, Usd, UsdGeom, UsdPhysics, UsdShade, UsdValidation

ROBOTS = {
    name: RobotDescription.load(assets_dir() / name / "robot.toml")
    for name in ("crab_hex", "crab_hex_rs")
}
ROBOT = ROBOTS["crab_hex"]
"""For what they have in common: names, pose, lengths, ranges, gains, camera."""
POSE = dict(zip(ROBOT.joint_names, ROBOT.default_joint_pos.tolist(), strict=True))
BODIES = {"base"} | {
    f"{leg}_{part}" for leg in ROBOT.leg_names for part in ("hip", "femur", "tibia", "foot")
}


@dataclass
class Body:
    """One rigid body at the default pose, everything in the base frame."""

    mass: float
    com: np.ndarray
    inertia: np.ndarray
    """About its centre of mass, (3, 3)."""


@dataclass
class Joint:
    lower: float
    upper: float
    effort: float
    anchor: np.ndarray
    axis: np.ndarray


@dataclass
class Robot:
    """What a format says, in its own order."""

    bodies: dict[str, Body]
    joints: dict[str, Joint]

    @property
    def total_mass(self) -> float:
        return sum(body.mass for body in self.bodies.values())

    @property
    def inertia_about_base(self) -> np.ndarray:
        total = np.zeros((3, 3))
        for body in self.bodies.values():
            c = body.com
            total += body.inertia + body.mass * (np.dot(c, c) * np.eye(3) - np.outer(c, c))
        return total


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def rpy_matrix(roll: float, pitch: float, yaw: float) -> np.ndarray:
    x, y, z = np.eye(3)
    return rotation(z, yaw) @ rotation(y, pitch) @ rotation(x, roll)


def model_file(name: str, suffix: str) -> str:
    return str(assets_dir() / name / f"{name}.{suffix}")


def from_toml(name: str) -> Robot:
    """The robot from its table: links as the bill sums them, placed by forward kinematics."""
    robot = ROBOTS[name]
    g = robot.geometry
    joints: dict[str, Joint] = {}
    bodies: dict[str, Body] = {}

    def place(body: str, link: str, origin: np.ndarray, turn: np.ndarray) -> None:
        inertial = robot.inertials[link]
        frame = turn @ rotation(np.array([0.0, 1.0, 0.0]), inertial.tilt)
        tensor = frame @ np.diag(inertial.moments) @ frame.T
        bodies[body] = Body(inertial.mass, origin + turn @ inertial.com, tensor)

    up, lift = np.array([0.0, 0.0, 1.0]), np.array([0.0, -1.0, 0.0])
    out = np.array([1.0, 0.0, 0.0])
    place("base", "base", np.zeros(3), np.eye(3))
    for leg, hip_pos, leg_yaw in zip(robot.leg_names, g.hip_pos_b, g.leg_yaw, strict=True):
        origin, turn = hip_pos, rotation(up, leg_yaw)
        for part, kind, axis, length in (
            ("hip", "hip_yaw", up, g.hip_length),
            ("femur", "hip_pitch", lift, g.femur_length),
            ("tibia", "knee", lift, g.tibia_length),
        ):
            joint = f"{leg}_{kind}"
            i = robot.joint_names.index(joint)
            limits = robot.joint_lower[i], robot.joint_upper[i], robot.peak_torque[i]
            joints[joint] = Joint(*limits, origin, turn @ axis)
            turn = turn @ rotation(axis, POSE[joint])
            place(f"{leg}_{part}", part, origin, turn)
            origin = origin + turn @ (length * out)
        place(f"{leg}_foot", "foot", origin, turn)
    return Robot(bodies, joints)


def from_urdf(name: str) -> Robot:
    root = ET.parse(model_file(name, "urdf")).getroot()

    def floats(element: ET.Element | None, key: str) -> np.ndarray:
        text = "0 0 0" if element is None else element.get(key, "0 0 0")
        return np.array([float(word) for word in text.split()])

    links = {link.attrib["name"]: link for link in root.findall("link")}
    places = {"base": (np.zeros(3), np.eye(3))}
    joints: dict[str, Joint] = {}
    for element in root.findall("joint"):
        name = element.attrib["name"]
        parent, child = (element.find(tag).attrib["link"] for tag in ("parent", "child"))
        origin = element.find("origin")
        pos, turn = places[parent]
        pos = pos + turn @ floats(origin, "xyz")
        turn = turn @ rpy_matrix(*floats(origin, "rpy"))
        if element.attrib["type"] == "revolute":
            axis, limit = floats(element.find("axis"), "xyz"), element.find("limit").attrib
            lower, upper, effort = (float(limit[key]) for key in ("lower", "upper", "effort"))
            joints[name] = Joint(lower, upper, effort, pos, turn @ axis)
            turn = turn @ rotation(axis, POSE[name])
        places[child] = (pos, turn)
    bodies = {}
    for name, link in links.items():
        inertial = link.find("inertial")
        if inertial is None:
            continue
        pos, turn = places[name]
        values = inertial.find("inertia").attrib
        xx, yy, zz, xy, xz, yz = (
            float(values[key]) for key in ("ixx", "iyy", "izz", "ixy", "ixz", "iyz")
        )
        inertia = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        axes = turn @ rpy_matrix(*floats(inertial.find("origin"), "rpy"))
        bodies[name] = Body(
            float(inertial.find("mass").attrib["value"]),
            pos + turn @ floats(inertial.find("origin"), "xyz"),
            axes @ inertia @ axes.T,
        )
    return Robot(bodies, joints)


def from_mjcf(name: str) -> Robot:
    model = mujoco.MjModel.from_xml_path(model_file(name, "xml"))
    data = mujoco.MjData(model)
    for name, value in POSE.items():
        data.joint(name).qpos[0] = value
    mujoco.mj_forward(model, data)
    base_pos = data.body("base").xpos.copy()
    bodies = {}
    for i in range(1, model.nbody):
        frame = data.ximat[i].reshape(3, 3)
        bodies[model.body(i).name] = Body(
            float(model.body_mass[i]),
            data.xipos[i] - base_pos,
            frame @ np.diag(model.body_inertia[i]) @ frame.T,
        )
    joints = {}
    for i in range(model.njnt):
        if model.jnt_type[i] == mujoco.mjtJoint.mjJNT_HINGE:
            name = model.joint(i).name
            joints[name] = Joint(
                *model.jnt_range[i],
                model.actuator(name).forcerange[1],
                data.xanchor[i] - base_pos,
                data.xaxis[i],
            )
    return Robot(bodies, joints)


def from_usd(name: str) -> Robot:
    stage = Usd.Stage.Open(model_file(name, "usda"))
    root = stage.GetDefaultPrim().GetPath()
    prims = [prim for prim in stage.Traverse() if prim.IsA(UsdPhysics.Joint)]
    places = {root.AppendChild("base"): Gf.Matrix4d(1.0)}
    joints: dict[str, Joint] = {}
    for prim in prims:
        joint = UsdPhysics.Joint(prim)
        parent, child = (rel.GetTargets()[0] for rel in (joint.GetBody0Rel(), joint.GetBody1Rel()))
        # Gf works with row vectors: the innermost transform comes first.
        frame = local(joint.GetLocalRot0Attr(), joint.GetLocalPos0Attr()) * places[parent]
        turn = Gf.Matrix4d(1.0)
        if prim.IsA(UsdPhysics.RevoluteJoint):
            revolute = UsdPhysics.RevoluteJoint(prim)
            axis = Gf.Vec3d(*np.eye(3)["XYZ".index(revolute.GetAxisAttr().Get())])
            joints[prim.GetName()] = Joint(
                math.radians(revolute.GetLowerLimitAttr().Get()),
                math.radians(revolute.GetUpperLimitAttr().Get()),
                UsdPhysics.DriveAPI(prim, "angular").GetMaxForceAttr().Get(),
                np.array(frame.ExtractTranslation()),
                np.array(frame.TransformDir(axis)),
            )
            turn.SetRotate(Gf.Rotation(axis, math.degrees(POSE[prim.GetName()])))
        tail = local(joint.GetLocalRot1Attr(), joint.GetLocalPos1Attr()).GetInverse()
        places[child] = tail * turn * frame
    bodies = {}
    for path, place in places.items():
        mass = UsdPhysics.MassAPI(stage.GetPrimAtPath(path))
        axes = np.array(Gf.Matrix3d(Gf.Quatd(mass.GetPrincipalAxesAttr().Get()))).T
        frame = np.array(place.ExtractRotationMatrix()).T @ axes
        bodies[path.name] = Body(
            mass.GetMassAttr().Get(),
            np.array(place.Transform(Gf.Vec3d(mass.GetCenterOfMassAttr().Get()))),
            frame @ np.diag(mass.GetDiagonalInertiaAttr().Get()) @ frame.T,
        )
    return Robot(bodies, joints)


def local(rot: Usd.Attribute, pos: Usd.Attribute) -> Gf.Matrix4d:
    return Gf.Matrix4d(Gf.Rotation(Gf.Quatd(rot.Get())), Gf.Vec3d(pos.Get()))


READERS: dict[str, Callable[[str], Robot]] = {"urdf": from_urdf, "mjcf": from_mjcf, "usd": from_usd}


@pytest.fixture(scope="module", params=sorted(ROBOTS))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def table(name) -> Robot:
    return from_toml(name)


@pytest.fixture(scope="module", params=sorted(READERS))
def robot(request, name) -> Robot:
    return READERS[request.param](name)


def test_joints_come_in_the_order_of_the_table(robot):
    assert tuple(robot.joints) == ROBOT.joint_names


def test_joint_limits_and_peak_torque_agree(robot, table):
    for name, joint in robot.joints.items():
        expected = table.joints[name]
        # USD stores single precision degrees.
        assert joint.lower == pytest.approx(expected.lower, abs=1e-6), name
        assert joint.upper == pytest.approx(expected.upper, abs=1e-6), name
        assert joint.effort == pytest.approx(expected.effort), name


def test_joint_axes_and_anchors_agree_in_the_default_pose(robot, table):
    for name, joint in robot.joints.items():
        np.testing.assert_allclose(joint.axis, table.joints[name].axis, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(joint.anchor, table.joints[name].anchor, atol=1e-6, err_msg=name)


def test_bodies_and_their_masses_agree(robot, table):
    assert set(robot.bodies) == BODIES
    for name, body in robot.bodies.items():
        assert body.mass == pytest.approx(table.bodies[name].mass, rel=1e-6), name


def test_centres_of_mass_and_inertias_agree(robot, table):
    for name, body in robot.bodies.items():
        expected = table.bodies[name]
        np.testing.assert_allclose(body.com, expected.com, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(
            body.inertia, expected.inertia, atol=1e-6 * expected.inertia.max(), err_msg=name
        )


def test_the_whole_robot_has_the_table_s_mass_and_inertia(robot, table, name):
    expected = {"crab_hex": 28.6, "crab_hex_rs": 46.88732}
    assert robot.total_mass == pytest.approx(expected[name], abs=1e-5)
    np.testing.assert_allclose(
        robot.inertia_about_base, table.inertia_about_base, rtol=1e-6, atol=1e-6
    )


def test_inertia_of_the_declared_robot_is_of_the_right_size():
    """Sanity of the reference itself, so that four wrong numbers cannot agree by one mistake.

    About z, a middle leg straight out: hip 0.5 kg at 0.345 m, femur 1.5 kg at 0.66 m, tibia 1 kg
    at 0.96 m, foot 0.1 kg at 0.98 m is 0.06 + 0.65 + 0.92 + 0.10 = 1.73; the femur's own length
    adds 0.04. Six of them: 10.6. The other four stand 0.25 m off along x and point further away:
    3.1 * 0.25² + 2 * 1.27 kg·m * (0.25 sin 0.3 - 0.3048 (1 - cos 0.3)) = 0.35 each, 1.4. The body
    has 0.62. Together 12.6 kg·m².
    """
    ixx, iyy, izz = np.diag(from_toml("crab_hex").inertia_about_base)
    assert izz == pytest.approx(12.6, abs=0.05)
    assert iyy < 0.3 * ixx < ixx < izz  # wide and short: easy to pitch, hard to roll and to turn


# What only one format has.


def test_mjcf_drives_are_position_servos_with_the_table_s_gains(name):
    model = mujoco.MjModel.from_xml_path(model_file(name, "xml"))
    assert [model.actuator(i).name for i in range(model.nu)] == list(ROBOT.joint_names)
    np.testing.assert_allclose(model.actuator_gainprm[:, 0], ROBOT.kp)
    np.testing.assert_allclose(model.actuator_biasprm[:, 1], -ROBOT.kp)
    np.testing.assert_allclose(model.actuator_biasprm[:, 2], -ROBOT.kd)
    np.testing.assert_allclose(model.dof_armature[6:], ROBOTS[name].armature)


def test_mjcf_camera_is_the_table_s_camera():
    model = mujoco.MjModel.from_xml_path(model_file("crab_hex", "xml"))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = model.camera("camera")
    assert math.radians(float(camera.fovy[0])) == pytest.approx(ROBOT.camera.vfov_rad)
    assert model.cam_resolution[camera.id].tolist() == [ROBOT.camera.width, ROBOT.camera.height]
    np.testing.assert_allclose(camera.pos, ROBOT.camera.mount_xyz)
    optical, right, down = ROBOT.camera.axes_b
    # MuJoCo cameras look along their -z with y up.
    frame = data.cam_xmat[camera.id].reshape(3, 3)
    np.testing.assert_allclose(frame.T, [right, -down, -optical], atol=1e-9)


def test_mjcf_keyframe_is_the_default_pose_with_all_feet_on_the_ground():
    model = mujoco.MjModel.from_xml_path(model_file("crab_hex", "xml"))
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("stand").id)
    mujoco.mj_forward(model, data)
    assert {name: data.joint(name).qpos[0] for name in POSE} == pytest.approx(POSE)
    lowest = [data.site(foot).xpos[2] - ROBOT.geometry.foot_radius for foot in ROBOT.foot_names]
    np.testing.assert_allclose(lowest, 0.0, atol=1e-9)


@pytest.fixture(scope="module")
def stage(name) -> Usd.Stage:
    return Usd.Stage.Open(model_file(name, "usda"))


def test_usd_is_an_articulation_in_metres_with_z_up(stage):
    assert stage.GetDefaultPrim().HasAPI(UsdPhysics.ArticulationRootAPI)
    assert UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    assert UsdPhysics.GetStageKilogramsPerUnit(stage) == 1.0


def test_usd_drives_have_the_gains_per_degree_and_aim_at_the_default_pose(stage, name):
    for i, joint in enumerate(ROBOT.joint_names):
        prim = stage.GetPrimAtPath(f"/{name}/joints/{joint}")
        drive = UsdPhysics.DriveAPI(prim, "angular")
        # 250 N·m/rad = 4.3633 N·m/degree
        assert drive.GetStiffnessAttr().Get() == pytest.approx(ROBOT.kp[i] * math.pi / 180)
        assert drive.GetDampingAttr().Get() == pytest.approx(ROBOT.kd[i] * math.pi / 180)
        target = math.radians(drive.GetTargetPositionAttr().Get())
        assert target == pytest.approx(POSE[joint], abs=1e-6)
        for attribute in ("newton:armature", "physxJoint:armature"):
            assert prim.GetAttribute(attribute).Get() == pytest.approx(ROBOTS[name].armature[i])
        for attribute in ("newton:velocityLimit", "physxJoint:maxJointVelocity"):
            # 20 rad/s = 1145.9 degrees/s, 20.94 rad/s = 1199.8 degrees/s
            expected = {"crab_hex": 1145.9, "crab_hex_rs": 1199.8}
            assert prim.GetAttribute(attribute).Get() == pytest.approx(expected[name], abs=0.1)


def test_usd_links_stand_where_the_joints_put_them(stage, name):
    """Prim transforms and joint frames are two statements of one pose; importers read either."""
    cache = UsdGeom.XformCache()
    for link, body in from_usd(name).bodies.items():
        prim = stage.GetPrimAtPath(f"/{name}/{link}")
        place = cache.GetLocalToWorldTransform(prim)
        com = Gf.Vec3d(UsdPhysics.MassAPI(prim).GetCenterOfMassAttr().Get())
        np.testing.assert_allclose(place.Transform(com), body.com, atol=1e-6, err_msg=link)


def test_usd_camera_sees_what_the_table_s_camera_sees(stage, name):
    camera = UsdGeom.Camera(stage.GetPrimAtPath(f"/{name}/base/camera/depth"))
    hfov = 2 * math.atan(
        0.5 * camera.GetHorizontalApertureAttr().Get() / camera.GetFocalLengthAttr().Get()
    )
    assert hfov == pytest.approx(ROBOT.camera.hfov_rad, abs=1e-6)
    place = UsdGeom.XformCache().GetLocalToWorldTransform(camera.GetPrim())
    np.testing.assert_allclose(place.ExtractTranslation(), ROBOT.camera.mount_xyz, atol=1e-9)
    optical, right, down = ROBOT.camera.axes_b
    for axis, expected in (((0, 0, -1), optical), ((1, 0, 0), right), ((0, 1, 0), -down)):
        np.testing.assert_allclose(place.TransformDir(Gf.Vec3d(*axis)), expected, atol=1e-9)


def test_usd_feet_have_the_table_s_friction(stage, name):
    for foot in ROBOT.foot_names:
        prim = stage.GetPrimAtPath(f"/{name}/{foot}/collision_0")
        assert prim.HasAPI(UsdPhysics.CollisionAPI)
        material, _ = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial("physics")
        friction = UsdPhysics.MaterialAPI(material.GetPrim())
        assert friction.GetDynamicFrictionAttr().Get() == pytest.approx(ROBOT.contact.foot_friction)


@pytest.mark.parametrize("suffix", [".usda", ".usdc", ".usd"])
def test_usd_passes_the_validators_as_text_and_binary(stage, name, suffix, tmp_path):
    path = tmp_path / f"{name}{suffix}"
    stage.Export(str(path))
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 20
    found = UsdValidation.ValidationContext(validators).Validate(Usd.Stage.Open(str(path)))
    assert [f"{error.GetName()}: {error.GetMessage()}" for error in found] == []


# MuJoCo's own importer of URDF.


def test_mujoco_imports_the_urdf_with_base_feet_ranges_and_torques(name, table):
    """What README.md says: only the free joint of the base and the actuators are lost."""
    spec = mujoco.MjSpec.from_file(model_file(name, "urdf"))
    model = spec.compile()
    assert [model.joint(i).name for i in range(model.njnt)] == list(ROBOT.joint_names)
    assert model.nu == 0
    bodies = {model.body(i).name: float(model.body_mass[i]) for i in range(1, model.nbody)}
    assert set(table.bodies) <= set(bodies)
    for body, expected in table.bodies.items():
        assert bodies[body] == pytest.approx(expected.mass, rel=1e-6), body
    for i, joint in enumerate(ROBOT.joint_names):
        expected = table.joints[joint]
        np.testing.assert_allclose(model.jnt_range[i], [expected.lower, expected.upper])
        assert model.jnt_actfrcrange[i, 1] == pytest.approx(expected.effort)
    spec.body("base").add_freejoint()
    free = spec.compile()
    assert free.nq == 7 + 18
    assert free.body_subtreemass[free.body("base").id] == pytest.approx(table.total_mass)
