"""`manifest.json`: its schema, and every way in which a bundle may not fit the robot.

The keys are described for people in `assets/policies/README.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from krabby.config import Config, Positive, Text
from krabby.course.timing import CONTROL_HZ
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.policy.observation import ObservationLayout, ObservationTerm
from krabby.robot.description import CameraModel, RobotDescription
from krabby.robot.errors import BundleError, BundleMismatch, ObservationError

__all__ = [
    "ENCODER_FILE",
    "FORMAT",
    "LATENT_SIZE",
    "MANIFEST_FILE",
    "POLICY_FILE",
    "SAMPLE_FILES",
    "STATISTICS_FILE",
    "Features",
    "Kind",
    "Manifest",
    "StateEntry",
    "check_fit",
    "layout_of",
    "parse_manifest",
    "robot_manifest",
]

FORMAT: Final = 1
"""Manifest format this code reads and writes."""
MANIFEST_FILE: Final = "manifest.json"
POLICY_FILE: Final = "policy.onnx"
ENCODER_FILE: Final = "depth_encoder.onnx"
SAMPLE_FILES: Final = {
    POLICY_FILE: "policy.samples.npz",
    ENCODER_FILE: "depth_encoder.samples.npz",
}
"""Recorded inputs of a network, on which backends are compared, by the network's file."""
STATISTICS_FILE: Final = "observation_statistics.json"
"""What the policy observed where it was evaluated: `krabby.policy.statistics`."""
LATENT_SIZE: Final = 32
"""Numbers in a depth encoder's latent."""

