"""USD: the robot for Isaac Lab and other USD tools, translated from the URDF tree and `robot.toml`.

Layout: `/NAME` is the default prim and the articulation root; its links are siblings below it,
each a rigid body; joints are in `/NAME/joints`. Metres, kilograms, Z up.

Two habits of USD that bite: angles are degrees, so drive stiffness and damping are per degree (the
SI gain times pi/180) and limits and targets are degrees; and a joint turns about a positive axis of
its own frame, so joints about -y carry a half turn about x in both local frames.
"""

# pxr is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

import math

import numpy as np
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from numpy.typing import NDArray
from pxr import Gf, Sdf, Usd, UsdGeom, UsdPhysics, UsdShade, Vt

from krabby_assets.urdf import Box, Cylinder, Joint, Link, Pose, Shape, Sphere, Tree

__all__ = ["to_usda"]

_IDENTITY_POSE = Pose(pos=np.zeros(3), quat=rotations.IDENTITY)

_HALF_TURN_X = np.array([1.0, 0.0, 0.0, 0.0])
"""xyzw; takes +y to -y."""

_HORIZONTAL_APERTURE_MM = 20.955
"""USD's customary film width; only its ratio to the focal length means anything."""


def to_usda(tree: Tree, description: RobotDescription) -> str:
    """USDA text of the robot alone, links standing in the default pose."""
    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    UsdPhysics.SetStageKilogramsPerUnit(stage, 1.0)
    writer = _Writer(stage, tree, description)
    writer.write()
    comment = (
        f"Generated from {tree.name}.urdf and robot.toml: edit crab_hex.urdf.xacro or robot.toml "
        "and run `make assets`."
    )
    layer = stage.GetRootLayer()
    layer.documentation = comment
    return layer.ExportToString()


