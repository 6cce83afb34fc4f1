"""Which feet stand on something, told from the torques of the drives alone.

The crab has no switches in its feet. What a leg's drives give beyond what its own weight and
motion take is the force of the ground on its foot, seen through the leg's Jacobian:

    effort = sum of m J' (a + g) over the leg's mass points + armature acceleration - Jfoot' force

A leg that swings briskly takes as much torque as one that stands (measured: the gait at 0.3 m/s
shows 60 N at a foot in the air if its motion is left out), so accelerations are taken from the
joint speeds of two measurements. The body counts as not accelerated.

A leg bends in an upright plane that its yaw turns. Vectors in that plane are complex numbers here,
outwards and upwards; those on the level too, forwards and to the left. Turning is multiplying then,
and all points of all legs are worked on in a few passes: this runs in every cycle of the drives.

Two thresholds keep the answer from chattering between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from krabby.robot import rotations
from krabby.robot.bill import LINKS
from krabby.robot.description import JOINTS_PER_LEG, NUM_LEGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.robot.description import RobotDescription

__all__ = ["ContactCfg", "FootContacts"]

_GRAVITY = 9.81
_POINTS = np.array(
    [
        (0.5, 0.0, 0.0), (1.0, 0.0, 0.0),  # middle and end of the hip
        (1.0, 0.5, 0.0), (1.0, 1.0, 0.0),  # of the femur
        (1.0, 1.0, 0.5), (1.0, 1.0, 1.0),  # of the tibia: the foot
    ]
)  # fmt: skip
"""Mass points of a leg: the shares of hip, femur and tibia between the hip-yaw axis and them."""
_FOOT = 5
_TURNS = np.array([(1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.0, 1.0)])
"""Yaw, pitch and knee to the directions of hip, femur and tibia."""
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
        geometry = description.geometry
        self._cfg = ContactCfg() if cfg is None else cfg
        self._masses = _point_masses(description)
        self._hip = _POINTS[:, 0] * geometry.hip_length
        self._femur = _POINTS[:, 1] * geometry.femur_length
        self._tibia = _POINTS[:, 2] * geometry.tibia_length
        self._yaw = np.zeros((NUM_LEGS, JOINTS_PER_LEG))
        self._yaw[:, 0] = geometry.leg_yaw
        self._armature = description.armature.reshape(NUM_LEGS, JOINTS_PER_LEG)
        self._down = np.zeros(NUM_LEGS, dtype=bool)
        self._stamp_ns: int | None = None
        self._level = np.zeros((NUM_LEGS, len(_POINTS)), np.complex128)
        self._upright = np.zeros((NUM_LEGS, len(_POINTS)))
        self._joint_vel = np.zeros((NUM_LEGS, JOINTS_PER_LEG))
        self._effort = np.zeros((NUM_LEGS, JOINTS_PER_LEG))
        self.load_n: NDArray[np.float64] = np.zeros(NUM_LEGS)
        """Force of the ground along the world's up in the last update [N], shape (6,)."""
        self.moments: tuple[NDArray[np.float64], ...] = (np.zeros(NUM_LEGS),) * JOINTS_PER_LEG
        """About yaw, pitch and knee of every leg, what mass and motion take beyond the torques of
        the last update [N·m], shape (6,) each: the ground's part, and less friction in the air."""

    def update(
        self,
        joint_pos: NDArray[np.float64],
        joint_vel: NDArray[np.float64],
        joint_effort: NDArray[np.float64],
        quat_wb: NDArray[np.float64],
        now_ns: int,
        specific_force_b: NDArray[np.float64] | None = None,
    ) -> NDArray[np.bool_]:
        """Which feet touch, shape (6,); the array is reused by the next call.

        Args:
            joint_pos: Angles [rad], shape (18,).
            joint_vel: Speeds [rad/s], shape (18,).
            joint_effort: Torques of the drives [N·m], shape (18,).
            quat_wb: Base to world, xyzw, shape (4,).
            now_ns: When it was measured.
            specific_force_b: What an accelerometer in the body reads [m/s²], shape (3,); when left
                out the body counts as not accelerated.
        """
        up_b = -rotations.projected_gravity(quat_wb)
        vel = joint_vel.reshape(NUM_LEGS, JOINTS_PER_LEG)
        effort = joint_effort.reshape(NUM_LEGS, JOINTS_PER_LEG)
        turn = np.exp(1j * (joint_pos.reshape(NUM_LEGS, JOINTS_PER_LEG) @ _TURNS + self._yaw))
        heading, femur, tibia = turn[:, 0, None], turn[:, 1, None], turn[:, 2, None]
        shin = self._tibia * tibia
        leg = self._femur * femur + shin
        reach = self._hip + leg.real
        in_plane = 1j * (vel[:, 1, None] * leg + vel[:, 2, None] * shin)
        level = heading * (in_plane.real + 1j * (vel[:, 0, None] * reach))
        upright = in_plane.imag
        up_level = complex(up_b[0], up_b[1])
        level_force, upright_force = _GRAVITY * up_level, _GRAVITY * up_b[2]
        if specific_force_b is not None:
            level_force = complex(specific_force_b[0], specific_force_b[1])
            upright_force = float(specific_force_b[2])
        moment = -effort
        if self._stamp_ns is not None and now_ns > self._stamp_ns:
            # Speeds of two measurements tell the acceleration between them, as do their torques.
            per_s = 1e9 / (now_ns - self._stamp_ns)
            level_force = level_force + per_s * (level - self._level)
            upright_force = upright_force + per_s * (upright - self._upright)
            moment = self._armature * per_s * (vel - self._joint_vel) - 0.5 * (
                effort + self._effort
            )
        self._stamp_ns, self._level, self._upright = now_ns, level, upright
        self._joint_vel, self._effort = vel.copy(), effort.copy()
        turned = level_force * heading.conj()
        across = self._masses * turned.imag
        along = self._masses * (turned.real + 1j * upright_force)
        yaw = moment[:, 0] + (across * reach).sum(axis=1)
        pitch = moment[:, 1] + (along * leg.conj()).sum(axis=1).imag
        knee = moment[:, 2] + (along * shin.conj()).sum(axis=1).imag
        self.moments = (yaw, pitch, knee)
        up = up_level * heading[:, 0].conj()
        arm = reach[:, _FOOT]
        in_plane_n = _force_in_plane(1j * leg[:, _FOOT], 1j * shin[:, _FOOT], pitch, knee)
        across_n = arm * yaw / (arm**2 + _STRAIGHT**2)
        self.load_n = in_plane_n.real * up.real + across_n * up.imag + in_plane_n.imag * up_b[2]
        self._down &= self.load_n >= self._cfg.off_n
        self._down |= self.load_n >= self._cfg.on_n
        return self._down


