"""What an exported policy says about itself, read from the files of three training codes.

- **mjlab**: `metadata_props` of the ONNX file: joint names, default pose, gains, action scale and
  names of the observation terms; numbers with three decimals. Neither rate nor observation scales.
- **Isaac Lab**: the policy's ONNX file and `io_descriptors/IO_descriptors.yaml` of the run.
- **unitree_rl_lab**: the policy's ONNX file and `params/deploy.yaml` of the run; numbers with three
  significant digits. Joints have no names there: `joint_ids_map` counts them in the robot's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from krabby.robot.errors import BundleError, MissingRuntime

__all__ = ["SIDECARS", "ForeignPolicy", "ForeignTerm", "Format", "find_sidecar", "read_policy"]

Format = Literal["isaaclab", "mjlab", "unitree_rl_lab"]

SIDECARS: Final = ("IO_descriptors.yaml", "deploy.yaml")
"""Files that describe a policy without metadata."""
_PLACES: Final = (".", "io_descriptors", "params", "../io_descriptors", "../params")
_MJLAB_KEYS: Final = ("joint_names", "default_joint_pos", "action_scale", "observation_names")


@dataclass(frozen=True, kw_only=True)
class ForeignTerm:
    """One term of the observation."""

    name: str
    """As the training code calls it."""
    scale: float | tuple[float, ...] = 1.0
    """Factor on the term, for all its numbers or one each, in its own joint order."""
    history: int = 1
    clip: object = None
    joint_names: tuple[str, ...] | None = None
    """Joints of this term in its order; None: those of the policy."""
    offsets: tuple[float, ...] | None = None
    """What is subtracted from joint angles [rad]; None: the default pose."""


@dataclass(frozen=True, kw_only=True)
class ForeignPolicy:
    """An exported policy. Numbers per joint are in the order of `joint_names`."""

    format: Format
    joint_names: tuple[str, ...]
    default_joint_pos: tuple[float, ...]
    """[rad]"""
    kp: tuple[float, ...] | None
    """[N·m/rad]; None where the files do not say."""
    kd: tuple[float, ...] | None
    """[N·m·s/rad]"""
    action_joints: tuple[str, ...]
    action_scale: float | tuple[float, ...]
    action_offset: tuple[float, ...]
    action_clip: object
    terms: tuple[ForeignTerm, ...]
    rate_hz: float | None
    """None where the files do not say."""
    command: Mapping[str, tuple[float, float]] | None
    """Range of vx, vy [m/s] and yaw_rate [rad/s] in training."""
    rounding: float
    """Numbers of these files may be off by this share, or by this much."""
    facts: Mapping[str, str]
    """For the bundle's provenance."""


def find_sidecar(onnx_file: Path) -> Path | None:
    """The description that the training code wrote beside or one folder above the network."""
    for place in _PLACES:
        for name in SIDECARS:
            path = onnx_file.parent / place / name
            if path.is_file():
                return path.resolve()
    return None


def read_policy(
    metadata: Mapping[str, str],
    sidecar: Path | None,
    *,
    joint_order: Sequence[str],
    rate_hz: float | None = None,
    history: int = 1,
) -> ForeignPolicy:
    """Read what the files say.

    Args:
        metadata: `metadata_props` of the ONNX file.
        sidecar: `IO_descriptors.yaml` or `deploy.yaml`; None for metadata alone.
        joint_order: Joints that `joint_ids_map` of unitree_rl_lab counts.
        rate_hz: Control rate, where the files do not say it.
        history: Frames of every term, where the files do not say it.

    Raises:
        BundleError: They are malformed, or describe no policy.
    """
    if sidecar is not None:
        values = _load_yaml(sidecar)
        try:
            if "articulations" in values:
                return _isaaclab(values, str(sidecar))
            if "joint_ids_map" in values:
                return _unitree(values, str(sidecar), joint_order)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise BundleError(
                f"{sidecar} is incomplete: {type(error).__name__}: {error}; export it again"
            ) from error
        raise BundleError(
            f"{sidecar} has neither 'articulations' (Isaac Lab) nor 'joint_ids_map' "
            "(unitree_rl_lab); give the file that the training code wrote"
        )
    missing = [key for key in _MJLAB_KEYS if key not in metadata]
    if missing:
        raise BundleError(
            f"the ONNX file has no metadata {', '.join(missing)} (mjlab's), and no "
            f"{' or '.join(SIDECARS)} lies near it; give one with --config"
        )
    return _mjlab(metadata, rate_hz, history)


def _mjlab(metadata: Mapping[str, str], rate_hz: float | None, history: int) -> ForeignPolicy:
    names = _words(metadata["joint_names"])
    default = _numbers(metadata, "default_joint_pos")
    scale = _numbers(metadata, "action_scale")
    known = ("run_path", "command_names")
    return ForeignPolicy(
        format="mjlab",
        joint_names=names,
        default_joint_pos=default,
        kp=_numbers(metadata, "joint_stiffness") if "joint_stiffness" in metadata else None,
        kd=_numbers(metadata, "joint_damping") if "joint_damping" in metadata else None,
        action_joints=names,
        action_scale=scale[0] if len(scale) == 1 else scale,
        action_offset=default,
        action_clip=None,
        terms=tuple(
            ForeignTerm(name=name, history=history)
            for name in _words(metadata["observation_names"])
        ),
        rate_hz=rate_hz,
        command=None,
        rounding=6e-4,
        facts={key: metadata[key] for key in known if key in metadata},
    )


