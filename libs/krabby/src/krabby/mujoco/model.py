"""The robot in MuJoCo: model, addresses in joint order, and the quaternion border.

MuJoCo writes quaternions `(w, x, y, z)`; everything else here is `(x, y, z, w)`. The two functions
below are the only place that knows.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from krabby.robot.assets import robot_file
from krabby.robot.description import NUM_JOINTS, RobotDescription
from krabby.robot.errors import AssetError, ModelError

__all__ = [
    "COLLISION_GROUP",
    "TERRAIN_GROUP",
    "VISUAL_GROUP",
    "ModelIndex",
    "PosedRobot",
    "Terrain",
    "build_model",
    "from_mujoco_quat",
    "set_robot_state",
    "to_mujoco_quat",
]

TERRAIN_GROUP = 0
"""Geom group of what the robot walks on."""
COLLISION_GROUP = 1
"""Geom group of the robot's collision shapes."""
VISUAL_GROUP = 2
"""Geom group of what is only there to be looked at."""

# np.roll takes ten times as long for four numbers.
_TO_WXYZ, _TO_XYZW = [3, 0, 1, 2], [1, 2, 3, 0]
_GROUND_RGBA = (0.62, 0.60, 0.56, 1.0)


class Terrain(Protocol):
    """What can be built into a model, such as `krabby.course.courses.Course`."""

    def add_to_mjspec(self, spec: mujoco.MjSpec) -> object:
        """Add the terrain's geoms to the world body, in `TERRAIN_GROUP`."""
        ...


