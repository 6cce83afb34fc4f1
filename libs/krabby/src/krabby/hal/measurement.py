"""What a robot's own sensors say, and how the stream `state` lays it out."""

from __future__ import annotations

import numpy as np
from krabby_proto import STATE
from numpy.typing import NDArray

from krabby.robot import rotations

__all__ = ["Measurement", "StatePayload"]


class Measurement:
    """One measurement; the back end writes the arrays in place."""

    def __init__(self, joints: int, feet: int) -> None:
        """Level, at rest, for so many joints and feet."""
        self.base_quat_w = rotations.IDENTITY.copy()
        """Base to world, xyzw, shape (4,)."""
        self.base_ang_vel_b = np.zeros(3)
        """Gyro [rad/s]."""
        self.base_lin_acc_b = np.zeros(3)
        """Accelerometer: specific force [m/s²]; +9.81 on z at rest."""
        self.joint_pos = np.zeros(joints)
        """[rad]"""
        self.joint_vel = np.zeros(joints)
        """[rad/s]"""
        self.joint_effort = np.zeros(joints)
        """Torque of the drives [N·m]."""
        self.foot_contact = np.zeros(feet)
        """1 where a foot carries load, else 0."""


class StatePayload:
    """The payload of `state`, written anew from every measurement."""

    def __init__(self) -> None:
        """Allocate it once."""
        self._payload = np.zeros(STATE.size, np.float32)
        self._fields = [(name, self._payload[at]) for name, at in STATE.slices.items()]

    def fill(self, measured: Measurement) -> NDArray[np.float32]:
        """The payload, shape (70,); the array is reused by the next call."""
        for name, view in self._fields:
            view[:] = getattr(measured, name)
        return self._payload
