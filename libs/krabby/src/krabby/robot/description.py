"""The robot as data: `robot.toml`, read once and strictly.

Every process starts from the same `RobotDescription`, so joint order, limits, gains and the camera
model cannot differ between simulator, policy and drives. `content_hash` goes into the hello
exchange and into policy bundles.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from krabby.robot.assets import robot_dir
from krabby.robot.bill import Inertial, read_bill
from krabby.robot.errors import AssetError, DescriptionError
from krabby.robot.toml_reader import Table, read_toml

__all__ = [
    "JOINTS_PER_LEG",
    "JOINT_KINDS",
    "NUM_JOINTS",
    "NUM_LEGS",
    "CameraModel",
    "Contact",
    "Geometry",
    "Latency",
    "Masses",
    "RobotDescription",
    "SafetyLimits",
]

FloatArray = NDArray[np.float64]

NUM_LEGS = 6
JOINT_KINDS = ("hip_yaw", "hip_pitch", "knee")
"""Joints of one leg, from the body outwards."""
JOINTS_PER_LEG = len(JOINT_KINDS)
NUM_JOINTS = NUM_LEGS * JOINTS_PER_LEG


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Lengths [m] and where the legs stand; rows in leg order."""

    body_size: FloatArray
    """Edge lengths of the body box along x, y, z, shape (3,)."""
    hip_pos_b: FloatArray
    """Hip-yaw axes in the base frame, shape (6, 3)."""
    leg_yaw: FloatArray
    """Direction of each leg at hip_yaw 0, about base z from base x [rad], shape (6,)."""
    hip_length: float
    """Hip-yaw axis to hip-pitch axis."""
    femur_length: float
    """Hip-pitch axis to knee axis."""
    tibia_length: float
    """Knee axis to the centre of the foot's sphere."""
    hip_radius: float
    femur_radius: float
    tibia_radius: float
    foot_radius: float


@dataclass(frozen=True, kw_only=True)
class Masses:
    """Mass of each part [kg]; all but the body occur six times."""

    body: float
    hip: float
    femur: float
    tibia: float
    foot: float

    @property
    def total(self) -> float:
        """Mass of the whole robot [kg]."""
        return self.body + NUM_LEGS * (self.hip + self.femur + self.tibia + self.foot)


@dataclass(frozen=True, kw_only=True)
class CameraModel:
    """Pinhole depth camera, its mount and its flaws. Image row 0 is the top."""

    width: int
    height: int
    hfov_rad: float
    """Horizontal field of view [rad]."""
    near_m: float
    far_m: float
    """Readings outside [near, far] along the optical axis are invalid."""
    rate_hz: float
    mount_xyz: tuple[float, float, float]
    """Optical centre in the base frame [m]."""
    mount_pitch_rad: float
    """How far the optical axis points below the base's x axis [rad]."""
    latency_s: float
    """Exposure to publication, mean."""
    latency_jitter_s: float
    """Half width of the uniform spread of the latency."""
    drop_probability: float
    """Probability that a frame never arrives."""
    noise_rel: float
    """Standard deviation of a reading as a share of its depth."""
    hole_probability: float
    """Share of pixels without a reading."""

    @property
    def fx(self) -> float:
        """Focal length [px], the same along rows and columns: pixels are square."""
        return 0.5 * self.width / math.tan(0.5 * self.hfov_rad)

    @property
    def fy(self) -> float:
        """Focal length [px]; equals `fx`."""
        return self.fx

    @property
    def cx(self) -> float:
        """Column of the optical axis [px], pixel centres at whole numbers."""
        return 0.5 * (self.width - 1)

    @property
    def cy(self) -> float:
        """Row of the optical axis [px], pixel centres at whole numbers."""
        return 0.5 * (self.height - 1)

    @property
    def vfov_rad(self) -> float:
        """Vertical field of view [rad]."""
        return 2.0 * math.atan(0.5 * self.height / self.fy)

    @property
    def K(self) -> FloatArray:  # noqa: N802 - the field's own name for it
        """Intrinsic matrix (3, 3) for pixel centres at whole numbers."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def axes_b(self) -> FloatArray:
        """Rows: optical axis, image right and image down in the base frame, shape (3, 3)."""
        s, c = math.sin(self.mount_pitch_rad), math.cos(self.mount_pitch_rad)
        return np.array([[c, 0.0, -s], [0.0, -1.0, 0.0], [-s, 0.0, -c]])


@dataclass(frozen=True, kw_only=True)
class Contact:
    """Coulomb friction coefficients against terrain."""

    foot_friction: float
    body_friction: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Delays of the robot's own electronics [s]."""

    command_s: float
    """Command at the drive electronics to torque on the joint."""


