"""Rewards: one table, `REWARDS`, and the functions behind its longer entries.

To add a reward, add a line to the table: the key `env.reward.<name>` with its default weight, the
environment's reward manager, the log's `Reward/<name>` and `train --keys` follow from it. A term
gives one number per robot, (N,), before its weight; penalties are positive here and have negative
weights. Weights are per second: the environment multiplies each by the control step.

Shapes: N robots, 18 joints, 6 feet; SI units; `_w` world, `_b` base frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from krabby_trainer.task.observations import ACTION_CLIP, ACTION_SCALE
from krabby_trainer.task.progress import Goal

__all__ = ["REWARDS", "Reward", "Step"]

Tensor = torch.Tensor

CONTACT_N: Final = 1.0
"""Contact force above which a body touches something."""
FEET_HIGH_M: Final = 0.05
"""How far above the base a foot may be before `feet_high` counts."""
CROUCH_M: Final = 0.1
"""How far below the default stand the base may be before `crouch` counts."""
CLEARANCE_M: Final = 0.06
"""Rise of a swing from which `low_swing` is 0."""
HANGS_S: Final = (0.6, 1.0)
"""Time in the air from which a foot begins to count as hanging, and from which it counts fully."""
HANGS_M: Final = 0.15
"""Height above the ground above which hanging costs no more."""
REACH_M: Final = 1.0
"""Ground farther below the base than this is out of a leg's reach."""
LOAD_SHARE: Final = 0.8
"""Share of a drive's rating above which its torque is `overload`."""
LIMIT_MARGIN_RAD: Final = 0.05
"""How near a joint may come to the limits of its target before `joint_limits` counts."""
SLOPE_REACH_M: Final = 0.5
"""How far round the base the ground is looked up for its slope."""
_STEEPEST_M: Final = 0.35
"""Difference of height over that distance above which ground is no slope (35 degrees)."""
_STRAIGHT_M: Final = 0.1
"""How much the two halves of a slope may differ; an obstacle's edge differs by more."""
_REFERENCE_TORQUE: Final = 40.0
"""Rating of the drives that the weight of `torque` is meant for [N·m]."""
_STILL_M_S: Final = 0.1
_STILL: Final = 0.05
_SLOWEST: Final = 0.15
"""A command counts as at least this where shares of it are taken."""
_ACROSS: Final = 0.4
"""A speed across the command that costs as much as all of the command earns [m/s or rad/s]."""
_UNASKED: Final = 0.3
"""Share of what a zero command earns where the rest of the command is not obeyed at all."""


@dataclass(kw_only=True)
class Step:
    """What rewards read: one control step of N robots, after physics.

    Of `Robots`: state and contact forces [N]; `leg_force_w` (N, 18, 3) is of hips, femurs and
    tibias, `soles_w` (N, 6, 3) are the lowest points of the feet. Flags: `foot_contact`, `on_edge`
    and `in_pit` (N, 6), `failed` and `free` (N,): robots that follow `command` (N, 3), vx, vy and
    yaw rate, instead of waypoints. `speed` (N,) is what earns all, 0 in a pause and
    before something impassable; of those that are before it, robots that `approaches` (N,) marks
    are not near it yet and may as well walk on at `onward_speed` (N,). Above `allowed_speed` (N,)
    `overspeed` counts. `ground_b` (N, 2) is the direction of gravity, x and y, for a base parallel
    to the ground; 0 where the ground is no slope. `mean_square` (N, 18) is filtered squared torque,
    `fold_start` the share of its rated value from which the safety gate reduces the limit; above
    `free_height_m` over the supporting feet `stature` counts, and `stand_height_m` is that of the
    default pose.
    `landed` (N, 6) are feet that touched down in this step, after a swing that rose by `rise_m`
    (N, 6) above the higher of its ends; `air_s` (N, 6) is the time since each foot touched the
    ground, whose height under it is `foot_ground_w` (N, 6).
    """

    dt: float
    base_pos_w: Tensor
    base_lin_vel_w: Tensor
    base_lin_vel_b: Tensor
    base_ang_vel_b: Tensor
    joint_pos: Tensor
    joint_vel: Tensor
    torque: Tensor
    foot_force_w: Tensor
    leg_force_w: Tensor
    base_force_w: Tensor
    weight_n: Tensor
    gravity_b: Tensor
    soles_w: Tensor
    previous_joint_vel: Tensor
    action: Tensor
    previous_action: Tensor
    mean_square: Tensor
    default_joint_pos: Tensor
    target_lower: Tensor
    target_upper: Tensor
    command: Tensor
    free_height_m: float
    stand_height_m: float
    foot_contact: Tensor
    landed: Tensor
    rise_m: Tensor
    air_s: Tensor
    foot_ground_w: Tensor
    on_edge: Tensor
    in_pit: Tensor
    failed: Tensor
    free: Tensor
    goal: Goal
    speed: Tensor
    approaches: Tensor
    onward_speed: Tensor
    allowed_speed: Tensor
    ground_b: Tensor
    rated_torque: Tensor
    fold_start: float


