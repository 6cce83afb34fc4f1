"""A bundle of an exported policy: joints by name, terms by meaning, all else refused by name."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from krabby.course.timing import CONTROL_HZ
from krabby.policy.bundle import POLICY_FILE, OnnxPolicy, PolicyBundle, write_bundle
from krabby.policy.foreign.formats import ForeignPolicy, ForeignTerm, find_sidecar, read_policy
from krabby.policy.foreign.network import InputMap, open_network, rewired
from krabby.policy.observation import (
    TERMS,
    ObservationBuilder,
    ObservationInputs,
    ObservationLayout,
    ObservationTerm,
)
from krabby.robot.description import RobotDescription
from krabby.robot.errors import BundleError, BundleMismatch

__all__ = ["Imported", "import_policy"]

_MEANS: Final = {
    "base_ang_vel": "base_ang_vel",
    "projected_gravity": "projected_gravity",
    "generated_commands": "nav_command",
    "velocity_commands": "nav_command",
    "command": "nav_command",
    "joint_pos": "joint_pos_rel",
    "joint_pos_rel": "joint_pos_rel",
    "joint_vel": "joint_vel",
    "joint_vel_rel": "joint_vel",
    "last_action": "last_action",
    "actions": "last_action",
}
"""Our terms by the names that the training codes use."""
_PER_JOINT: Final = ("joint_pos_rel", "joint_vel", "last_action")
_REASONS: Final = {
    "base_lin_vel": "no sensor of the robot measures it; train without it",
    "height_scan": "a robot does not know the ground; train a student that sees by the camera",
    "gait_phase": "the runtime has no such clock; put it into the network as a state",
    "motion_anchor_pos_b": "the runtime plays no reference motions",
    "motion_anchor_ori_b": "the runtime plays no reference motions",
}
_NO_CLIP: Final = 100.0
"""Bundles clip actions; the training codes do not."""
_REHEARSED: Final = 100


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A bundle that was written, and what is worth knowing about it."""

    bundle: PolicyBundle
    policy: ForeignPolicy
    terms: tuple[tuple[str, str], ...]
    """Their name and ours of every observation term."""
    notes: tuple[str, ...]
    furthest_rad: float
    """Largest distance of a target from the default pose in a rehearsal of 1 s at rest."""


def import_policy(
    onnx_file: Path,
    path: Path,
    desc: RobotDescription,
    *,
    sidecar: Path | None = None,
    rate_hz: float | None = None,
    history: int = 1,
    stands: bool = False,
) -> Imported:
    """Write a bundle of an exported policy, after running it.

    Args:
        onnx_file: The network.
        path: The bundle's folder; its name is the policy's.
        desc: The robot.
        sidecar: Its description; None: metadata of the network, or a file near it.
        rate_hz: Control rate where the files do not say it.
        history: Frames of every term where the files do not say it.
        stands: Whether it holds the stance on a zero command.

    Raises:
        BundleMismatch: It was trained for another robot; names the first difference.
        BundleError: A file is malformed, or asks for what a bundle cannot express; names it.
    """
    network = open_network(onnx_file)
    metadata = network.metadata
    described = sidecar or (None if "observation_names" in metadata else find_sidecar(onnx_file))
    policy = read_policy(
        metadata, described, joint_order=desc.joint_names, rate_hz=rate_hz, history=history
    )
    rate = policy.rate_hz
    if rate is None:
        raise BundleError(
            f"{onnx_file}: {policy.format} does not write the control rate; give it with --rate"
        )
    rate = float(round(rate, 6))
    _check_joints(policy, desc)
    notes = [*_check_gains(policy, desc)]
    terms, inputs = _observation(policy, desc)
    if len(inputs.index) != network.obs[1]:
        sizes = ", ".join(f"{term.name} x {term.history}" for term in policy.terms)
        raise BundleError(
            f"{onnx_file} takes {network.obs[1]} numbers, its terms ({sizes}) have "
            f"{len(inputs.index)}; give the description of the same run, or --history"
        )
    if network.actions[1] != len(desc.joint_names):
        raise BundleMismatch(
            f"{onnx_file} gives {network.actions[1]} actions, the robot has "
            f"{len(desc.joint_names)} joints"
        )
    order = np.array([policy.action_joints.index(name) for name in desc.joint_names], np.int64)
    manifest = {
        "name": path.name,
        "control_rate_hz": rate,
        "observation": ObservationLayout(terms).to_manifest(),
        "action": _action(policy, desc, order),
        "state": [
            {"input": name, "output": out, "shape": list(shape)}
            for name, out, shape in network.state
        ],
        "stands": stands,
        "provenance": _provenance(onnx_file, described, policy),
    }
    if policy.command is not None:
        manifest["command"] = {axis: list(ends) for axis, ends in policy.command.items()}
    if rate != CONTROL_HZ:
        notes.append(f"made for {rate:g} Hz; start the game loop with rate_hz={rate:g}")
    files = {POLICY_FILE: rewired(network, inputs, order)}
    furthest = _rehearse(manifest, files, desc)
    return Imported(
        bundle=write_bundle(path, manifest, files, desc),
        policy=policy,
        terms=tuple(
            (theirs.name, ours.name) for theirs, ours in zip(policy.terms, terms, strict=True)
        ),
        notes=tuple(notes),
        furthest_rad=furthest,
    )


