"""Keeps a drive's torque within a limit by the gains of the command frame.

The drive computes kp (pos* - pos) + kd (vel* - vel) + torque* some thousand times a second, so a
limit can be kept from outside only for the newest reading; the motion until the next frame may
exceed it. Where a make has its own torque limit, that one holds in between.
"""

import numpy as np

from krabby.drivers.can.codec import FloatArray
from krabby.drivers.can.types import DriveTargets

__all__ = ["commanded_torque", "fold"]


def commanded_torque(
    targets: DriveTargets, joint_pos: FloatArray, joint_vel: FloatArray
) -> FloatArray:
    """What the drives would give at this reading [N·m], shape (n,)."""
    spring = targets.kp * (targets.joint_pos - joint_pos) + targets.torque
    return spring + targets.kd * (targets.joint_vel - joint_vel)


def fold(
    targets: DriveTargets, joint_pos: FloatArray, joint_vel: FloatArray, limit: FloatArray
) -> DriveTargets:
    """The targets, with gains lowered where the torque at this reading would pass `limit`.

    Stiffness and feed-forward give way first, so that the joint stays damped; damping only where it
    alone would pass the limit. The position target stays where it is: moving it would keep the
    stiffness, and with it a torque that grows faster between two frames, and could leave the
    joint's range. A joint that was never read (NaN) gets no stiffness. Arrays have shape (n,).
    """
    spring = targets.kp * (targets.joint_pos - joint_pos) + targets.torque
    damping = targets.kd * (targets.joint_vel - joint_vel)
    total = spring + damping
    magnitude = np.abs(total)
    if (magnitude <= limit).all():
        return targets
    unknown = ~np.isfinite(total)
    over = (magnitude > limit) & ~unknown
    # Only rows that are `over` use these, and there neither divisor is zero.
    safe_total = np.where(over, magnitude, 1.0)
    keeps_damping = np.abs(damping) <= limit
    divisor = np.where(over & keeps_damping, spring, 1.0)
    room = np.copysign(limit, total) - damping
    spring_share = np.where(keeps_damping, room / divisor, limit / safe_total)
    damping_share = np.where(keeps_damping, 1.0, limit / safe_total)
    spring_share = np.where(over, spring_share, np.where(unknown, 0.0, 1.0))
    damping_share = np.where(over, damping_share, 1.0)
    return DriveTargets(
        targets.joint_pos,
        targets.joint_vel,
        targets.kp * spring_share,
        targets.kd * damping_share,
        targets.torque * spring_share,
    )
