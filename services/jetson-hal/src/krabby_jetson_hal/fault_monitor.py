"""What is wrong with drives, buses and IMU, as the faults that the safety gate knows.

Detection itself is below (`krabby.drivers`): drives report, the bus side notices what they cannot.
Here each finding gets the gate's name and is logged once, when it begins, with place and remedy.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import structlog
from krabby.drivers.can import DriveFault, DriveReadings, IdConflict
from krabby.drivers.can.faults import FAULTS
from krabby.drivers.imu.check import ImuFault
from krabby.safety.gate import Fault

__all__ = ["Finding", "Watch"]

log = structlog.get_logger(__name__)

_TOO_WARM = DriveFault.OVER_TEMPERATURE | DriveFault.TOO_HOT
_IMU_REMEDY = "check its cable and port; a jump or a wrong norm: its mount and power"
_LATE_REMEDY = "look for what blocks the bus or this machine; then as for no_reply"
_LATE_SLOTS = 2.25
"""A reading this old is late: the answer to the exchange before, at most 1.8 slots old, is not."""
_LATE_CYCLES = 12
"""So many late ones in a row are no accident: 60 ms at 200 Hz."""
_NAMED_BY_BUS = DriveFault.BUS_OFF | DriveFault.SHARED_ID | DriveFault.UNKNOWN_ID
"""What is no finding of one joint: a bus, or a CAN id, is named instead."""
_NO_FAULT = Fault(0)
_OVER_NS = 1_000_000_000
"""A fault is over when it stayed away for this long."""


class Finding(NamedTuple):
    """One thing that is wrong now."""

    fault: Fault
    """What the gate calls it."""
    where: str
    """Joint, bus or `imu`."""
    what: str
    """The device's own name for it, in lower case."""
    remedy: str
    """What to do about it."""
    detail: str = ""
    """What the name does not say."""


class Watch:
    """Turns what devices say into faults; one per robot."""

    def __init__(
        self, joint_names: Sequence[str], bus_of_joint: Sequence[str], rate_hz: float
    ) -> None:
        """Nothing is wrong yet.

        Args:
            joint_names: Joint order.
            bus_of_joint: Name of the bus that each joint's drive is on.
            rate_hz: Exchanges per second.
        """
        self._late_ns = round(_LATE_SLOTS * 1e9 / rate_hz)
        self._joints = tuple(joint_names)
        self._bus_of_joint = np.array(bus_of_joint)
        self._buses = tuple(dict.fromkeys(bus_of_joint))
        self.findings: tuple[Finding, ...] = ()
        """What is wrong now."""
        self._late_for = np.zeros(len(self._joints), np.int64)
        self._seen_ns: dict[Finding, int] = {}
        """When each finding that was logged and is not over was there last."""

    @property
    def faults(self) -> Fault:
        """All that is wrong now."""
        found = _NO_FAULT
        for finding in self.findings:
            found |= finding.fault
        return found

    def judge(self, readings: DriveReadings, imu_faults: Iterable[ImuFault], now_ns: int) -> Fault:
        """Look at the newest readings; call it every cycle."""
        findings = [Finding(Fault.IMU, "imu", str(fault), _IMU_REMEDY) for fault in imu_faults]
        if readings.faults.any():
            findings += self._of_drives(readings.faults)
        findings += [_of_conflict(conflict) for conflict in readings.conflicts]
        findings += self._late(readings, now_ns)
        self.findings = tuple(findings)
        if findings or self._seen_ns:
            self._note(now_ns)
        return self.faults

    def describe(self) -> str:
        """What is wrong now, for an operator: `lf_knee no reply, imu silent`."""
        return ", ".join(
            f"{finding.where} {finding.what.replace('_', ' ')}"
            + (f" ({finding.detail}: {finding.remedy})" if finding.detail else "")
            for finding in self.findings
        )

    def _of_drives(self, faults: np.ndarray) -> list[Finding]:
        findings: list[Finding] = []
        silent = (faults & int(DriveFault.NO_REPLY)) != 0
        off = (faults & int(DriveFault.BUS_OFF)) != 0
        gone: set[str] = set()
        for bus in self._buses:
            here = self._bus_of_joint == bus
            if off[here].any():
                findings.append(
                    Finding(Fault.BUS, bus, "bus_off", FAULTS[DriveFault.BUS_OFF].remedy)
                )
                gone.add(bus)
            elif silent[here].all():  # one drive may fail; all of them at once is the bus
                findings.append(
                    Finding(Fault.BUS, bus, "no_reply", FAULTS[DriveFault.NO_REPLY].remedy)
                )
                gone.add(bus)
        for joint in np.flatnonzero(faults):
            bits = DriveFault(int(faults[joint])) & ~_NAMED_BY_BUS
            if self._bus_of_joint[joint] in gone:
                bits &= ~DriveFault.NO_REPLY
            for bit in bits:
                fault = Fault.OVER_TEMPERATURE if bit in _TOO_WARM else Fault.DRIVE
                name = str(bit.name).lower()
                findings.append(Finding(fault, self._joints[joint], name, FAULTS[bit].remedy))
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
        began: dict[tuple[Fault, str, str, str], list[str]] = {}
        for finding in self.findings:
            if finding not in self._seen_ns:
                key = (finding.fault, finding.what, finding.remedy, finding.detail)
                began.setdefault(key, []).append(finding.where)
            self._seen_ns[finding] = now_ns
        for (fault, what, remedy, detail), where in began.items():
            name = str(fault.name).lower()
            more = {"detail": detail} if detail else {}
            log.error("fault", fault=name, what=what, where=where, **more, remedy=remedy)
        over = [f for f, seen_ns in self._seen_ns.items() if now_ns - seen_ns >= _OVER_NS]
        for finding in over:
            del self._seen_ns[finding]
        if over:
            log.info("fault over", what=sorted({f"{f.where} {f.what}" for f in over}))


def _of_conflict(conflict: IdConflict) -> Finding:
    """The finding of an id that is not one drive's."""
    fault, where, bit = (
        (Fault.DRIVE, conflict.joint, DriveFault.SHARED_ID)
        if conflict.joint
        else (Fault.BUS, conflict.bus, DriveFault.UNKNOWN_ID)
    )
    return Finding(fault, where, str(bit.name).lower(), conflict.remedy, str(conflict))