def _isaaclab(values: Mapping[str, Any], source: str) -> ForeignPolicy:
    robots = values["articulations"]
    robot = robots["robot"] if "robot" in robots else next(iter(robots.values()))
    actions = values["actions"]
    if len(actions) != 1:
        kinds = ", ".join(str(each["name"]) for each in actions) or "none"
        raise BundleError(f"{source} has actions {kinds}; one of joint positions can be expressed")
    (action,) = actions
    kind = str(action["full_path"]).rpartition(".")[2]
    if kind != "JointPositionAction":
        raise BundleError(f"{source}: actions are {kind}; JointPositionAction can be expressed")
    names = tuple(robot["joint_names"])
    groups = values["observations"]
    group = "policy" if "policy" in groups else next(iter(groups))
    joints = tuple(action["joint_names"])
    return ForeignPolicy(
        format="isaaclab",
        joint_names=names,
        default_joint_pos=_floats(robot["default_joint_pos"]),
        kp=_gains(robot.get("default_joint_stiffness")),
        kd=_gains(robot.get("default_joint_damping")),
        action_joints=joints,
        action_scale=_scale(action["scale"]),
        action_offset=_per_joint(action["offset"], len(joints)),
        action_clip=action.get("clip"),
        terms=tuple(map(_isaaclab_term, groups[group])),
        rate_hz=1.0 / float(values["scene"]["dt"]),
        command=None,
        rounding=1e-5,
        facts={"observation_group": str(group)},
    )


def _isaaclab_term(entry: Mapping[str, Any]) -> ForeignTerm:
    changed = entry.get("overloads") or {}
    named = entry.get("joint_names")
    offsets = entry.get("joint_pos_offsets")
    if changed.get("modifiers") or (entry.get("extras") or {}).get("modifiers"):
        raise BundleError(f"observation term {entry['name']!r} has modifiers; train without them")
    if changed.get("flatten_history_dim") is False:
        raise BundleError(
            f"observation term {entry['name']!r} keeps its history apart; set flatten_history_dim"
        )
    return ForeignTerm(
        name=str(entry["name"]),
        scale=_scale(changed.get("scale")),
        history=max(1, int(changed.get("history_length") or 0)),
        clip=changed.get("clip"),
        joint_names=None if named is None else tuple(named),
        offsets=None if offsets is None else _floats(offsets),
    )


def _unitree(values: Mapping[str, Any], source: str, joint_order: Sequence[str]) -> ForeignPolicy:
    joint_ids = [int(index) for index in values["joint_ids_map"]]
    if sorted(joint_ids) != list(range(len(joint_order))):
        raise BundleError(
            f"{source}: joint_ids_map has {len(joint_ids)} joints; expected every number from 0 "
            f"to {len(joint_order) - 1} once, counting the joints of robot.toml"
        )
    names = tuple(joint_order[index] for index in joint_ids)
    actions = values["actions"]
    if list(actions) != ["JointPositionAction"]:
        raise BundleError(
            f"{source}: actions are {', '.join(actions) or 'none'}; JointPositionAction can be "
            "expressed"
        )
    action = actions["JointPositionAction"]
    joint_subset = action.get("joint_ids")
    ranges = values.get("commands", {}).get("base_velocity", {}).get("ranges")
    axes = {"vx": "lin_vel_x", "vy": "lin_vel_y", "yaw_rate": "ang_vel_z"}
    # Gains are in the order of `joint_order`, all else in the policy's.
    kp, kd = (_floats(values[key]) for key in ("stiffness", "damping"))
    return ForeignPolicy(
        format="unitree_rl_lab",
        joint_names=names,
        default_joint_pos=_floats(values["default_joint_pos"]),
        kp=tuple(kp[index] for index in joint_ids),
        kd=tuple(kd[index] for index in joint_ids),
        action_joints=names if joint_subset is None else tuple(names[i] for i in joint_subset),
        action_scale=_scale(action["scale"]),
        action_offset=_floats(action["offset"]),
        action_clip=action.get("clip"),
        terms=tuple(
            ForeignTerm(
                name=str(name),
                scale=_scale(term.get("scale")),
                history=max(1, int(term.get("history_length") or 0)),
                clip=term.get("clip"),
            )
            for name, term in values["observations"].items()
        ),
        rate_hz=1.0 / float(values["step_dt"]),
        command=None
        if ranges is None
        else {axis: (float(ranges[key][0]), float(ranges[key][1])) for axis, key in axes.items()},
        rounding=6e-3,
        facts={},
    )


def _load_yaml(path: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingRuntime(
            "reading a policy's YAML needs PyYAML; install it with: pip install krabby[import]"
        ) from error
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}; give another --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise BundleError(f"{path} is not YAML: {problem}; export it again") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} holds no table; give the file that the training code wrote")
    return values


def _words(text: str) -> tuple[str, ...]:
    """Names of a list with commas; some exporters write it as Python does."""
    words = (word.strip(" []'\"") for word in text.split(","))
    return tuple(word for word in words if word)


def _numbers(metadata: Mapping[str, str], key: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in _words(metadata[key]))
    except ValueError as error:
        raise BundleError(f"metadata {key} of the ONNX file: {error}; export it again") from error


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _scale(value: Any) -> float | tuple[float, ...]:
    if value is None:
        return 1.0
    return _floats(value) if isinstance(value, list) else float(value)


def _per_joint(value: Any, joints: int) -> tuple[float, ...]:
    return _floats(value) if isinstance(value, list) else (float(value),) * joints


def _gains(values: Sequence[Any] | None) -> tuple[float, ...] | None:
    """Gains, or None: Isaac Lab writes 0 where an explicit actuator model has them."""
    return None if values is None or not any(values) else _floats(values)
