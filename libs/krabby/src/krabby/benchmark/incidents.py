"""Falls, faults and emergency stops of recorded runs as cases that are run again in simulation.

A case is the state `LEAD_S` before an incident: course, place, heading, what the robot was asked to
do from there on, and how its simulated body and camera differed from their description. As a cell
of the benchmark it begins with the robot standing there; with each seed the start is moved by a few
centimetres and degrees and the camera's noise is another one. A case is a success when the robot is
on its feet at its end, or has walked the course to its end.

An emergency stop is not repeated: the case shows what would have happened without it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from krabby_proto import (
    STATE,
    TICKS,
    TRACE,
    TRUTH,
    Exchange,
    FrameError,
    TickReader,
    fault_names,
    unpack,
)
from msgspec import Meta

from krabby.benchmark.outcome import Judge, Outcome
from krabby.benchmark.scenario import Cell, CommandSegment, Pictures, RobotVariation, Scenario
from krabby.course.courses import make_course
from krabby.mujoco.config import DegradeCfg
from krabby.policy.bundle import bundle_dir
from krabby.robot import rotations
from krabby.robot.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from krabby_proto import Message
    from krabby_proto.recording import Recording
    from numpy.typing import NDArray

    from krabby.benchmark.trace import Tick as TrialTick
    from krabby.benchmark.trace import TrialFacts

__all__ = ["LEAD_S", "Case", "CaseError", "CaseJudge", "Incident", "find_incidents", "read_case"]

LEAD_S: Final = 4.0
"""A case begins so long before its incident [s]."""
AFTER_S: Final = 4.0
"""... and ends so long after it, counted from go [s]."""
_SAME_S: Final = 1.0
"""Incidents closer than this are one: a robot that falls is damped for its tilt."""
_COMMAND_S: Final = 0.1
"""Shortest piece of the walking commands of a case [s]."""
_JITTER_M, _JITTER_RAD = 0.02, 0.03
_LONGEST_CASE_BYTES: Final = 1 << 20

Kind = Literal["fall", "fault", "estop"]


class CaseError(ValueError):
    """A case that cannot be read or run."""


class Incident(NamedTuple):
    """Something that went wrong in a run."""

    kind: Kind
    time_s: float
    """Since the first message of the recording."""
    stamp_ns: int
    """On the robot's clock."""
    faults: tuple[str, ...]
    """Faults that the gate latched at that moment."""


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An incident that can be run again; a JSON file."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]+$")]
    """`RECORDING-KIND-N`."""
    recording: str
    """File that it was found in."""
    run_id: str
    kind: Kind
    time_s: float
    """Of the incident, since the first message of the recording."""
    faults: tuple[str, ...]
    robot: str
    policy: str
    """That was chosen: a name or a folder."""
    course: str
    difficulty: float
    seed: int
    """Of the course's layout."""
    place: tuple[float, float]
    """Of the incident, x and y in the world [m]."""
    spawn: tuple[float, float, float]
    """Where the case begins: x, y [m], yaw [rad]."""
    waypoint: Annotated[int, Meta(ge=0)] = 0
    """Waypoints that were reached by then."""
    duration_s: Annotated[float, Meta(gt=0, le=60)] = LEAD_S + AFTER_S
    """From go to the end."""
    speed: Annotated[float, Meta(ge=0, le=2)] = 0.35
    """Of the waypoint mission [m/s]."""
    commands: tuple[tuple[float, float, float, float], ...] = ()
    """Walking commands of a person: since [s], vx, vy [m/s], yaw rate [rad/s]; empty for the
    mission."""
    degrade: dict[str, Any] = {}
    """`DegradeCfg` of the run."""

    @property
    def cell(self) -> Cell:
        """As a cell of the benchmark."""
        return Cell(
            name=self.name,
            family=self.kind,
            summary=f"{self.kind} of {self.policy} on {self.course}",
            goal="waypoints",
            make=functools.partial(_scenario, self),
        )

    def pack(self) -> bytes:
        """The JSON file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def read_case(path: Path) -> Case:
    """Read a case.

    Raises:
        CaseError: It cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_CASE_BYTES + 1)
        if len(text) > _LONGEST_CASE_BYTES:
            raise CaseError(f"{path} has over {_LONGEST_CASE_BYTES} bytes, which no case has")
        return msgspec.json.decode(text, type=Case)
    except OSError as error:
        raise CaseError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise CaseError(
            f"{path} is not a case ({error}); `krabby incidents RECORDING --save DIR` writes cases"
        ) from error