class _Writer:
    """Authors one robot on one stage."""

    def __init__(self, stage: Usd.Stage, tree: Tree, description: RobotDescription) -> None:
        self._stage = stage
        self._tree = tree
        self._description = description
        self._root = Sdf.Path(f"/{tree.name}")
        self._joint_pos = dict(
            zip(description.joint_names, description.default_joint_pos.tolist(), strict=True)
        )
        self._materials: dict[str, UsdShade.Material] = {}
        self._friction: dict[str, UsdShade.Material] = {}

    def write(self) -> None:
        root = UsdGeom.Xform.Define(self._stage, self._root)
        self._stage.SetDefaultPrim(root.GetPrim())
        UsdPhysics.ArticulationRootAPI.Apply(root.GetPrim())
        UsdGeom.Scope.Define(self._stage, self._root.AppendChild("looks"))
        self._write_materials()
        self._write_link(self._tree.root, _IDENTITY_POSE)
        self._filter_pairs()
        UsdGeom.Scope.Define(self._stage, self._root.AppendChild("joints"))
        for link in self._tree.links:
            if link.joint is not None and link.inertial is not None:
                self._write_joint(link, link.joint)

    def _write_materials(self) -> None:
        looks = self._root.AppendChild("looks")
        for name, rgba in self._tree.materials.items():
            material = UsdShade.Material.Define(self._stage, looks.AppendChild(name))
            shader = UsdShade.Shader.Define(self._stage, material.GetPath().AppendChild("surface"))
            shader.CreateIdAttr("UsdPreviewSurface")
            shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).Set(Gf.Vec3f(*rgba[:3]))
            shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(0.5)
            output = shader.CreateOutput("surface", Sdf.ValueTypeNames.Token)
            material.CreateSurfaceOutput().ConnectToSource(output)
            self._materials[name] = material
        contact = self._description.contact
        for name, value in (("foot", contact.foot_friction), ("body", contact.body_friction)):
            path = looks.AppendChild(f"{name}_friction")
            material = UsdShade.Material.Define(self._stage, path)
            physics = UsdPhysics.MaterialAPI.Apply(material.GetPrim())
            physics.CreateStaticFrictionAttr(value)
            physics.CreateDynamicFrictionAttr(value)
            physics.CreateRestitutionAttr(0.0)
            self._friction[name] = material

    def _write_link(self, link: Link, pose_r: Pose) -> None:
        """Write `link`, which stands at `pose_r` in the root's frame, and all that hang on it."""
        path = self._root.AppendChild(link.name)
        prim = UsdGeom.Xform.Define(self._stage, path)
        _set_pose(prim, pose_r)
        if link.inertial is not None:
            UsdPhysics.RigidBodyAPI.Apply(prim.GetPrim())
            mass = UsdPhysics.MassAPI.Apply(prim.GetPrim())
            mass.CreateMassAttr(link.inertial.mass)
            mass.CreateCenterOfMassAttr(_vec3f(link.inertial.pose.pos))
            mass.CreateDiagonalInertiaAttr(_vec3f(link.inertial.moments))
            mass.CreatePrincipalAxesAttr(_quatf(link.inertial.pose.quat))
        self._write_shapes(link, path)
        for child in self._tree.children(link.name):
            assert child.joint is not None
            if child.inertial is None:
                self._write_frame(child, child.joint, path)
            else:
                self._write_link(child, _compose(pose_r, self._child_pose(child.joint)))

    def _filter_pairs(self) -> None:
        """Exempt what overlaps where the legs begin from colliding, as in the MJCF."""
        base = self._stage.GetPrimAtPath(self._root.AppendChild(self._tree.root.name))
        pairs = UsdPhysics.FilteredPairsAPI.Apply(base).CreateFilteredPairsRel()
        for leg in self._description.leg_names:
            pairs.AddTarget(self._root.AppendChild(f"{leg}_femur"))

    def _child_pose(self, joint: Joint) -> Pose:
        """Pose of the joint's child in its parent, in the default pose."""
        if joint.axis is None:
            return joint.pose
        half = 0.5 * self._joint_pos[joint.name]
        turn = np.append(joint.axis * math.sin(half), math.cos(half))
        return Pose(pos=joint.pose.pos, quat=rotations.mul(joint.pose.quat, turn))

    def _write_frame(self, link: Link, joint: Joint, parent: Sdf.Path) -> None:
        """A link without mass: a frame and its looks on the parent, and a camera if it is one."""
        path = parent.AppendChild(link.name)
        _set_pose(UsdGeom.Xform.Define(self._stage, path), joint.pose)
        self._write_shapes(link, path)
        if link.name == "camera":
            self._write_camera(path.AppendChild("depth"))

    def _write_camera(self, path: Sdf.Path) -> None:
        model = self._description.camera
        camera = UsdGeom.Camera.Define(self._stage, path)
        # USD cameras look along -z with y up; the camera link looks along x with z up.
        matrix = np.array([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        _set_pose(camera, Pose(pos=np.zeros(3), quat=rotations.from_matrix(matrix)))
        camera.CreateHorizontalApertureAttr(_HORIZONTAL_APERTURE_MM)
        camera.CreateVerticalApertureAttr(_HORIZONTAL_APERTURE_MM * model.height / model.width)
        camera.CreateFocalLengthAttr(0.5 * _HORIZONTAL_APERTURE_MM / math.tan(0.5 * model.hfov_rad))
        camera.CreateClippingRangeAttr(Gf.Vec2f(model.near_m, model.far_m))

    def _write_shapes(self, link: Link, path: Sdf.Path) -> None:
        for i, shape in enumerate(link.collisions):
            geom = self._define(shape, path.AppendChild(f"collision_{i}"), capsules=True)
            UsdPhysics.CollisionAPI.Apply(geom.GetPrim())
            geom.CreatePurposeAttr(UsdGeom.Tokens.guide)
            part = "foot" if link.name in self._description.foot_names else "body"
            UsdShade.MaterialBindingAPI.Apply(geom.GetPrim()).Bind(
                self._friction[part], materialPurpose="physics"
            )
        for i, shape in enumerate(link.visuals):
            geom = self._define(shape, path.AppendChild(f"visual_{i}"))
            if shape.material is not None:
                rgb = Gf.Vec3f(*self._tree.materials[shape.material][:3])
                geom.CreateDisplayColorAttr(Vt.Vec3fArray([rgb]))
                UsdShade.MaterialBindingAPI.Apply(geom.GetPrim()).Bind(
                    self._materials[shape.material]
                )

    def _define(self, shape: Shape, path: Sdf.Path, *, capsules: bool = False) -> UsdGeom.Gprim:
        geom: UsdGeom.Gprim
        scale: NDArray[np.float64] | None = None
        match shape.geometry:
            case Box(size=size):
                geom = UsdGeom.Cube.Define(self._stage, path)
                geom.CreateSizeAttr(1.0)
                geom.CreateExtentAttr(_extent(0.5, 0.5, 0.5))
                scale = np.array(size)
            case Cylinder(radius=radius, length=length) if capsules:
                geom = UsdGeom.Capsule.Define(self._stage, path)
                # The same extent with rounded ends, as in the MJCF.
                geom.CreateHeightAttr(length - 2.0 * radius)
                geom.CreateRadiusAttr(radius)
                geom.CreateAxisAttr(UsdGeom.Tokens.z)
                geom.CreateExtentAttr(_extent(radius, radius, 0.5 * length))
            case Cylinder(radius=radius, length=length):
                geom = UsdGeom.Cylinder.Define(self._stage, path)
                geom.CreateHeightAttr(length)
                geom.CreateRadiusAttr(radius)
                geom.CreateAxisAttr(UsdGeom.Tokens.z)
                geom.CreateExtentAttr(_extent(radius, radius, 0.5 * length))
            case Sphere(radius=radius):
                geom = UsdGeom.Sphere.Define(self._stage, path)
                geom.CreateRadiusAttr(radius)
                geom.CreateExtentAttr(_extent(radius, radius, radius))
        _set_pose(geom, shape.pose, scale)
        return geom

    def _write_joint(self, link: Link, joint: Joint) -> None:
        path = self._root.AppendChild("joints").AppendChild(joint.name)
        parent = self._root.AppendChild(joint.parent)
        child = self._root.AppendChild(link.name)
        if joint.axis is None:
            prim: UsdPhysics.Joint = UsdPhysics.FixedJoint.Define(self._stage, path)
            axis_turn = rotations.IDENTITY
        else:
            prim = UsdPhysics.RevoluteJoint.Define(self._stage, path)
            axis, axis_turn = _usd_axis(joint)
            self._write_drive(UsdPhysics.RevoluteJoint(prim), joint, axis)
        prim.CreateBody0Rel().SetTargets([parent])
        prim.CreateBody1Rel().SetTargets([child])
        prim.CreateLocalPos0Attr(_vec3f(joint.pose.pos))
        prim.CreateLocalRot0Attr(_quatf(rotations.mul(joint.pose.quat, axis_turn)))
        prim.CreateLocalPos1Attr(Gf.Vec3f(0.0))
        prim.CreateLocalRot1Attr(_quatf(axis_turn))

    def _write_drive(self, revolute: UsdPhysics.RevoluteJoint, joint: Joint, axis: str) -> None:
        description = self._description
        i = description.joint_index(joint.name)
        default_deg = math.degrees(self._joint_pos[joint.name])
        revolute.CreateAxisAttr(axis)
        revolute.CreateLowerLimitAttr(math.degrees(joint.lower))
        revolute.CreateUpperLimitAttr(math.degrees(joint.upper))
        drive = UsdPhysics.DriveAPI.Apply(revolute.GetPrim(), "angular")
        drive.CreateTypeAttr("force")
        drive.CreateStiffnessAttr(math.radians(description.kp[i]))
        drive.CreateDampingAttr(math.radians(description.kd[i]))
        drive.CreateMaxForceAttr(joint.effort)
        drive.CreateTargetPositionAttr(default_deg)
        # What USD has no schema for: written as PhysX and Newton read it.
        for name, value in (
            ("newton:armature", description.armature[i]),
            ("newton:velocityLimit", math.degrees(joint.velocity)),
            ("physxJoint:armature", description.armature[i]),
            ("physxJoint:maxJointVelocity", math.degrees(joint.velocity)),
            ("state:angular:physics:position", default_deg),
        ):
            attribute = revolute.GetPrim().CreateAttribute(name, Sdf.ValueTypeNames.Float)
            attribute.Set(value)


def _usd_axis(joint: Joint) -> tuple[str, NDArray[np.float64]]:
    """USD's axis token and the turn (xyzw) of the joint's frames that makes it point as ours."""
    assert joint.axis is not None
    index = int(np.argmax(np.abs(joint.axis)))
    if joint.axis[index] > 0.0:
        return "XYZ"[index], rotations.IDENTITY
    # Half a turn about another axis flips this one: about x for y and z, about y for x.
    return "XYZ"[index], _HALF_TURN_X if index else np.array([0.0, 1.0, 0.0, 0.0])


def _compose(outer: Pose, inner: Pose) -> Pose:
    return Pose(
        pos=outer.pos + rotations.rotate(outer.quat, inner.pos),
        quat=rotations.mul(outer.quat, inner.quat),
    )


def _set_pose(
    prim: UsdGeom.Xformable, pose: Pose, scale: NDArray[np.float64] | None = None
) -> None:
    prim.AddTranslateOp().Set(Gf.Vec3d(*_clean(pose.pos)))
    x, y, z, w = _clean(pose.quat)
    prim.AddOrientOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Quatd(w, x, y, z))
    if scale is not None:
        prim.AddScaleOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Vec3d(*_clean(scale)))


def _clean(values: NDArray[np.float64]) -> list[float]:
    """Twelve digits: the last bits of sines differ between libraries, and files must not."""
    return [float(f"{value + 0.0:.12g}") for value in np.round(values, 15)]


def _vec3f(values: NDArray[np.float64]) -> Gf.Vec3f:
    return Gf.Vec3f(*_clean(values))


def _quatf(quat: NDArray[np.float64]) -> Gf.Quatf:
    x, y, z, w = _clean(quat)
    return Gf.Quatf(w, x, y, z)


def _extent(x: float, y: float, z: float) -> Vt.Vec3fArray:
    return Vt.Vec3fArray([Gf.Vec3f(-x, -y, -z), Gf.Vec3f(x, y, z)])
