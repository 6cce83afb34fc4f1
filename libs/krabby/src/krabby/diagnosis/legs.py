"""Legs against the ground: standing feet do not move, so all of them must tell one base velocity.

For a foot at p in the base frame that stands, p' + w x p = -v with the gyro's w and the base's v.
Joints of the wrong sign or of another drive, and an IMU turned on its mount, break that. Every such
mistake is undone on the recorded data in turn; the one that lets the feet agree again is found. No
threshold decides between them, and nothing has to be learnt.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from krabby.diagnosis.drives import flip_joint, swap_joints
from krabby.diagnosis.findings import Finding
from krabby.diagnosis.sensors import axis_angle, quarter_turns
from krabby.robot import rotations
from krabby.robot.contact import FootContacts
from krabby.robot.description import JOINTS_PER_LEG, NUM_LEGS
from krabby.robot.kinematics import foot_positions
from krabby.safety.trajectories import rest_joint_pos

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from krabby.diagnosis.log import RunLog
    from krabby.robot.description import RobotDescription

__all__ = ["check_contacts", "check_legs", "check_resting"]

_CAP_M_S: Final = 0.3
"""Largest disagreement that counts: one slip must not outweigh a run."""
_GAIN_M_S: Final = 0.003
"""Least by which a mistake, undone, has to let the feet agree better. What was not done makes them
disagree more."""
_SHARE: Final = 0.88
"""Most of the disagreement that may be left then."""
_CERTAIN: Final = 2.5
"""Least of the mean gain over its standard error."""
_TOGETHER: Final = 5.0
"""Samples that follow one another tell as much as one in so many."""
_LEAST: Final = 25
"""Samples of a standing foot that a verdict takes."""
_MOST: Final = 1500
"""Samples that are looked at."""
_BEYOND_RAD: Final = 0.05
"""A joint measured further outside its range is impossible."""


class Mistake(NamedTuple):
    """What may have been done wrong."""

    kind: str
    joints: tuple[int, ...] = ()
    turn: tuple[float, ...] | None = None
    """Of the IMU on its mount, xyzw."""


class _Stance:
    """Velocities of standing feet under the mistakes that may be undone."""

    def __init__(self, log: RunLog, desc: RobotDescription) -> None:
        self._desc = desc
        down = log.foot_contact & log.following[:, None]
        firm = down.copy()
        firm[1:] &= down[:-1]
        firm[:-1] &= down[1:]
        chosen = np.flatnonzero(firm.sum(1) >= 2)
        chosen = chosen[:: 1 + len(chosen) // _MOST]
        self.samples = len(chosen)
        self.firm = firm[chosen]
        self.pos, self.vel = log.joint_pos[chosen], log.joint_vel[chosen]
        self.gyro = log.base_ang_vel_b[chosen]
        self._others: dict[tuple[int, ...], NDArray[np.float64]] = {}
        self._foot, self._speed = self._feet(self.pos, self.vel)
        self.base = self._base_velocity(self._foot, self._speed, self.gyro)

    def _feet(
        self, pos: NDArray[np.float64], vel: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        step = 1e-4
        ahead, behind = (foot_positions(self._desc, pos + s * vel) for s in (step, -step))
        return 0.5 * (ahead + behind), (ahead - behind) / (2.0 * step)

    @staticmethod
    def _base_velocity(
        foot: NDArray[np.float64], speed: NDArray[np.float64], gyro: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Minus the base's velocity as each foot has it [m/s], shape (N, 6, 3)."""
        return speed + np.cross(gyro[:, None, :], foot)

    def without(self, legs: tuple[int, ...]) -> NDArray[np.float64]:
        """Median over the standing feet of the other legs, (N, 3); NaN for none."""
        if legs not in self._others:
            rest = [leg for leg in range(NUM_LEGS) if leg not in legs]
            self._others[legs] = _median(self.base[:, rest], self.firm[:, rest])
        return self._others[legs]

    def disagreement(self, legs: tuple[int, ...], base: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distances of these legs' velocities from the others' [m/s], of all samples."""
        others = self.without(legs)
        apart: list[NDArray[np.float64]] = []
        for leg in legs:
            use = self.firm[:, leg] & np.isfinite(others[:, 0])
            apart.append(np.linalg.norm(base[use, leg] - others[use], axis=1))
        return np.minimum(np.concatenate(apart), _CAP_M_S)

    def undone(self, mistake: Mistake) -> NDArray[np.float64]:
        """Velocities as they would be without it."""
        pos, vel = self.pos.copy(), self.vel.copy()
        joints = list(mistake.joints)
        if mistake.kind == "joint-sign":
            pos[:, joints] *= -1.0
            vel[:, joints] *= -1.0
        else:
            pos[:, joints] = self.pos[:, joints[::-1]]
            vel[:, joints] = self.vel[:, joints[::-1]]
        return self._base_velocity(*self._feet(pos, vel), self.gyro)

    def turned(self, turn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distances of all standing feet [m/s] with the gyro's reading turned."""
        base = self._base_velocity(self._foot, self._speed, rotations.rotate(turn, self.gyro))
        middle = _median(base, self.firm)
        apart = np.linalg.norm(base - middle[:, None], axis=2)[self.firm]
        return np.minimum(np.nan_to_num(apart), _CAP_M_S)


def _median(values: NDArray[np.float64], use: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Over the axis of the feet, where one or more are in use."""
    out = np.full((len(values), 3), np.nan)
    enough = use.any(1)
    if enough.any():
        out[enough] = np.nanmedian(np.where(use[..., None], values, np.nan)[enough], axis=1)
    return out


def check_legs(log: RunLog, desc: RobotDescription) -> tuple[list[Finding], RunLog]:
    """Joint signs, exchanged joints, and the mount of the IMU."""
    stance = _Stance(log, desc)
    if stance.samples < 2 * _LEAST:
        return [], log
    best: tuple[float, Mistake, float, float] | None = None
    as_it_is = stance.turned(rotations.IDENTITY)
    for mistake in _mistakes(len(desc.joint_names)):
        if mistake.turn is not None:
            before, after = as_it_is, stance.turned(np.array(mistake.turn))
        else:
            legs = tuple(sorted({joint // JOINTS_PER_LEG for joint in mistake.joints}))
            before = stance.disagreement(legs, stance.base)
            if len(before) < _LEAST:
                continue
            after = stance.disagreement(legs, stance.undone(mistake))
        gain = before - after
        error = float(gain.std()) * math.sqrt(_TOGETHER / len(gain))
        share = float(after.mean()) / max(float(before.mean()), 1e-9)
        found = gain.mean() > max(_GAIN_M_S, _CERTAIN * error) and share < _SHARE
        # Legs agree worse than all of them together, so gains are compared as shares.
        if found and (best is None or 1.0 - share > best[0]):
            best = 1.0 - share, mistake, float(before.mean()), float(after.mean())
    if best is None:
        return [], log
    return _found(log, desc, *best[1:])


def _mistakes(joints: int) -> Iterator[Mistake]:
    for turn in quarter_turns():
        yield Mistake("imu-rotated", (), tuple(turn.tolist()))
    for joint in range(joints):
        yield Mistake("joint-sign", (joint,))
    for pair in itertools.combinations(range(joints), 2):
        yield Mistake("joints-swapped", pair)


def _found(
    log: RunLog, desc: RobotDescription, mistake: Mistake, before: float, after: float
) -> tuple[list[Finding], RunLog]:
    names = tuple(desc.joint_names[joint] for joint in mistake.joints)
    evidence = f"standing feet disagree by {before:.3f} m/s on the velocity of the base, "
    if mistake.turn is not None:
        axis, angle = axis_angle(np.array(mistake.turn))
        names, term = (axis,), "base_ang_vel_b"
        evidence += f"by {after:.3f} with the IMU's reading turned by {angle:+.0f} degrees"
        turn = np.array(mistake.turn)
        log = log.replace(
            base_ang_vel_b=rotations.rotate(turn, log.base_ang_vel_b),
            base_lin_acc_b=rotations.rotate(turn, log.base_lin_acc_b),
            base_quat_w=rotations.mul(log.base_quat_w, rotations.conjugate(turn)),
        )
    elif mistake.kind == "joint-sign":
        term = "joint_pos"
        evidence += f"by {after:.3f} with the joint turned round"
        log = flip_joint(log, mistake.joints[0])
    else:
        term = "joint_pos"
        evidence += f"by {after:.3f} with the two exchanged"
        log = swap_joints(log, mistake.joints[0], mistake.joints[1])
    score = 5.0 + 20.0 * (before - after) / before
    return [Finding(kind=mistake.kind, where=names, term=term, score=score, evidence=evidence)], log


def check_resting(log: RunLog, desc: RobotDescription) -> tuple[list[Finding], RunLog]:
    """Joints measured where they cannot be, of a robot that never followed a command.

    The gate refuses to arm then. What is there to go by is the pose: it lies, legs folded alike.
    """
    pos = np.median(log.joint_pos, axis=0)
    lower, upper = desc.joint_lower - _BEYOND_RAD, desc.joint_upper + _BEYOND_RAD
    beyond = np.flatnonzero((pos < lower) | (pos > upper))
    if log.following.any() or len(beyond) == 0:
        return [], log
    rest = rest_joint_pos(desc)

    def strange(candidate: NDArray[np.float64]) -> float:
        outside = np.maximum(lower - candidate, candidate - upper).clip(0.0)
        return float(np.abs(candidate - rest).sum() + 10.0 * outside.sum())

    best = (strange(pos), Mistake("joint-range", tuple(int(j) for j in beyond)))
    for mistake in _mistakes(len(pos)):
        if mistake.turn is None and set(mistake.joints) & set(beyond.tolist()):
            candidate = pos.copy()
            joints = list(mistake.joints)
            if mistake.kind == "joint-sign":
                candidate[joints] *= -1.0
            else:
                candidate[joints] = pos[joints[::-1]]
            best = min(best, (strange(candidate), mistake), key=lambda each: each[0])
    left, mistake = best
    names = tuple(desc.joint_names[joint] for joint in mistake.joints)
    values = ", ".join(f"{desc.joint_names[j]} at {pos[j]:+.2f} rad" for j in beyond[:3])
    how = {
        "joint-sign": "turned round it lies as the others do",
        "joints-swapped": "exchanged they lie as the others do",
    }.get(mistake.kind, "no single change of sign or exchange explains it")
    evidence = (
        f"the gate cannot arm: {values} outside the joint's range; {how} "
        f"(distance from the resting pose {strange(pos):.1f} to {left:.1f})"
    )
    if mistake.kind == "joint-sign":
        log = flip_joint(log, mistake.joints[0])
    elif mistake.kind == "joints-swapped":
        log = swap_joints(log, mistake.joints[0], mistake.joints[1])
    return [
        Finding(kind=mistake.kind, where=names, term="joint_pos", score=20.0, evidence=evidence)
    ], log


def check_contacts(log: RunLog, desc: RobotDescription) -> list[Finding]:
    """Foot contacts against the load that the drives' torques tell."""
    load = _loads(log, desc)
    use = log.following
    if use.sum() < 100:
        return []
    stale: list[int] = []
    wrong: list[int] = []
    for leg in range(NUM_LEGS):
        down, carried = log.foot_contact[use, leg], load[use, leg]
        on, off = carried > 30.0, carried < 8.0
        steps = _steps(on, off)
        if steps < 4:
            continue
        if not (down[1:] != down[:-1]).any():
            stale.append(leg)
        elif float((down == on)[on | off].mean()) < 0.4:
            wrong.append(leg)
    findings: list[Finding] = []
    for kind, legs, what in (
        ("contact-stale", stale, "never changes"),
        ("contact-wrong", wrong, "contradicts the load most of the time"),
    ):
        if legs:
            names = tuple(desc.leg_names[leg] for leg in legs)
            whose = "of all feet" if len(legs) == NUM_LEGS else f"of {', '.join(names)}"
            evidence = f"foot_contact {whose} {what}, while the drives' torques show steps"
            findings.append(
                Finding(kind=kind, where=names, term="foot_contact", score=15.0, evidence=evidence)
            )
    return findings


def _loads(log: RunLog, desc: RobotDescription) -> NDArray[np.float64]:
    """Load of every foot from the torques [N], shape (T, 6)."""
    contacts = FootContacts(desc)
    out = np.zeros((len(log.time_s), NUM_LEGS))
    for i, now_s in enumerate(log.time_s):
        contacts.update(
            log.joint_pos[i], log.joint_vel[i], log.joint_effort[i], log.base_quat_w[i],
            1 + round(1e9 * float(now_s)),
        )  # fmt: skip
        out[i] = contacts.load_n
    return out


def _steps(on: NDArray[np.bool_], off: NDArray[np.bool_]) -> int:
    """How often a foot was set down after it had been lifted."""
    steps, lifted, run = 0, False, 0
    for is_on, is_off in zip(on, off, strict=True):
        run = run + 1 if (is_on if lifted else is_off) else 0
        if run >= 5:  # 50 ms: not a spike
            steps += lifted
            lifted, run = not lifted, 0
    return steps
