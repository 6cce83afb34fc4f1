"""Faults that can be injected while the emulator runs, and those in force."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from krabby.mujoco.errors import SimulationError

__all__ = ["FAULTS", "Fault", "FaultBoard", "FaultRefused"]


class FaultRefused(SimulationError):  # noqa: N818 - the name says what happened
    """A fault, or another request, that the emulator cannot grant."""


@dataclass(frozen=True, slots=True)
class FaultFacts:
    """What a kind of fault does and what its value means."""

    text: str
    value: float = math.nan
    """Used when none is given."""
    unit: str = ""
    """Of the value; empty when the fault takes none."""
    maximum: float = math.inf
    at: str = "joint"
    """Where it strikes: joint (one, those of a bus, or all), bus, or robot."""


FAULTS: Mapping[str, FaultFacts] = {
    "lost-replies": FaultFacts(
        "the drive acts on frames, but this share of its replies is lost", 1.0, "share", 1.0
    ),
    "late-replies": FaultFacts("replies leave this much later", 0.02, "s", 10.0),
    "bus-off": FaultFacts("nothing passes the bus, in either direction", at="bus"),
    "over-temperature": FaultFacts("the winding is at least this hot", 150.0, "°C", 500.0),
    "stuck-encoder": FaultFacts("the encoder repeats its last angle, the drive believes it"),
    "voltage-sag": FaultFacts("the supply loses this much", 30.0, "V", 100.0, "robot"),
    "reset": FaultFacts("the drive reboots: off, mute for a moment, parameters forgotten"),
    "twin": FaultFacts(
        "a second drive with the same CAN id is plugged in, off and turned by this; it answers "
        "after the first and follows commands too, without a load",
        0.5,
        "rad",
        3.0,
    ),
    "power-cut": FaultFacts(
        "the drives have no supply, as after an emergency stop; they boot when it is lifted, and "
        "count from within a turn",
        at="robot",
    ),
    "brown-out": FaultFacts(
        "the supply dips for a moment: every other drive reboots, the others switch themselves "
        "off and keep that as a fault",
        at="robot",
    ),
    "wrap": FaultFacts(
        "the drive counts from this many turns away, as after an encoder lost count",
        1.0,
        "turns",
        3.0,
    ),
    "replug": FaultFacts(
        "the bus's adapter is pulled and plugged in again: what the host had opened stays dead",
        at="bus",
    ),
    "bus-swapped": FaultFacts(
        "the bus and the next one hang on each other's wires, the last and the first", at="bus"
    ),
    "can-noise": FaultFacts(
        "this share of frames is damaged and repeated, some of them twice; error frames tell",
        0.2,
        "share",
        0.9,
    ),
    "joint-sign": FaultFacts("the drive turns and counts the other way"),
    "joints-swapped": FaultFacts(
        "the drive and that of the same joint on the other side have each other's id"
    ),
    "commands-crossed": FaultFacts(
        "the drive and that of the same joint on the other side follow each other's commands"
    ),
    "imu-silence": FaultFacts("the IMU sends nothing", at="robot"),
    "imu-jump": FaultFacts("the IMU's attitude is rolled by this", 0.5, "rad", 7.0, "robot"),
    "imu-flipped": FaultFacts("the accelerometer counts downwards", at="robot"),
    "imu-rotated": FaultFacts(
        "the accelerometer is turned about x by this, the attitude is not",
        90.0,
        "degrees",
        180.0,
        "robot",
    ),
    "imu-scale": FaultFacts(
        "the accelerometer says this share: 0.102 is in g", 0.102, "share", 10.0, "robot"
    ),
}
"""By the name that an operator types."""

_MOMENTARY = ("reset", "brown-out", "wrap")
"""Kinds that happen once and leave nothing to lift."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One that is in force."""

    kind: str
    where: str
    """Joint, bus, "all", or "robot"."""
    joints: tuple[int, ...]
    buses: tuple[int, ...]
    value: float
    until_ns: int | None
    """None: until it is cleared."""


