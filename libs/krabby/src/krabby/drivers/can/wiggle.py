"""Moves one joint a little, so that an operator sees which one it is and which way it turns.

Every other joint is limp and damped. The joint goes 0.2 rad from where it is towards the middle of
its range and back, with at most half of its rated torque.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from krabby.drivers.can.bus import CanJointBus
from krabby.drivers.can.faults import fault_names, remedy
from krabby.drivers.can.types import DriveReadings, DriveTargets
from krabby.drivers.errors import DriveError
from krabby.robot.description import JOINTS_PER_LEG, RobotDescription

__all__ = ["Wiggle", "wiggle"]

_TRAVEL_RAD: Final = 0.2
_RISE_S: Final = 0.4
_MOVE_S: Final = 0.8
_PERIOD_NS: Final = 5_000_000
_REPLY_NS: Final = 4_000_000
_TORQUE_SHARE: Final = 0.5
"""Of the rated torque: enough for the weight of a leg."""
_LEAST_SHARE: Final = 0.5
"""Of the travel that the joint must make."""
_OTHERS_RAD: Final = 0.05
"""No joint of another leg moves by that much while it is limp and nothing pushes it."""


class Wiggle(NamedTuple):
    """What came of it."""

    way: int
    """1: the angle was to grow, -1: to fall."""
    travel: NDArray[np.float64]
    """How far every joint moved from where it was, at most [rad], shape (n,)."""


def wiggle(
    bus: CanJointBus,
    desc: RobotDescription,
    joint: int,
    *,
    period_ns: int = _PERIOD_NS,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    wait: Callable[[float], None] = time.sleep,
) -> Wiggle:
    """Move a joint there and back; the drives are on and limp before and afterwards.

    Raises:
        DriveError: A drive has a fault, the joint does not move, or one of another leg does.
    """
    readings = bus.readings
    start = readings.joint_pos.copy()
    middle = 0.5 * float(desc.joint_lower[joint] + desc.joint_upper[joint])
    way = 1 if start[joint] <= middle else -1
    bus.set_effort_limits(_TORQUE_SHARE * desc.rated_torque)
    travel = np.zeros(len(start))
    for gain, at in _course(period_ns):
        began_ns = clock_ns()
        readings = bus.exchange(_targets(desc, start, joint, gain, way * at), began_ns + _REPLY_NS)
        np.fmax(travel, np.abs(readings.joint_pos - start), out=travel)
        if readings.faults.any():
            _refuse_others(travel, desc, joint)  # the cause of one that stands still
            _refuse_faults(readings, desc)
        wait(max(0.0, (period_ns - (clock_ns() - began_ns)) * 1e-9))
    bus.exchange(_targets(desc, start, joint, 0.0, 0.0), clock_ns() + _REPLY_NS)
    _refuse_others(travel, desc, joint)
    _refuse_rest(travel, desc, joint)
    return Wiggle(way, travel)


def _course(period_ns: int) -> list[tuple[float, float]]:
    """Share of the gains, and how far from the start [rad], for every cycle."""
    rise = np.linspace(0.0, 1.0, round(_RISE_S * 1e9 / period_ns))
    move = np.linspace(0.0, 1.0, round(_MOVE_S * 1e9 / period_ns))
    there = _TRAVEL_RAD * move**3 * (10.0 - 15.0 * move + 6.0 * move**2)
    gains = np.concatenate([rise, np.ones(2 * len(move)), rise[::-1]])
    at = np.concatenate([np.zeros(len(rise)), there, there[::-1], np.zeros(len(rise))])
    return list(zip(gains.tolist(), at.tolist(), strict=True))


def _targets(
    desc: RobotDescription, start: NDArray[np.float64], joint: int, gain: float, at: float
) -> DriveTargets:
    limp = DriveTargets.limp(len(start), desc.safety.damp_kd)
    pos, kp = start.copy(), np.zeros(len(start))
    pos[joint] += at
    kp[joint] = gain * desc.kp[joint]
    return limp._replace(joint_pos=pos, kp=kp)


def _refuse_faults(readings: DriveReadings, desc: RobotDescription) -> None:
    for i in np.flatnonzero(readings.faults):
        faults = int(readings.faults[i])
        raise DriveError(f"{desc.joint_names[i]} has {fault_names(faults)}; {remedy(faults)}")


def _refuse_others(travel: NDArray[np.float64], desc: RobotDescription, joint: int) -> None:
    """Raise if a joint of another leg moved."""
    name = desc.joint_names[joint]
    leg = np.arange(len(travel)) // JOINTS_PER_LEG
    others = np.flatnonzero((travel > _OTHERS_RAD) & (leg != leg[joint]))
    if others.size:
        other = desc.joint_names[int(others[travel[others].argmax()])]
        raise DriveError(
            f"{name} was commanded and {other} moved by {travel[others].max():.2f} rad: the "
            "two have each other's plug or id; exchange them, or their entries in hardware.toml"
        )


def _refuse_rest(travel: NDArray[np.float64], desc: RobotDescription, joint: int) -> None:
    """Raise unless the joint moved."""
    name = desc.joint_names[joint]
    if travel[joint] < _LEAST_SHARE * _TRAVEL_RAD:
        raise DriveError(
            f"{name} was commanded to move by {_TRAVEL_RAD:g} rad and moved by "
            f"{travel[joint]:.2f}; free the leg, see that no foot reaches the ground, and that its "
            "drive has its supply"
        )
