"""What the page draws, as bytes: states and images.

A robot's state goes out 30 times a second, its depth image ten times, a colour image when it comes.
A frame begins with 16 bytes: kind (u8), flags (u8), six of padding, time (f64 [s]). The payload of
a state is float32, little-endian, in the order of `STATE_FIELDS`, which the page is told; that of
a depth image is a PNG of one byte per pixel, that of a colour image the JPEG of its stream.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Final

import numpy as np
from krabby.robot.description import RobotDescription
from krabby.robot.kinematics import foot_positions
from krabby.robot.rotations import rotate, yaw
from krabby_proto import STATE, TRUTH, Message, unpack
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "COLOUR_FRAME",
    "DEPTH_FRAME",
    "FLAG_LOCKSTEP_TIME",
    "FLAG_TRUTH",
    "STATE_FIELDS",
    "STATE_FRAME",
    "Poser",
    "colour_frame",
    "depth_frame",
    "state_layout",
]

STATE_FRAME: Final = 1
DEPTH_FRAME: Final = 2
COLOUR_FRAME: Final = 3
FLAG_TRUTH: Final = 1
"""The pose and the walked velocity are the simulator's truth, not an estimate from the legs."""
FLAG_LOCKSTEP_TIME: Final = 2
"""Time is simulated: there are no ages."""
STATE_FIELDS: Final = (
    ("base_pos", 3),
    ("base_quat", 4),
    ("walked", 3),
    ("joint_pos", 18),
    ("joint_effort", 18),
    ("foot_contact", 6),
    ("foot_pos", 18),
    ("ages_ms", 3),
    ("course", 4),
)
"""Name and size. walked: vx, vy [m/s], yaw rate [rad/s] in the level frame that turns with the
robot. foot_pos: in the world [m]. ages_ms: of state, camera, features. course: distance [m],
waypoints reached, falls, resets; NaN where unknown."""

_HEAD: Final = struct.Struct("<BB6xd")
_MOST_COLUMNS: Final = 160
_FAR_M: Final = 4.0
"""Depth that is shown as the darkest [m]."""
_CONTACT: Final = 0.5
"""Foot contact above which a foot stands."""
_LEAST_STEP_S: Final = 0.01
_FORGET_S: Final = 0.5


def state_layout() -> list[list[object]]:
    """`STATE_FIELDS` for the page."""
    return [list(field) for field in STATE_FIELDS]


class Poser:
    """Places the robot and says how fast it walks.

    With truth both are the simulator's. Without, as on a real robot, the legs tell: feet on the
    ground do not move, so the base moves against them. The height is that of the lowest foot
    above level ground. Such a pose drifts; it is for looking only.
    """

    def __init__(self, desc: RobotDescription) -> None:
        self._desc = desc
        self._radius = desc.geometry.foot_radius
        self._xy = np.zeros(2)
        self._last: tuple[float, NDArray[np.float64], NDArray[np.bool_]] | None = None
        self._walked = np.zeros(3)

    def frame(
        self,
        time_s: float,
        state: Message,
        truth: Message | None,
        ages_ms: tuple[float, ...],
        lockstep: bool,
    ) -> bytes:
        """A state frame.

        Args:
            time_s: Shown time [s].
            state: Newest message of the state stream.
            truth: Newest of the truth stream; None if there is none.
            ages_ms: Of state, camera and features; NaN where unknown.
            lockstep: Whether time is simulated.
        """
        fields = unpack(STATE, state.payload)
        quat = fields["base_quat_w"].astype(np.float64)
        norm = float(np.linalg.norm(quat))
        quat = quat / norm if math.isfinite(norm) and norm > 0.1 else np.array([0, 0, 0, 1.0])
        feet_b = foot_positions(self._desc, fields["joint_pos"])
        contact = fields["foot_contact"] > _CONTACT
        capture_s = state.capture_ns * 1e-9
        course = np.full(4, np.nan)
        if truth is None:
            pos = self._estimated(capture_s, quat, feet_b, contact, fields["base_ang_vel_b"])
            walked = self._walked
        else:
            real = unpack(TRUTH, truth.payload)
            pos, quat = (
                real["base_pos_w"].astype(np.float64),
                real["base_quat_w"].astype(np.float64),
            )
            heading = yaw(quat)
            vx, vy, _ = real["base_lin_vel_w"]
            cos, sin = math.cos(heading), math.sin(heading)
            turn = rotate(quat, real["base_ang_vel_b"])[2]
            walked = np.array([cos * vx + sin * vy, cos * vy - sin * vx, turn])
            names = ("distance", "waypoint_index", "falls", "reset_count")
            course = np.array([real[name][0] for name in names])
        feet_w = pos + rotate(quat, feet_b)
        payload = np.concatenate(
            [pos, quat, walked, fields["joint_pos"], fields["joint_effort"], fields["foot_contact"],
             feet_w.ravel(), ages_ms, course]
        ).astype("<f4")  # fmt: skip
        flags = FLAG_TRUTH * (truth is not None) | FLAG_LOCKSTEP_TIME * lockstep
        return _HEAD.pack(STATE_FRAME, flags, time_s) + payload.tobytes()

    def _estimated(
        self,
        now_s: float,
        quat: NDArray[np.float64],
        feet_b: NDArray[np.float64],
        contact: NDArray[np.bool_],
        ang_vel_b: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        """Position of the base in a world that began where the first state was."""
        feet = rotate(quat, feet_b)  # base at the origin, axes of the world
        last, self._last = self._last, (now_s, feet, contact)
        standing = feet[contact] if contact.any() else feet
        height = self._radius - float(standing[:, 2].min())
        if last is not None:
            step_s = now_s - last[0]
            both = contact & last[2]
            if _LEAST_STEP_S <= step_s <= _FORGET_S and both.any():
                moved = -(feet[both] - last[1][both])[:, :2].mean(axis=0)
                self._xy = self._xy + moved
                heading = yaw(quat)
                cos, sin = math.cos(heading), math.sin(heading)
                vx, vy = moved / step_s
                turn = rotate(quat, ang_vel_b)[2]
                measured = np.array([cos * vx + sin * vy, cos * vy - sin * vx, turn])
                self._walked = self._walked + 0.3 * (measured - self._walked)
            elif step_s > _FORGET_S or not contact.any():
                self._walked = np.zeros(3)
        return np.array([*self._xy, height])


def depth_frame(time_s: float, depth: NDArray[np.float32], width: int, height: int) -> bytes:
    """An image frame; 0 is no measurement, 1 to 255 is near to far.

    Args:
        time_s: Shown time [s].
        depth: Flat depth along the optical axis [m], `height` x `width`, 0 where invalid.
        width: Of the image [pixels].
        height: Of the image [pixels].
    """
    image = depth.reshape(height, width)
    step = -(-width // _MOST_COLUMNS)
    image = image[::step, ::step]
    with np.errstate(invalid="ignore"):
        grey = np.clip(image * (254.0 / _FAR_M) + 1.0, 1, 255)
    grey = np.where(np.isfinite(image) & (image > 0), grey, 0).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG", compress_level=1)
    return _HEAD.pack(DEPTH_FRAME, 0, time_s) + out.getvalue()


def colour_frame(time_s: float, jpeg: bytes) -> bytes:
    """A colour image frame, shown at that time [s]; `jpeg` as the stream `colour` carries it."""
    return _HEAD.pack(COLOUR_FRAME, 0, time_s) + jpeg
