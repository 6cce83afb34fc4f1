"""A course as USD: boxes with colours, colliders and friction, and its waypoints. Metres, Z up.

Layout: `/COURSE` is the default prim; `/COURSE/boxes` holds the ground, `/COURSE/waypoints` a frame
per waypoint, `/COURSE/spawn` one where a robot starts, x forward. Needs the extra `usd`.
"""

# pxr is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Protocol

from krabby.robot.errors import CourseError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from krabby.course.boxes import Box

__all__ = ["USD_SUFFIXES", "convert_usd", "write_usd"]

USD_SUFFIXES: Final = (".usd", ".usda", ".usdc")
"""Binary, text and binary; a .usd may be either, and is binary here."""


class _Course(Protocol):
    """What is written of a `krabby.course.courses.Course`."""

    @property
    def name(self) -> str: ...
    @property
    def difficulty(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def boxes(self) -> tuple[Box, ...]: ...
    @property
    def waypoints(self) -> NDArray[np.float64]: ...
    @property
    def spawn(self) -> tuple[float, float, float]: ...
    def height_at(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]: ...


def write_usd(
    course: _Course,
    path: Path,
    *,
    colours: dict[str, tuple[float, float, float]],
    friction: float,
) -> None:
    """Write `course`.

    Args:
        course: What to write.
        path: File with one of `USD_SUFFIXES`.
        colours: sRGB of the boxes by kind, 0 to 1.
        friction: Coulomb friction of the ground.

    Raises:
        CourseError: usd-core is missing, or the file cannot be written.
    """
    try:
        from pxr import Gf, Sdf, Tf, Usd, UsdGeom, UsdPhysics, UsdShade
    except ImportError as error:
        raise _missing(path) from error
    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    UsdPhysics.SetStageKilogramsPerUnit(stage, 1.0)
    root = Sdf.Path.absoluteRootPath.AppendChild(Tf.MakeValidIdentifier(course.name))
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, root).GetPrim())
    material = UsdShade.Material.Define(stage, root.AppendChild("friction"))
    physics = UsdPhysics.MaterialAPI.Apply(material.GetPrim())
    physics.CreateStaticFrictionAttr(friction)
    physics.CreateDynamicFrictionAttr(friction)
    physics.CreateRestitutionAttr(0.0)

    def place(prim: Any, at: Sequence[float], quat: Sequence[float] = (0.0, 0.0, 0.0, 1.0)) -> None:
        x, y, z, w = (float(value) for value in quat)
        prim.AddTranslateOp().Set(Gf.Vec3d(*(float(value) for value in at)))
        prim.AddOrientOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Quatd(w, x, y, z))

    def write_box(index: int, box: Box) -> None:
        cube = UsdGeom.Cube.Define(stage, boxes.AppendChild(f"{box.kind}_{index:03d}"))
        cube.CreateSizeAttr(1.0)
        cube.CreateExtentAttr([Gf.Vec3f(-0.5), Gf.Vec3f(0.5)])
        cube.CreateDisplayColorAttr([Gf.Vec3f(*map(_linear, colours[box.kind]))])
        place(cube, box.center, box.quat)
        edges = (2.0 * float(half) for half in box.half_extents)
        cube.AddScaleOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Vec3d(*edges))
        UsdPhysics.CollisionAPI.Apply(cube.GetPrim())
        UsdShade.MaterialBindingAPI.Apply(cube.GetPrim()).Bind(material, materialPurpose="physics")

    boxes, points = root.AppendChild("boxes"), root.AppendChild("waypoints")
    UsdGeom.Xform.Define(stage, boxes)
    for index, box in enumerate(course.boxes):
        write_box(index, box)
    UsdGeom.Xform.Define(stage, points)
    for index, point in enumerate(course.waypoints):
        place(UsdGeom.Xform.Define(stage, points.AppendChild(f"waypoint_{index}")), point)
    x, y, yaw = course.spawn
    spawn = UsdGeom.Xform.Define(stage, root.AppendChild("spawn"))
    height = float(course.height_at(x, y))
    place(spawn, (x, y, height), (0.0, 0.0, math.sin(yaw / 2), math.cos(yaw / 2)))
    layer = stage.GetRootLayer()
    layer.documentation = (
        f"Course {course.name}, difficulty {course.difficulty:g}, seed {course.seed}"
    )
    _export(layer, path)


def convert_usd(source: Path, path: Path) -> None:
    """Write a USD file, such as the robot's, in the format of the suffix of `path`.

    Raises:
        CourseError: usd-core is missing, the source is no USD, or `path` cannot be written.
    """
    try:
        from pxr import Sdf
    except ImportError as error:
        raise _missing(path) from error
    layer = Sdf.Layer.FindOrOpen(str(source))
    if layer is None:
        raise CourseError(f"{source} is no USD file; run `make assets`")
    _export(layer, path)


def _export(layer: Any, path: Path) -> None:
    from pxr import Tf

    try:
        written = layer.Export(str(path))
    except Tf.ErrorException:
        written = False
    if not written:
        raise CourseError(f"cannot write {path}; choose a writable place")


def _missing(path: Path) -> CourseError:
    return CourseError(
        f"writing {path.suffix} needs usd-core; install it with: pip install krabby[usd]"
    )


def _linear(value: float) -> float:
    """USD's colours are linear: from sRGB, both 0 to 1."""
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