class CaseJudge(Judge):
    """As in the benchmark, but the end of the time is a success for a robot on its feet."""

    def __init__(self, facts: TrialFacts) -> None:
        super().__init__(facts)
        self._limit_s = math.inf

    def tick(self, tick: TrialTick) -> str | None:
        """The outcome, once it is decided; one that stands off is left to stand."""
        outcome = super().tick(tick)
        return None if outcome == Outcome.REFUSED else outcome

    def at_end(self) -> str:
        """On its feet."""
        self._reason = ""
        return Outcome.SUCCESS


def _scenario(case: Case, seed: int) -> Scenario:
    """Of a noise seed: the course and the commands are always the same."""
    course = make_course(case.course, case.difficulty, case.seed)
    left = course.waypoints[min(case.waypoint, len(course.waypoints) - 1) :]
    try:
        degrade = msgspec.convert(case.degrade, DegradeCfg)
    except msgspec.ValidationError as error:
        raise CaseError(f"case {case.name}: degrade {error}") from error
    return Scenario(
        course=dataclasses.replace(course, waypoints=left),
        duration_s=case.duration_s,
        speed=case.speed,
        commands=tuple(
            CommandSegment(start_s=start, vx=vx, vy=vy, yaw_rate=yaw_rate)
            for start, vx, vy, yaw_rate in case.commands
        ),
        spawn=case.spawn,
        robot=RobotVariation(
            mass_factor=degrade.mass_factor,
            payload_kg=degrade.payload_kg,
            friction=degrade.friction,
            motor_strength=degrade.motor_strength,
            start_xy_m=_JITTER_M if seed else 0.0,
            start_yaw_rad=_JITTER_RAD if seed else 0.0,
        ),
        pictures=Pictures(
            latency_s=degrade.camera_latency_s,
            drop_share=degrade.frame_drop,
            noise_factor=degrade.depth_noise,
            rate_hz=degrade.camera_rate_hz,
            tilt_deg=degrade.camera_tilt_deg,
        ),
    )


# --- finding -------------------------------------------------------------------------------------


class _Moment(NamedTuple):
    stamp_ns: int
    pos_w: NDArray[np.float64]
    yaw: float
    waypoint: int


class _Decided(NamedTuple):
    """A tick of the game loop."""

    now_ns: int
    mode: str
    status: dict[str, Any]
    asked: list[float] | None
    """Walking command before any limit: vx, vy [m/s], yaw rate [rad/s]."""


class _Run:
    """What of a recording tells of incidents and their places."""

    def __init__(self, recording: Recording) -> None:
        self.first_ns: int | None = None
        self.path: list[_Moment] = []
        self.ticks: list[_Decided] = []
        self.found: list[Incident] = []
        self._falls: float | None = None
        self._state = ""
        self._faults = 0
        reader = TickReader()
        for message in recording.messages(STATE, TRUTH, TRACE, TICKS):
            if self.first_ns is None:
                self.first_ns = message.header.publish_ns
            if message.stream is TRUTH:
                self._take_truth(message)
            elif message.stream is TRACE:
                self._take_exchange(message)
            elif message.stream is TICKS:
                try:
                    tick = reader.read(message)
                except FrameError:
                    continue
                asked = None if tick.nav_asked is None else tick.nav_asked.tolist()
                self.ticks.append(_Decided(tick.now_ns, tick.mode, tick.status, asked))

    def _take_truth(self, message: Message) -> None:
        values = unpack(TRUTH, message.payload)
        stamp_ns = message.capture_ns
        pos_w = values["base_pos_w"].astype(np.float64)
        yaw = float(rotations.yaw(values["base_quat_w"].astype(np.float64)))
        self.path.append(_Moment(stamp_ns, pos_w, yaw, int(values["waypoint_index"][0])))
        falls = float(values["falls"][0])
        if self._falls is not None and falls > self._falls:
            self._note("fall", stamp_ns, ())
        self._falls = falls

    def _take_exchange(self, message: Message) -> None:
        try:
            exchange = Exchange.unpack(message.payload.tobytes())
            gate = exchange.gate
        except FrameError:
            return
        if gate is None:
            return
        new = gate.fault_bits & ~self._faults
        if new:
            self._note("fault", exchange.handled_ns, tuple(fault_names(new)))
        if gate.safety_name == "estop" and self._state not in ("", "estop"):
            self._note("estop", exchange.handled_ns, ())
        self._faults, self._state = gate.fault_bits, gate.safety_name

    def _note(self, kind: Kind, stamp_ns: int, faults: tuple[str, ...]) -> None:
        assert self.first_ns is not None
        self.found.append(Incident(kind, (stamp_ns - self.first_ns) * 1e-9, stamp_ns, faults))


_RANK: Final = {"fall": 0, "estop": 1, "fault": 2}


