"""Rewards and terminations: pure functions of plain tensors.

Every reward gives one number per robot, (N,), before its weight; penalties are positive here and
have negative weights. Shapes: N robots, 18 joints, 6 feet; SI units; `_w` world, `_b` base frame.
"""

from __future__ import annotations

import torch

__all__ = [
    "action_rate",
    "bodies_touching",
    "contact_force",
    "effort_budget",
    "fallen",
    "feet_high",
    "feet_in_pit",
    "feet_on_edge",
    "goal_heading",
    "goal_velocity",
    "joint_acceleration",
    "joint_deviation",
    "joint_limits",
    "left_lane",
    "mean_square_filter",
    "orientation",
    "overspeed",
    "power",
    "roll_pitch_rate",
    "saturated",
    "stature",
    "stumble",
    "sunk",
    "torque",
    "torque_speed_limit",
    "track",
    "vertical_velocity",
]

Tensor = torch.Tensor

_REFERENCE_TORQUE = 40.0
"""Rating of the drives that the weight of `torque` is meant for [N·m]."""
_STILL_M_S = 0.1
_STILL = 0.05
_SLOWEST = 0.15
"""What is asked for counts as this much at least where shares of it are taken."""


def goal_velocity(base_lin_vel_w: Tensor, direction_w: Tensor, speed: Tensor) -> Tensor:
    """Speed over ground towards the goal, capped at the speed asked for, as a share of it.

    In the world frame, so that going round an obstacle, or pushing against it, earns less than
    climbing over it. Who is asked to stand still earns 1 for that, a third of it at 0.1 m/s.
    """
    along = (base_lin_vel_w[:, :2] * direction_w).sum(-1)
    still = torch.exp(-base_lin_vel_w[:, :2].norm(dim=-1) / _STILL_M_S)
    return torch.where(speed > 0.0, torch.minimum(along, speed) / speed.clamp(min=0.1), still)


def overspeed(base_lin_vel_w: Tensor, allowed: Tensor) -> Tensor:
    """How much faster than `allowed` (N,) the base moves over ground [m/s]."""
    return torch.relu(base_lin_vel_w[:, :2].norm(dim=-1) - allowed)


def goal_heading(heading_error: Tensor) -> Tensor:
    """1 with the nose towards the goal, falling exponentially with the angle."""
    return torch.exp(-heading_error.abs())


def track(velocity: Tensor, asked: Tensor, width: Tensor) -> Tensor:
    """How well velocities (N, k) are what is asked for, (N,): 1 if they are.

    Half is for the share of it that is done, capped at 1 either way, which does not fade far off;
    half is a bell `width` (N,) wide. Who is asked for nothing earns the first half by stillness.
    """
    speed = asked.norm(dim=-1)
    along = (velocity * asked).sum(-1) / speed.clamp(min=1e-6)
    share = (torch.minimum(along, speed) / speed.clamp(min=_SLOWEST)).clamp(min=-1.0)
    still = torch.exp(-velocity.norm(dim=-1) / _STILL)
    near = torch.exp(-(velocity - asked).square().sum(-1) / width.square())
    return 0.5 * torch.where(speed > 0.0, share, still) + 0.5 * near


def vertical_velocity(base_lin_vel_w: Tensor) -> Tensor:
    """Squared vertical velocity of the base."""
    return base_lin_vel_w[:, 2].square()


def roll_pitch_rate(base_ang_vel_b: Tensor) -> Tensor:
    """Squared roll and pitch rate."""
    return base_ang_vel_b[:, :2].square().sum(-1)


def orientation(gravity_b: Tensor) -> Tensor:
    """Squared sine of the tilt."""
    return gravity_b[:, :2].square().sum(-1)


def joint_deviation(joint_pos: Tensor, default_joint_pos: Tensor) -> Tensor:
    """Squared distance from the default pose, summed over the joints."""
    return (joint_pos - default_joint_pos).square().sum(-1)


def action_rate(action: Tensor, previous: Tensor) -> Tensor:
    """Squared change of the action, summed over the joints."""
    return (action - previous).square().sum(-1)


def joint_acceleration(joint_vel: Tensor, previous: Tensor, dt: float) -> Tensor:
    """Squared mean acceleration over a step of `dt`, summed over the joints [rad²/s⁴]."""
    return ((joint_vel - previous) / dt).square().sum(-1)


def joint_limits(joint_pos: Tensor, lower: Tensor, upper: Tensor, margin_rad: float) -> Tensor:
    """How far joints are nearer to a limit than the margin, or beyond it, summed [rad]."""
    low = torch.relu(lower + margin_rad - joint_pos)
    high = torch.relu(joint_pos - upper + margin_rad)
    return (low + high).sum(-1)


