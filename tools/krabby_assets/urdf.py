"""URDF: expanded from the xacro source, and parsed into the tree that the others are written from.

The URDF is the one description of shape. MJCF and USD are translations of this tree, so a link
moved in the xacro moves in all three.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xacro
from krabby.robot import rotations
from krabby.robot.description import JOINT_KINDS, RobotDescription
from krabby.robot.errors import AssetError
from numpy.typing import NDArray

__all__ = [
    "Box",
    "Cylinder",
    "Inertial",
    "Joint",
    "Link",
    "Pose",
    "Shape",
    "Sphere",
    "Tree",
    "expand",
    "numbers",
    "parse",
]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """Where a frame stands in its parent."""

    pos: FloatArray
    """[m], shape (3,)."""
    quat: FloatArray
    """xyzw, this frame to the parent."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """Edge lengths [m]."""

    size: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Cylinder:
    """Along the shape's z axis, centred [m]."""

    radius: float
    length: float


@dataclass(frozen=True, kw_only=True)
class Sphere:
    """Centred [m]."""

    radius: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """A visual or a collision shape of a link."""

    pose: Pose
    geometry: Box | Cylinder | Sphere
    material: str | None
    """Name among the tree's materials; None on collision shapes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inertial:
    """Mass [kg], pose of the principal axes in the centre of mass, moments [kg·m²]."""

    mass: float
    pose: Pose
    moments: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Joint:
    """How a link hangs on its parent."""

    name: str
    parent: str
    pose: Pose
    """Of the child's frame in the parent's at joint position 0."""
    axis: FloatArray | None
    """Unit vector in the child's frame, shape (3,); None when fixed."""
    lower: float = 0.0
    upper: float = 0.0
    effort: float = 0.0
    velocity: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """One link with the joint that carries it (None for the root)."""

    name: str
    inertial: Inertial | None
    visuals: tuple[Shape, ...]
    collisions: tuple[Shape, ...]
    joint: Joint | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Tree:
    """The parsed URDF; parents come before children."""

    name: str
    materials: dict[str, tuple[float, float, float, float]]
    """RGBA by name."""
    links: tuple[Link, ...]

    def children(self, parent: str) -> tuple[Link, ...]:
        """Links that hang on `parent`, in file order."""
        return tuple(
            link for link in self.links if link.joint is not None and link.joint.parent == parent
        )

    @property
    def root(self) -> Link:
        """The link without a parent."""
        return next(link for link in self.links if link.joint is None)


def expand(description: RobotDescription, source: Path) -> str:
    """Expand the xacro file `source` with the numbers of `description`; returns URDF text."""
    try:
        document = xacro.process_file(str(source), mappings=_arguments(description))
    except xacro.XacroException as error:
        raise AssetError(f"cannot expand {source}: {error}; mend the xacro file") from error
    root = ET.fromstring(document.toxml())  # pyright: ignore[reportAttributeAccessIssue]
    _tidy(root)
    ET.indent(root, space="  ")
    return (
        '<?xml version="1.0"?>\n'
        f"<!-- Generated from {source.name} and robot.toml: edit those and run `make assets`. -->\n"
        f"{ET.tostring(root, encoding='unicode')}\n"
    )


def parse(text: str) -> Tree:
    """Parse URDF text; reads what our own source uses and refuses the rest."""
    root = ET.fromstring(text)
    joints = {
        _required(element, "child").get("link"): element for element in root.iterfind("joint")
    }
    materials = {
        element.attrib["name"]: _rgba(_required(element, "color"))
        for element in root.iterfind("material")
    }
    links = tuple(_link(element, joints.get(element.get("name"))) for element in root.iter("link"))
    return Tree(name=root.attrib["name"], materials=materials, links=links)


def _arguments(description: RobotDescription) -> dict[str, str]:
    """The xacro arguments: every number the source file leaves open, at full precision."""
    geometry, camera = description.geometry, description.camera
    values: dict[str, float] = {
        **dict(zip(("body_x", "body_y", "body_z"), geometry.body_size, strict=True)),
        "hip_length": geometry.hip_length,
        "femur_length": geometry.femur_length,
        "tibia_length": geometry.tibia_length,
        "hip_radius": geometry.hip_radius,
        "femur_radius": geometry.femur_radius,
        "tibia_radius": geometry.tibia_radius,
        "foot_radius": geometry.foot_radius,
        **dict(zip(("camera_x", "camera_y", "camera_z"), camera.mount_xyz, strict=True)),
        "camera_pitch": camera.mount_pitch_rad,
    }
    for i, kind in enumerate(JOINT_KINDS):
        values[f"{kind}_lower"] = description.joint_lower[i]
        values[f"{kind}_upper"] = description.joint_upper[i]
        values[f"{kind}_peak_torque"] = description.peak_torque[i]
        values[f"{kind}_no_load_speed"] = description.no_load_speed[i]
    for link, inertial in description.inertials.items():
        values |= {f"{link}_mass": inertial.mass, f"{link}_tilt": inertial.tilt}
        values |= {f"{link}_com_{axis}": inertial.com[i] for i, axis in enumerate("xyz")}
        values |= {f"{link}_i{axis}{axis}": inertial.moments[i] for i, axis in enumerate("xyz")}
    for i, leg in enumerate(description.leg_names):
        hip = zip("xyz", geometry.hip_pos_b[i], strict=True)
        values |= {f"{leg}_hip_{axis}": value for axis, value in hip}
        values[f"{leg}_yaw"] = geometry.leg_yaw[i]
    return {"name": description.name} | {key: repr(float(v)) for key, v in values.items()}


