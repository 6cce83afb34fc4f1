"""Drives against what they were told: torque = kp (target - angle) - kd velocity, some time later.

Commands and torques are recorded, so gains, delay and a joint that answers for another one follow
from a linear fit. Samples near the torque limit are left out, by what is predicted and not by what
was measured, so that the fit stays unbiased.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from krabby.diagnosis.findings import Finding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.diagnosis.log import RunLog
    from krabby.robot.description import RobotDescription

__all__ = ["LawFit", "check_drives", "fit_law", "samples"]

_DELAYS_S: Final = np.arange(0.0, 0.1001, 0.0025)
_HALF_SLOT_S: Final = 0.0025
"""Torque is a mean over the slot of 5 ms that ends with the state ..."""
_WITHIN_S: Final = (0.00125, 0.00375)
"""... in which the target may change: it is looked up so long before its end."""
_LATE_S: Final = 0.02
"""Delay beyond the described one that is a fault."""
_GAIN_LIMIT: Final = 0.25
"""Deviation of the typical stiffness that is a fault, as a share."""
_JOINT_GAIN_LIMIT: Final = 0.45
"""Of one joint."""
_TRACKED: Final = 0.6
"""Share of the torque's variance that the law explains for a joint that obeys."""
_MOST_SHARE: Final = 0.99
"""Quantile of a joint's torque that is taken for the most it gave ..."""
_AT_MOST: Final = 0.95
"""... and share of it from which the torque is at its limit,"""
_ASKED: Final = 1.25
"""if the law asks for so many times more. Sound runs: never; friction takes a few percent."""
_SATURATED: Final = 0.03
"""Share of the time at the limit that is a finding."""
_DESCRIBED: Final = 0.9
"""Share of the described peak torque that is no finding: the policy asks for more than the robot
has, on stairs for 6 % of the time, and its drives give what they should."""
_SATURATED_SCORE: Final = 4.0
"""At most: below the causes, of which saturation may be a consequence."""
_LITTLE_NM: Final = 15.0
_LEAST: Final = 100
_MOVES_NM: Final = 2.0
"""Torque that varies less says nothing about gains (standard deviation)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LawFit:
    """The law of all joints at one delay."""

    delay_s: float
    """From the HAL's answer to torque at the joint."""
    kp: NDArray[np.float64]
    """[N·m/rad], shape (18,); NaN where there was too little to see."""
    kd: NDArray[np.float64]
    """[N·m·s/rad], shape (18,)."""
    explained: NDArray[np.float64]
    """Share of the torque's variance, shape (18,)."""
    error_nm: float
    """Median of the deviations."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Error, velocity and torque of all joints at one delay, shape (N, 18)."""

    error: NDArray[np.float64]
    velocity: NDArray[np.float64]
    torque: NDArray[np.float64]
    use: NDArray[np.bool_]


def samples(log: RunLog, desc: RobotDescription, delay_s: float) -> Samples | None:
    """What the law relates, with the target that was in force `delay_s` after it was answered."""
    commands = log.commands
    if commands is None:
        return None
    targets = commands.let_through(log, desc)
    return _samples(log, desc, targets, delay_s)


def _samples(
    log: RunLog, desc: RobotDescription, targets: NDArray[np.float64], delay_s: float
) -> Samples:
    assert log.commands is not None
    target = np.zeros_like(log.joint_pos)
    for before_s in _WITHIN_S:
        when_s = log.time_s - before_s - delay_s
        at = np.searchsorted(log.commands.handled_s, when_s, side="right") - 1
        target += np.where((at >= 0)[:, None], targets[at.clip(0)], np.nan) / len(_WITHIN_S)
    acceleration = np.nan_to_num(log.rate_of(log.joint_vel))
    velocity = log.joint_vel - _HALF_SLOT_S * acceleration
    error = target - (log.joint_pos - _HALF_SLOT_S * log.joint_vel)
    predicted = desc.kp * error - desc.kd * velocity
    use = np.isfinite(error) & log.following[:, None] & log.joined[:, None]
    use &= np.abs(np.nan_to_num(predicted)) < 0.9 * desc.rated_torque
    # Gains rise while arming, and a target that has just begun to follow may still be the pose.
    settled = np.convolve(log.following, np.ones(20), "full")[: len(log.time_s)] >= 20.0
    return Samples(
        error=error, velocity=velocity, torque=log.joint_effort, use=use & settled[:, None]
    )


