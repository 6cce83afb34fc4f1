"""Faults of drives, buses and IMU under the names of the safety gate.

Detection is below (`krabby.drivers`): drives report, the bus side notices what they cannot. Here
each finding gets the gate's name and is logged once, when it begins, with place and remedy.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import structlog
from krabby.drivers.can import DriveFault, DriveReadings, IdConflict
from krabby.drivers.can.faults import FAULTS
from krabby.drivers.imu.check import ImuFault
from krabby_proto import Fault

__all__ = ["Finding", "Watch"]

log = structlog.get_logger(__name__)

_TOO_WARM = DriveFault.OVER_TEMPERATURE | DriveFault.TOO_HOT
_IMU_REMEDY = "check its cable and port; a jump or a wrong norm: its mount and power"
_LATE_REMEDY = "look for what blocks the bus or this machine; then as for no_reply"
_LATE_SLOTS = 2.25
"""A reading this old is late: the answer to the exchange before, at most 1.8 slots old, is not."""
_LATE_CYCLES = 12
"""So many late ones in a row are no accident: 60 ms at 200 Hz."""
_NAMED_BY_BUS = (
    DriveFault.BUS_OFF | DriveFault.SHARED_ID | DriveFault.UNKNOWN_ID | DriveFault.CROSSED
)
"""Faults of a bus, a CAN id or a pair of joints, which are named instead of a joint."""
_OVER_NS = 1_000_000_000
"""A fault is over when it stayed away for this long."""


class Finding(NamedTuple):
    """One thing that is wrong now."""

    fault: Fault
    where: str
    """Joint, bus or `imu`."""
    what: str
    """The device's own name for it, in lower case."""
    remedy: str
    detail: str = ""

    def __str__(self) -> str:
        """For an operator: `lf_knee no reply`."""
        detail = f" ({self.detail}: {self.remedy})" if self.detail else ""
        return f"{self.where} {self.what.replace('_', ' ')}{detail}"


class Watch:
    """Turns what devices report into faults; one per robot."""

    def __init__(
        self, joint_names: Sequence[str], bus_of_joint: Sequence[str], rate_hz: float
    ) -> None:
        """Names and buses in joint order, and exchanges per second."""
        self._late_ns = round(_LATE_SLOTS * 1e9 / rate_hz)
        self._joints = tuple(joint_names)
        self._bus_of_joint = np.array(bus_of_joint)
        self._buses = tuple(dict.fromkeys(bus_of_joint))
        self.findings: tuple[Finding, ...] = ()
        """What is wrong now."""
        self._late_for = np.zeros(len(self._joints), np.int64)
        self._seen_ns: dict[Finding, int] = {}
        """When each finding that was logged and is not over was there last."""

    def judge(
        self,
        readings: DriveReadings,
        imu_faults: Iterable[ImuFault],
        now_ns: int,
        imu_detail: str = "",
    ) -> Fault:
        """Look at the newest readings, every cycle; returns all that is wrong now.

        `imu_detail` is what the check of gravity says.
        """
        findings = [_of_imu(fault, imu_detail) for fault in imu_faults]
        if readings.faults.any():
            findings += self._of_drives(readings)
        findings += [_of_conflict(conflict) for conflict in readings.conflicts]
        findings += self._late(readings, now_ns)
        self.findings = tuple(findings)
        if findings or self._seen_ns:
            self._note(now_ns)
        found = Fault(0)
        for finding in findings:
            found |= finding.fault
        return found

    def describe(self) -> str:
        """What is wrong now, for an operator: `lf_knee no reply, imu silent`."""
        return ", ".join(map(str, self.findings))

    def _of_drives(self, readings: DriveReadings) -> list[Finding]:
        faults = readings.faults
        findings = [
            _of_bit(Fault.DRIVE, self._joints[one], DriveFault.CROSSED)._replace(
                detail=f"it moves when {self._joints[other]} is commanded"
            )
            for pair in readings.crossed
            for one, other in (pair, pair[::-1])
        ]
        silent = (faults & int(DriveFault.NO_REPLY)) != 0
        off = (faults & int(DriveFault.BUS_OFF)) != 0
        gone: set[str] = set()
        for bus in self._buses:
            here = self._bus_of_joint == bus
            # One drive may fail; all of them at once is the bus.
            if off[here].any() or silent[here].all():
                bit = DriveFault.BUS_OFF if off[here].any() else DriveFault.NO_REPLY
                findings.append(_of_bit(Fault.BUS, bus, bit))
                gone.add(bus)
        for joint in np.flatnonzero(faults):
            bits = DriveFault(int(faults[joint])) & ~_NAMED_BY_BUS
            if self._bus_of_joint[joint] in gone:
                bits &= ~DriveFault.NO_REPLY
            for bit in bits:
                fault = Fault.OVER_TEMPERATURE if bit in _TOO_WARM else Fault.DRIVE
                findings.append(_of_bit(fault, self._joints[joint], bit))
        return findings

    def _late(self, readings: DriveReadings, now_ns: int) -> list[Finding]:
        """Joints whose every reading for a while was late."""
        is_late = now_ns - readings.stamp_ns > self._late_ns
        self._late_for = (self._late_for + 1) * is_late
        if not is_late.any():
            return []
        return [
            Finding(Fault.DRIVE, self._joints[joint], "late_replies", _LATE_REMEDY)
            for joint in np.flatnonzero(self._late_for > _LATE_CYCLES)
            if not readings.faults[joint]
        ]

    def _note(self, now_ns: int) -> None:
        """Log what began and what ended; what comes and goes is one fault until it stays away."""
        began: dict[Finding, list[str]] = {}
        for finding in self.findings:
            if finding not in self._seen_ns:
                began.setdefault(finding._replace(where=""), []).append(finding.where)
            self._seen_ns[finding] = now_ns
        for finding, where in began.items():
            name = str(finding.fault.name).lower()
            more = {"detail": finding.detail} if finding.detail else {}
            log.error(
                "fault", fault=name, what=finding.what, where=where, **more, remedy=finding.remedy
            )
        over = [f for f, seen_ns in self._seen_ns.items() if now_ns - seen_ns >= _OVER_NS]
        for finding in over:
            del self._seen_ns[finding]
        if over:
            log.info("fault over", what=sorted({f"{f.where} {f.what}" for f in over}))


def _of_imu(fault: ImuFault, detail: str) -> Finding:
    """The finding of a fault of the IMU; that of gravity has its cause and remedy with it."""
    if fault is not ImuFault.GRAVITY:
        return Finding(Fault.IMU, "imu", str(fault), _IMU_REMEDY)
    # The log's one event keeps the figures of its begin: those that follow are the same fault.
    cause, _, remedy = detail.partition(": ")
    return Finding(Fault.IMU, "imu", str(fault), remedy or _IMU_REMEDY, cause)


def _of_bit(fault: Fault, where: str, bit: DriveFault) -> Finding:
    return Finding(fault, where, str(bit.name).lower(), FAULTS[bit].remedy)


def _of_conflict(conflict: IdConflict) -> Finding:
    """The finding of an id that is not one drive's."""
    is_shared = bool(conflict.joint)
    bit = DriveFault.SHARED_ID if is_shared else DriveFault.UNKNOWN_ID
    fault, where = (Fault.DRIVE, conflict.joint) if is_shared else (Fault.BUS, conflict.bus)
    return Finding(fault, where, str(bit.name).lower(), conflict.remedy, str(conflict))
