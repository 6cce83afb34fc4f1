"""MJCF: the robot for MuJoCo, translated from the URDF tree and `robot.toml`.

Written element by element rather than through MuJoCo's URDF importer, which merges bodies across
fixed joints and drops frames without mass: feet, camera and IMU keep their names here.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np
from krabby.mujoco.model import COLLISION_GROUP, VISUAL_GROUP
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import standing_height
from numpy.typing import NDArray

from krabby_assets.urdf import Box, Cylinder, Link, Pose, Shape, Sphere, Tree, numbers

__all__ = ["to_mjcf"]

_TOUCH_MARGIN = 1.2
"""Radius of a foot's touch volume over the foot's: contacts lie on the sphere, not inside it."""


def to_mjcf(tree: Tree, description: RobotDescription) -> str:
    """MJCF text of the robot alone, without ground."""
    root = ET.Element("mujoco", model=tree.name)
    ET.SubElement(root, "compiler", angle="radian", autolimits="true")
    _option(root)
    _defaults(root, description)
    asset = ET.SubElement(root, "asset")
    for name, rgba in tree.materials.items():
        ET.SubElement(asset, "material", name=name, rgba=numbers(rgba), specular="0.3")
    world = ET.SubElement(root, "worldbody")
    _body(world, tree.root, tree, description)
    _contact(root, description)
    _actuators(root, description)
    _sensors(root, description)
    _keyframe(root, description)
    ET.indent(root, space="  ")
    return (
        f"<!-- Generated from {tree.name}.urdf and robot.toml: edit crab_hex.urdf.xacro or "
        "robot.toml and run `make assets`. -->\n"
        f"{ET.tostring(root, encoding='unicode')}\n"
    )


def _option(root: ET.Element) -> None:
    # implicitfast integrates the drives' damping implicitly: kd 10 against a foot's small inertia
    # would ring with an explicit step. The elliptic cone with impratio 100 keeps standing feet
    # where they are, at the same price: they creep 0.07 mm/s, against 3 mm/s at impratio 1.
    ET.SubElement(
        root,
        "option",
        timestep="0.0025",
        integrator="implicitfast",
        cone="elliptic",
        impratio="100",
    )


def _defaults(root: ET.Element, description: RobotDescription) -> None:
    top = ET.SubElement(root, "default")
    visual = ET.SubElement(top, "default", {"class": "visual"})
    ET.SubElement(visual, "geom", group=str(VISUAL_GROUP), contype="0", conaffinity="0", mass="0")
    collision = ET.SubElement(top, "default", {"class": "collision"})
    # priority: the robot's friction decides on every ground.
    ET.SubElement(
        collision,
        "geom",
        group=str(COLLISION_GROUP),
        priority="1",
        friction=numbers([description.contact.body_friction]),
        rgba="0.3 0.5 0.7 0.4",
    )
    foot = ET.SubElement(collision, "default", {"class": "foot"})
    ET.SubElement(foot, "geom", friction=numbers([description.contact.foot_friction]))


def _body(parent: ET.Element, link: Link, tree: Tree, description: RobotDescription) -> None:
    body = ET.SubElement(parent, "body", name=link.name)
    if link.joint is None:
        ET.SubElement(body, "freejoint", name=f"{link.name}_free")
    else:
        _set_pose(body, link.joint.pose)
        if link.joint.axis is not None:
            ET.SubElement(
                body,
                "joint",
                name=link.joint.name,
                axis=numbers(link.joint.axis),
                range=numbers([link.joint.lower, link.joint.upper]),
                armature=numbers([description.armature[description.joint_index(link.joint.name)]]),
            )
    if link.inertial is not None:
        inertial = ET.SubElement(
            body,
            "inertial",
            pos=numbers(link.inertial.pose.pos),
            mass=numbers([link.inertial.mass]),
            diaginertia=numbers(link.inertial.moments),
        )
        _set_pose(inertial, link.inertial.pose)
    is_foot = link.name in description.foot_names
    for i, shape in enumerate(link.collisions):
        suffix = "" if len(link.collisions) == 1 else f"_{i}"
        geom = _geom(body, shape, "foot" if is_foot else "collision", capsules=True)
        geom.set("name", f"{link.name}_collision{suffix}")
    for shape in link.visuals:
        _geom(body, shape, "visual")
    if is_foot:
        radius = _TOUCH_MARGIN * description.geometry.foot_radius
        ET.SubElement(body, "site", name=link.name, size=numbers([radius]), group="4")
    for child in tree.children(link.name):
        if child.inertial is None:
            _frame(body, child, description)
        else:
            _body(body, child, tree, description)


def _frame(body: ET.Element, link: Link, description: RobotDescription) -> None:
    """A link without mass: a site and its looks on the parent, and a camera if it is one."""
    assert link.joint is not None
    pose = link.joint.pose
    site = ET.SubElement(body, "site", name=link.name, size="0.01", group="4")
    _set_pose(site, pose)
    for shape in link.visuals:
        composed = Pose(
            pos=pose.pos + rotations.rotate(pose.quat, shape.pose.pos),
            quat=rotations.mul(pose.quat, shape.pose.quat),
        )
        moved = Shape(pose=composed, geometry=shape.geometry, material=shape.material)
        _geom(body, moved, "visual")
    if link.name == "camera":
        camera = description.camera
        _, right, down = camera.axes_b
        ET.SubElement(
            body,
            "camera",
            name="camera",
            pos=numbers(camera.mount_xyz),
            xyaxes=numbers([*right, *-down]),
            # Degrees, independent of the compiler's angle.
            fovy=numbers([math.degrees(camera.vfov_rad)]),
            resolution=f"{camera.width} {camera.height}",
        )


def _geom(body: ET.Element, shape: Shape, geom_class: str, *, capsules: bool = False) -> ET.Element:
    geom = ET.SubElement(body, "geom", {"class": geom_class})
    match shape.geometry:
        case Box(size=size):
            geom.set("type", "box")
            geom.set("size", numbers(0.5 * edge for edge in size))
        case Cylinder(radius=radius, length=length) if capsules:
            # Same extent, rounded ends: capsules collide exactly and much faster than cylinders.
            geom.set("type", "capsule")
            geom.set("size", numbers([radius, 0.5 * length - radius]))
        case Cylinder(radius=radius, length=length):
            geom.set("type", "cylinder")
            geom.set("size", numbers([radius, 0.5 * length]))
        case Sphere(radius=radius):
            geom.set("type", "sphere")
            geom.set("size", numbers([radius]))
    _set_pose(geom, shape.pose)
    if shape.material is not None:
        geom.set("material", shape.material)
    return geom


def _contact(root: ET.Element, description: RobotDescription) -> None:
    # A femur starts at the body's edge; legs of different hips and folded tibias may still touch.
    contact = ET.SubElement(root, "contact")
    for leg in description.leg_names:
        ET.SubElement(contact, "exclude", body1="base", body2=f"{leg}_femur")


def _actuators(root: ET.Element, description: RobotDescription) -> None:
    actuators = ET.SubElement(root, "actuator")
    for i, name in enumerate(description.joint_names):
        ET.SubElement(
            actuators,
            "position",
            name=name,
            joint=name,
            kp=numbers([description.kp[i]]),
            kv=numbers([description.kd[i]]),
            ctrlrange=numbers([description.joint_lower[i], description.joint_upper[i]]),
            forcerange=numbers([-description.peak_torque[i], description.peak_torque[i]]),
        )


def _sensors(root: ET.Element, description: RobotDescription) -> None:
    sensors = ET.SubElement(root, "sensor")
    ET.SubElement(sensors, "accelerometer", name="imu_accelerometer", site="imu")
    ET.SubElement(sensors, "gyro", name="imu_gyro", site="imu")
    for foot in description.foot_names:
        ET.SubElement(sensors, "touch", name=f"{foot}_touch", site=foot)


def _keyframe(root: ET.Element, description: RobotDescription) -> None:
    pose: Sequence[float] | NDArray[np.float64] = description.default_joint_pos
    base = [0.0, 0.0, standing_height(description), 1.0, 0.0, 0.0, 0.0]
    keyframe = ET.SubElement(root, "keyframe")
    ET.SubElement(keyframe, "key", name="stand", qpos=numbers([*base, *pose]), ctrl=numbers(pose))


def _set_pose(element: ET.Element, pose: Pose) -> None:
    if pose.pos.any():
        element.set("pos", numbers(pose.pos))
    if not np.array_equal(pose.quat, rotations.IDENTITY):
        x, y, z, w = pose.quat
        element.set("quat", numbers([w, x, y, z]))
