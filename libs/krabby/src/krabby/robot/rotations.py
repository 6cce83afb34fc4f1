"""Rotations between base and world, once.

Quaternions are `(x, y, z, w)` and unit length. `quat_wb` takes base coordinates to world
coordinates: `v_w = rotate(quat_wb, v_b)`. Base frame: x forward, y left, z up. World: z up.
Every function takes any leading batch shape. MuJoCo's `(w, x, y, z)` is converted in
`krabby.mujoco.model` and nowhere else.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T", bound=Any)

__all__ = [
    "IDENTITY",
    "conjugate",
    "from_euler",
    "from_matrix",
    "from_yaw",
    "gravity_components",
    "matrix_rows",
    "mul",
    "normalize",
    "projected_gravity",
    "rotate",
    "rotate_inverse",
    "tilt",
    "to_matrix",
    "yaw",
    "yaw_components",
]

IDENTITY: NDArray[np.float64] = np.array([0.0, 0.0, 0.0, 1.0])
"""No rotation, (x, y, z, w)."""
IDENTITY.setflags(write=False)


def normalize(quat: ArrayLike) -> NDArray[np.float64]:
    """Scale `quat` (..., 4) to unit length; a zero quaternion is a caller's bug and gives NaN."""
    q = np.asarray(quat, dtype=np.float64)
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def conjugate(quat: ArrayLike) -> NDArray[np.float64]:
    """Inverse of a unit quaternion, (..., 4)."""
    return np.asarray(quat, dtype=np.float64) * (-1.0, -1.0, -1.0, 1.0)


def mul(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Hamilton product (..., 4): rotate by `b` first, then by `a`."""
    ax, ay, az, aw = _components(a)
    bx, by, bz, bw = _components(b)
    return np.stack(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ],
        axis=-1,
    )


def rotate(quat_wb: ArrayLike, vec_b: ArrayLike) -> NDArray[np.float64]:
    """Take a base-frame vector (..., 3) to the world frame."""
    x, y, z, w = _components(quat_wb)
    return _rotate(x, y, z, w, vec_b)


def rotate_inverse(quat_wb: ArrayLike, vec_w: ArrayLike) -> NDArray[np.float64]:
    """Take a world-frame vector (..., 3) to the base frame."""
    x, y, z, w = _components(quat_wb)
    return _rotate(-x, -y, -z, w, vec_w)


def projected_gravity(quat_wb: ArrayLike) -> NDArray[np.float64]:
    """Direction of gravity in the base frame (..., 3), unit length; (0, 0, -1) when upright."""
    return np.stack(gravity_components(*_components(quat_wb)), axis=-1)


def tilt(quat_wb: ArrayLike) -> NDArray[np.float64]:
    """Angle between the base's z axis and the vertical [rad], shape (...)."""
    return np.arccos(np.clip(-projected_gravity(quat_wb)[..., 2], -1.0, 1.0))


def yaw(quat_wb: ArrayLike) -> NDArray[np.float64]:
    """Heading of the base's x axis about world z [rad], in (-pi, pi], shape (...)."""
    return np.arctan2(*yaw_components(*_components(quat_wb)))


def from_yaw(angle: ArrayLike) -> NDArray[np.float64]:
    """Rotation by `angle` [rad] about z, (..., 4)."""
    half = 0.5 * np.asarray(angle, dtype=np.float64)
    zero = np.zeros_like(half)
    return np.stack([zero, zero, np.sin(half), np.cos(half)], axis=-1)


def from_euler(roll: ArrayLike, pitch: ArrayLike, yaw: ArrayLike) -> NDArray[np.float64]:
    """Fixed-axis roll, pitch, yaw [rad] as in URDF `rpy` (Rz(yaw) Ry(pitch) Rx(roll)), (..., 4)."""
    r, p, y = (0.5 * np.asarray(angle, dtype=np.float64) for angle in (roll, pitch, yaw))
    cr, sr, cp, sp, cy, sy = np.cos(r), np.sin(r), np.cos(p), np.sin(p), np.cos(y), np.sin(y)
    return np.stack(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ],
        axis=-1,
    )


def to_matrix(quat_wb: ArrayLike) -> NDArray[np.float64]:
    """Base-to-world matrix (..., 3, 3): multiplies base-frame columns from the left."""
    rows = matrix_rows(*_components(quat_wb))
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def from_matrix(matrix: ArrayLike) -> NDArray[np.float64]:
    """Quaternion (..., 4) of a rotation matrix (..., 3, 3), with `w >= 0`.

    Computes all four components by magnitude and takes signs from the largest one, so it is well
    conditioned for half turns too.
    """
    m = np.asarray(matrix, dtype=np.float64)
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, xz, yz = (
        m[..., 0, 1] + m[..., 1, 0],
        m[..., 0, 2] + m[..., 2, 0],
        m[..., 1, 2] + m[..., 2, 1],
    )
    wx, wy, wz = (
        m[..., 2, 1] - m[..., 1, 2],
        m[..., 0, 2] - m[..., 2, 0],
        m[..., 1, 0] - m[..., 0, 1],
    )
    # Each row is 4 * component * q; the row of the largest component loses no precision.
    rows = np.stack(
        [
            np.stack([1 + xx - yy - zz, xy, xz, wx], axis=-1),
            np.stack([xy, 1 - xx + yy - zz, yz, wy], axis=-1),
            np.stack([xz, yz, 1 - xx - yy + zz, wz], axis=-1),
            np.stack([wx, wy, wz, 1 + xx + yy + zz], axis=-1),
        ],
        axis=-2,
    )
    best = np.argmax(np.diagonal(rows, axis1=-2, axis2=-1), axis=-1)
    quat = normalize(np.take_along_axis(rows, best[..., None, None], axis=-2)[..., 0, :])
    return np.where(quat[..., 3:] < 0.0, -quat, quat)


# Operators alone: the components may be NumPy arrays or torch tensors.


def gravity_components(x: T, y: T, z: T, w: T) -> tuple[T, T, T]:
    """Direction of gravity in the base frame: minus the third row of the base-to-world matrix."""
    return 2.0 * (w * y - x * z), -2.0 * (y * z + w * x), 2.0 * (x * x + y * y) - 1.0


def yaw_components(x: T, y: T, z: T, w: T) -> tuple[T, T]:
    """Sine and cosine of the yaw, times the length of the x axis's shadow: arguments of atan2."""
    return 2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)


def matrix_rows(x: T, y: T, z: T, w: T) -> tuple[tuple[T, T, T], ...]:
    """Rows of the base-to-world matrix."""
    return (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )


def _components(quat: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    q = np.asarray(quat, dtype=np.float64)
    return q[..., 0], q[..., 1], q[..., 2], q[..., 3]


def _rotate(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    z: NDArray[np.float64],
    w: NDArray[np.float64],
    vec: ArrayLike,
) -> NDArray[np.float64]:
    # v + 2 w (u x v) + 2 u x (u x v), written out: np.cross costs ten times as much on one vector.
    v = np.asarray(vec, dtype=np.float64)
    vx, vy, vz = v[..., 0], v[..., 1], v[..., 2]
    tx, ty, tz = 2.0 * (y * vz - z * vy), 2.0 * (z * vx - x * vz), 2.0 * (x * vy - y * vx)
    return np.stack(
        [
            vx + w * tx + y * tz - z * ty,
            vy + w * ty + z * tx - x * tz,
            vz + w * tz + x * ty - y * tx,
        ],
        axis=-1,
    )
