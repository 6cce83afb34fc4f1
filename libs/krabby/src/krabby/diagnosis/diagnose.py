"""The checks in the order in which one fault hides another, and their findings by rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from krabby.diagnosis import depth, drives, legs, observations, pace, sensors

if TYPE_CHECKING:
    from krabby.diagnosis.drives import LawFit
    from krabby.diagnosis.findings import Finding
    from krabby.diagnosis.log import RunLog
    from krabby.policy.observation import ObservationLayout
    from krabby.policy.statistics import ObservationStatistics
    from krabby.robot.description import RobotDescription

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found, the most certain first, and what could be looked at."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    """What was missing from the recording, and what therefore was not checked."""
    law: LawFit | None = field(default=None, repr=False)
    """Gains and delay of the drives; None without commands."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"findings": [each.to_dict() for each in self.findings], "notes": list(self.notes)}


def diagnose(
    log: RunLog,
    desc: RobotDescription,
    *,
    layout: ObservationLayout | None = None,
    statistics: ObservationStatistics | None = None,
) -> Diagnosis:
    """Look for mistakes of wiring, mounting and timing.

    Args:
        log: the run.
        desc: the robot as it is described.
        layout: of the policy's observation.
        statistics: what that policy observed where it was evaluated; both or neither.

    What a check finds is undone before the next one looks: a gyro in degrees would make all legs
    disagree, and a joint that answers for another would have wrong gains.
    """
    findings: list[Finding] = []
    if layout is not None and statistics is not None:
        findings += observations.check_observations(log, desc, layout, statistics)
    found, log = sensors.check_units(log, desc)
    findings += found
    found, log = sensors.check_attitude(log)
    findings += found
    found, log = sensors.check_gyro(log)
    findings += found
    found, log, law = drives.check_drives(log, desc)
    findings += found
    found, log = legs.check_resting(log, desc)
    findings += found
    found, log = legs.check_legs(log, desc)
    findings += found
    findings += legs.check_contacts(log, desc)
    findings += depth.check_camera(log, desc)
    findings += sensors.check_rates(log, desc)
    findings += pace.check_pace(log.pace)
    ranked = sorted(findings, key=lambda each: -each.score)
    notes = _notes(log, law)
    if statistics is None:
        notes.append(
            "the policy's bundle has no observation statistics, or none was named: what it was "
            "trained on is not compared"
        )
    return Diagnosis(findings=tuple(ranked), notes=tuple(notes), law=law)


def _notes(log: RunLog, law: LawFit | None) -> list[str]:
    notes: list[str] = []
    if log.damage:
        notes.append(f"the recording is not complete: {log.damage}")
    followed_s = float(log.following.sum()) * 0.01
    if not log.following.any():
        notes.append(
            "the robot never followed a command: signs, exchanged joints and the camera are judged "
            "by the pose in which it lies"
        )
    elif followed_s < 5.0:
        notes.append(f"only {followed_s:.1f} s of {log.duration_s:.1f} s follow commands")
    if log.commands is None:
        notes.append("no commands were recorded: delay, gains and tracking are not checked")
    elif law is None:
        notes.append("no command reached the drives: delay, gains and tracking are not checked")
    if log.frames is None:
        notes.append("no depth pictures were recorded: the camera is not checked")
    return notes
