"""What the networks observe, in torch: the batched twin of `krabby.policy.observation`.

`GROUPS` lists every term of every group once: its name, its kind and its function. Sizes, the
layout of bundles, mirror images (`krabby_trainer.learn.symmetry`) and what a checkpoint says about
its observations follow from it. The order is the one that networks and bundles expect. A parity
test holds `proprio` to the runtime's terms, number for number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import torch
from krabby.policy.observation import ObservationLayout, standard_term
from krabby.robot import rotations

__all__ = [
    "ACTION_CLIP",
    "ACTION_SCALE",
    "EYE",
    "EYE_INDEX",
    "EYE_SIZE",
    "GROUPS",
    "GROUP_SIZES",
    "HISTORY",
    "KINDS",
    "NUM_FEET",
    "NUM_JOINTS",
    "PROPRIO",
    "PROPRIO_SIZE",
    "SCAN_CLIP_M",
    "SCAN_HEIGHT_M",
    "SCAN_POINTS_B",
    "SCAN_SIZE",
    "SCAN_X",
    "SCAN_Y",
    "Term",
    "critic_extra",
    "described",
    "joint_pos_target",
    "privileged",
    "projected_gravity",
    "proprio",
    "scan",
    "scan_points",
    "yaw_of",
]

Tensor = torch.Tensor

NUM_JOINTS: Final = 18
NUM_FEET: Final = 6
HISTORY: Final = 10
"""Frames of the history, the current one included, oldest first."""

SCAN_X: Final = torch.arange(25) * 0.1 - 0.8
"""Ahead of the base [m], yaw-aligned: from behind the rear feet to a step ahead of the front."""
SCAN_Y: Final = torch.arange(13) * 0.2 - 1.2
"""Left of the base [m]: as wide as the feet stand."""
SCAN_POINTS_B: Final = torch.cartesian_prod(SCAN_X, SCAN_Y)
"""Shape (325, 2), x-major."""
SCAN_SIZE: Final = len(SCAN_POINTS_B)
SCAN_HEIGHT_M: Final = 0.42
"""Standing height of the base: level ground under it scans as 0."""
SCAN_CLIP_M: Final = 1.5

ACTION_SCALE: Final = 0.4
"""[rad] per unit of action."""
ACTION_CLIP: Final = 6.0

KINDS: Final[Mapping[str, int]] = {
    "scalar": 1,
    "odd": 1,
    "vector": 3,
    "rotation": 3,
    "planar": 3,
    "joints": NUM_JOINTS,
    "factors": NUM_JOINTS,
    "legs": NUM_FEET,
    "scan": SCAN_SIZE,
}
"""Kinds of quantities and their sizes. What distinguishes them is the mirror image: an `odd` number
changes sign; `planar` is vx, vy and yaw rate; `factors` are per joint and have no sign."""


@dataclass(frozen=True)
class Term:
    """One quantity of an observation group."""

    name: str
    kind: str
    """One of `KINDS`."""
    of: Callable[[Any], Tensor]
    """The values, (..., size) or for single numbers (N,), of what is sensed or known."""

    @property
    def size(self) -> int:
        return KINDS[self.kind]


_PROPRIO: Final = (
    Term("base_ang_vel", "rotation", lambda s: s.base_ang_vel_b),
    Term("projected_gravity", "vector", lambda s: s.gravity_b),
    Term("nav_command", "planar", lambda s: s.nav_command),
    Term("joint_pos_rel", "joints", lambda s: s.joint_pos - s.default_joint_pos),
    Term("joint_vel", "joints", lambda s: s.joint_vel),
    Term("last_action", "joints", lambda s: s.last_action),
    Term("foot_contact", "legs", lambda s: s.foot_contact.to(s.joint_pos.dtype) - 0.5),
)
"""One frame; names and scales are those of `krabby.policy.observation`."""

GROUPS: Final[Mapping[str, tuple[Term, ...]]] = {
    "proprio": _PROPRIO,
    "scan": (Term("height_scan", "scan", lambda s: s.scan),),
    "velocity": (Term("base_lin_vel", "vector", lambda s: s.base_lin_vel_b),),
    "privileged": (
        Term("friction", "scalar", lambda s: s.friction - 1.0),
        Term("added_mass_kg", "scalar", lambda s: s.added_mass_kg / 3.0),
        Term("com_offset_m", "vector", lambda s: s.com_offset_m / 0.05),
        Term("kp_factor", "factors", lambda s: (s.kp_factor - 1.0) / 0.1),
        Term("kd_factor", "factors", lambda s: (s.kd_factor - 1.0) / 0.1),
        Term("command_delay", "scalar", lambda s: s.command_delay),
    ),
    "history": _PROPRIO * HISTORY,
    "critic": (
        Term("sin_heading_error", "odd", lambda s: torch.sin(s.heading_error)),
        Term("cos_heading_error", "scalar", lambda s: torch.cos(s.heading_error)),
        Term("sin_next_heading_error", "odd", lambda s: torch.sin(s.next_heading_error)),
        Term("cos_next_heading_error", "scalar", lambda s: torch.cos(s.next_heading_error)),
        Term("goal_distance_m", "scalar", lambda s: s.goal_distance_m / 3.0),
        Term("base_height_m", "scalar", lambda s: s.base_height_m),
        Term("feet_height_m", "legs", lambda s: s.feet_height_m),
        Term("speed", "scalar", lambda s: s.speed),
        Term("episode_progress", "scalar", lambda s: s.episode_progress),
    ),
}
"""The terms of every group, in order: add one here."""
GROUP_SIZES: Final[Mapping[str, int]] = {
    group: sum(term.size for term in terms) for group, terms in GROUPS.items()
}

PROPRIO: Final = ObservationLayout(tuple(standard_term(term.name) for term in _PROPRIO))
"""The layout of one frame, with the scales of the manifest."""
PROPRIO_SIZE: Final = PROPRIO.size
EYE: Final = ObservationLayout(
    tuple(term for term in PROPRIO.terms if term.name not in ("nav_command", "last_action"))
)
"""What the depth encoder knows of the robot at exposure: what the camera service can measure."""
EYE_SIZE: Final = EYE.size
EYE_INDEX: Final = torch.cat(
    [torch.arange(PROPRIO_SIZE)[PROPRIO.slices[term.name]] for term in EYE.terms]
)
"""Where a frame of `PROPRIO` has the numbers of `EYE`, shape (48,)."""
_SCALES: Final = {term.name: float(term.scale) for term in PROPRIO.terms}  # type: ignore[arg-type]


def described() -> dict[str, dict[str, int]]:
    """Size of every term by group, as checkpoints keep it; a frame of the history is `proprio`."""
    return {
        group: {term.name: term.size for term in terms}
        for group, terms in GROUPS.items()
        if group != "history"
    }


def _assembled(group: str, source: Any) -> Tensor:
    values = (term.of(source) for term in GROUPS[group])
    return torch.cat([v[:, None] if v.dim() == 1 else v for v in values], dim=-1)


def projected_gravity(base_quat_w: Tensor) -> Tensor:
    """Direction of gravity in the base frame, (..., 3); upright (0, 0, -1)."""
    return torch.stack(rotations.gravity_components(*base_quat_w.unbind(-1)), dim=-1)


def yaw_of(base_quat_w: Tensor) -> Tensor:
    """Heading of the base [rad], (...)."""
    return torch.atan2(*rotations.yaw_components(*base_quat_w.unbind(-1)))


def proprio(*, base_quat_w: Tensor, gravity_b: Tensor | None = None, **sensed: Tensor) -> Tensor:
    """One frame of `PROPRIO`, (N, 69).

    Args:
        base_quat_w: (N, 4).
        gravity_b: As measured, (N, 3); None for what follows from the quaternion.
        sensed: base_ang_vel_b (N, 3), joint_pos, joint_vel, last_action (N, 18), foot_contact
            (N, 6), nav_command (N, 3), default_joint_pos (18,).
    """
    gravity = projected_gravity(base_quat_w) if gravity_b is None else gravity_b
    source = SimpleNamespace(gravity_b=gravity, **sensed)
    return torch.cat([term.of(source) * _SCALES[term.name] for term in _PROPRIO], dim=-1)


def scan_points(base_pos_w: Tensor, base_quat_w: Tensor) -> Tensor:
    """Where the scan looks, (N, 325, 2) [m], world frame.

    Args:
        base_pos_w: (N, 3) [m].
        base_quat_w: (N, 4), xyzw; only its yaw turns the grid.
    """
    yaw = yaw_of(base_quat_w)
    cos, sin = torch.cos(yaw)[:, None], torch.sin(yaw)[:, None]
    x, y = _scan_points(base_pos_w.device).unbind(-1)
    return torch.stack(
        (base_pos_w[:, :1] + cos * x - sin * y, base_pos_w[:, 1:2] + sin * x + cos * y), dim=-1
    )


def scan(ground: Tensor, base_pos_w: Tensor) -> Tensor:
    """How far the ground lies below its usual place under the base, (N, 325) [m].

    Positive is lower ground, 0 is level ground under a standing robot.

    Args:
        ground: Its height at `scan_points`, (N, 325) [m], world frame.
        base_pos_w: (N, 3) [m].
    """
    below = base_pos_w[:, 2:3] - SCAN_HEIGHT_M - ground
    return below.clamp(-SCAN_CLIP_M, SCAN_CLIP_M)


@functools.cache
def _scan_points(device: torch.device) -> Tensor:
    """`SCAN_POINTS_B` on a device: a copy from the host would break a CUDA recording."""
    return SCAN_POINTS_B.to(device)


def privileged(**known: Tensor) -> Tensor:
    """What no sensor measures, scaled to about one: (N, 42).

    Args:
        known: friction, added_mass_kg (of the whole robot), command_delay [control steps], each
            (N, 1); com_offset_m (N, 3); kp_factor and kd_factor (N, 18).
    """
    return _assembled("privileged", SimpleNamespace(**known))


def critic_extra(**known: Tensor) -> Tensor:
    """What only the critic sees, (N, 14).

    Args:
        known: heading_error, next_heading_error, goal_distance_m, base_height_m, speed,
            episode_progress, each (N,); feet_height_m (N, 6).
    """
    return _assembled("critic", SimpleNamespace(**known))


def joint_pos_target(
    action: Tensor,
    previous: Tensor,
    *,
    default_joint_pos: Tensor,
    lower: Tensor,
    upper: Tensor,
    max_step: Tensor,
) -> Tensor:
    """What the safety gate lets through of an action: limits, then the rate limit (N, 18) [rad].

    `max_step` is how far a target may move in one control step [rad].
    """
    wanted = default_joint_pos + ACTION_SCALE * action.clamp(-ACTION_CLIP, ACTION_CLIP)
    wanted = torch.clamp(wanted, lower, upper)
    return previous + torch.clamp(wanted - previous, -max_step, max_step)
