"""What the policy observed against what it observed where it was trained or evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from krabby_proto import STATE

from krabby.diagnosis.findings import Finding
from krabby.policy.observation import TERMS, ObservationInputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from krabby.diagnosis.log import RunLog
    from krabby.policy.observation import ObservationLayout
    from krabby.policy.statistics import ObservationStatistics
    from krabby.robot.description import RobotDescription

__all__ = ["check_observations", "observed_terms"]

_MEASURED: Final = (
    "base_ang_vel", "base_lin_acc", "projected_gravity", "joint_pos_rel", "joint_vel",
    "foot_contact",
)  # fmt: skip
"""Terms that follow from the stream state alone."""
_MARGIN: Final = 0.5
"""Share of the range between the quantiles by which a number may leave it."""
_LEAST_RANGE: Final = 0.05
"""Of a number that hardly varied in training, in the term's unit."""
_OUTSIDE: Final = 0.4
"""Share of the time outside that is a finding; a sound student on stairs leans for a quarter."""
_STAND_UP_S: Final = 3.0
_LEAST_S: Final = 2.0
_MOST_SCORE: Final = 3.0
"""Below the score of every named cause: statistics tell that something is wrong, not what."""


def observed_terms(
    states: NDArray[np.float64], desc: RobotDescription, layout: ObservationLayout
) -> dict[str, NDArray[np.float64]]:
    """Terms of the layout that payloads of the stream state (N, 70) tell, unscaled, (N, size)."""
    fields = {name: states[:, at] for name, at in STATE.slices.items()}
    inputs = ObservationInputs(
        base_quat_w=fields["base_quat_w"],
        base_ang_vel_b=fields["base_ang_vel_b"],
        base_lin_acc_b=fields["base_lin_acc_b"],
        joint_pos=fields["joint_pos"],
        joint_vel=fields["joint_vel"],
        foot_contact=fields["foot_contact"],
        nav_command=np.zeros((len(states), 3)),
        last_action=np.zeros_like(fields["joint_pos"]),
    )
    return {
        name: np.asarray(TERMS[name].compute(inputs, desc), np.float64)
        for name in _MEASURED
        if layout.term(name) is not None
    }


def check_observations(
    log: RunLog,
    desc: RobotDescription,
    layout: ObservationLayout,
    statistics: ObservationStatistics,
) -> list[Finding]:
    """Numbers of the observation that lie outside what the policy knows for much of the time.

    The first seconds after arming, in which a lying robot stands up, do not count.
    """
    walking = _walking(log)
    if walking.sum() * 0.01 < _LEAST_S:
        return []
    states = np.concatenate([getattr(log, name) for name in STATE.slices], axis=1)
    findings: list[Finding] = []
    for name, values in observed_terms(states[walking], desc, layout).items():
        known = statistics.terms.get(name)
        if known is None:
            continue
        low, high = np.array(known.low), np.array(known.high)
        margin = _MARGIN * np.maximum(high - low, _LEAST_RANGE)
        outside = ((values < low - margin) | (values > high + margin)).mean(0)
        odd = np.flatnonzero(outside > _OUTSIDE)
        if len(odd):
            worst = int(outside.argmax())
            findings.append(
                Finding(
                    kind="statistics",
                    where=tuple(_number(desc, name, int(i)) for i in odd),
                    term=name,
                    score=min(float(outside[worst]) / _OUTSIDE, _MOST_SCORE),
                    evidence=f"{name}, {_number(desc, name, worst)}: {outside[worst]:.0%} of the "
                    f"time outside {low[worst]:.3g} to {high[worst]:.3g} and a margin, mean "
                    f"{values[:, worst].mean():.3g} for {known.mean[worst]:.3g}",
                )
            )
    return findings


def _walking(log: RunLog) -> NDArray[np.bool_]:
    """States at which the robot has followed commands for long enough to stand."""
    out = np.zeros(len(log.time_s), bool)
    since_s = None
    for i, (now_s, follows) in enumerate(zip(log.time_s, log.following, strict=True)):
        if not follows or not log.joined[i]:
            since_s = None
        elif since_s is None:
            since_s = now_s
        out[i] = since_s is not None and now_s - since_s > _STAND_UP_S
    return out


def _number(desc: RobotDescription, term: str, index: int) -> str:
    names = {3: ("x", "y", "z"), 18: desc.joint_names, 6: desc.leg_names}
    size = TERMS[term].size
    return names[size][index] if size in names else str(index)