@dataclass(frozen=True, kw_only=True)
class SafetyLimits:
    """What the safety gate enforces; see `krabby.safety.gate`."""

    position_margin_rad: float
    damp_kd: float
    """[N·m·s/rad]"""
    rms_window_s: float
    fold_start: float
    """Share of the rated mean square torque at which the peak limit starts to fold to rated."""
    tilt_limit_rad: float
    hold_after_s: float
    damp_after_s: float
    state_stale_s: float
    state_stop_s: float
    arming_s: float
    max_target_step_s: float
    """Longest interval the rate limit credits a late command with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RobotDescription:
    """`robot.toml`. Arrays of 18 are in `joint_names` order, read-only, float64."""

    name: str
    leg_names: tuple[str, ...]
    """(6,) order of everything there is one of per leg, feet included."""
    joint_names: tuple[str, ...]
    """(18,) the joint order."""
    joint_lower: FloatArray
    joint_upper: FloatArray
    """Mechanical range [rad], shape (18,)."""
    default_joint_pos: FloatArray
    """Spider stance [rad], shape (18,)."""
    kp: FloatArray
    """[N·m/rad], shape (18,)."""
    kd: FloatArray
    """[N·m·s/rad], shape (18,)."""
    velocity_limit: FloatArray
    """Fastest a position target may move [rad/s], shape (18,)."""
    rated_torque: FloatArray
    """Torque each drive can hold for ever, RMS [N·m], shape (18,)."""
    peak_torque: FloatArray
    """Torque each drive can give for a short time [N·m], shape (18,)."""
    no_load_speed: FloatArray
    """Speed at which torque in the direction of motion has fallen to zero [rad/s], shape (18,)."""
    armature: FloatArray
    """Rotor inertia seen at the joint [kg·m²], shape (18,)."""
    geometry: Geometry
    masses: Masses
    """Sums of the bill."""
    inertials: Mapping[str, Inertial]
    """Mass properties by link: base, hip, femur, tibia, foot; legs are alike."""
    contact: Contact
    camera: CameraModel
    latency: Latency
    safety: SafetyLimits
    content_hash: str
    """SHA-256 of the values in the file, hex; comments and layout do not count."""

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read and check `path`, by default the `robot.toml` of the chosen robot."""
        source = robot_dir() / "robot.toml" if path is None else path
        values = read_toml(source, unreadable=AssetError, malformed=DescriptionError)
        return cls.parse(values, source=str(source))

    @classmethod
    def parse(cls, values: dict[str, Any], *, source: str = "robot.toml") -> Self:
        """Check the parsed tables; `source` is how errors name them."""
        top = Table(values, "", source)
        name = top.text("name")
        body = top.table("body")
        body_size = body.vector("size", 3, above=0.0)
        body.finish()
        leg_names, geometry = _read_legs(top.table("legs"), body_size)
        drives = top.tables("drives")
        joints = _read_joints(top.table("joints"), leg_names, drives)
        inertials = read_bill(top.table("bill"), drives)
        for drive in drives.values():
            drive.text("source")
            drive.finish()
        contact = _read_contact(top.table("contact"))
        camera = _read_camera(top.table("camera"))
        latency = _read_latency(top.table("latency"))
        safety = _read_safety(top.table("safety"))
        top.finish()
        return cls(
            name=name,
            leg_names=leg_names,
            joint_names=joints.names,
            joint_lower=joints["lower"],
            joint_upper=joints["upper"],
            default_joint_pos=joints["default"],
            kp=joints["kp"],
            kd=joints["kd"],
            velocity_limit=joints["target_rate"],
            rated_torque=joints["rated_torque"],
            peak_torque=joints["peak_torque"],
            no_load_speed=joints["no_load_speed"],
            armature=joints["armature"],
            geometry=geometry,
            masses=_masses(inertials),
            inertials=inertials,
            contact=contact,
            camera=camera,
            latency=latency,
            safety=safety,
            content_hash=_content_hash(values),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What two processes compare in their hello to know that they mean the same robot."""
        return {
            "name": self.name,
            "hash": self.content_hash,
            "joint_names": self.joint_names,
            "units": "SI",
        }

    @cached_property
    def foot_names(self) -> tuple[str, ...]:
        """(6,) names of the foot frames, in leg order."""
        return tuple(f"{leg}_foot" for leg in self.leg_names)

    def joint_index(self, name: str) -> int:
        """Position of joint `name` in every array of 18."""
        try:
            return self.joint_names.index(name)
        except ValueError:
            raise DescriptionError(
                f"{self.name} has no joint {name!r}; it has {', '.join(self.joint_names)}"
            ) from None


class _Joints(dict[str, FloatArray]):
    """Per-joint arrays of 18 by key, and the joints' names."""

    names: tuple[str, ...]


def _read_joints(table: Table, leg_names: tuple[str, ...], drives: dict[str, Table]) -> _Joints:
    names = table.texts("order", NUM_JOINTS)
    expected = tuple(f"{leg}_{kind}" for leg in leg_names for kind in JOINT_KINDS)
    for i, (found, wanted) in enumerate(zip(names, expected, strict=True)):
        if found != wanted:
            # Kinematics and the wire's views reshape (18,) to (6, 3); another order would be
            # accepted by every length check and drive the wrong joints.
            raise table.error(f"order[{i}]", f"is {found!r}; expected {wanted!r}")
    per_kind = [_read_joint_kind(table.table(kind), drives) for kind in JOINT_KINDS]
    table.finish()
    joints = _Joints()
    joints.names = names
    for key in per_kind[0]:
        joints[key] = _array([values[key] for values in per_kind] * NUM_LEGS)
    return joints


def _read_joint_kind(table: Table, drives: dict[str, Table]) -> dict[str, float]:
    lower = table.number("lower", low=-math.pi, high=math.pi)
    upper = table.number("upper", low=-math.pi, high=math.pi)
    if lower >= upper:
        raise table.error("lower", f"is {lower:g}; expected less than upper, {upper:g}")
    values = {
        "lower": lower,
        "upper": upper,
        "default": table.number("default", low=lower, high=upper),
        "kp": table.positive("kp"),
        "kd": table.number("kd", low=0.0),
        "target_rate": table.positive("target_rate"),
    }
    drive = table.text("drive")
    if drive not in drives:
        raise table.error("drive", f"is {drive!r}; there are {', '.join(drives)}")
    table.finish()
    return values | _read_drive(drives[drive])


def _read_legs(table: Table, body_size: tuple[float, ...]) -> tuple[tuple[str, ...], Geometry]:
    names = table.texts("order", NUM_LEGS)
    hips: list[tuple[float, ...]] = []
    yaws: list[float] = []
    for name in names:
        leg = table.table(name)
        hip = leg.vector("hip", 3)
        fan = leg.number("fan", low=-0.5 * math.pi, high=0.5 * math.pi)
        if hip[1] == 0.0:
            raise leg.error("hip", f"is {list(hip)}; expected y off the centre line")
        leg.finish()
        hips.append(hip)
        yaws.append(math.copysign(0.5 * math.pi - fan, hip[1]))
    geometry = Geometry(
        body_size=_array(body_size),
        hip_pos_b=_array(hips),
        leg_yaw=_array(yaws),
        hip_length=table.positive("hip_length"),
        femur_length=table.positive("femur_length"),
        tibia_length=table.positive("tibia_length"),
        hip_radius=table.positive("hip_radius"),
        femur_radius=table.positive("femur_radius"),
        tibia_radius=table.positive("tibia_radius"),
        foot_radius=table.positive("foot_radius"),
    )
    table.finish()
    return names, geometry


def _read_drive(table: Table) -> dict[str, float]:
    rated = table.positive("rated_torque")
    peak = table.positive("peak_torque")
    if rated > peak:
        raise table.error("rated_torque", f"is {rated:g}; expected at most peak_torque, {peak:g}")
    return {
        "rated_torque": rated,
        "peak_torque": peak,
        "no_load_speed": table.positive("no_load_speed"),
        "armature": table.number("armature", low=0.0),
    }


def _masses(inertials: Mapping[str, Inertial]) -> Masses:
    body, *leg = (inertial.mass for inertial in inertials.values())
    return Masses(body=body, **dict(zip(("hip", "femur", "tibia", "foot"), leg, strict=True)))


def _read_contact(table: Table) -> Contact:
    contact = Contact(
        foot_friction=table.positive("foot_friction"),
        body_friction=table.positive("body_friction"),
    )
    table.finish()
    return contact


def _read_camera(table: Table) -> CameraModel:
    x, y, z = table.vector("mount_xyz", 3)
    near = table.positive("near")
    camera = CameraModel(
        width=table.integer("width", low=1),
        height=table.integer("height", low=1),
        hfov_rad=table.number("hfov", above=0.0, high=3.0),
        near_m=near,
        far_m=table.number("far", above=near),
        rate_hz=table.positive("rate_hz"),
        mount_xyz=(x, y, z),
        mount_pitch_rad=table.number("mount_pitch", low=-0.5 * math.pi, high=0.5 * math.pi),
        latency_s=table.number("latency", low=0.0),
        latency_jitter_s=table.number("latency_jitter", low=0.0),
        drop_probability=table.number("drop_probability", low=0.0, high=1.0),
        noise_rel=table.number("noise_rel", low=0.0),
        hole_probability=table.number("hole_probability", low=0.0, high=1.0),
    )
    table.finish()
    if camera.latency_jitter_s > camera.latency_s:
        raise table.error(
            "latency_jitter",
            f"is {camera.latency_jitter_s:g}; expected at most latency, {camera.latency_s:g}: "
            "a frame cannot arrive before it was exposed",
        )
    return camera


def _read_latency(table: Table) -> Latency:
    latency = Latency(command_s=table.number("command", low=0.0))
    table.finish()
    return latency


def _read_safety(table: Table) -> SafetyLimits:
    hold_after = table.positive("hold_after")
    state_stale = table.positive("state_stale")
    safety = SafetyLimits(
        position_margin_rad=table.number("position_margin", low=0.0),
        damp_kd=table.positive("damp_kd"),
        rms_window_s=table.positive("rms_window"),
        fold_start=table.number("fold_start", above=0.0, high=0.999),
        tilt_limit_rad=table.number("tilt_limit", above=0.0, high=math.pi),
        hold_after_s=hold_after,
        damp_after_s=table.number("damp_after", above=hold_after),
        state_stale_s=state_stale,
        state_stop_s=table.number("state_stop", above=state_stale),
        arming_s=table.positive("arming"),
        max_target_step_s=table.positive("max_target_step"),
    )
    table.finish()
    return safety


def _array(values: object) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


def _content_hash(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