class FaultBoard:
    """What is broken now, in the form in which bus, drives and IMU ask for it."""

    def __init__(self, joints: Sequence[str], buses: Sequence[str], bus_of: Sequence[int]) -> None:
        """No fault; `bus_of` is the index into `buses` of every joint."""
        self._joints = tuple(joints)
        self._buses = tuple(buses)
        self._bus_of = tuple(bus_of)
        self._mirror = [_mirrored(joint, self._joints) for joint in range(len(self._joints))]
        self.active: list[Fault] = []
        self.injected: dict[str, int] = dict.fromkeys(FAULTS, 0)
        """How often each was asked for."""
        self._lift_ns: int | None = None
        self.changes = 0
        """How often faults came or were lifted."""
        self._apply()

    def _apply(self) -> None:
        """Work out what every part needs to know."""
        self.changes += 1
        self.lost_share = self._by_joint("lost-replies", 0.0)
        self.delay_ns = [round(s * 1e9) for s in self._by_joint("late-replies", 0.0)]
        self.heat_c = np.array(self._by_joint("over-temperature", math.nan))
        self.heated = not np.isnan(self.heat_c).all()
        self.stuck = np.array(self._by_joint("stuck-encoder", 0.0), bool)
        twins = enumerate(self._by_joint("twin", 0.0))
        self.twins = {joint: turned for joint, turned in twins if turned}
        """By joint: how far a second drive with its id is turned when it is plugged in [rad]."""
        off = {bus for fault in self._of("bus-off") for bus in fault.buses}
        self.bus_off = [bus in off for bus in range(len(self._buses))]
        self.powered = not self._of("power-cut")
        """Whether the drives have their supply."""
        self.noise = self._by_joint("can-noise", 0.0)
        self.replies_suffer = any(self.lost_share) or any(self.delay_ns) or any(self.noise)
        """Whether some reply is lost, late or damaged."""
        self.replugged = [0] * len(self._buses)
        """How often each bus's adapter was plugged in again."""
        for fault in self._of("replug"):
            for bus in fault.buses:
                self.replugged[bus] += 1
        self.reversed = np.array(self._marked("joint-sign"), bool)
        self.swapped = self._pairs("joints-swapped", self._mirror)
        """By joint: whose frames its drive takes for its own."""
        self.wired = list(range(len(self._buses)))
        """By bus of the host: whose drives hang on its wires."""
        for fault in self._of("bus-swapped"):
            self._swap_buses(fault)
        self.crossed = self._pairs("commands-crossed", self._mirror)
        """By joint: which drive does what it is commanded."""
        self.sag_v = self._value("voltage-sag")
        self.force_scale = self._value("imu-scale") or 1.0
        self.force_scale *= -1.0 if self._of("imu-flipped") else 1.0
        self.force_roll = math.radians(self._value("imu-rotated"))
        self.imu_roll = self._value("imu-jump")
        self.imu_silent = bool(self._of("imu-silence"))
        ends = [fault.until_ns for fault in self.active if fault.until_ns is not None]
        self._lift_ns = min(ends, default=None)

    def _marked(self, kind: str) -> list[bool]:
        struck = {joint for fault in self._of(kind) for joint in fault.joints}
        return [joint in struck for joint in range(len(self._joints))]

    def _pairs(self, kind: str, partner: Sequence[int]) -> list[int]:
        """Every joint, or its partner where the fault strikes one of the two."""
        struck = self._marked(kind)
        return [
            other if struck[joint] or struck[other] else joint
            for joint, other in enumerate(partner)
        ]

    def _swap_buses(self, fault: Fault) -> None:
        """Drives that are on another bus's wires are not heard under their ids there."""
        count = len(self._buses)
        for bus in fault.buses[:1]:
            self.wired[bus], self.wired[(bus + 1) % count] = (
                self.wired[(bus + 1) % count],
                self.wired[bus],
            )

    def _of(self, kind: str) -> list[Fault]:
        return [fault for fault in self.active if fault.kind == kind]

    def _value(self, kind: str) -> float:
        """The value of the newest fault of a kind, 0 without any."""
        return next((fault.value for fault in reversed(self._of(kind))), 0.0)

    def _by_joint(self, kind: str, nothing: float) -> list[float]:
        """The value of the newest fault of a kind, by joint."""
        values = [nothing] * len(self._joints)
        for fault in self._of(kind):
            for joint in fault.joints:
                values[joint] = fault.value
        return values

    def refresh(self, now_ns: int) -> None:
        """Lift what has lasted long enough; a comparison when there is nothing to lift."""
        if self._lift_ns is None or now_ns < self._lift_ns:
            return
        self.active = [f for f in self.active if f.until_ns is None or f.until_ns > now_ns]
        self._apply()

    def inject(
        self,
        kind: str,
        now_ns: int,
        *,
        joint: str = "",
        bus: str = "",
        for_s: float = 0.0,
        value: float | None = None,
    ) -> Fault:
        """Inject a fault from now on; raises `FaultRefused`.

        Args:
            kind: One of `FAULTS`.
            now_ns: The clock.
            joint: Name; empty for every joint, or for every joint of `bus`.
            bus: Name; empty for all.
            for_s: How long; 0 until cleared.
            value: See `FAULTS`; its default when None.
        """
        if kind not in FAULTS:
            raise FaultRefused(f"no fault is called {kind!r}; use one of {', '.join(FAULTS)}")
        facts = FAULTS[kind]
        value = _value(kind, facts, value)
        if not (math.isfinite(for_s) and for_s >= 0.0):
            raise FaultRefused(f"for_s {for_s} must be 0 (until cleared) or a positive time [s]")
        joints, buses, where = self._place(kind, facts, joint, bus)
        until_ns = now_ns + round(for_s * 1e9) if for_s else None
        fault = Fault(kind, where, joints, buses, value, until_ns)
        self.injected[kind] += 1
        if kind not in _MOMENTARY:
            self.active.append(fault)
            self._apply()
        return fault

    def clear(self, kind: str = "") -> int:
        """Lift all faults, or those of one kind; returns how many."""
        kept = [fault for fault in self.active if kind and fault.kind != kind]
        lifted = len(self.active) - len(kept)
        self.active = kept
        self._apply()
        return lifted

    def describe(self, now_ns: int) -> list[dict[str, Any]]:
        """What is in force, for people."""
        return [
            {
                "kind": fault.kind,
                "where": fault.where,
                "value": None if math.isnan(fault.value) else fault.value,
                "left_s": None if fault.until_ns is None else (fault.until_ns - now_ns) * 1e-9,
            }
            for fault in self.active
        ]

    def _place(
        self, kind: str, facts: FaultFacts, joint: str, bus: str
    ) -> tuple[tuple[int, ...], tuple[int, ...], str]:
        """Joints and buses that a fault strikes, and their name."""
        if joint and facts.at != "joint":
            raise FaultRefused(f"{kind} strikes the {facts.at}, not a joint; omit joint={joint}")
        if bus and facts.at == "robot":
            raise FaultRefused(f"{kind} strikes the robot, not a bus; omit bus={bus}")
        if joint and bus:
            raise FaultRefused(f"give joint={joint} or bus={bus}, not both")
        if joint:
            return (_index("joint", joint, self._joints),), (), joint
        if bus:
            at = _index("bus", bus, self._buses)
            return tuple(j for j, b in enumerate(self._bus_of) if b == at), (at,), bus
        where = "robot" if facts.at == "robot" else "all"
        return tuple(range(len(self._joints))), tuple(range(len(self._buses))), where


def _mirrored(joint: int, names: Sequence[str]) -> int:
    """The same joint on the other side; itself where there is none."""
    name = names[joint]
    other = {"l": "r", "r": "l"}.get(name[0], "") + name[1:]
    return names.index(other) if other in names else joint


def _value(kind: str, facts: FaultFacts, value: float | None) -> float:
    if value is None:
        return facts.value
    if not facts.unit:
        raise FaultRefused(f"{kind} takes no value, {value} was given; leave it out")
    if not 0.0 < value <= facts.maximum:
        raise FaultRefused(
            f"value {value} of {kind} must be above 0 and at most {facts.maximum:g} {facts.unit}"
        )
    return value


def _index(what: str, name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise FaultRefused(f"no {what} is called {name!r}; use one of {', '.join(names)}")
    return names.index(name)