def _check_joints(policy: ForeignPolicy, desc: RobotDescription) -> None:
    for what, names in (("joints", policy.joint_names), ("actions", policy.action_joints)):
        strange = [name for name in names if name not in desc.joint_names]
        missing = [name for name in desc.joint_names if name not in names]
        if strange or missing:
            raise BundleMismatch(
                f"{what} of the policy: "
                + (f"the robot has no {', '.join(strange[:3])}" if strange else "")
                + ("; " if strange and missing else "")
                + (f"it leaves out {', '.join(missing[:3])}" if missing else "")
                + f" ({len(strange)} and {len(missing)} in all); train it for {desc.name!r}"
            )
        if len(set(names)) != len(names):
            raise BundleError(f"{what} of the policy name a joint twice; export it again")


def _check_gains(policy: ForeignPolicy, desc: RobotDescription) -> Iterator[str]:
    for name, theirs, ours in (("kp", policy.kp, desc.kp), ("kd", policy.kd, desc.kd)):
        if theirs is None:
            yield f"{name} is not in the files: not compared with the robot's"
            continue
        for joint, gain in zip(policy.joint_names, theirs, strict=True):
            own = float(ours[desc.joint_index(joint)])
            if abs(gain - own) > policy.rounding * max(1.0, abs(own)):
                raise BundleMismatch(
                    f"the policy was trained with {name} = {gain:g} for {joint}, the robot has "
                    f"{own:g}; train it with the robot's gains"
                )


def _observation(
    policy: ForeignPolicy, desc: RobotDescription
) -> tuple[tuple[ObservationTerm, ...], InputMap]:
    """Our terms, and how their observation follows from ours."""
    terms: list[ObservationTerm] = []
    parts: list[tuple[list[int], list[float], list[float], list[float]]] = []
    begin = 0
    for theirs in policy.terms:
        name = _meaning(theirs, policy)
        size = TERMS[name].size
        assert size is not None, "no foreign term has a size that the manifest decides"
        order = _order(theirs, name, size, policy, desc)
        scale = _scales(theirs, len(order))
        own = np.ones(size)
        own[order] = scale
        even = len(set(own.tolist())) == 1
        terms.append(
            ObservationTerm(
                name=name,
                size=size,
                scale=float(own[0]) if even else tuple(own.tolist()),
                history=theirs.history,
            )
        )
        bias = scale * _shift(theirs, name, order, policy, desc)
        low, high = _clip(theirs)
        for frame in range(theirs.history):
            first = begin + frame * size
            parts.append(
                (
                    [first + index for index in order],
                    bias.tolist(),
                    (low * scale).tolist(),
                    (high * scale).tolist(),
                )
            )
        begin += size * theirs.history
    index, bias, low, high = (
        [number for part in column for number in part] for column in zip(*parts, strict=True)
    )
    return tuple(terms), InputMap(
        size=begin,
        index=np.array(index, np.int64),
        bias=np.array(bias),
        low=np.array(low),
        high=np.array(high),
    )


def _meaning(term: ForeignTerm, policy: ForeignPolicy) -> str:
    name = _MEANS.get(term.name)
    if name is None:
        reason = _REASONS.get(term.name, f"known are {', '.join(_MEANS)}")
        raise BundleError(f"observation term {term.name!r} cannot be expressed: {reason}")
    return name


def _order(
    term: ForeignTerm, name: str, size: int, policy: ForeignPolicy, desc: RobotDescription
) -> list[int]:
    """Which of our term's numbers each of theirs is."""
    if name not in _PER_JOINT:
        return list(range(size))
    joints = policy.action_joints if name == "last_action" else policy.joint_names
    joints = joints if term.joint_names is None else term.joint_names
    strange = [joint for joint in joints if joint not in desc.joint_names]
    if strange:
        raise BundleMismatch(f"observation term {term.name!r}: the robot has no {strange[0]}")
    return [desc.joint_index(joint) for joint in joints]


def _scales(term: ForeignTerm, size: int) -> NDArray[np.float64]:
    scale = np.asarray(term.scale, np.float64)
    if scale.shape not in ((), (size,)) or not np.isfinite(scale).all():
        raise BundleError(
            f"observation term {term.name!r} has scale {term.scale}; expected a number, or {size}"
        )
    return np.broadcast_to(scale, (size,))