def build_model(
    description: RobotDescription,
    course: Terrain | None = None,
    *,
    timestep_s: float = 0.0025,
    visuals: bool = True,
    mjcf: Path | None = None,
) -> mujoco.MjModel:
    """Compile the robot on `course`, or on an endless plane at height 0.

    Integrator, contact cone and solver are those of the generated MJCF. `visuals=False` leaves out
    what is only there to be looked at: a step then costs a third less. Refuses a file that was
    generated from another robot description.
    """
    path = robot_file("xml") if mjcf is None else mjcf
    try:
        spec = mujoco.MjSpec.from_string(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AssetError(f"cannot read {path}: {error.strerror}; run `make assets`") from error
    except ValueError as error:
        problem = " ".join(str(error).split())
        raise AssetError(f"{path} is not MJCF: {problem}; run `make assets`") from error
    spec.option.timestep = timestep_s
    spec.compiler.discardvisual = not visuals
    if course is None:
        spec.worldbody.add_geom(
            name="ground",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[0.0, 0.0, 1.0],
            group=TERRAIN_GROUP,
            rgba=_GROUND_RGBA,
        )
    else:
        course.add_to_mjspec(spec)
    model = spec.compile()
    _check_robot(model, description, path)
    return model


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelIndex:
    """Where the robot's values are in MuJoCo's arrays; integer arrays in the robot's own order."""

    base_body: int
    base_qpos: int
    """First of 7 in `qpos`: position, then quaternion (w, x, y, z)."""
    base_dof: int
    """First of 6 in `qvel`: linear velocity in the world frame, then angular in the base frame."""
    joint_qpos: NDArray[np.intp]
    """(18,) into `qpos`."""
    joint_dof: NDArray[np.intp]
    """(18,) into `qvel`, `qfrc_*`."""
    actuator: NDArray[np.intp]
    """(18,) into `ctrl`, `actuator_force`, `actuator_forcerange`."""
    foot_geom: NDArray[np.intp]
    """(6,) collision geoms."""
    foot_site: NDArray[np.intp]
    """(6,) sites at the centres of the feet."""
    foot_touch: NDArray[np.intp]
    """(6,) into `sensordata`: normal force on the foot [N]."""
    accelerometer: slice
    """Of `sensordata`: specific force in the base frame [m/s²], +9.81 on z at rest."""
    gyro: slice
    """Of `sensordata`: angular velocity in the base frame [rad/s]."""

    @classmethod
    def of(cls, model: mujoco.MjModel, description: RobotDescription) -> Self:
        """Look the addresses up by name."""
        joints = [model.joint(name) for name in description.joint_names]
        base = model.joint("base_free")
        return cls(
            base_body=model.body("base").id,
            base_qpos=int(base.qposadr[0]),
            base_dof=int(base.dofadr[0]),
            joint_qpos=np.array([joint.qposadr[0] for joint in joints], dtype=np.intp),
            joint_dof=np.array([joint.dofadr[0] for joint in joints], dtype=np.intp),
            actuator=_ids(model.actuator, description.joint_names),
            foot_geom=_ids(model.geom, [f"{foot}_collision" for foot in description.foot_names]),
            foot_site=_ids(model.site, description.foot_names),
            foot_touch=np.array(
                [model.sensor(f"{foot}_touch").adr[0] for foot in description.foot_names],
                dtype=np.intp,
            ),
            accelerometer=_sensor_slice(model, "imu_accelerometer"),
            gyro=_sensor_slice(model, "imu_gyro"),
        )


def to_mujoco_quat(quat: ArrayLike) -> NDArray[np.float64]:
    """Reorder xyzw (..., 4) to MuJoCo's wxyz."""
    return np.asarray(quat, dtype=np.float64)[..., _TO_WXYZ]


def from_mujoco_quat(quat: ArrayLike) -> NDArray[np.float64]:
    """Reorder MuJoCo's wxyz (..., 4) to xyzw."""
    return np.asarray(quat, dtype=np.float64)[..., _TO_XYZW]


def set_robot_state(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    index: ModelIndex,
    *,
    base_pos_w: ArrayLike,
    base_quat_w: ArrayLike,
    joint_pos: ArrayLike,
) -> None:
    """Reset `data` and put the robot there at rest, drives commanded to hold `joint_pos`."""
    mujoco.mj_resetData(model, data)
    data.qpos[index.base_qpos : index.base_qpos + 3] = base_pos_w
    data.qpos[index.base_qpos + 3 : index.base_qpos + 7] = to_mujoco_quat(base_quat_w)
    data.qpos[index.joint_qpos] = joint_pos
    data.ctrl[index.actuator] = joint_pos
    mujoco.mj_forward(model, data)


class PosedRobot:
    """A robot on a course that is put into poses, to be drawn: with what is only looked at.

    Args:
        desc: The robot.
        course: What it stands on.
    """

    def __init__(self, desc: RobotDescription, course: Terrain) -> None:
        self.model = build_model(desc, course)
        self.data = mujoco.MjData(self.model)
        self.index = ModelIndex.of(self.model, desc)

    def put(self, base_pos_w: ArrayLike, base_quat_w: ArrayLike, joint_pos: ArrayLike) -> None:
        """Base at (3,) [m], base to world (x, y, z, w), joints (18,) [rad]."""
        set_robot_state(
            self.model, self.data, self.index,
            base_pos_w=base_pos_w, base_quat_w=base_quat_w, joint_pos=joint_pos,
        )  # fmt: skip


def _check_robot(model: mujoco.MjModel, description: RobotDescription, path: Path) -> None:
    """Refuse a model of another robot, naming the first difference."""

    def differ(what: str, theirs: object, ours: object) -> ModelError:
        return ModelError(
            f"{path}: {what} is {theirs}, robot.toml says {ours}; run `make assets`, or load the "
            "robot.toml this file was generated from"
        )

    hinges = [
        model.joint(i).name
        for i in range(model.njnt)
        if model.jnt_type[i] == mujoco.mjtJoint.mjJNT_HINGE
    ]
    if len(hinges) != NUM_JOINTS:
        raise differ("number of joints", len(hinges), NUM_JOINTS)
    for i, (theirs, ours) in enumerate(zip(hinges, description.joint_names, strict=True)):
        if theirs != ours:
            raise differ(f"joint {i}", theirs, ours)
    index = ModelIndex.of(model, description)
    ids = model.dof_jntid[index.joint_dof]
    checks = (
        ("lower limit", model.jnt_range[ids, 0], description.joint_lower),
        ("upper limit", model.jnt_range[ids, 1], description.joint_upper),
        ("kp", model.actuator_gainprm[index.actuator, 0], description.kp),
        ("kd", -model.actuator_biasprm[index.actuator, 2], description.kd),
        ("armature", model.dof_armature[index.joint_dof], description.armature),
        ("peak torque", model.actuator_forcerange[index.actuator, 1], description.peak_torque),
    )
    for what, theirs, ours in checks:
        expected = np.broadcast_to(ours, theirs.shape)
        wrong = np.flatnonzero(~np.isclose(theirs, expected, rtol=1e-9, atol=1e-9))
        if wrong.size:
            i = wrong[0]
            raise differ(f"{what} of {description.joint_names[i]}", theirs[i], expected[i])
    mass = float(model.body_subtreemass[index.base_body])
    if not np.isclose(mass, description.masses.total, rtol=1e-9):
        raise differ("total mass", f"{mass:g} kg", f"{description.masses.total:g} kg")


def _ids(accessor: Callable[[str], Any], names: Iterable[str]) -> NDArray[np.intp]:
    return np.array([accessor(name).id for name in names], dtype=np.intp)


def _sensor_slice(model: mujoco.MjModel, name: str) -> slice:
    sensor = model.sensor(name)
    return slice(int(sensor.adr[0]), int(sensor.adr[0] + sensor.dim[0]))