def torque(joint_torque: Tensor, rated_torque: Tensor) -> Tensor:
    """Squared torque, summed over the joints [N²·m²], as if all drives were rated at 40 N·m.

    What heats a drive is its torque over its rating.
    """
    return (joint_torque * (_REFERENCE_TORQUE / rated_torque)).square().sum(-1)


def power(joint_torque: Tensor, joint_vel: Tensor) -> Tensor:
    """Mechanical power, its magnitude summed over the joints: no drive gives back [W]."""
    return (joint_torque * joint_vel).abs().sum(-1)


def stature(base_height_w: Tensor, soles_w: Tensor, contact: Tensor, allowed_m: float) -> Tensor:
    """How far the base is higher than `allowed_m` above the feet that carry it [m].

    Args:
        base_height_w: (N,) [m].
        soles_w: (N, 6, 3) [m].
        contact: (N, 6) bool; who touches nothing pays nothing.
        allowed_m: Height that is free [m].
    """
    carrying = contact.float()
    count = carrying.sum(-1)
    ground = (soles_w[..., 2] * carrying).sum(-1) / count.clamp(min=1.0)
    return torch.relu(base_height_w - ground - allowed_m) * (count > 0.0)


def feet_high(base_height_w: Tensor, soles_w: Tensor, allowed_m: float) -> Tensor:
    """How far the feet, (N, 6, 3), are higher than `allowed_m` above the base, summed [m]."""
    return torch.relu(soles_w[..., 2] - base_height_w[:, None] - allowed_m).sum(-1)


def mean_square_filter(
    previous: Tensor, joint_torque: Tensor, dt: float, window_s: float
) -> Tensor:
    """First-order filter of the squared torque, as the safety gate keeps it (N, 18) [N²·m²]."""
    return previous + (joint_torque.square() - previous) * min(1.0, dt / window_s)


def effort_budget(mean_square: Tensor, rated_torque: Tensor, share: float) -> Tensor:
    """How far the joints' mean square effort is above `share` of the rated one, mean over joints.

    The safety gate folds the torque limit from there on, so a robot that lives there grows weak.
    """
    return torch.relu(mean_square / (share * rated_torque**2) - 1.0).mean(-1)


def bodies_touching(force_w: Tensor, threshold_n: float) -> Tensor:
    """How many of the bodies (N, B, 3) are pressed by more than the threshold."""
    return (force_w.norm(dim=-1) > threshold_n).float().sum(-1)


def contact_force(foot_force_w: Tensor, weight_n: Tensor) -> Tensor:
    """Force on each foot beyond the robot's weight (N,), summed over the feet [weights]."""
    return torch.relu(foot_force_w.norm(dim=-1) / weight_n[:, None] - 1.0).sum(-1)


def stumble(foot_force_w: Tensor) -> Tensor:
    """1 where any foot is pushed sideways by more than four times its vertical load."""
    sideways = foot_force_w[..., :2].norm(dim=-1)
    return ((sideways > 4.0 * foot_force_w[..., 2].abs()) & (sideways > 1.0)).any(-1).float()


def feet_on_edge(on_edge: Tensor, contact: Tensor) -> Tensor:
    """Number of feet that stand on an edge."""
    return (on_edge & contact).float().sum(-1)


def feet_in_pit(in_pit: Tensor) -> Tensor:
    """Number of feet that hang in a pit."""
    return in_pit.float().sum(-1)


def torque_speed_limit(
    joint_vel: Tensor, peak_torque: Tensor, no_load_speed: Tensor
) -> tuple[Tensor, Tensor]:
    """Lowest and highest torque a drive gives at a speed [N·m], each (N, 18).

    In the direction of motion it falls linearly to zero at the no-load speed.
    """
    share = joint_vel / no_load_speed
    high = peak_torque * (1.0 - share).clamp(0.0, 1.0)
    low = -peak_torque * (1.0 + share).clamp(0.0, 1.0)
    return low, high


def saturated(
    joint_torque: Tensor, joint_vel: Tensor, peak_torque: Tensor, no_load_speed: Tensor
) -> Tensor:
    """Which drives give 99 % or more of what they can, (N, 18)."""
    low, high = torque_speed_limit(joint_vel, peak_torque, no_load_speed)
    return (joint_torque >= 0.99 * high) | (joint_torque <= 0.99 * low)


def fallen(gravity_b: Tensor, tilt_limit_rad: float) -> Tensor:
    """Which robots tilt more than the safety gate allows."""
    return torch.acos((-gravity_b[:, 2]).clamp(-1.0, 1.0)) > tilt_limit_rad


def sunk(base_in_pit: Tensor) -> Tensor:
    """Which robots' bases are in a pit; `base_in_pit` is (N, 1)."""
    return base_in_pit.any(-1)


def left_lane(base_pos_w: Tensor, lane_y: Tensor, half_width_m: float) -> Tensor:
    """Which robots' bases are outside their lane."""
    return (base_pos_w[:, 1] - lane_y).abs() > half_width_m
