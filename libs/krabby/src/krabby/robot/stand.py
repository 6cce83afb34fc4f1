"""Heights of the stand and the trestles for bringing a robot up, and what they carry.

`python -m krabby.robot.stand` prints the table of docs/bring-up.md for the chosen robot.
"""

import sys
from typing import Final, NamedTuple

import numpy as np

from krabby.robot.description import JOINTS_PER_LEG, NUM_LEGS, RobotDescription
from krabby.robot.kinematics import foot_positions

__all__ = ["Stand", "stand"]

_G: Final = 9.81
_FREE_M: Final = 0.1
"""Room between the lowest foot and the floor."""
_STEPS: Final = 61
_SAFETY: Final = 3.0
"""What a stand is to carry, times the robot's weight: legs that swing pull at it."""


class Stand(NamedTuple):
    """Heights above the floor [m] and loads [N]; of a trestle one of each for every leg."""

    underside_m: float
    """Of the body on the stand: no foot reaches the floor in any pose."""
    knee_m: float
    """Top of the trestle under a knee, with the leg straight out and level."""
    foot_m: float
    """The same under a foot."""
    weight_n: float
    """Of the whole robot."""
    knee_n: float
    """Load of the trestle under a knee, drives off."""
    foot_n: float
    """The same under a foot."""
    hip_pitch_nm: float
    """What holds a straight, level leg in the air without a trestle [N·m]."""


def stand(desc: RobotDescription) -> Stand:
    """Work out heights and loads."""
    geometry, links = desc.geometry, desc.inertials
    lowest = -_lowest_foot(desc) + geometry.foot_radius
    half_body = 0.5 * float(geometry.body_size[2])
    base_m = lowest + _FREE_M
    femur, tibia, foot = links["femur"], links["tibia"], links["foot"]
    # Each link is a beam with a free joint at its inner end and a support at its outer one.
    at_foot = tibia.mass * float(tibia.com[0]) / geometry.tibia_length + foot.mass
    at_knee = (
        femur.mass * float(femur.com[0]) / geometry.femur_length
        + tibia.mass + foot.mass - at_foot
    )  # fmt: skip
    moment = femur.mass * float(femur.com[0])
    moment += tibia.mass * (geometry.femur_length + float(tibia.com[0]))
    moment += foot.mass * (geometry.femur_length + geometry.tibia_length)
    hip_z = float(geometry.hip_pos_b[0, 2])
    return Stand(
        underside_m=base_m - half_body,
        knee_m=base_m + hip_z - geometry.femur_radius,
        foot_m=base_m + hip_z - geometry.foot_radius,
        weight_n=_G * desc.masses.total,
        knee_n=_G * at_knee,
        foot_n=_G * at_foot,
        hip_pitch_nm=_G * moment,
    )


def _lowest_foot(desc: RobotDescription) -> float:
    """Lowest height of a foot's centre in the base frame over the joints' ranges [m]."""
    lower = desc.joint_lower.reshape(NUM_LEGS, JOINTS_PER_LEG)
    upper = desc.joint_upper.reshape(NUM_LEGS, JOINTS_PER_LEG)
    share = np.linspace(0.0, 1.0, _STEPS)
    pose = np.zeros((_STEPS, _STEPS, NUM_LEGS, JOINTS_PER_LEG))
    pose[..., 1] = lower[:, 1] + share[:, None, None] * (upper - lower)[:, 1]
    pose[..., 2] = lower[:, 2] + share[None, :, None] * (upper - lower)[:, 2]
    return float(foot_positions(desc, pose.reshape(_STEPS, _STEPS, -1))[..., 2].min())


def markdown(desc: RobotDescription) -> str:
    """The table."""
    found = stand(desc)
    rated = float(desc.rated_torque[1])
    return (
        "| what | height above the floor | carries |\n| --- | --- | --- |\n"
        f"| stand, under the body | {found.underside_m:.2f} m | {found.weight_n:.0f} N "
        f"({desc.masses.total:.1f} kg); build it for {_SAFETY * found.weight_n:.0f} N |\n"
        f"| trestle under each knee, step 8 | {found.knee_m:.2f} m | {found.knee_n:.0f} N |\n"
        f"| trestle under each foot, step 8 | {found.foot_m:.2f} m | {found.foot_n:.0f} N |\n\n"
        f"A straight, level leg in the air needs {found.hip_pitch_nm:.1f} N·m at its hip pitch, "
        f"{found.hip_pitch_nm / rated:.0%} of the rated torque.\n"
    )


if __name__ == "__main__":
    sys.stdout.write(markdown(RobotDescription.load()))
