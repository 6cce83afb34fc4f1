"""The robot as data: `robot.toml`, read once and strictly.

Every process starts from the same `RobotDescription`, so joint order, limits, gains and the camera
model cannot differ between simulator, policy and drives. `content_hash` goes into the hello
exchange and into policy bundles.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from msgspec import Meta, field
from numpy.typing import NDArray

from krabby.config import Config, Count, NonNegative, Positive, Share, Text, check, parse, read_toml
from krabby.robot.assets import robot_dir
from krabby.robot.bill import Bill, Drive, Inertial, Vector, inertials
from krabby.robot.errors import AssetError, DescriptionError

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

    width: Count
    height: Count
    hfov_rad: Annotated[float, Meta(gt=0, le=3)]
    """Horizontal field of view [rad]."""
    near_m: Positive
    far_m: Positive
    """Readings outside [near, far] along the optical axis are invalid."""
    rate_hz: Positive
    mount_xyz: Vector
    """Optical centre in the base frame [m]."""
    mount_pitch_rad: Annotated[float, Meta(ge=-0.5 * math.pi, le=0.5 * math.pi)]
    """How far the optical axis points below the base's x axis [rad]."""
    latency_s: NonNegative
    """Exposure to publication, mean."""
    latency_jitter_s: NonNegative
    """Half width of the uniform spread of the latency."""
    drop_probability: Share
    """Probability that a frame never arrives."""
    noise_rel: NonNegative
    """Standard deviation of a reading as a share of its depth."""
    hole_probability: Share
    """Share of pixels without a reading."""

    def __post_init__(self) -> None:
        check(
            self.far_m > self.near_m, "far_m", self.far_m, f"a number above near_m, {self.near_m:g}"
        )
        check(
            self.latency_jitter_s <= self.latency_s,
            "latency_jitter_s",
            self.latency_jitter_s,
            f"at most latency_s, {self.latency_s:g}: a frame cannot arrive before it was exposed",
        )

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

    foot_friction: Positive
    body_friction: Positive


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Delays of the robot's own electronics [s]."""

    command_s: NonNegative
    """Command at the drive electronics to torque on the joint."""


@dataclass(frozen=True, kw_only=True)
class SafetyLimits:
    """What the safety gate enforces; see `krabby.safety.gate`."""

    position_margin_rad: NonNegative
    damp_kd: Positive
    """[N·m·s/rad]"""
    rms_window_s: Positive
    fold_start: Annotated[float, Meta(gt=0, le=0.999)]
    """Share of the rated mean square torque at which the peak limit starts to fold to rated."""
    tilt_limit_rad: Annotated[float, Meta(gt=0, le=math.pi)]
    hold_after_s: Positive
    damp_after_s: Positive
    state_stale_s: Positive
    state_stop_s: Positive
    arming_s: Positive
    max_target_step_s: Positive
    """Longest interval the rate limit credits a late command with."""

    def __post_init__(self) -> None:
        for later, earlier in (("damp_after_s", "hold_after_s"), ("state_stop_s", "state_stale_s")):
            value, limit = getattr(self, later), getattr(self, earlier)
            check(value > limit, later, value, f"a number above {earlier}, {limit:g}")


class _Body(Config, frozen=True, kw_only=True):
    size: tuple[Positive, Positive, Positive]


class _Hip(Config, frozen=True, kw_only=True):
    at: Vector
    fan: Annotated[float, Meta(ge=-0.5 * math.pi, le=0.5 * math.pi)]

    def __post_init__(self) -> None:
        check(self.at[1] != 0.0, "at", self.at, "y off the centre line")

    @property
    def yaw(self) -> float:
        """Direction of the leg about base z from base x [rad]."""
        return math.copysign(0.5 * math.pi - self.fan, self.at[1])


class _Legs(Config, frozen=True, kw_only=True):
    hip_length: Positive
    femur_length: Positive
    tibia_length: Positive
    hip_radius: Positive
    femur_radius: Positive
    tibia_radius: Positive
    foot_radius: Positive
    hips: dict[str, _Hip]

    def __post_init__(self) -> None:
        check(len(self.hips) == NUM_LEGS, "hips", list(self.hips), f"{NUM_LEGS} legs")


_Angle = Annotated[float, Meta(ge=-math.pi, le=math.pi)]


class _Joint(Config, frozen=True, kw_only=True):
    """One kind of joint, in all legs."""

    lower: _Angle
    upper: _Angle
    default: float
    kp: Positive
    kd: NonNegative
    target_rate: Positive
    drive: Text

    def __post_init__(self) -> None:
        check(self.lower < self.upper, "lower", self.lower, f"less than upper, {self.upper:g}")
        inside = self.lower <= self.default <= self.upper
        check(inside, "default", self.default, f"a number from {self.lower:g} to {self.upper:g}")


class _Joints(Config, frozen=True, kw_only=True):
    order: tuple[Text, ...]
    hip_yaw: _Joint
    hip_pitch: _Joint
    knee: _Joint

    @property
    def kinds(self) -> tuple[_Joint, ...]:
        """In the order of `JOINT_KINDS`."""
        return self.hip_yaw, self.hip_pitch, self.knee


