"""Which feet stand on something, told from the torques of the drives alone.

The crab has no switches in its feet. What a leg's drives give beyond what its own weight and
motion take is the force of the ground on its foot, seen through the leg's Jacobian:

    effort = sum of m J' (a + g) over the leg's mass points + armature acceleration - Jfoot' force

A leg that swings briskly takes as much torque as one that stands (measured: the gait at 0.3 m/s
shows 60 N at a foot in the air if its motion is left out), so accelerations are taken from the
joint speeds of two measurements. The body counts as not accelerated.

Two thresholds keep the answer from chattering between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from krabby_robot import frames
from krabby_robot.description import JOINTS_PER_LEG, NUM_LEGS
from krabby_robot.kinematics import leg_jacobians

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby_robot.description import RobotDescription

__all__ = ["ContactCfg", "FootContacts"]

_GRAVITY = 9.81
_POINTS = np.array(
    [
        (0.5, 0.0, 0.0), (1.0, 0.0, 0.0),  # middle and end of the hip
        (1.0, 0.5, 0.0), (1.0, 1.0, 0.0),  # of the femur
        (1.0, 1.0, 0.5), (1.0, 1.0, 1.0),  # of the tibia: the foot
    ]
)  # fmt: skip
"""Mass points of a leg, as `leg_jacobians` takes them."""
_FOOT = 5
_STRAIGHT = 0.05
"""Damping of the solution [m]: a straight leg carries any load along itself without torque."""


@dataclass(frozen=True, kw_only=True)
class ContactCfg:
    """Loads [N] at which a foot is taken to touch down and to lift off.

    Six feet carry 42 N each at rest, three 84 N.
    """

    on_n: float = 20.0
    """Touches down from this load on."""
    off_n: float = 10.0
    """Lifts off below this load."""

    def __post_init__(self) -> None:
        """Refuses thresholds that are no hysteresis."""
        if not (math.isfinite(self.on_n) and 0.0 < self.off_n <= self.on_n):
            raise ValueError(
                f"contact thresholds are on_n = {self.on_n:g} and off_n = {self.off_n:g}; "
                "give 0 < off_n <= on_n"
            )


class FootContacts:
    """Load and contact of every foot over time; one per robot."""

    def __init__(self, description: RobotDescription, cfg: ContactCfg | None = None) -> None:
        """All feet in the air, no motion known."""
        self._description = description
        self._cfg = ContactCfg() if cfg is None else cfg
        self._masses = _point_masses(description)
        self._down = np.zeros(NUM_LEGS, dtype=bool)
        self._stamp_ns: int | None = None
        self._point_vel = np.zeros((NUM_LEGS, len(_POINTS), 3))
        self._joint_vel = np.zeros((NUM_LEGS, JOINTS_PER_LEG))
        self._effort = np.zeros((NUM_LEGS, JOINTS_PER_LEG))
        self.load_n: NDArray[np.float64] = np.zeros(NUM_LEGS)
        """Force of the ground along the world's up in the last update [N], shape (6,)."""

    def update(
        self,
        joint_pos: NDArray[np.float64],
        joint_vel: NDArray[np.float64],
        joint_effort: NDArray[np.float64],
        quat_wb: NDArray[np.float64],
        now_ns: int,
    ) -> NDArray[np.bool_]:
        """Which feet touch, shape (6,); the array is reused by the next call.

        Args:
            joint_pos: Angles [rad], shape (18,).
            joint_vel: Speeds [rad/s], shape (18,).
            joint_effort: Torques of the drives [N·m], shape (18,).
            quat_wb: Base to world, xyzw, shape (4,).
            now_ns: When it was measured.
        """
        up_b = -frames.projected_gravity(quat_wb)
        jacobians = leg_jacobians(self._description, joint_pos, _POINTS)
        vel = joint_vel.reshape(NUM_LEGS, JOINTS_PER_LEG)
        effort = joint_effort.reshape(NUM_LEGS, JOINTS_PER_LEG)
        point_vel = np.einsum("lpij,lj->lpi", jacobians, vel)
        specific_force = np.broadcast_to(_GRAVITY * up_b, point_vel.shape)
        armature = np.zeros_like(vel)
        mean_effort = effort
        if self._stamp_ns is not None and now_ns > self._stamp_ns:
            # Speeds of two measurements tell the acceleration between them, as do their torques.
            per_s = 1e9 / (now_ns - self._stamp_ns)
            specific_force = specific_force + per_s * (point_vel - self._point_vel)
            armature = self._description.armature * per_s * (vel - self._joint_vel)
            mean_effort = 0.5 * (effort + self._effort)
        moved = np.einsum("p,lpij,lpi->lj", self._masses, jacobians, specific_force)
        self.load_n = _forces(jacobians[:, _FOOT], moved + armature - mean_effort) @ up_b
        self._stamp_ns, self._point_vel = now_ns, point_vel
        self._joint_vel, self._effort = vel.copy(), effort.copy()
        self._down &= self.load_n >= self._cfg.off_n
        self._down |= self.load_n >= self._cfg.on_n
        return self._down


def _point_masses(description: RobotDescription) -> NDArray[np.float64]:
    """Mass at each of `_POINTS` [kg].

    A rod's mass, centre and inertia are those of a sixth at each end and the rest in the middle.
    """
    masses = description.masses
    hip, femur, tibia = masses.hip / 6.0, masses.femur / 6.0, masses.tibia / 6.0
    return np.array(
        [4.0 * hip, hip + femur, 4.0 * femur, femur + tibia, 4.0 * tibia, tibia + masses.foot]
    )


def _forces(jacobians: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Forces (6, 3) [N] with the given moments (6, 3) [N·m] about the legs' joints."""
    transposed = np.swapaxes(jacobians, 1, 2)
    square = jacobians @ transposed + _STRAIGHT**2 * np.eye(3)
    return np.linalg.solve(square, np.einsum("lij,lj->li", jacobians, moments)[..., None])[..., 0]
