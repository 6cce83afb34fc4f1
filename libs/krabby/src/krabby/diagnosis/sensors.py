"""Sensors against each other: joint speeds and angles, gyro, attitude and accelerometer, rates.

Nothing here needs a model of the robot beyond its joint limits. Each check returns the findings and
the log as it would be without them, so that the checks behind it see the robot's other faults only.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Final

import numpy as np

from krabby.diagnosis.findings import Finding
from krabby.robot import rotations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.diagnosis.log import RunLog
    from krabby.robot.description import RobotDescription

__all__ = [
    "axis_angle", "check_attitude", "check_gyro", "check_rates", "check_units", "quarter_turns",
]  # fmt: skip

_DEG: Final = 180.0 / math.pi
_AS_DEGREES: Final = 0.25
"""A factor within this of 57.3, as a logarithm, is taken for degrees."""
_GRAVITY: Final = 9.81
_MOVES_RAD_S: Final = 0.02
"""A joint that moves less tells nothing about factors (RMS)."""
_FACTOR_LIMIT: Final = 0.3
"""Deviation from 1 that rounding, filters and the time between two samples do not explain."""
_STATES_HZ: Final = 100.0
_TURNS_RAD_S: Final = 0.04
"""A base that turns less tells nothing about the gyro (RMS)."""
_SPAN: Final = 10
"""States over which the attitude turns: of noise of 1 mrad, 14 mrad/s remain in 0.1 s."""
_EXPLAINED: Final = 0.4
"""Least share of the gyro that the change of the attitude explains in the same frame."""


def check_units(log: RunLog, desc: RobotDescription) -> tuple[list[Finding], RunLog]:
    """Joint speeds against the change of the angles; angles against their limits."""
    findings: list[Finding] = []
    pos, vel = log.joint_pos, log.joint_vel
    turned = log.rate_of(pos)
    mean = 0.5 * (vel + np.roll(vel, 1, axis=0))
    use = np.isfinite(turned)
    moved = np.where(use, turned, 0.0)
    factor = (moved * np.where(use, mean, 0.0)).sum(0) / np.maximum((moved**2).sum(0), 1e-12)
    moves = np.sqrt((moved**2).mean(0)) > _MOVES_RAD_S
    far = np.abs(pos / _DEG).max() < 1.2 * max(desc.joint_upper.max(), -desc.joint_lower.min())
    out_of_range = np.abs(pos).max() > 1.5 * math.pi
    in_degrees = out_of_range and far
    if moves.sum() >= 3:
        typical = float(np.median(factor[moves]))
        in_degrees = in_degrees and abs(math.log(max(abs(typical), 1e-9) * _DEG)) < _AS_DEGREES
        if not in_degrees and abs(math.log(max(abs(typical), 1e-9) / _DEG)) < _AS_DEGREES:
            evidence = (
                f"joint_vel is {typical:.1f} times the change of joint_pos per second; a degree is "
                "57.3 to the radian"
            )
            findings.append(_degrees("joint_vel", evidence))
            log = log.replace(joint_vel=vel / _DEG)
        elif not in_degrees and abs(typical - 1.0) > _FACTOR_LIMIT:
            findings.append(_scaled("joint_vel", (), typical, "change of joint_pos per second"))
            if abs(typical) > 1e-3:
                log = log.replace(joint_vel=vel / typical)
        elif not in_degrees:
            findings += _odd_joints(desc, factor, moves)
    if in_degrees:
        evidence = (
            f"joint_pos reaches {np.abs(pos).max():.1f} rad; read as degrees it lies within the "
            "limits of all joints"
        )
        findings.append(_degrees("joint_pos", evidence))
        log = log.replace(joint_pos=pos / _DEG)
    return findings, log


def _odd_joints(
    desc: RobotDescription, factor: NDArray[np.float64], moves: NDArray[np.bool_]
) -> list[Finding]:
    odd = np.flatnonzero(moves & (np.abs(factor - 1.0) > 2.0 * _FACTOR_LIMIT))
    return [
        _scaled("joint_vel", (desc.joint_names[j],), float(factor[j]), "change of joint_pos")
        for j in odd
    ]


def _degrees(term: str, evidence: str) -> Finding:
    return Finding(kind="degrees", term=term, score=50.0, evidence=evidence)


def _scaled(term: str, where: tuple[str, ...], factor: float, of: str) -> Finding:
    kind = "sensor-sign" if factor < -0.5 else "sensor-scale"
    return Finding(
        kind=kind,
        where=where,
        term=term,
        score=abs(factor - 1.0) / _FACTOR_LIMIT,
        evidence=f"{term} is {factor:.2f} times the {of}",
    )


def check_gyro(log: RunLog) -> tuple[list[Finding], RunLog]:
    """The gyro against the change of the attitude: factor and axes."""
    turned, gyro = _turned(log)
    motion, reading = float((turned**2).sum()), float((gyro**2).sum())
    if len(turned) < 50 or math.sqrt(motion / len(turned)) < _TURNS_RAD_S or reading == 0.0:
        return [], log
    size = math.sqrt(reading / motion)
    if abs(math.log(size / _DEG)) < _AS_DEGREES:
        evidence = f"the gyro is {size:.1f} times the change of the attitude; 57.3 is degrees"
        fixed = log.replace(base_ang_vel_b=log.base_ang_vel_b / _DEG)
        return [_degrees("base_ang_vel_b", evidence)], fixed

    def explained(quat: NDArray[np.float64]) -> float:
        """Share of the gyro's square that the change explains in a frame turned so."""
        overlap = float((gyro * rotations.rotate(quat, turned)).sum())
        return math.copysign(overlap * overlap / (motion * reading), overlap)

    as_it_is = explained(rotations.IDENTITY)
    if as_it_is > _EXPLAINED:
        factor = float((gyro * turned).sum()) / motion
        if abs(factor - 1.0) > _FACTOR_LIMIT:
            return [_scaled("base_ang_vel_b", (), factor, "change of the attitude")], log
        return [], log
    turn = max(quarter_turns(), key=explained)
    axis, angle = axis_angle(turn)
    how = f"; {explained(turn):.0%} when turned by {angle:+.0f} degrees about {axis}"
    return [
        Finding(
            kind="attitude-frame",
            term="base_quat_w",
            score=20.0,
            evidence=f"the change of the attitude explains {max(as_it_is, 0.0):.0%} of the gyro"
            + (how if explained(turn) > 0.8 else ""),
        )
    ], log


