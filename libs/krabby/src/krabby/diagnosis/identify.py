"""System identification from a log: gains, delay and friction of every joint by least squares.

Gains and delay come from targets and torques (`krabby.diagnosis.drives`). Friction is what the
drive of a leg in the air gives beyond what the leg's weight and motion take:

    torque - (weight and inertia) = friction sign(velocity)

Dry and viscous friction are not told apart: at the speeds of one gait they look alike.
The body's acceleration is the accelerometer's; its rotation counts as steady, so single samples are
wrong by some N·m. Over a run that averages out, as far as it does not follow a joint's velocity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krabby.diagnosis.drives import fit_law
from krabby.robot.contact import FootContacts
from krabby.robot.description import JOINTS_PER_LEG

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.diagnosis.log import RunLog
    from krabby.robot.description import RobotDescription

__all__ = ["Identified", "identify"]

_STILL_RAD_S: Final = 0.15
"""Slower joints may stick: friction has no known value then."""
_LEAST: Final = 60
_ROUNDS: Final = 4
_KEPT: Final = 2.5
"""Deviations beyond so many standard deviations are left out of the next round."""
_LIFTED: Final = 3
"""Samples by which a foot must have left the ground before and after."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Identified:
    """What was found; arrays have shape (18,) and NaN where there was too little to see."""

    joints: tuple[str, ...]
    delay_s: float
    """From the HAL's answer to torque at the joint; NaN without commands."""
    kp: NDArray[np.float64]
    """[N·m/rad]"""
    kd: NDArray[np.float64]
    """[N·m·s/rad]"""
    friction: NDArray[np.float64]
    """Dry and viscous together, at the speeds of this run [N·m]."""
    speed: NDArray[np.float64]
    """Mean of these speeds [rad/s]."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what was not found is None."""

        def plain(values: NDArray[np.float64]) -> list[float | None]:
            return [round(float(v), 4) if np.isfinite(v) else None for v in values]

        names = ("kp", "kd", "friction", "speed")
        delay_s = round(self.delay_s, 5) if np.isfinite(self.delay_s) else None
        columns = {name: plain(getattr(self, name)) for name in names}
        return {"joints": list(self.joints), "delay_s": delay_s, **columns}


def identify(log: RunLog, desc: RobotDescription) -> Identified:
    """Fit gains, delay and friction."""
    law = fit_law(log, desc)
    nothing = np.full(len(desc.joint_names), np.nan)
    friction, speed = _friction(log, desc)
    return Identified(
        joints=desc.joint_names,
        delay_s=np.nan if law is None else law.delay_s,
        kp=nothing if law is None else law.kp,
        kd=nothing if law is None else law.kd,
        friction=friction,
        speed=speed,
    )


def _friction(
    log: RunLog, desc: RobotDescription
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    joints = len(desc.joint_names)
    beyond = _beyond(log, desc)
    air = _in_the_air(log)
    between = 0.5 * (log.joint_vel + np.roll(log.joint_vel, 1, axis=0))
    friction, speed = np.full(joints, np.nan), np.full(joints, np.nan)
    for j in range(joints):
        velocity = between[:, j]
        use = air[:, j // JOINTS_PER_LEG] & (np.abs(velocity) > _STILL_RAD_S)
        torque, velocity = beyond[use, j], velocity[use]
        # A constant takes up what is wrong with masses.
        columns = np.stack([np.sign(velocity), np.ones(len(velocity))], axis=1)
        keep = np.ones(len(velocity), bool)
        for _ in range(_ROUNDS):
            if keep.sum() < _LEAST or np.ptp(columns[keep, 0]) == 0.0:
                break
            found = np.linalg.lstsq(columns[keep], torque[keep], rcond=None)[0]
            deviation = torque - columns @ found
            friction[j], speed[j] = found[0], np.abs(velocity[keep]).mean()
            keep = np.abs(deviation) < _KEPT * float(deviation[keep].std())
    return friction, speed


def _beyond(log: RunLog, desc: RobotDescription) -> NDArray[np.float64]:
    """Torque beyond weight and motion of the legs [N·m], (T, 18), between two states each."""
    contacts = FootContacts(desc)
    out = np.zeros_like(log.joint_pos)
    for i, now_s in enumerate(log.time_s):
        contacts.update(
            log.joint_pos[i], log.joint_vel[i], log.joint_effort[i], log.base_quat_w[i],
            1 + round(1e9 * float(now_s)), log.base_lin_acc_b[i],
        )  # fmt: skip
        out[i] = -np.stack(contacts.moments, axis=1).ravel()
    return out


def _in_the_air(log: RunLog) -> NDArray[np.bool_]:
    """Feet that have left the ground for some samples, (T, 6)."""
    lifted = ~log.foot_contact & (log.following & log.joined)[:, None]
    air = lifted.copy()
    for step in range(1, _LIFTED + 1):
        air[step:] &= lifted[:-step]
        air[:-step] &= lifted[step:]
    return air
