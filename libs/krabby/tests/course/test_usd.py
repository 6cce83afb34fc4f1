import math

import numpy as np
import pytest
from krabby.course.courses import COURSES, make_course
from krabby.robot.errors import CourseError
from pxr import Usd, UsdGeom, UsdPhysics, UsdShade, UsdValidation


def problems(path):
    """What usd-core's own validators find."""
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 20
    found = UsdValidation.ValidationContext(validators).Validate(Usd.Stage.Open(str(path)))
    return [f"{error.GetName()}: {error.GetMessage()}" for error in found]


@pytest.mark.parametrize("name", COURSES)
def test_every_course_passes_the_validators(name, tmp_path):
    path = tmp_path / "course.usdc"
    make_course(name).export(path)
    assert problems(path) == []


@pytest.mark.parametrize("suffix", [".usd", ".usda", ".usdc"])
def test_boxes_waypoints_and_friction_are_those_of_the_course(suffix, tmp_path):
    course, path = make_course("ramps", 0.7, 3), tmp_path / f"ramps{suffix}"
    course.export(path)
    assert problems(path) == []
    assert path.read_bytes().startswith(b"#usda" if suffix == ".usda" else b"PXR-USDC")
    stage = Usd.Stage.Open(str(path))
    assert stage.GetDefaultPrim().GetPath() == "/ramps"
    assert UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    cubes = [prim for prim in stage.Traverse() if prim.IsA(UsdGeom.Cube)]
    assert len(cubes) == len(course.boxes)
    cache = UsdGeom.XformCache()
    unit = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    for cube, box in zip(cubes, course.boxes, strict=True):
        # Gf works with row vectors.
        matrix = np.array(cache.GetLocalToWorldTransform(cube))
        corners = np.column_stack([unit, np.ones(8)]) @ matrix
        expected = box.corners
        np.testing.assert_allclose(corners[:, :3].min(axis=0), expected.min(axis=0), atol=1e-6)
        np.testing.assert_allclose(corners[:, :3].max(axis=0), expected.max(axis=0), atol=1e-6)
        assert cube.HasAPI(UsdPhysics.CollisionAPI)
        material, _ = UsdShade.MaterialBindingAPI(cube).ComputeBoundMaterial("physics")
        assert UsdPhysics.MaterialAPI(material.GetPrim()).GetDynamicFrictionAttr().Get() == 1.0
    for index, point in enumerate(course.waypoints):
        prim = stage.GetPrimAtPath(f"/ramps/waypoints/waypoint_{index}")
        place = cache.GetLocalToWorldTransform(prim)
        np.testing.assert_allclose(place.ExtractTranslation(), point, atol=1e-6)
    x, y, yaw = course.spawn
    place = cache.GetLocalToWorldTransform(stage.GetPrimAtPath("/ramps/spawn"))
    np.testing.assert_allclose(place.ExtractTranslation(), [x, y, 0.0], atol=1e-9)
    ahead = place.TransformDir((1, 0, 0))
    np.testing.assert_allclose(ahead, [math.cos(yaw), math.sin(yaw), 0.0], atol=1e-9)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="cannot write"):
        make_course("flat").export(tmp_path / "file" / "flat.usda")