def fit_law(log: RunLog, desc: RobotDescription) -> LawFit | None:
    """The delay, of a grid of 2.5 ms, at which the law explains the torques best, and its gains."""
    if log.commands is None or not log.commands.applied.any():
        return None
    targets = log.commands.let_through(log, desc)
    fits = [_fit(_samples(log, desc, targets, delay_s), float(delay_s)) for delay_s in _DELAYS_S]
    found = [fit for fit in fits if np.isfinite(fit.error_nm)]
    return min(found, key=lambda fit: fit.error_nm) if found else None


def _fit(data: Samples, delay_s: float) -> LawFit:
    joints = data.error.shape[1]
    kp, kd, explained = np.full(joints, np.nan), np.full(joints, np.nan), np.zeros(joints)
    errors: list[NDArray[np.float64]] = []
    for j in range(joints):
        use = data.use[:, j]
        fit = _fit_joint(data.error[use, j], data.velocity[use, j], data.torque[use, j])
        if fit is not None:
            kp[j], kd[j], explained[j] = fit[0], fit[1], fit[2]
            errors.append(fit[3])
    # The joint that is wired wrongly must not decide the delay: half of the joints do.
    medians = sorted(float(np.median(error)) for error in errors)
    half = medians[: max(1, (len(medians) + 1) // 2)]
    error_nm = float(np.mean(half)) if half else np.nan
    return LawFit(delay_s=delay_s, kp=kp, kd=kd, explained=explained, error_nm=error_nm)


def _fit_joint(
    error: NDArray[np.float64], velocity: NDArray[np.float64], torque: NDArray[np.float64]
) -> tuple[float, float, float, NDArray[np.float64]] | None:
    """Stiffness, damping, share of variance explained, deviations; None of too little motion."""
    if len(error) < _LEAST or float(np.std(torque)) < _MOVES_NM:
        return None
    columns = np.stack([error, -velocity], axis=1)
    gains = np.linalg.lstsq(columns, torque, rcond=None)[0]
    deviation = torque - columns @ gains
    explained = 1.0 - float(np.mean(deviation**2)) / float(np.mean(torque**2))
    return float(gains[0]), float(gains[1]), explained, np.abs(deviation)


def check_drives(
    log: RunLog, desc: RobotDescription
) -> tuple[list[Finding], RunLog, LawFit | None]:
    """Feedback of the wrong sign or joint, delay, gains."""
    fit = fit_law(log, desc)
    if fit is None:
        return [], log, None
    wired, log = _check_feedback(log, desc, fit)
    if wired:
        fit = fit_law(log, desc) or fit
    findings = wired + _check_delay(desc, fit) + _check_gains(desc, fit)
    findings += _check_saturation(log, desc, fit)
    return findings, log, fit


def _check_saturation(log: RunLog, desc: RobotDescription, fit: LawFit) -> list[Finding]:
    """Joints whose torque stays below what is described while the law asks for more."""
    data = samples(log, desc, fit.delay_s)
    assert data is not None
    followed = log.following & np.isfinite(data.error).all(1)
    if followed.sum() < _LEAST:
        return []
    asked = (desc.kp * data.error - desc.kd * data.velocity)[followed]
    torque = log.joint_effort[followed]
    most = np.quantile(np.abs(torque), _MOST_SHARE, axis=0)
    stuck = (np.abs(torque) > _AT_MOST * most) & (asked * torque > 0.0)
    share = (stuck & (np.abs(asked) > _ASKED * np.abs(torque))).mean(0)
    share[(most < _LITTLE_NM) | (most > _DESCRIBED * desc.peak_torque)] = 0.0
    odd = np.flatnonzero(share > _SATURATED)
    if not len(odd):
        return []
    worst = int(share.argmax())
    return [
        Finding(
            kind="saturation",
            where=tuple(desc.joint_names[j] for j in odd) if len(odd) < len(share) else (),
            term="joint_effort",
            score=min(float(share[worst]) / _SATURATED, _SATURATED_SCORE),
            evidence=f"{desc.joint_names[worst]} gives {most[worst]:.0f} N·m, described are "
            f"{desc.peak_torque[worst]:.0f}, in {share[worst]:.0%} of the time, in which "
            f"{np.median(np.abs(asked[stuck[:, worst], worst])):.0f} N·m were asked for",
        )
    ]


def _check_feedback(
    log: RunLog, desc: RobotDescription, fit: LawFit
) -> tuple[list[Finding], RunLog]:
    """Joints whose measurements do not belong to their commands."""
    strange = np.isfinite(fit.kp) & ((fit.explained < _TRACKED) | (fit.kp < 0.0))
    lost: list[int] = np.flatnonzero(strange).tolist()
    if len(lost) == 0 or len(lost) > 6:
        return [], log  # not one mistake in a table
    data = samples(log, desc, fit.delay_s)
    assert data is not None
    names = desc.joint_names
    target = data.error + log.joint_pos
    findings: list[Finding] = []
    for j in lost:
        if (share := _explained(log, desc, data, target, j, j, -1.0)) > 0.85:
            findings.append(_wrong("joint-sign", (names[j],), fit, j, share))
            log = flip_joint(log, j)
    for j, k in itertools.combinations(lost, 2):
        both = [_explained(log, desc, data, target, a, b, 1.0) for a, b in ((j, k), (k, j))]
        if min(both) > 0.85:
            findings.append(_wrong("joints-swapped", (names[j], names[k]), fit, j, min(both)))
            log = swap_joints(log, j, k)
    return findings, log


def _explained(
    log: RunLog,
    desc: RobotDescription,
    data: Samples,
    target: NDArray[np.float64],
    commanded: int,
    measured: int,
    sign: float,
) -> float:
    """Share of the torque of joint `measured` that the target of `commanded` explains."""
    pos = sign * (log.joint_pos[:, measured] - _HALF_SLOT_S * log.joint_vel[:, measured])
    vel, torque = sign * data.velocity[:, measured], sign * data.torque[:, measured]
    error = target[:, commanded] - pos
    use = np.isfinite(error) & data.use.any(1)
    error, vel, torque = error[use], vel[use], torque[use]
    if len(error) < _LEAST:
        return 0.0
    predicted = desc.kp[commanded] * error - desc.kd[commanded] * vel
    near = np.abs(predicted) < 0.9 * desc.rated_torque[commanded]
    if near.mean() < 0.5:
        return 0.0
    fit = _fit_joint(error[near], vel[near], torque[near])
    return 0.0 if fit is None or fit[0] < 0.0 else fit[2]


def _wrong(kind: str, where: tuple[str, ...], fit: LawFit, joint: int, share: float) -> Finding:
    what = "with the sign turned round" if kind == "joint-sign" else "with the two exchanged"
    return Finding(
        kind=kind,
        where=where,
        term="joint_pos",
        score=30.0 * share,
        evidence=f"commands explain {max(fit.explained[joint], 0.0):.0%} of the torque that is "
        f"measured, {share:.0%} {what}: the measurements are wired wrongly, the commands not",
    )


def flip_joint(log: RunLog, joint: int) -> RunLog:
    """The log with the measurements of a joint turned round."""
    sign = np.ones(log.joint_pos.shape[1])
    sign[joint] = -1.0
    return log.replace(
        joint_pos=log.joint_pos * sign,
        joint_vel=log.joint_vel * sign,
        joint_effort=log.joint_effort * sign,
    )


def swap_joints(log: RunLog, first: int, second: int) -> RunLog:
    """The log with the measurements of two joints exchanged."""
    order = np.arange(log.joint_pos.shape[1])
    order[[first, second]] = second, first
    return log.replace(
        joint_pos=log.joint_pos[:, order],
        joint_vel=log.joint_vel[:, order],
        joint_effort=log.joint_effort[:, order],
    )


def _check_delay(desc: RobotDescription, fit: LawFit) -> list[Finding]:
    late_s = fit.delay_s - desc.latency.command_s
    if late_s < _LATE_S:
        return []
    return [
        Finding(
            kind="delay",
            term="command",
            score=late_s / _LATE_S * 5.0,
            evidence=f"torques answer targets {1e3 * fit.delay_s:.0f} ms after the HAL took them, "
            f"robot.toml says {1e3 * desc.latency.command_s:.0f} ms; commands or measurements are "
            f"{1e3 * late_s:.0f} ms late",
        )
    ]


def _check_gains(desc: RobotDescription, fit: LawFit) -> list[Finding]:
    seen = np.isfinite(fit.kp) & (fit.explained > _TRACKED)
    if seen.sum() < 3:
        return []
    ratio = fit.kp / desc.kp
    typical = float(np.median(ratio[seen]))
    if abs(typical - 1.0) > _GAIN_LIMIT:
        return [_gain((), typical, _GAIN_LIMIT)]
    odd = np.flatnonzero(seen & (np.abs(ratio - typical) > _JOINT_GAIN_LIMIT))
    return [_gain((desc.joint_names[j],), float(ratio[j]), _JOINT_GAIN_LIMIT) for j in odd]


def _gain(where: tuple[str, ...], ratio: float, limit: float) -> Finding:
    return Finding(
        kind="gain",
        where=where,
        term="joint_effort",
        score=abs(ratio - 1.0) / limit * 5.0,
        evidence=f"torque per radian of error is {ratio:.2f} times kp of robot.toml",
    )
