"""Whether the camera sees the ground where its mount puts it.

On level ground the reciprocal of depth is an affine function of the pixel, 1 / z = (n / h) . t with
the ray t = (right, down, 1), the normal n from the camera to the ground and the height h. So a
plane is fitted by linear least squares; pitch, roll and height of the camera are compared with
`robot.toml`'s mount, the measured orientation and the feet. A pitch error of 2 degrees moves ground
that is 2 m away by 7 cm: half a step.

`SelfCheck` takes the medians of some frames. The camera must see mostly flat and level ground: put
the robot on a floor, facing away from walls.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import structlog
from krabby.robot import rotations
from krabby.robot.description import CameraModel, RobotDescription
from krabby.robot.kinematics import foot_positions
from krabby_proto import STATE, LatestSubscriber, unpack
from numpy.typing import NDArray

from krabby_camera import metrics
from krabby_camera.config import SelfCheckCfg

__all__ = ["Expected", "Ground", "Report", "SelfCheck", "compare", "expect", "fit_ground"]

log = structlog.get_logger(__name__)

_MIN_INLIERS = 0.5
_MAX_BELIEVED_RAD = math.radians(15.0)
"""A plane that is off by more is no ground: a wall, a step's riser."""
_PASSES = 6
_MIN_PIXELS = 200
_ON_PLANE = 0.05
"""Share of its depth by which a reading on the ground may be off it."""


class Ground(NamedTuple):
    """A plane seen by the camera."""

    pitch_rad: float
    """Of the optical axis below the plane's horizon."""
    roll_rad: float
    """Positive when the camera leans to its right."""
    height_m: float
    """Of the optical centre above the plane."""
    inliers: float
    """Share of the readings that lie on the plane."""
    inverse: NDArray[np.float64]
    """(right, down, axis) of n / h [1/m]."""


class Expected(NamedTuple):
    """Pose of the camera over level ground by the robot's own measurements."""

    pitch_rad: float
    roll_rad: float
    height_m: float | None
    """None while the pose is unknown."""
    source: str


class Report(NamedTuple):
    """Differences, measured minus expected."""

    pitch_error_rad: float
    roll_error_rad: float
    height_error_m: float | None
    hfov_rad: float | None
    """Horizontal field of view that would explain the image if pose and mount's height hold."""
    inliers: float


def fit_ground(depth: NDArray[np.floating], camera: CameraModel) -> Ground | None:
    """The plane in a depth image (60, 106) [m]; None without enough readings on one."""
    right = (np.arange(camera.width) - camera.cx) / camera.fx
    down = (np.arange(camera.height) - camera.cy) / camera.fy
    rays = np.stack(
        [*np.meshgrid(right, down), np.ones((camera.height, camera.width))], axis=-1
    ).reshape(-1, 3)
    z = np.asarray(depth, np.float64).reshape(-1)
    seen = (z >= camera.near_m) & (z <= camera.far_m)
    if np.count_nonzero(seen) < _MIN_PIXELS:
        return None
    rays, inverse = rays[seen], 1.0 / z[seen]
    keep = np.ones(inverse.size, bool)
    solution, residual = np.zeros(3), np.zeros(inverse.size)
    for _ in range(_PASSES):  # what stands on the ground leaves, and what lies below it
        if np.count_nonzero(keep) < _MIN_PIXELS:
            return None
        solution = np.asarray(np.linalg.lstsq(rays[keep], inverse[keep], rcond=None)[0], np.float64)
        residual = np.abs(rays @ solution - inverse) / inverse
        keep = residual < max(_ON_PLANE, 2.0 * float(np.median(residual)))
    a, b, c = solution
    norm = float(np.linalg.norm(solution))
    if norm <= 0.0:
        return None
    return Ground(
        pitch_rad=math.atan2(c, b),
        roll_rad=math.atan2(a, math.hypot(b, c)),
        height_m=1.0 / norm,
        inliers=float(np.mean(residual < _ON_PLANE)),
        inverse=solution,
    )


def expect(
    desc: RobotDescription,
    base_quat_w: NDArray[np.floating] | None,
    joint_pos: NDArray[np.floating] | None,
) -> Expected:
    """What the mount predicts for a robot on level ground; a level robot when nothing is known."""
    camera = desc.camera
    if base_quat_w is None:
        return Expected(camera.mount_pitch_rad, 0.0, None, "robot taken to be level")
    up_b = -rotations.projected_gravity(np.asarray(base_quat_w, np.float64))
    axis, right, down = camera.axes_b @ up_b
    height = None
    if joint_pos is not None:
        feet_b = foot_positions(desc, np.asarray(joint_pos, np.float64))
        feet = float((feet_b @ up_b).min()) - desc.geometry.foot_radius
        belly = -0.5 * float(np.abs(up_b) @ desc.geometry.body_size)
        lowest = min(feet, belly)  # it may sit
        height = float(np.dot(camera.mount_xyz, up_b)) - lowest
    return Expected(
        math.atan2(-axis, -down),
        math.atan2(-right, math.hypot(down, axis)),
        height,
        "state: orientation and feet",
    )


def compare(ground: Ground, expected: Expected, camera: CameraModel) -> Report:
    """How the image differs from the prediction."""
    height = expected.height_m
    return Report(
        pitch_error_rad=ground.pitch_rad - expected.pitch_rad,
        roll_error_rad=ground.roll_rad - expected.roll_rad,
        height_error_m=None if height is None else ground.height_m - height,
        hfov_rad=None if height is None else _explained_hfov(ground, height, camera),
        inliers=ground.inliers,
    )


