"""Samples of an inertial sensor in the robot's frames."""

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from krabby.robot import rotations

__all__ = ["ImuCounters", "ImuMount", "ImuSample"]


class ImuSample(NamedTuple):
    """One reading, in the robot's base frame (x forward, y left, z up)."""

    quat_wb: NDArray[np.float64]
    """Base to world (x, y, z, w), shape (4,). World: z up; where its x points is the sensor's."""
    ang_vel_b: NDArray[np.float64]
    """[rad/s], shape (3,)."""
    lin_acc_b: NDArray[np.float64]
    """Specific force at the sensor [m/s^2], shape (3,): (0, 0, 9.81) when at rest and level."""
    stamp_ns: int
    """When it was measured, CLOCK_MONOTONIC."""
    temperature_c: float = float("nan")
    """NaN if the sensor does not say."""


@dataclasses.dataclass(slots=True)
class ImuCounters:
    """Running totals of one source."""

    received: int = 0
    """Samples."""
    bad_checksums: int = 0
    """Messages that were framed but damaged."""
    skipped_bytes: int = 0
    """Bytes that belonged to no message."""
    reconnects: int = 0
    """Times that the connection was lost and made again."""


class ImuMount:
    """How a sensor sits on the robot (`quat_bs`), and its world frame in ours (`quat_wn`)."""

    def __init__(self, quat_bs: ArrayLike, quat_wn: ArrayLike = rotations.IDENTITY) -> None:
        quat_bs, quat_wn = rotations.normalize(quat_bs), rotations.normalize(quat_wn)
        self._rot_bs = rotations.to_matrix(quat_bs)
        # quat_wb = quat_wn quat_ns quat_sb is linear in quat_ns: one product on the 200 Hz path
        identity = np.eye(4)
        columns = rotations.mul(rotations.mul(quat_wn, identity), rotations.conjugate(quat_bs))
        self._quat_map = columns.T  # row i was the image of unit vector i

    def to_base(
        self, quat_ns: ArrayLike, ang_vel_s: ArrayLike, lin_acc_s: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """`quat_wb`, `ang_vel_b`, `lin_acc_b` of what the sensor measured in its own frames."""
        return (
            self._quat_map @ np.asarray(quat_ns, np.float64),
            self._rot_bs @ np.asarray(ang_vel_s, np.float64),
            self._rot_bs @ np.asarray(lin_acc_s, np.float64),
        )

    def to_sensor(
        self, sample: ImuSample
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The inverse: what a sensor so mounted measures, `quat_ns`, `ang_vel_s`, `lin_acc_s`."""
        return (
            self._quat_map.T @ np.asarray(sample.quat_wb, np.float64),  # orthogonal
            self._rot_bs.T @ np.asarray(sample.ang_vel_b, np.float64),
            self._rot_bs.T @ np.asarray(sample.lin_acc_b, np.float64),
        )