@dataclass(frozen=True)
class Reward:
    name: str
    weight: float
    """Default of `env.reward.<name>`, per second; 0 computes the term for the log alone."""
    of: Callable[[Step], Tensor]
    meaning: str


def goal_velocity(base_lin_vel_w: Tensor, direction_w: Tensor, speed: Tensor) -> Tensor:
    """Speed over ground towards the goal, capped at the commanded speed, as a share of it.

    In the world frame, so that going round an obstacle, or pushing against it, earns less than
    climbing over it. A robot commanded to stand earns 1 at rest, a third of it at 0.1 m/s.
    """
    along = (base_lin_vel_w[:, :2] * direction_w).sum(-1)
    still = torch.exp(-base_lin_vel_w[:, :2].norm(dim=-1) / _STILL_M_S)
    return torch.where(speed > 0.0, torch.minimum(along, speed) / speed.clamp(min=0.05), still)


def enough(speed: Tensor, slack: Sequence[float]) -> Tensor:
    """The speed that earns all where `speed` (N,) is commanded; see `env.command.slack`."""
    below, share = slack
    return torch.maximum((1.0 - share) * speed - below, 0.5 * speed)


def obeyed(velocity: Tensor, command: Tensor, slowest: float) -> Tensor:
    """Share of commands (N, k) that velocities (N, k) reach, (N,): at most 1, 1 for a zero one.

    Negative where the velocity is against the command; commands below `slowest` count as that.
    """
    speed = command.norm(dim=-1)
    along = (velocity * command).sum(-1) / speed.clamp(min=1e-6)
    share = torch.minimum(along, speed) / speed.clamp(min=slowest)
    return torch.where(speed > 0.0, share, 1.0)


def track(velocity: Tensor, command: Tensor, width: Tensor, stands: Tensor) -> Tensor:
    """How well velocities (N, k) follow commands (N, k), (N,): 1 if they are equal.

    Half is the share of the command that is reached, less what is across it, at most 1 and at
    least -1, which has a slope everywhere; half is a bell `width` (N,) wide. For robots that
    `stands` (N,) marks, whose whole command is zero, the first half is stillness.
    """
    unit = command / command.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    across = (velocity - (velocity * unit).sum(-1, keepdim=True) * unit).norm(dim=-1)
    share = (obeyed(velocity, command, _SLOWEST) - across / _ACROSS).clamp(min=-1.0)
    still = torch.exp(-velocity.norm(dim=-1) / _STILL)
    near = torch.exp(-(velocity - command).square().sum(-1) / width.square())
    return 0.5 * torch.where(stands, still, share) + 0.5 * near


def _squares(values: Tensor) -> Tensor:
    return values.square().sum(-1)


def ground_direction(ahead: Tensor, behind: Tensor) -> Tensor:
    """One part of `Step.ground_b`, (N,): that along a line through the base.

    Args:
        ahead: Height of the ground `SLOPE_REACH_M` ahead of the base, above that under it [m].
        behind: The same behind the base.
    """
    slope = 0.5 * (ahead - behind) / SLOPE_REACH_M
    steepest = torch.maximum(ahead.abs(), behind.abs())
    is_slope = (steepest <= _STEEPEST_M) & ((ahead + behind).abs() <= _STRAIGHT_M)
    return torch.where(is_slope, -slope / (1.0 + slope.square()).sqrt(), 0.0)