def _turned(log: RunLog) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotation rate of the attitude, base frame, and the mean gyro reading, over `_SPAN` states."""
    quat, broken = log.base_quat_w, np.cumsum(~log.joined)
    change = rotations.mul(rotations.conjugate(quat[:-_SPAN]), quat[_SPAN:])
    change = change * np.where(change[:, 3:] < 0.0, -1.0, 1.0)
    turned = 2.0 * change[:, :3] / (log.time_s[_SPAN:] - log.time_s[:-_SPAN])[:, None]
    total = np.cumsum(np.vstack([np.zeros(3), log.base_ang_vel_b]), axis=0)
    gyro = (total[_SPAN + 1 :] - total[: -_SPAN - 1]) / (_SPAN + 1)
    # An attitude that is put down anew jumps.
    use = (broken[_SPAN:] == broken[:-_SPAN]) & (np.abs(turned).max(1) < 15.0)
    return turned[use], gyro[use]


def quarter_turns() -> list[NDArray[np.float64]]:
    """The 23 rotations by quarter turns that are none, xyzw."""
    quarters = [0.0, 0.5 * math.pi, math.pi, -0.5 * math.pi]
    found: list[NDArray[np.float64]] = [rotations.IDENTITY]
    for angles in itertools.product(quarters, repeat=3):
        quat = rotations.from_euler(*angles)
        if all(abs(float(quat @ other)) < 0.99 for other in found):
            found.append(quat)
    return found[1:]


def axis_angle(turn: NDArray[np.float64]) -> tuple[str, float]:
    """The axis nearest to that of a rotation, and the angle about it [deg]."""
    turn = turn if turn[3] >= 0.0 else -turn
    axis = int(np.abs(turn[:3]).argmax())
    angle = math.degrees(2.0 * math.acos(min(abs(float(turn[3])), 1.0)))
    return "xyz"[axis], math.copysign(angle, float(turn[axis]))


def check_attitude(log: RunLog) -> tuple[list[Finding], RunLog]:
    """Gravity as attitude and accelerometer have it, against each other and against upright."""
    up = -rotations.projected_gravity(log.base_quat_w)
    acc = log.base_lin_acc_b
    quiet = np.abs(np.linalg.norm(acc, axis=1) - _GRAVITY) < 0.2 * _GRAVITY
    findings: list[Finding] = []
    if quiet.mean() < 0.05:
        strength = float(np.median(np.linalg.norm(acc, axis=1)))
        evidence = f"the accelerometer reads {strength:.2f} m/s² for gravity's {_GRAVITY}"
        return [
            Finding(kind="sensor-scale", term="base_lin_acc_b", score=5.0, evidence=evidence)
        ], log
    up_mean, acc_mean = _direction(up[quiet]), _direction(acc[quiet])
    # State by state, since a robot that fell has two ups. A chord c spans acos(1 - c²/2).
    chord = np.median(acc[quiet] / _lengths(acc[quiet]) - up[quiet], axis=0)
    agree = max(1.0 - 0.5 * float(chord @ chord), -1.0)
    if agree < -0.8:
        flipped_acc = acc_mean[2] < 0.0
        term = "base_lin_acc_b" if flipped_acc else "base_quat_w"
        seen = acc_mean if flipped_acc else up_mean
        evidence = (
            f"attitude and accelerometer have opposite ups (cosine {agree:.2f}); the "
            f"{'accelerometer' if flipped_acc else 'attitude'} has z {seen[2]:+.2f} of a robot "
            "that the other one has upright"
        )
        findings.append(Finding(kind="gravity-flipped", term=term, score=40.0, evidence=evidence))
        if flipped_acc:
            log = log.replace(base_lin_acc_b=-acc)
        else:
            half = np.array([1.0, 0.0, 0.0, 0.0])
            log = log.replace(base_quat_w=rotations.mul(log.base_quat_w, half))
    elif agree < math.cos(math.radians(25.0)):
        angle = math.degrees(math.acos(agree))
        evidence = f"up by the attitude and up by the accelerometer are {angle:.0f} degrees apart"
        findings.append(
            Finding(
                kind="attitude-frame", term="base_quat_w", score=angle / 25.0, evidence=evidence
            )
        )
    elif not log.following.any() and up_mean[2] < math.cos(math.radians(50.0)):
        # It never followed a command, so it lies where it was put down: on its belly.
        tilt = math.degrees(math.acos(float(np.clip(up_mean[2], -1.0, 1.0))))
        axis, angle = _tilt_axis(up_mean)
        evidence = (
            f"attitude and accelerometer agree on a robot that lies tilted by {tilt:.0f} degrees, "
            f"as an IMU turned by {angle:+.0f} degrees about {axis} has it"
        )
        findings.append(
            Finding(
                kind="imu-rotated",
                where=(axis,),
                term="base_quat_w",
                score=tilt / 10.0,
                evidence=evidence,
            )
        )
    return findings, log


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(vectors, axis=1, keepdims=True)


def _direction(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = np.median(vectors, axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-9)


def _tilt_axis(up: NDArray[np.float64]) -> tuple[str, float]:
    """Axis of the base, and the IMU's angle about it [deg], that turns up to `up`."""
    if abs(up[1]) >= abs(up[0]):
        return "x", math.degrees(math.atan2(up[1], up[2]))
    return "y", -math.degrees(math.atan2(up[0], up[2]))


