"""The robot in a mirror: what it sees and does when left and right are exchanged.

The reflection is about the base's x-z plane. Vectors change the sign of y, rotations (angular
velocity, yaw rate) that of x and z, legs swap sides, and of a leg's joints only hip_yaw changes
sign: pitch axes are reflected together with the leg that they lift. Index maps come from the leg
names of `robot.toml`, so another leg order needs no change here. How an observation term is
reflected follows from its kind (`krabby_trainer.task.observations.KINDS`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

import torch
from krabby.robot.description import JOINT_KINDS, RobotDescription
from torch import Tensor

from krabby_trainer.errors import ConfigError
from krabby_trainer.learn.networks import SCAN_LATENT
from krabby_trainer.task.observations import EYE, GROUPS, SCAN_X, SCAN_Y

__all__ = ["Reflection", "action_reflection", "mirror", "reflections"]

_SIDES: Final = {"l": "r", "r": "l"}
_KIND_SIGN: Final = {"hip_yaw": -1.0, "hip_pitch": 1.0, "knee": 1.0}


class Reflection(NamedTuple):
    """mirrored = values[..., index] * sign."""

    index: Tensor
    """Where each mirrored number comes from, shape (k,), int64."""
    sign: Tensor
    """1 or -1 each, shape (k,), float32."""

    def __call__(self, values: Tensor) -> Tensor:
        return values.index_select(-1, self.index) * self.sign


class _Map(NamedTuple):
    """A reflection being put together."""

    index: list[int]
    sign: list[float]

    @classmethod
    def signs(cls, signs: Sequence[float]) -> _Map:
        return cls(list(range(len(signs))), list(signs))

    @classmethod
    def joined(cls, parts: Sequence[_Map]) -> _Map:
        index: list[int] = []
        for part in parts:
            offset = len(index)
            index += [offset + i for i in part.index]
        return cls(index, [sign for part in parts for sign in part.sign])

    def unsigned(self) -> _Map:
        return _Map(self.index, [1.0] * len(self.sign))

    def to(self, device: str) -> Reflection:
        return Reflection(
            torch.tensor(self.index, device=device), torch.tensor(self.sign, device=device)
        )


def _legs(desc: RobotDescription) -> _Map:
    index = [
        desc.leg_names.index(_SIDES.get(name[:1], name[:1]) + name[1:]) for name in desc.leg_names
    ]
    return _Map(index, [1.0] * len(index))


def _joints(desc: RobotDescription) -> _Map:
    twins = dict(zip(desc.leg_names, (desc.leg_names[i] for i in _legs(desc).index), strict=True))
    index, sign = [], []
    for joint in desc.joint_names:
        leg, kind = joint.split("_", 1)
        index.append(desc.joint_index(f"{twins[leg]}_{kind}"))
        sign.append(_KIND_SIGN[kind])
    return _Map(index, sign)


def _scan() -> _Map:
    rows, columns = len(SCAN_X), len(SCAN_Y)
    index = [
        row * columns + columns - 1 - column for row in range(rows) for column in range(columns)
    ]
    return _Map(index, [1.0] * len(index))


@cache
def _kinds() -> Mapping[str, _Map]:
    assert set(_KIND_SIGN) == set(JOINT_KINDS)
    desc = RobotDescription.load()
    joints = _joints(desc)
    return {
        "scalar": _Map.signs([1.0]),
        "odd": _Map.signs([-1.0]),
        "vector": _Map.signs((1.0, -1.0, 1.0)),
        "rotation": _Map.signs((-1.0, 1.0, -1.0)),
        "planar": _Map.signs((1.0, -1.0, -1.0)),
        "joints": joints,
        "factors": joints.unsigned(),
        "legs": _legs(desc),
        "scan": _scan(),
    }


@cache
def _maps() -> Mapping[str, _Map]:
    kinds, size = _kinds(), SCAN_LATENT
    maps = {
        group: _Map.joined([kinds[term.kind] for term in terms]) for group, terms in GROUPS.items()
    }
    eye = {term.name for term in EYE.terms}
    return maps | {
        "eye": _Map.joined([kinds[t.kind] for t in GROUPS["proprio"] if t.name in eye]),
        # The codes of the images and of their mirror images change places; the age stays.
        "sight": _Map([*range(size, 2 * size), *range(size), 2 * size], [1.0] * (2 * size + 1)),
        "actions": kinds["joints"],
    }


@cache
def _on(device: str) -> Mapping[str, Reflection]:
    # Made outside inference mode, so that training can use them.
    with torch.inference_mode(False):
        return {name: each.to(device) for name, each in _maps().items()}


def reflections(device: torch.device | str = "cpu") -> Mapping[str, Reflection]:
    """Reflection of every observation group, by name, and of "actions"."""
    return _on(str(device))


def action_reflection(device: torch.device | str = "cpu") -> Reflection:
    """Reflection of actions, and of anything else with one signed number a joint, (..., 18)."""
    return _on(str(device))["actions"]


def mirror(groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch followed by its mirror image.

    Args:
        groups: Observation groups by name, and "actions", each (N, size).

    Returns:
        The same groups (2N, size): the first N are those given.

    Raises:
        ConfigError: A group has no mirror image.
    """
    known = reflections(next(iter(groups.values())).device)
    if unknown := sorted(set(groups) - set(known)):
        raise ConfigError(
            f"observation group {unknown[0]!r} has no mirror image; train without symmetry or "
            "say in learn/symmetry.py how it is reflected"
        )
    return {name: torch.cat((value, known[name](value))) for name, value in groups.items()}