def tilt(gravity_b: Tensor, ground_b: Tensor) -> Tensor:
    """Squared tilt sine beyond what the ground explains, (N,).

    A base that is level, parallel to the ground or anything between the two costs nothing.
    """
    leans = gravity_b[:, :2]
    share = (leans * ground_b).sum(-1) / ground_b.square().sum(-1).clamp(min=1e-9)
    return _squares(leans - share.clamp(0.0, 1.0)[:, None] * ground_b)


def _goal_velocity(s: Step) -> Tensor:
    earned = goal_velocity(s.base_lin_vel_w, s.goal.direction_w, s.speed)
    onward = goal_velocity(s.base_lin_vel_w, s.goal.direction_w, s.onward_speed)
    return ~s.free * torch.where(s.approaches, torch.maximum(earned, onward), earned)


def _overspeed(s: Step) -> Tensor:
    return ~s.free * torch.relu(s.base_lin_vel_w[:, :2].norm(dim=-1) - s.allowed_speed)


def tracks(
    velocity: Tensor, command: Tensor, width: Tensor, other: Tensor, stands: Tensor
) -> Tensor:
    """`track`, but a zero command earns all only as far as the `other` one is `obeyed`, (N,).

    A robot that is to turn in place and stands would else be paid for standing still, more than
    the first slow turn earns.
    """
    share = _UNASKED + (1.0 - _UNASKED) * other.clamp(min=0.0)
    idle = (command.norm(dim=-1) == 0.0) & ~stands
    return torch.where(idle, share, 1.0) * track(velocity, command, width, stands)


def _track_velocity(s: Step) -> Tensor:
    # The faster the command, the wider the bell: precision is a share of it, and of turning.
    speed, rate = s.command[:, :2], s.command[:, 2:]
    width = 0.08 + 0.12 * speed.norm(dim=-1) + 0.1 * rate[:, 0].abs()
    turned = obeyed(s.base_ang_vel_b[:, 2:], rate, _STILL)
    return s.free * tracks(s.base_lin_vel_b[:, :2], speed, width, turned, _asked_to_stand(s))


def _track_yaw(s: Step) -> Tensor:
    speed, rate = s.command[:, :2], s.command[:, 2:]
    width = 0.12 + 0.2 * s.command.norm(dim=-1)
    walked = obeyed(s.base_lin_vel_b[:, :2], speed, _STILL)
    return s.free * tracks(s.base_ang_vel_b[:, 2:], rate, width, walked, _asked_to_stand(s))


def _asked_to_stand(s: Step) -> Tensor:
    return s.command.abs().sum(-1) == 0.0


def _goal_heading(s: Step) -> Tensor:
    return ~s.free * torch.where(s.speed > 0.0, torch.exp(-s.goal.heading_error.abs()), 1.0)


def _joint_deviation(s: Step) -> Tensor:
    return _squares(s.joint_pos - s.default_joint_pos)


def _rest_pose(s: Step) -> Tensor:
    still = (s.speed <= 0.0) & ~s.approaches
    standing = torch.where(s.free, _asked_to_stand(s), still)
    return torch.where(standing, _joint_deviation(s), 0.0)


def stature(base_height_w: Tensor, soles_w: Tensor, contact: Tensor, allowed_m: float) -> Tensor:
    """How far the base is higher than `allowed_m` above the feet that carry it [m].

    Args:
        base_height_w: (N,) [m].
        soles_w: (N, 6, 3) [m].
        contact: (N, 6) bool; without any contact the term is 0.
        allowed_m: Height that is free [m].
    """
    carrying = contact.float()
    count = carrying.sum(-1)
    ground = (soles_w[..., 2] * carrying).sum(-1) / count.clamp(min=1.0)
    return torch.relu(base_height_w - ground - allowed_m) * (count > 0.0)


def _stature(s: Step) -> Tensor:
    return stature(s.base_pos_w[:, 2], s.soles_w, s.foot_contact, s.free_height_m)


def _crouch(s: Step) -> Tensor:
    # `stature` upside down.
    least = s.stand_height_m - CROUCH_M
    return stature(-s.base_pos_w[:, 2], -s.soles_w, s.foot_contact, -least)