def _point_masses(description: RobotDescription) -> NDArray[np.float64]:
    """Mass at each of `_POINTS` [kg].

    Mass, centre and second moment of a link are those of three points at its ends and middle; a
    rod has a sixth at each end and the rest in the middle.
    """
    geometry, links = description.geometry, description.inertials
    lengths = (geometry.hip_length, geometry.femur_length, geometry.tibia_length)
    points = np.zeros(2 * len(lengths) + 1)
    for i, length in enumerate(lengths):
        link = links[LINKS[i + 1]]
        first, second = link.mass * link.com[0] / length, link.spread_x / length**2
        middle = 4.0 * (first - second)
        end = first - 0.5 * middle
        points[2 * i : 2 * i + 3] += (link.mass - middle - end, middle, end)
    points[-1] += links["foot"].mass
    return points[1:]


def _force_in_plane(
    pitch_arm: NDArray[np.complexfloating[Any, Any]],
    knee_arm: NDArray[np.complexfloating[Any, Any]],
    pitch: NDArray[np.float64],
    knee: NDArray[np.float64],
) -> NDArray[np.complex128]:
    """Forces [N] at the feet, outwards and upwards, with these moments about two joints [N·m].

    Args:
        pitch_arm: How the foot moves with the hip's pitch [m/rad].
        knee_arm: How it moves with the knee [m/rad].
        pitch: Moment about the hip's pitch.
        knee: Moment about the knee.
    """
    out = pitch_arm.real**2 + knee_arm.real**2 + _STRAIGHT**2
    up = pitch_arm.imag**2 + knee_arm.imag**2 + _STRAIGHT**2
    both = pitch_arm.real * pitch_arm.imag + knee_arm.real * knee_arm.imag
    pull = pitch_arm * pitch + knee_arm * knee
    force = up * pull.real - both * pull.imag + 1j * (out * pull.imag - both * pull.real)
    result: NDArray[np.complex128] = force / (out * up - both**2)
    return result
