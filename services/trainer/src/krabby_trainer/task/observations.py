"""What the networks see, in torch: the batched twin of `krabby.policy.observation`.

A parity test holds `proprio` to the runtime's terms, number for number. The order of everything
here is the order in which networks, mirror maps and bundles expect it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import torch
from krabby.policy.observation import ObservationLayout, standard_term

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "ACTION_CLIP",
    "ACTION_SCALE",
    "CRITIC_EXTRA_SIZE",
    "EYE",
    "EYE_INDEX",
    "EYE_SIZE",
    "GROUP_SIZES",
    "HISTORY",
    "NUM_FEET",
    "NUM_JOINTS",
    "PRIVILEGED_SIZE",
    "PROPRIO",
    "PROPRIO_SIZE",
    "SCAN_CLIP_M",
    "SCAN_HEIGHT_M",
    "SCAN_POINTS_B",
    "SCAN_SIZE",
    "SCAN_X",
    "SCAN_Y",
    "VELOCITY_SIZE",
    "critic_extra",
    "joint_pos_target",
    "privileged",
    "projected_gravity",
    "proprio",
    "rotate_inverse",
    "scan",
    "yaw_of",
]

Tensor = torch.Tensor

NUM_JOINTS: Final = 18
NUM_FEET: Final = 6

PROPRIO: Final = ObservationLayout(
    tuple(
        standard_term(name)
        for name in (
            "base_ang_vel",
            "projected_gravity",
            "nav_command",
            "joint_pos_rel",
            "joint_vel",
            "last_action",
            "foot_contact",
        )
    )
)
"""The terms of one frame, in order, with the scales of the manifest."""
PROPRIO_SIZE: Final = PROPRIO.size
EYE: Final = ObservationLayout(
    tuple(
        standard_term(name)
        for name in (
            "base_ang_vel",
            "projected_gravity",
            "joint_pos_rel",
            "joint_vel",
            "foot_contact",
        )
    )
)
"""What the depth encoder knows of the robot at the moment of a picture: nothing that the camera
service could not measure."""
EYE_SIZE: Final = EYE.size
EYE_INDEX: Final = torch.cat(
    [torch.arange(PROPRIO_SIZE)[PROPRIO.slices[term.name]] for term in EYE.terms]
)
"""Where a frame of `PROPRIO` has the numbers of `EYE`, shape (48,)."""
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

PRIVILEGED_SIZE: Final = 42
CRITIC_EXTRA_SIZE: Final = 14
VELOCITY_SIZE: Final = 3

GROUP_SIZES: Final[Mapping[str, int]] = {
    "proprio": PROPRIO_SIZE,
    "scan": SCAN_SIZE,
    "velocity": VELOCITY_SIZE,
    "privileged": PRIVILEGED_SIZE,
    "history": HISTORY * PROPRIO_SIZE,
    "critic": CRITIC_EXTRA_SIZE,
}
"""Numbers in every observation group."""

ACTION_SCALE: Final = 0.4
"""[rad] per unit of action."""
ACTION_CLIP: Final = 6.0

_SCALES: Final = {term.name: float(term.scale) for term in PROPRIO.terms}  # type: ignore[arg-type]


def rotate_inverse(quat: Tensor, vector: Tensor) -> Tensor:
    """Takes `vector` (..., 3) from the frame that `quat` (..., 4), xyzw, leads to, into its own."""
    xyz, w = quat[..., :3], quat[..., 3:]
    t = 2.0 * torch.linalg.cross(xyz, vector)
    return vector - w * t + torch.linalg.cross(xyz, t)


def projected_gravity(base_quat_w: Tensor) -> Tensor:
    """Direction of gravity in the base frame, (..., 3); upright (0, 0, -1)."""
    x, y, z, w = base_quat_w.unbind(-1)
    return torch.stack(
        (2.0 * (w * y - x * z), -2.0 * (y * z + w * x), 2.0 * (x * x + y * y) - 1.0), dim=-1
    )


def yaw_of(base_quat_w: Tensor) -> Tensor:
    """Heading of the base [rad], (...)."""
    x, y, z, w = base_quat_w.unbind(-1)
    return torch.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))


def proprio(
    *,
    base_quat_w: Tensor,
    base_ang_vel_b: Tensor,
    joint_pos: Tensor,
    joint_vel: Tensor,
    foot_contact: Tensor,
    nav_command: Tensor,
    last_action: Tensor,
    default_joint_pos: Tensor,
    gravity_b: Tensor | None = None,
) -> Tensor:
    """One frame of `PROPRIO`, (N, 69); `gravity_b` overrides what follows from the quaternion."""
    gravity = projected_gravity(base_quat_w) if gravity_b is None else gravity_b
    return torch.cat(
        (
            base_ang_vel_b * _SCALES["base_ang_vel"],
            gravity * _SCALES["projected_gravity"],
            nav_command * _SCALES["nav_command"],
            (joint_pos - default_joint_pos) * _SCALES["joint_pos_rel"],
            joint_vel * _SCALES["joint_vel"],
            last_action * _SCALES["last_action"],
            (foot_contact.to(joint_pos.dtype) - 0.5) * _SCALES["foot_contact"],
        ),
        dim=-1,
    )


def scan(height_at: Callable[[Tensor], Tensor], base_pos_w: Tensor, base_quat_w: Tensor) -> Tensor:
    """How far the ground lies below its usual place under the base, (N, 325) [m].

    Positive is lower ground, 0 is level ground under a standing robot.

    Args:
        height_at: Ground height [m] of points (N, P, 2) [m], world frame.
        base_pos_w: (N, 3) [m].
        base_quat_w: (N, 4), xyzw; only its yaw turns the grid.
    """
    yaw = yaw_of(base_quat_w)
    cos, sin = torch.cos(yaw)[:, None], torch.sin(yaw)[:, None]
    x, y = _scan_points(base_pos_w.device).unbind(-1)
    points = torch.stack(
        (base_pos_w[:, :1] + cos * x - sin * y, base_pos_w[:, 1:2] + sin * x + cos * y), dim=-1
    )
    below = base_pos_w[:, 2:3] - SCAN_HEIGHT_M - height_at(points)
    return below.clamp(-SCAN_CLIP_M, SCAN_CLIP_M)


@functools.cache
def _scan_points(device: torch.device) -> Tensor:
    """`SCAN_POINTS_B` where it is needed: a copy from the host would stop a recording."""
    return SCAN_POINTS_B.to(device)


def privileged(
    *,
    friction: Tensor,
    added_mass_kg: Tensor,
    com_offset_m: Tensor,
    kp_factor: Tensor,
    kd_factor: Tensor,
    command_delay: Tensor,
) -> Tensor:
    """What no sensor tells, scaled to about one: (N, 42).

    Args:
        friction: (N, 1).
        added_mass_kg: (N, 1), of the whole robot.
        com_offset_m: (N, 3).
        kp_factor: (N, 18).
        kd_factor: (N, 18).
        command_delay: (N, 1), control steps.
    """
    return torch.cat(
        (
            friction - 1.0,
            added_mass_kg / 3.0,
            com_offset_m / 0.05,
            (kp_factor - 1.0) / 0.1,
            (kd_factor - 1.0) / 0.1,
            command_delay,
        ),
        dim=-1,
    )


def critic_extra(
    *,
    heading_error: Tensor,
    next_heading_error: Tensor,
    goal_distance_m: Tensor,
    base_height_m: Tensor,
    feet_height_m: Tensor,
    speed: Tensor,
    episode_progress: Tensor,
) -> Tensor:
    """What only the critic sees, (N, 14); every argument (N,) but `feet_height_m` (N, 6)."""
    return torch.cat(
        (
            torch.sin(heading_error)[:, None],
            torch.cos(heading_error)[:, None],
            torch.sin(next_heading_error)[:, None],
            torch.cos(next_heading_error)[:, None],
            goal_distance_m[:, None] / 3.0,
            base_height_m[:, None],
            feet_height_m,
            speed[:, None],
            episode_progress[:, None],
        ),
        dim=-1,
    )


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