def _shift(
    term: ForeignTerm, name: str, order: list[int], policy: ForeignPolicy, desc: RobotDescription
) -> NDArray[np.float64]:
    """What their joint angles have on top of ours, before the scale [rad]."""
    if name != "joint_pos_rel":
        return np.zeros(len(order))
    own = desc.default_joint_pos[order]
    if term.name == "joint_pos" and policy.format != "mjlab":
        return own  # angles, not differences
    default = dict(zip(policy.joint_names, policy.default_joint_pos, strict=True))
    offsets = term.offsets or [default[desc.joint_names[index]] for index in order]
    return _beyond_rounding(own - np.asarray(offsets), own, policy)


def _clip(term: ForeignTerm) -> tuple[float, float]:
    if term.clip is None:
        return -np.inf, np.inf
    if not isinstance(term.clip, list | tuple) or len(term.clip) != 2:
        raise BundleError(f"observation term {term.name!r} has clip {term.clip}; expected two ends")
    low, high = (float(end) for end in term.clip)
    if np.min(np.asarray(term.scale)) < 0.0:
        raise BundleError(
            f"observation term {term.name!r} has a clip and a negative scale; drop one of them"
        )
    return low, high


def _beyond_rounding(
    difference: NDArray[np.float64], value: NDArray[np.float64], policy: ForeignPolicy
) -> NDArray[np.float64]:
    """The difference, 0 where the files' rounding explains it."""
    explained = np.abs(difference) <= policy.rounding * np.maximum(1.0, np.abs(value))
    return np.where(explained, 0.0, difference)


def _action(
    policy: ForeignPolicy, desc: RobotDescription, order: NDArray[np.int64]
) -> dict[str, Any]:
    """Scale, offset and clip in our order."""
    joints = len(desc.joint_names)
    scale = policy.action_scale
    scales = len(scale) if isinstance(scale, tuple) else joints
    if (scales, len(policy.action_offset)) != (joints, joints):
        raise BundleError(f"scale or offset of the actions has not {joints} numbers")
    offset = np.asarray(policy.action_offset)[order]
    own = desc.default_joint_pos
    offset = own + _beyond_rounding(offset - own, own, policy)
    _check_action_clip(policy.action_clip, policy, desc)
    per_joint = np.broadcast_to(np.asarray(scale, np.float64), (joints,))[order]
    return {
        "scale": float(scale) if isinstance(scale, float) else per_joint.tolist(),
        "offset": offset.tolist(),
        "clip": _NO_CLIP,
    }


def _check_action_clip(clip: Any, policy: ForeignPolicy, desc: RobotDescription) -> None:
    """Targets within the joints' ranges need no clip: the safety gate has these."""
    if clip is None:
        return
    ends = np.asarray(clip, np.float64)
    if ends.shape != (len(policy.action_joints), 2):
        raise BundleError(f"clip of the actions has shape {ends.shape}; expected one pair a joint")
    for joint, (low, high) in zip(policy.action_joints, ends.tolist(), strict=True):
        index = desc.joint_index(joint)
        if low > desc.joint_lower[index] or high < desc.joint_upper[index]:
            raise BundleError(
                f"actions are clipped to {low:g}..{high:g} for {joint}, within its range "
                f"{desc.joint_lower[index]:g}..{desc.joint_upper[index]:g}; a bundle has no such "
                "clip: train without it"
            )


def _provenance(onnx_file: Path, sidecar: Path | None, policy: ForeignPolicy) -> dict[str, Any]:
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (onnx_file, sidecar)
        if path is not None
    }
    return {"imported_from": policy.format, "sha256": hashes, **policy.facts}


def _rehearse(manifest: dict[str, Any], files: dict[str, bytes], desc: RobotDescription) -> float:
    """Run the bundle for 100 ticks at rest; largest distance from the default pose [rad]."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(Path(folder) / "rehearsed", manifest, files, desc)
        policy, builder = OnnxPolicy(bundle), ObservationBuilder(bundle.observation, desc)
        furthest = 0.0
        for _ in range(_REHEARSED):
            target = policy.step(builder.build(_at_rest(desc, policy.last_action)))
            furthest = max(furthest, float(np.abs(target - desc.default_joint_pos).max()))
    return furthest


def _at_rest(desc: RobotDescription, last_action: NDArray[np.float32]) -> ObservationInputs:
    return ObservationInputs(
        base_quat_w=np.array([0.0, 0.0, 0.0, 1.0]),
        base_ang_vel_b=np.zeros(3),
        base_lin_acc_b=np.array([0.0, 0.0, 9.81]),
        joint_pos=desc.default_joint_pos,
        joint_vel=np.zeros(len(desc.joint_names)),
        foot_contact=np.ones(len(desc.leg_names)),
        nav_command=np.zeros(3),
        last_action=last_action,
    )