_NUMBERS = frozenset(
    {"xyz", "rpy", "size", "radius", "length", "value", "lower", "upper", "effort", "velocity"}
    | {"ixx", "ixy", "ixz", "iyy", "iyz", "izz"}
)
"""Attributes that hold numbers."""


def _tidy(root: ET.Element) -> None:
    """Twelve significant digits, no origin that says nothing: a file fit to be read and diffed."""
    for element in root.iter():
        for key in _NUMBERS & element.attrib.keys():
            element.set(key, numbers(float(word) for word in element.attrib[key].split()))
    for element in root.iter():
        for origin in element.findall("origin"):
            for key in ("xyz", "rpy"):
                if origin.get(key) == "0 0 0":
                    del origin.attrib[key]
            if not origin.attrib:
                element.remove(origin)


def numbers(values: Iterable[float]) -> str:
    """Numbers as all generated files write them: twelve significant digits, no minus zero."""
    return " ".join(f"{value + 0.0:.12g}" for value in values)


def _link(element: ET.Element, joint: ET.Element | None) -> Link:
    inertial = element.find("inertial")
    return Link(
        name=element.attrib["name"],
        inertial=None if inertial is None else _inertial(inertial),
        visuals=tuple(_shape(shape) for shape in element.iterfind("visual")),
        collisions=tuple(_shape(shape) for shape in element.iterfind("collision")),
        joint=None if joint is None else _joint(joint),
    )


def _inertial(element: ET.Element) -> Inertial:
    inertia = _required(element, "inertia")
    mass = float(_required(element, "mass").attrib["value"])
    if any(float(inertia.attrib[key]) for key in ("ixy", "ixz", "iyz")):
        raise AssetError(
            f"inertia of mass {mass:g} has products; write principal moments and turn the origin"
        )
    moments = np.array([float(inertia.attrib[key]) for key in ("ixx", "iyy", "izz")])
    return Inertial(mass=mass, pose=_pose(element), moments=moments)


def _joint(element: ET.Element) -> Joint:
    name, kind = element.attrib["name"], element.attrib["type"]
    parent = _required(element, "parent").attrib["link"]
    if kind == "fixed":
        return Joint(name=name, parent=parent, pose=_pose(element), axis=None)
    if kind != "revolute":
        raise AssetError(f"joint {name} is {kind!r}; this robot has revolute and fixed joints")
    limit = {key: float(value) for key, value in _required(element, "limit").attrib.items()}
    return Joint(
        name=name,
        parent=parent,
        pose=_pose(element),
        axis=_vector(_required(element, "axis").attrib["xyz"]),
        **limit,
    )


def _shape(element: ET.Element) -> Shape:
    shape = next(iter(_required(element, "geometry")))
    geometry: Box | Cylinder | Sphere
    match shape.tag:
        case "box":
            x, y, z = _vector(shape.attrib["size"]).tolist()
            geometry = Box(size=(x, y, z))
        case "cylinder":
            geometry = Cylinder(
                radius=float(shape.attrib["radius"]), length=float(shape.attrib["length"])
            )
        case "sphere":
            geometry = Sphere(radius=float(shape.attrib["radius"]))
        case other:
            raise AssetError(f"shape {other!r} has no translation; use box, cylinder or sphere")
    material = element.find("material")
    return Shape(
        pose=_pose(element),
        geometry=geometry,
        material=None if material is None else material.attrib["name"],
    )


def _pose(element: ET.Element) -> Pose:
    origin = element.find("origin")
    attributes = {} if origin is None else origin.attrib
    rpy = _vector(attributes.get("rpy", "0 0 0"))
    # The identity exactly, so that it can be recognised and left out of the files.
    quat = rotations.from_euler(*rpy) if rpy.any() else rotations.IDENTITY
    return Pose(pos=_vector(attributes.get("xyz", "0 0 0")), quat=quat)


def _required(element: ET.Element, tag: str) -> ET.Element:
    child = element.find(tag)
    if child is None:
        raise AssetError(f"<{element.tag}> {element.attrib} has no <{tag}>; add it")
    return child


def _vector(text: str) -> FloatArray:
    return np.array([float(word) for word in text.split()])


def _rgba(element: ET.Element) -> tuple[float, float, float, float]:
    red, green, blue, alpha = _vector(element.attrib["rgba"]).tolist()
    return red, green, blue, alpha