class _File(Config, frozen=True, kw_only=True):
    """`robot.toml`."""

    name: Text
    body: _Body
    legs: _Legs
    joints: _Joints
    drives: dict[str, Drive]
    bill: Bill
    contact: Contact
    camera: CameraModel
    latency: Latency
    safety: SafetyLimits
    gait: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [f"{leg}_{kind}" for leg in self.legs.hips for kind in JOINT_KINDS]
        order = self.joints.order
        check(
            len(order) == len(names), "joints.order", f"{len(order)} of them", f"{len(names)} names"
        )
        # Kinematics and the wire's views reshape (18,) to (6, 3); another order would be accepted
        # by every length check and drive the wrong joints.
        for i, (found, wanted) in enumerate(zip(order, names, strict=True)):
            check(found == wanted, f"joints.order[{i}]", found, repr(wanted))
        for kind, joint in zip(JOINT_KINDS, self.joints.kinds, strict=True):
            known = ", ".join(self.drives)
            check(
                joint.drive in self.drives, f"joints.{kind}.drive", joint.drive, f"one of {known}"
            )


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
    gait: Mapping[str, float]
    """What of `krabby.policy.gait.GaitCfg` differs from its defaults on this robot."""
    content_hash: str
    """SHA-256 of the values in the file, hex; comments and layout do not count."""

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read and check `path`, by default the `robot.toml` of the chosen robot."""
        source = robot_dir() / "robot.toml" if path is None else path
        values, lines = _read(source)
        return cls.parse(values, source=str(source), lines=lines)

    @classmethod
    def parse(
        cls,
        values: dict[str, Any],
        *,
        source: str = "robot.toml",
        lines: Mapping[str, int] | None = None,
    ) -> Self:
        """Check the parsed tables; `source` is how errors name them."""
        file = parse(_File, values, source=source, lines=lines, error=DescriptionError)
        try:
            links = inertials(file.bill, file.drives)
        except ValueError as error:
            raise DescriptionError(f"{source}: {error}") from error
        kinds = file.joints.kinds
        drives = [file.drives[kind.drive] for kind in kinds]

        def per_joint(tables: Sequence[object], key: str) -> FloatArray:
            return _array([getattr(table, key) for table in tables] * NUM_LEGS)

        body, hip, femur, tibia, foot = (link.mass for link in links.values())
        return cls(
            name=file.name,
            leg_names=tuple(file.legs.hips),
            joint_names=file.joints.order,
            joint_lower=per_joint(kinds, "lower"),
            joint_upper=per_joint(kinds, "upper"),
            default_joint_pos=per_joint(kinds, "default"),
            kp=per_joint(kinds, "kp"),
            kd=per_joint(kinds, "kd"),
            velocity_limit=per_joint(kinds, "target_rate"),
            rated_torque=per_joint(drives, "rated_torque"),
            peak_torque=per_joint(drives, "peak_torque"),
            no_load_speed=per_joint(drives, "no_load_speed"),
            armature=per_joint(drives, "armature"),
            geometry=_geometry(file.legs, file.body),
            masses=Masses(body=body, hip=hip, femur=femur, tibia=tibia, foot=foot),
            inertials=links,
            contact=file.contact,
            camera=file.camera,
            latency=file.latency,
            safety=file.safety,
            gait=file.gait,
            content_hash=_hash(values),
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
    def geometry_hash(self) -> str:
        """SHA-256 of joints, ranges and lengths, hex: a policy fits robots that share it."""
        g = self.geometry
        lengths = [g.hip_length, g.femur_length, g.tibia_length]
        arrays = (self.joint_lower, self.joint_upper, g.hip_pos_b, g.leg_yaw)
        return _hash([self.joint_names, lengths, *(array.tolist() for array in arrays)])

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


_WHOLE = {"bill", "drives", "gait"}


def _read(path: Path, above: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, int]]:
    """The tables of a file and the lines of its keys; what it lacks is of the robot it is `like`.

    Tables are merged key by key; `bill`, `drives` and `gait` are given whole. `above` are robots
    that are like this one.
    """
    values, lines = read_toml(path, error=DescriptionError, unreadable=AssetError)
    like = values.pop("like", None)
    if like is None:
        return values, lines
    chain = (*above, path.parent.name)
    if not isinstance(like, str) or Path(like).name != (like or ".") or like in ("..", *chain):
        raise DescriptionError(
            f"{path}: like is {like!r}; expected the folder of another robot, which is not like "
            f"{' or '.join(chain)} in turn"
        )
    return _merged(_read(path.parent.parent / like / path.name, chain)[0], values), lines


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = base | own
    for key in base.keys() & own.keys() - _WHOLE:
        if isinstance(base[key], dict) and isinstance(own[key], dict):
            merged[key] = _merged(base[key], own[key])
    return merged


def _geometry(legs: _Legs, body: _Body) -> Geometry:
    lengths = {key: getattr(legs, key) for key in legs.__struct_fields__ if key != "hips"}
    return Geometry(
        body_size=_array(body.size),
        hip_pos_b=_array([hip.at for hip in legs.hips.values()]),
        leg_yaw=_array([hip.yaw for hip in legs.hips.values()]),
        **lengths,
    )


def _array(values: object) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


def _hash(values: object) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