def _explained_hfov(ground: Ground, height_m: float, camera: CameraModel) -> float | None:
    """With tangents s times too small, inverse = (s cos p, sin p) / h: a known h gives p and s."""
    sine = float(ground.inverse[2]) * height_m
    if not -0.999 < sine < 0.999:
        return None
    slope = math.hypot(ground.inverse[0], ground.inverse[1]) * height_m
    scale = slope / math.sqrt(1.0 - sine * sine)
    return 2.0 * math.atan(scale * math.tan(0.5 * camera.hfov_rad))


class SelfCheck:
    """Compares some frames with the prediction; without `state` the robot is taken to be level."""

    def __init__(
        self, cfg: SelfCheckCfg, desc: RobotDescription, states: str, clock: Callable[[], int]
    ) -> None:
        """`states` is the endpoint of the stream `state`."""
        self._cfg, self._desc, self._clock = cfg, desc, clock
        self._states: LatestSubscriber | None = LatestSubscriber(states, STATE)
        self._first_ns: int | None = None
        self._reports: list[Report] = []
        self._frames = 0
        self._source = ""
        self.problems: tuple[str, ...] = ()
        """What is wrong, for people; empty when all is well, or before the end."""

    def see(self, depth: NDArray[np.float32]) -> bool:
        """Take a frame (60, 106) [m]; true once the check is over."""
        now_ns = self._clock()
        self._first_ns = self._first_ns or now_ns
        assert self._states is not None, "it is over"
        message = self._states.latest()
        if message is None and now_ns - self._first_ns < self._cfg.state_wait_s * 1e9:
            return False
        self._frames += 1
        state = {} if message is None else unpack(STATE, message.payload)
        expected = expect(self._desc, state.get("base_quat_w"), state.get("joint_pos"))
        self._source = expected.source
        ground = fit_ground(depth, self._desc.camera)
        if ground is not None and ground.inliers >= _MIN_INLIERS:
            report = compare(ground, expected, self._desc.camera)
            if max(abs(report.pitch_error_rad), abs(report.roll_error_rad)) < _MAX_BELIEVED_RAD:
                self._reports.append(report)
        if self._frames < self._cfg.frames:
            return False
        self._judge()
        self.close()
        return True

    def close(self) -> None:
        if self._states is not None:
            self._states.close()
            self._states = None

    def _judge(self) -> None:
        if 2 * len(self._reports) < self._frames:
            self.problems = (
                f"only {len(self._reports)} of {self._frames} frames show flat ground; put the "
                "robot on a floor, facing away from walls",
            )
            log.warning("camera self-check impossible", reason=self.problems[0])
            return
        report = _median(self._reports)
        metrics.PITCH_ERROR.set(report.pitch_error_rad)
        self.problems = _problems(report, self._cfg, self._desc.camera)
        say = log.warning if self.problems else log.info
        say(
            "camera self-check",
            against=self._source,
            problems=list(self.problems),
            pitch_error_deg=round(math.degrees(report.pitch_error_rad), 2),
            roll_error_deg=round(math.degrees(report.roll_error_rad), 2),
            height_error_m=_rounded(report.height_error_m, 3),
            hfov_deg=None if report.hfov_rad is None else round(math.degrees(report.hfov_rad), 1),
            on_ground=round(report.inliers, 2),
        )


def _median(reports: list[Report]) -> Report:
    columns = zip(*reports, strict=True)
    known = [[value for value in column if value is not None] for column in columns]
    return Report(*(float(np.median(column)) if column else None for column in known))  # pyright: ignore[reportArgumentType]


def _problems(report: Report, cfg: SelfCheckCfg, camera: CameraModel) -> tuple[str, ...]:
    problems: list[str] = []
    pitch, roll = math.degrees(report.pitch_error_rad), math.degrees(report.roll_error_rad)
    if abs(pitch) > cfg.max_pitch_deg:
        mount = math.degrees(camera.mount_pitch_rad)
        problems.append(
            f"the camera looks {abs(pitch):.1f} deg too far {'down' if pitch > 0 else 'up'}: turn "
            f"its mount to {mount:.1f} deg, or set camera.mount_pitch of robot.toml to "
            f"{camera.mount_pitch_rad + report.pitch_error_rad:.4f} and train for it"
        )
    if abs(roll) > cfg.max_roll_deg:
        problems.append(
            f"the camera leans {abs(roll):.1f} deg to its {'right' if roll > 0 else 'left'}: "
            "straighten its mount"
        )
    height = report.height_error_m
    if height is not None and abs(height) > cfg.max_height_m:
        problems.append(
            f"the ground is {abs(height):.2f} m {'farther' if height > 0 else 'nearer'} than the "
            "pose says: check camera.mount_xyz, the joints' zero and the depth's unit"
        )
    if report.hfov_rad is not None:
        hfov, wanted = math.degrees(report.hfov_rad), math.degrees(camera.hfov_rad)
        if abs(hfov - wanted) > cfg.max_hfov_deg:
            problems.append(
                f"the image looks like a field of view of {hfov:.0f} deg, not {wanted:.0f}: "
                "check resolution and calibration of the camera"
            )
    return tuple(problems)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