Kind = Literal["gait", "policy"]
Features = Literal["none", "image", "latent"]
_MOST_NUMBERS: Final = 1_000_000
"""In an observation with its history, or in one state tensor."""
Count = Annotated[int, msgspec.Meta(ge=1, le=_MOST_NUMBERS)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

_FEATURE_SIZES: Final[dict[Features, int]] = {
    "none": 0,
    "image": IMAGE_SHAPE[0] * IMAGE_SHAPE[1],
    "latent": LATENT_SIZE,
}

FEATURES_AGE_S: Final = 0.15
"""Oldest features of a bundle that declares nothing [s]: the age limit of their stream."""
_TOLERANCE: Final = 1e-6
"""Numbers of manifest and robot may differ by a rounding to float32, and by no more."""

_REEXPORT: Final = "re-export the policy or load the matching robot.toml"


class StateEntry(Config, frozen=True, kw_only=True):
    input: Text
    output: Text
    shape: tuple[Count, ...]
    initial: tuple[float, ...] | None = None


class ActionEntry(Config, frozen=True, kw_only=True):
    scale: float | tuple[float, ...]
    offset: tuple[float, ...]
    clip: Positive


class GainsEntry(Config, frozen=True, kw_only=True):
    kp: tuple[float, ...]
    kd: tuple[float, ...]


class CameraEntry(Config, frozen=True, kw_only=True):
    width: Count
    height: Count
    hfov_rad: Positive
    near_m: Positive
    far_m: Positive
    mount_xyz: tuple[float, float, float]
    mount_pitch_rad: float


Range = tuple[float, float]
FeaturesAge = Annotated[float, msgspec.Meta(ge=0.001, le=10)]


class CommandEntry(Config, frozen=True, kw_only=True):
    vx: Range
    vy: Range
    yaw_rate: Range


class EncoderEntry(Config, frozen=True, kw_only=True):
    rate_hz: Positive
    proprio: tuple[ObservationTerm, ...] = ()
    state: tuple[StateEntry, ...] = ()


class Manifest(Config, frozen=True, kw_only=True):
    format: int
    name: Text
    kind: Kind
    robot: Text
    geometry: str = ""
    mass_kg: float | None = None
    joint_names: tuple[Text, ...]
    default_joint_pos: tuple[float, ...]
    gains: GainsEntry
    control_rate_hz: Positive
    observation: tuple[ObservationTerm, ...]
    action: ActionEntry
    needs_features: Features
    command: CommandEntry | None = None
    stands: bool = True
    reverses: bool | None = None
    side_steps: bool | None = None
    turns_in_place: bool | None = None
    features_age_s: FeaturesAge = FEATURES_AGE_S
    memory_s: FeaturesAge | None = None
    camera: CameraEntry | None = None
    state: tuple[StateEntry, ...] = ()
    encoder: EncoderEntry | None = None
    files: dict[Text, Digest]
    provenance: dict[str, Any] = msgspec.field(default_factory=dict)
    evaluation: dict[str, Any] = msgspec.field(default_factory=dict)


def robot_manifest(
    desc: RobotDescription, *, control_rate_hz: float = CONTROL_HZ
) -> dict[str, Any]:
    """The manifest keys that tell one robot from another; exporters start from these."""
    return {
        "robot": desc.name,
        "geometry": desc.geometry_hash,
        "mass_kg": round(desc.masses.total, 6),
        "joint_names": list(desc.joint_names),
        "default_joint_pos": desc.default_joint_pos.tolist(),
        "gains": {"kp": desc.kp.tolist(), "kd": desc.kd.tolist()},
        "control_rate_hz": control_rate_hz,
        "camera": _camera_manifest(desc.camera),
    }


def _camera_manifest(camera: CameraModel) -> dict[str, Any]:
    facts = {name: getattr(camera, name) for name in CameraEntry.__struct_fields__}
    return facts | {"mount_xyz": list(camera.mount_xyz)}


def parse_manifest(text: bytes, source: str) -> Manifest:
    """Decodes `text`; `source` is what errors call it."""
    try:
        version = msgspec.json.decode(text, type=_Versioned).format
        if version != FORMAT:
            raise BundleMismatch(
                f"{source} has format {version}, this code reads {FORMAT}; export the policy again "
                "or update this software"
            )
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{source}: {error}; see assets/policies/README.md") from error
    except ObservationError as error:
        raise BundleError(f"{source}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{source} is not JSON: {error}; export the policy again") from error
    except RecursionError as error:
        raise BundleError(f"{source} is nested too deeply; export the policy again") from error


class _Versioned(msgspec.Struct):
    """What every format has: read first, so that a newer one is called newer, not malformed."""

    format: int


def check_fit(
    manifest: Manifest, desc: RobotDescription, control_rate_hz: float, source: str
) -> None:
    """Refuses a manifest made for another robot or loop, naming the first difference."""
    for theirs, ours, remedy in _differences(manifest, desc, control_rate_hz):
        raise BundleMismatch(f"{source}: the policy has {theirs}, {ours}; {remedy}")
    for problem in _contradictions(manifest, desc):
        raise BundleError(f"{source}: {problem}")


def layout_of(terms: tuple[ObservationTerm, ...], source: str) -> ObservationLayout:
    """The layout that manifest entries describe."""
    try:
        return ObservationLayout(terms)
    except ObservationError as error:
        raise BundleError(f"{source}: {error}") from error


def _differences(
    manifest: Manifest, desc: RobotDescription, control_rate_hz: float
) -> Iterator[tuple[str, str, str]]:
    if manifest.robot != desc.name and manifest.geometry != desc.geometry_hash:
        yield f"robot {manifest.robot!r}", f"this one is {desc.name!r}", _REEXPORT
    if len(manifest.joint_names) != len(desc.joint_names):
        counts = len(manifest.joint_names), len(desc.joint_names)
        yield f"{counts[0]} joints", f"the robot {counts[1]}", _REEXPORT
    for i, (theirs, ours) in enumerate(zip(manifest.joint_names, desc.joint_names, strict=True)):
        if theirs != ours:
            yield f"joint {i} = {theirs!r}", f"the robot {ours!r}", _REEXPORT
    for name, theirs, ours in (
        ("default_joint_pos", manifest.default_joint_pos, desc.default_joint_pos),
        ("gains.kp", manifest.gains.kp, desc.kp),
        ("gains.kd", manifest.gains.kd, desc.kd),
    ):
        if len(theirs) != len(ours):
            yield f"{len(theirs)} numbers in {name}", f"the robot {len(ours)}", _REEXPORT
        for joint, a, b in zip(desc.joint_names, theirs, ours, strict=True):
            if abs(a - b) > _TOLERANCE:
                yield f"{name} = {a!r} for {joint}", f"the robot {float(b)!r}", _REEXPORT
    if manifest.control_rate_hz != control_rate_hz:
        yield (
            f"control_rate_hz = {manifest.control_rate_hz:g}",
            f"the loop runs at {control_rate_hz:g}",
            "re-export the policy or change the loop's rate",
        )
    # A blind policy does not depend on the camera; its manifest may hold an older one.
    if manifest.needs_features != "none" and manifest.camera is not None:
        camera = msgspec.to_builtins(manifest.camera)
        for key, ours in _camera_manifest(desc.camera).items():
            theirs = np.array(camera[key])
            if np.abs(theirs - ours).max() > _TOLERANCE:
                yield f"camera.{key} = {theirs.tolist()}", f"the robot {ours}", _REEXPORT


def _contradictions(manifest: Manifest, desc: RobotDescription) -> Iterator[str]:
    features = sum(term.size for term in manifest.observation if term.name == "features")
    wanted = _FEATURE_SIZES[manifest.needs_features]
    if features != wanted:
        yield (
            f"needs_features is {manifest.needs_features!r}, so the observation term 'features' "
            f"must have size {wanted}, not {features}; correct one of them"
        )
    if manifest.needs_features != "none" and manifest.camera is None:
        yield "needs_features without a camera; say which camera the policy was trained with"
    yield from _command_contradictions(manifest)
    proprio = () if manifest.encoder is None else manifest.encoder.proprio
    for key, terms in (("observation", manifest.observation), ("encoder.proprio", proprio)):
        size = sum(term.size * term.history for term in terms)
        if size > _MOST_NUMBERS:
            yield f"{key} has {size} numbers; at most {_MOST_NUMBERS} are taken"
    joints = len(desc.joint_names)
    scale, offset = manifest.action.scale, manifest.action.offset
    if isinstance(scale, tuple) and len(scale) != joints:
        yield f"action.scale has {len(scale)} numbers; give one, or {joints}"
    if len(offset) != joints:
        yield f"action.offset has {len(offset)} numbers; give {joints}"
    limits = zip(desc.joint_names, offset, desc.joint_lower, desc.joint_upper, strict=True)
    for joint, value, lower, upper in limits:
        if not lower <= value <= upper:
            yield (
                f"action.offset = {value} for {joint} is outside its range {lower:g} to {upper:g}; "
                "an untrained policy would stand there"
            )
    yield from _state_contradictions("state", manifest.state)
    if manifest.encoder is not None:
        yield from _state_contradictions("encoder.state", manifest.encoder.state)
        if any(term.name == "features" for term in manifest.encoder.proprio):
            yield "encoder.proprio holds 'features', which the encoder itself gives; drop it"
        if any(term.name == "height_scan" for term in manifest.encoder.proprio):
            yield "encoder.proprio holds 'height_scan', which no robot knows; drop it"
    yield from _file_contradictions(manifest)


def _command_contradictions(manifest: Manifest) -> Iterator[str]:
    if manifest.command is not None:
        for axis, (low, high) in msgspec.structs.asdict(manifest.command).items():
            if not low <= 0.0 <= high:
                yield f"command.{axis} is [{low:g}, {high:g}]; give [low, high] around 0"
    memory_s = manifest.memory_s
    if memory_s is None:
        return
    if manifest.needs_features == "none":
        yield "memory_s without needs_features; a policy that does not see remembers no picture"
    if memory_s < manifest.features_age_s:
        yield (
            f"memory_s is {memory_s:g}, less than features_age_s = {manifest.features_age_s:g}; "
            "memory begins where features are too old"
        )


def _state_contradictions(key: str, entries: tuple[StateEntry, ...]) -> Iterator[str]:
    for i, entry in enumerate(entries):
        size = math.prod(entry.shape)
        if size > _MOST_NUMBERS:
            yield f"{key}[{i}] has {size} numbers; at most {_MOST_NUMBERS} are taken"
        if entry.initial is not None and len(entry.initial) != size:
            yield (
                f"{key}[{i}].initial has {len(entry.initial)} numbers, its shape "
                f"{list(entry.shape)} needs {size}; correct one of them"
            )


def _file_contradictions(manifest: Manifest) -> Iterator[str]:
    for name in manifest.files:
        if PurePath(name).name != name or name == MANIFEST_FILE:
            yield f"files names {name!r}; expected names of files beside the manifest"
    needed = [POLICY_FILE]
    if manifest.needs_features == "latent" or manifest.encoder is not None:
        needed.append(ENCODER_FILE)
    for name in needed:
        if name not in manifest.files:
            yield f"files does not name {name}, which this kind of policy needs; export it too"
    if ENCODER_FILE in manifest.files and manifest.encoder is None:
        yield f"{ENCODER_FILE} comes without the key 'encoder'; say what it expects"
