"""The robot in a mirror: what it sees and does when left and right are exchanged.

The reflection is about the base's x-z plane. Vectors change the sign of y, rotations (angular
velocity, yaw rate) that of x and z, legs swap sides, and of a leg's joints only hip_yaw changes
sign: pitch axes are reflected together with the leg that they lift. Index maps come from the leg
names of `robot.toml`, so another leg order needs no change here.

`mirror` is the function that rsl_rl's symmetry extension calls.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from krabby.robot.description import JOINT_KINDS, RobotDescription
from tensordict import TensorDict

from krabby_trainer.errors import ConfigError
from krabby_trainer.learn.networks import SCAN_LATENT
from krabby_trainer.task.observations import EYE, HISTORY, PROPRIO, SCAN_X, SCAN_Y

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["Reflection", "action_reflection", "mirror", "reflections"]

_SIDES: Final = {"l": "r", "r": "l"}
_KIND_SIGN: Final = {"hip_yaw": -1.0, "hip_pitch": 1.0, "knee": 1.0}
_VECTOR: Final = (1.0, -1.0, 1.0)
_ROTATION: Final = (-1.0, 1.0, -1.0)


class Reflection(NamedTuple):
    """mirrored = values[..., index] * sign."""

    index: Tensor
    """Where each mirrored number comes from, shape (k,), int64."""
    sign: Tensor
    """1 or -1 each, shape (k,), float32."""

    def __call__(self, values: Tensor) -> Tensor:
        """Reflect `values` (..., k)."""
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
def _maps() -> Mapping[str, _Map]:
    assert set(_KIND_SIGN) == set(JOINT_KINDS)
    desc = RobotDescription.load()
    legs, joints, scalar = _legs(desc), _joints(desc), _Map.signs([1.0])
    terms = {
        "base_ang_vel": _Map.signs(_ROTATION),
        "projected_gravity": _Map.signs(_VECTOR),
        "nav_command": _Map.signs((1.0, -1.0, -1.0)),
        "joint_pos_rel": joints,
        "joint_vel": joints,
        "last_action": joints,
        "foot_contact": legs,
    }
    proprio = _Map.joined([terms[term.name] for term in PROPRIO.terms])
    # Friction, added mass, centre of mass, stiffness and damping factors, delay.
    factors = joints.unsigned()
    privileged = _Map.joined([scalar, scalar, _Map.signs(_VECTOR), factors, factors, scalar])
    # The code of the pictures and that of their mirror image, which change places; age.
    sight = _Map(
        [*range(SCAN_LATENT, 2 * SCAN_LATENT), *range(SCAN_LATENT), 2 * SCAN_LATENT],
        [1.0] * (2 * SCAN_LATENT + 1),
    )
    # Sine and cosine of the heading errors to this goal and the next; distance and base height;
    # feet; speed and progress.
    headings = _Map.signs((-1.0, 1.0, -1.0, 1.0))
    critic = _Map.joined([headings, scalar, scalar, legs, scalar, scalar])
    return {
        "proprio": proprio,
        "history": _Map.joined([proprio] * HISTORY),
        "scan": _scan(),
        "velocity": _Map.signs(_VECTOR),
        "privileged": privileged,
        "critic": critic,
        "sight": sight,
        "eye": _Map.joined([terms[term.name] for term in EYE.terms]),
        "actions": joints,
    }


@cache
def _on(device: str) -> Mapping[str, Reflection]:
    # Made outside inference mode whoever asks first, so that training can use them.
    with torch.inference_mode(False):
        return {name: each.to(device) for name, each in _maps().items()}


def reflections(device: torch.device | str = "cpu") -> Mapping[str, Reflection]:
    """Reflection of every observation group, by name, and of "actions"."""
    return _on(str(device))


def action_reflection(device: torch.device | str = "cpu") -> Reflection:
    """Reflection of actions, and of anything else with one signed number a joint, (..., 18)."""
    return _on(str(device))["actions"]


def mirror(
    env: object,
    obs: TensorDict | None,
    actions: Tensor | None,
) -> tuple[TensorDict | None, Tensor | None]:
    """A batch followed by its mirror image, as rsl_rl's symmetry extension wants it.

    Args:
        env: Not used; rsl_rl gives it.
        obs: Observation groups (N, size), or None.
        actions: (N, 18), or None.

    Returns:
        Groups (2N, size) and actions (2N, 18): the first N are those given.
    """
    both_obs, both_actions = None, None
    if obs is not None:
        groups: dict[str, Any] = dict(obs.items())
        known = reflections(next(iter(groups.values())).device)
        if unknown := sorted(set(groups) - set(known)):
            raise ConfigError(
                f"observation group {unknown[0]!r} has no mirror image; train without symmetry or "
                "say in trainer/symmetry.py how it is reflected"
            )
        both_obs = TensorDict(
            {name: torch.cat((value, known[name](value))) for name, value in groups.items()},
            batch_size=[2 * obs.batch_size[0]],
            device=obs.device,
        )
    if actions is not None:
        both_actions = torch.cat((actions, action_reflection(actions.device)(actions)))
    return both_obs, both_actions