def check_rates(log: RunLog, desc: RobotDescription) -> list[Finding]:
    """Whether states and pictures come as often as they must, and drives have torque left."""
    findings: list[Finding] = []
    span_s = max(log.duration_s, 1e-9)
    rate_hz = (log.states - 1) / span_s
    if rate_hz < 0.85 * _STATES_HZ:
        findings.append(
            Finding(
                kind="rate",
                term="state",
                score=_STATES_HZ / max(rate_hz, 1e-3) / 1.1,
                evidence=f"{rate_hz:.0f} states a second, {_STATES_HZ:.0f} are needed; "
                f"{log.missed} are missing by their numbers",
            )
        )
    frames = log.frames
    if frames is not None and frames.span_s > 3.0:
        frames_hz = (frames.published - 1) / frames.span_s
        if frames_hz < 0.5 * desc.camera.rate_hz:
            findings.append(
                Finding(
                    kind="camera-rate",
                    term="camera",
                    score=0.5 * desc.camera.rate_hz / max(frames_hz, 1e-3),
                    evidence=f"{frames_hz:.1f} pictures a second of {desc.camera.rate_hz:g}",
                )
            )
    return findings + _noise(log)


def _noise(log: RunLog) -> list[Finding]:
    """Readings that jump more from state to state than a robot can move."""
    findings: list[Finding] = []
    for term, limit, unit in (("base_ang_vel_b", 1.5, "rad/s"), ("joint_pos", 0.08, "rad")):
        values = getattr(log, term)
        bend = values[2:] - 2.0 * values[1:-1] + values[:-2]
        smooth = log.joined[2:] & log.joined[1:-1]
        if smooth.sum() < 50:
            continue
        # Of white noise the second difference has sqrt(6) times the deviation.
        sigma = np.median(np.abs(bend[smooth]), axis=0) / 0.6745 / math.sqrt(6.0)
        worst = int(sigma.argmax())
        if sigma[worst] > limit:
            findings.append(
                Finding(
                    kind="noise",
                    where=(str(worst),),
                    term=term,
                    score=float(sigma[worst]) / limit,
                    evidence=f"{term}[{worst}] has noise of {sigma[worst]:.3f} {unit} from state "
                    "to state (standard deviation)",
                )
            )
    return findings