def _merged(found: Iterable[Incident]) -> list[Incident]:
    """Those of one moment as one: a fall names an incident before a stop, a stop before a fault."""
    merged: list[Incident] = []
    for each in sorted(found, key=lambda incident: incident.stamp_ns):
        last = merged[-1] if merged else None
        if last is None or each.stamp_ns - last.stamp_ns > _SAME_S * 1e9:
            merged.append(each)
            continue
        kind = min(last.kind, each.kind, key=lambda kind: _RANK[kind])
        faults = tuple(dict.fromkeys((*last.faults, *each.faults)))
        merged[-1] = last._replace(kind=kind, faults=faults)
    return merged


def find_incidents(recording: Recording) -> list[tuple[Incident, Case | None]]:
    """The incidents of a recording in order of time, each with its case.

    The case is None where the run cannot be simulated: it has no ground truth or does not name its
    course.
    """
    run = _Run(recording)
    facts = recording.run
    counts: dict[str, int] = {}
    found: list[tuple[Incident, Case | None]] = []
    for incident in _merged(run.found):
        counts[incident.kind] = counts.get(incident.kind, 0) + 1
        if not run.path or facts.course is None:
            found.append((incident, None))
            continue
        at = _moment(run.path, incident.stamp_ns)
        begin = _moment(run.path, incident.stamp_ns - round(LEAD_S * 1e9))
        lead_s = (incident.stamp_ns - begin.stamp_ns) * 1e-9
        status = _status(run.ticks, incident.stamp_ns)
        by_person = status.get("nav_source") == "operator"
        mission = facts.hal.get("mission") or {}
        case = Case(
            name=f"{_plain(recording.path.stem)}-{incident.kind}-{counts[incident.kind]}",
            recording=recording.path.name,
            run_id=facts.run_id,
            kind=incident.kind,
            time_s=round(incident.time_s, 3),
            faults=incident.faults,
            robot=facts.robot or "",
            policy=_policy(facts.policies, str(status.get("policy", ""))),
            course=facts.course,
            difficulty=facts.difficulty or 0.0,
            seed=facts.seed or 0,
            place=(round(float(at.pos_w[0]), 3), round(float(at.pos_w[1]), 3)),
            spawn=(round(float(begin.pos_w[0]), 3), round(float(begin.pos_w[1]), 3), begin.yaw),
            waypoint=begin.waypoint,
            duration_s=round(lead_s + AFTER_S, 2),
            speed=float(mission.get("speed", 0.35)),
            commands=_commands(run.ticks, begin.stamp_ns, incident.stamp_ns) if by_person else (),
            degrade=dict(facts.hal.get("degrade") or {}),
        )
        found.append((incident, case))
    return found


def _moment(path: Sequence[_Moment], stamp_ns: int) -> _Moment:
    """The last one not after that time, or the first; not from before a respawn of the robot."""
    before = [moment for moment in path if moment.stamp_ns <= stamp_ns]
    return before[-1] if before else path[0]


def _status(ticks: Sequence[_Decided], stamp_ns: int) -> dict[str, Any]:
    before = [tick for tick in ticks if tick.now_ns <= stamp_ns]
    walked = [tick for tick in before if tick.mode == "policy"]
    return dict((walked or before)[-1].status) if before else {}


def _policy(policies: Sequence[Any], chosen: str) -> str:
    """Where the chosen policy is: its name, or its folder when no shipped one has that name."""
    names = {str(one.get("name", "")): str(one.get("path", "")) for one in policies}
    name = chosen or next(iter(names), "")
    try:
        bundle_dir(name)
    except BundleError:
        return names.get(name) or name
    return name


def _commands(
    ticks: Sequence[_Decided], begin_ns: int, end_ns: int
) -> tuple[tuple[float, float, float, float], ...]:
    """What was asked for from `begin_ns` on, in pieces; after the incident what was asked last."""
    pieces: list[tuple[float, float, float, float]] = []
    for tick in ticks:
        if not begin_ns <= tick.now_ns <= end_ns or tick.asked is None:
            continue
        vx, vy, yaw_rate = (round(float(value), 4) for value in tick.asked)
        start_s = round((tick.now_ns - begin_ns) * 1e-9, 3)
        if pieces and (
            pieces[-1][1:] == (vx, vy, yaw_rate) or start_s - pieces[-1][0] < _COMMAND_S
        ):
            continue
        pieces.append((start_s if pieces else 0.0, vx, vy, yaw_rate))
    return tuple(pieces)


def _plain(stem: str) -> str:
    return "".join(char if char.isalnum() or char in "_.-" else "_" for char in stem) or "run"