def beyond_limits(action: Tensor, default: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """By how much the safety gate cuts the targets of actions (N, 18) to its limits, summed [rad].

    A joint whose target lies beyond its limit rests on the end stop, which carries load for free.
    """
    target = default + ACTION_SCALE * action.clamp(-ACTION_CLIP, ACTION_CLIP)
    return (torch.relu(lower - target) + torch.relu(target - upper)).sum(-1)


def _beyond_limits(s: Step) -> Tensor:
    return beyond_limits(s.action, s.default_joint_pos, s.target_lower, s.target_upper)


def _low_swing(s: Step) -> Tensor:
    low = (1.0 - s.rise_m / CLEARANCE_M).clamp(0.0, 1.0)
    return (s.landed * low).sum(-1) / s.dt


def _feet_high(s: Step) -> Tensor:
    return torch.relu(s.soles_w[..., 2] - s.base_pos_w[:, 2][:, None] - FEET_HIGH_M).sum(-1)


def hanging_feet(height_m: Tensor, air_s: Tensor) -> Tensor:
    """Height of feet that have not touched the ground for longer than a step takes, summed [m].

    A leg that is held up carries nothing. Its foot is too high for chance to find the ground, so
    that costs of the others' load cannot teach it to come down; a slope in height can.

    Args:
        height_m: Of the soles above the ground under them, (N, 6) [m].
        air_s: Since they touched it, (N, 6) [s].
    """
    begin_s, full_s = HANGS_S
    share = ((air_s - begin_s) / (full_s - begin_s)).clamp(0.0, 1.0)
    return (share * height_m.clamp(0.0, HANGS_M)).sum(-1)


def _hanging_feet(s: Step) -> Tensor:
    # Over a gap or a pit there is nothing to stand on.
    reachable = s.foot_ground_w > s.base_pos_w[:, 2:] - REACH_M
    return hanging_feet(reachable * (s.soles_w[..., 2] - s.foot_ground_w), s.air_s)


def overload(torque: Tensor, rated_torque: Tensor) -> Tensor:
    """Squared torques (N, 18) over those at `LOAD_SHARE` of the rating, less 1, summed."""
    return torch.relu((torque / (LOAD_SHARE * rated_torque)).square() - 1.0).sum(-1)


def _acceleration(s: Step) -> Tensor:
    return _squares((s.joint_vel - s.previous_joint_vel) / s.dt)


def joint_limits(joint_pos: Tensor, lower: Tensor, upper: Tensor, margin_rad: float) -> Tensor:
    """How far joints are nearer to a limit than the margin, or beyond it, summed [rad]."""
    low = torch.relu(lower + margin_rad - joint_pos)
    high = torch.relu(joint_pos - upper + margin_rad)
    return (low + high).sum(-1)


def _joint_limits(s: Step) -> Tensor:
    return joint_limits(s.joint_pos, s.target_lower, s.target_upper, LIMIT_MARGIN_RAD)


def _power(s: Step) -> Tensor:
    return (s.torque * s.joint_vel).abs().sum(-1)


def _torque(s: Step) -> Tensor:
    # What heats a drive is its torque over its rating.
    return _squares(s.torque * (_REFERENCE_TORQUE / s.rated_torque))


def _effort(s: Step) -> Tensor:
    return effort_budget(s.mean_square, s.rated_torque, s.fold_start)


def effort_budget(mean_square: Tensor, rated_torque: Tensor, fold_start: float) -> Tensor:
    """How far the joints' mean square effort is above `fold_start` of the rated one, on average.

    From there the safety gate reduces the torque limit, so a robot that stays there grows weak.
    """
    return torch.relu(mean_square / (fold_start * rated_torque**2) - 1.0).mean(-1)


def bodies_touching(force_w: Tensor) -> Tensor:
    """Number of bodies (N, B, 3) pressed by more than `CONTACT_N`."""
    return (force_w.norm(dim=-1) > CONTACT_N).float().sum(-1)


def _contact_force(s: Step) -> Tensor:
    return torch.relu(s.foot_force_w.norm(dim=-1) / s.weight_n[:, None] - 1.0).sum(-1)


def _few_feet(s: Step) -> Tensor:
    return torch.relu(3.0 - s.foot_contact.float().sum(-1))


def stumble(foot_force_w: Tensor) -> Tensor:
    """1 where any foot is pushed sideways by more than four times its vertical load."""
    sideways = foot_force_w[..., :2].norm(dim=-1)
    return ((sideways > 4.0 * foot_force_w[..., 2].abs()) & (sideways > 1.0)).any(-1).float()


REWARDS: Final = (
    Reward("goal_velocity", 1.5, _goal_velocity, "Speed to the waypoint, share of the command."),
    Reward("overspeed", -2.0, _overspeed, "Speed above `env.command.hurry_speed` [m/s]."),
    Reward("goal_heading", 0.5, _goal_heading, "1 facing the waypoint, exponential in the angle."),
    Reward("track_velocity", 0.0, _track_velocity, "Free robots: vx and vy follow the command."),
    Reward("track_yaw", 0.0, _track_yaw, "Free robots: the yaw rate follows the command."),
    Reward("vertical_velocity", -0.5, lambda s: s.base_lin_vel_w[:, 2].square(), "Squared."),
    Reward("roll_pitch_rate", -0.05, lambda s: _squares(s.base_ang_vel_b[:, :2]), "Squared."),
    Reward("orientation", -0.3, lambda s: _squares(s.gravity_b[:, :2]), "Squared tilt sine."),
    Reward(
        "tilt", 0.0, lambda s: tilt(s.gravity_b, s.ground_b), "As orientation, beyond a slope's."
    ),
    Reward("joint_deviation", -0.02, _joint_deviation, "Squared distance from the default pose."),
    Reward("rest_pose", 0.0, _rest_pose, "Joint deviation, added while commanded to stand."),
    Reward("stature", 0.0, _stature, "Base more than 6 cm above the default stand [m]."),
    Reward("crouch", 0.0, _crouch, "Base more than 10 cm below the default stand [m]."),
    Reward("feet_high", 0.0, _feet_high, "Feet more than 5 cm above the base, summed [m]."),
    Reward(
        "action_rate", -0.01, lambda s: _squares(s.action - s.previous_action), "Squared change."
    ),
    Reward("beyond_limits", 0.0, _beyond_limits, "Targets beyond the gate's limits, summed [rad]."),
    Reward("joint_acceleration", 0.0, _acceleration, "Squared [rad²/s⁴]; weights are about -1e-7."),
    Reward("joint_limits", 0.0, _joint_limits, "Joints within 0.05 rad of a limit, summed [rad]."),
    Reward("power", 0.0, _power, "Mechanical, magnitudes summed: drives do not recuperate [W]."),
    Reward("torque", -8e-6, _torque, "Squared, as if rated at 40 N·m, summed [N²·m²]."),
    Reward("effort_budget", -4.0, _effort, "Squared torque above the gate's limit, relative."),
    Reward(
        "overload", 0.0, lambda s: overload(s.torque, s.rated_torque), "Torque above 0.8 rated."
    ),
    Reward("base_contact", -1.0, lambda s: bodies_touching(s.base_force_w), "Base in contact."),
    Reward("leg_contact", -0.1, lambda s: bodies_touching(s.leg_force_w), "Leg links in contact."),
    Reward("contact_force", 0.0, _contact_force, "Load per foot beyond the weight [weights]."),
    Reward("touchdowns", 0.0, lambda s: s.landed.sum(-1) / s.dt, "Of all feet, per second."),
    Reward("low_swing", 0.0, _low_swing, "Touchdowns, by how little the swing rose, per second."),
    Reward("few_feet", 0.0, _few_feet, "Feet missing to three on the ground."),
    Reward("hanging_feet", 0.0, _hanging_feet, "Feet in the air for over 0.6 s, height [m]."),
    Reward("stumble", -0.3, lambda s: stumble(s.foot_force_w), "Any foot pushed sideways."),
    Reward("edge", -6.0, lambda s: s.on_edge.float().sum(-1), "Loaded feet on an edge."),
    Reward("pit", -1.0, lambda s: s.in_pit.float().sum(-1), "Feet in a pit."),
    Reward("fall", -300.0, lambda s: s.failed.float(), "Per second: -3 for a failure at 100 Hz."),
)
"""The reward terms, in the order of the log."""
