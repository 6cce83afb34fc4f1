"""What a report shows of a recording, gathered in one pass over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from krabby_proto import TRUTH, unpack
from krabby_proto.exchanges import Exchange, ExchangeKind
from krabby_proto.streams import TICKS, TRACE
from krabby_proto.ticks import Tick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from krabby.diagnosis.log import RunLog
    from krabby_proto import Message
    from krabby_proto.recording import Recording
    from numpy.typing import NDArray

__all__ = ["ReportData", "gather"]

_NS: Final = 1e-9


@dataclass(kw_only=True, eq=False)
class ReportData:
    """Columns over time; seconds since the first state."""

    log: RunLog
    truth_s: list[float] = field(default_factory=list)
    base_pos_w: list[NDArray[np.float64]] = field(default_factory=list)
    base_lin_vel_b: list[NDArray[np.float64]] = field(default_factory=list)
    base_yaw_rate: list[float] = field(default_factory=list)
    truth_last: dict[str, float] = field(default_factory=dict)
    """Progress at the end: waypoints, distance, falls."""
    fall_s: list[float] = field(default_factory=list)
    command_s: list[float] = field(default_factory=list)
    command_age_ms: list[float] = field(default_factory=list)
    """From the capture of the state that a command answers to the answer."""
    refused: dict[str, int] = field(default_factory=dict)
    """Commands by status, those that were not applied."""
    gate: list[tuple[float, str, tuple[str, ...]]] = field(default_factory=list)
    """Changes of the gate: time, state, faults."""
    operator: list[tuple[float, str, str]] = field(default_factory=list)
    """Requests: time, what was asked, the answer."""
    mode: list[tuple[float, str]] = field(default_factory=list)
    """Changes of the game loop's mode."""
    nav_s: list[float] = field(default_factory=list)
    nav_command: list[NDArray[np.float64]] = field(default_factory=list)
    tick_s: list[float] = field(default_factory=list)
    features_age_ms: list[float] = field(default_factory=list)
    """Of the pictures that ticks used, NaN without."""
    blind_s: float = 0.0
    policies: list[str] = field(default_factory=list)
    """That walked, in order."""

    @property
    def end_s(self) -> float:
        """Length of the time axis."""
        return self.log.duration_s


class _Watched:
    """A recording whose messages are looked at while another reader takes them."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.trace: list[Message] = []
        self.ticks: list[Message] = []
        self.truth: list[Message] = []

    def __iter__(self) -> Iterator[Message]:
        kept = {TRACE.name: self.trace, TICKS.name: self.ticks, TRUTH.name: self.truth}
        for message in self.recording:
            if (column := kept.get(message.stream.name)) is not None:
                column.append(message)
            yield message


def gather(recording: Recording) -> ReportData:
    """Read it.

    Raises:
        RecordingError: it cannot be read.
        LogError: it has no states.
    """
    from krabby.diagnosis.log import RunLog

    watched = _Watched(recording)
    log = RunLog.read(watched)
    data = ReportData(log=log.replace(damage=recording.damage))
    zero_ns = log.first_ns
    for message in watched.truth:
        _truth(data, message, zero_ns)
    for message in watched.trace:
        _exchange(data, Exchange.unpack(message.payload.tobytes()), zero_ns)
    before_ns: int | None = None
    for message in watched.ticks:
        tick = Tick.unpack(message)
        _tick(data, tick, zero_ns, 0.0 if before_ns is None else (tick.now_ns - before_ns) * _NS)
        before_ns = tick.now_ns
    return data


def _truth(data: ReportData, message: Message, zero_ns: int) -> None:
    from krabby.robot import rotations

    values = unpack(TRUTH, message.payload)
    time_s = (message.capture_ns - zero_ns) * _NS
    quat = values["base_quat_w"].astype(np.float64)
    velocity = values["base_lin_vel_w"].astype(np.float64)
    falls = float(values["falls"][0])
    if falls > data.truth_last.get("falls", falls):
        data.fall_s.append(time_s)
    data.truth_s.append(time_s)
    data.base_pos_w.append(values["base_pos_w"].astype(np.float64))
    data.base_lin_vel_b.append(rotations.rotate_inverse(quat, velocity))
    data.base_yaw_rate.append(float(values["base_ang_vel_b"][2]))
    data.truth_last = {
        name: float(values[name][0])
        for name in ("waypoint_index", "waypoint_count", "distance", "falls", "reset_count")
    }


def _exchange(data: ReportData, exchange: Exchange, zero_ns: int) -> None:
    time_s = (exchange.handled_ns - zero_ns) * _NS
    view = exchange.gate
    if view is not None:
        now = (view.safety_name, view.faults)
        if not data.gate or data.gate[-1][1:] != now:
            data.gate.append((time_s, *now))
    command, reply = exchange.command, exchange.reply
    if command is not None and reply is not None:
        data.command_s.append(time_s)
        data.command_age_ms.append((exchange.handled_ns - command.capture_ns) * 1e-6)
        if not reply.applied:
            data.refused[reply.status_name] = data.refused.get(reply.status_name, 0) + 1
    if exchange.kind is ExchangeKind.SAFETY:
        asked = str(exchange.asked.get("op", "?"))
        if asked != "status":
            data.operator.append((time_s, asked, str(exchange.answered.get("reason", ""))))


def _tick(data: ReportData, tick: Tick, zero_ns: int, elapsed_s: float) -> None:
    time_s = (tick.now_ns - zero_ns) * _NS
    data.tick_s.append(time_s)
    if not data.mode or data.mode[-1][1] != tick.mode:
        data.mode.append((time_s, tick.mode))
    if tick.nav_command is not None:
        data.nav_s.append(time_s)
        data.nav_command.append(np.asarray(tick.nav_command, np.float64))
    header = tick.features_header
    age_ms = np.nan if header is None else (tick.now_ns - header.capture_ns) * 1e-6
    data.features_age_ms.append(float(age_ms))
    status: dict[str, Any] = dict(tick.status)
    walks = str(status.get("walking") or status.get("policy") or "")
    if walks and (not data.policies or data.policies[-1] != walks):
        data.policies.append(walks)
    if status.get("blind") and tick.mode == "policy":
        data.blind_s += elapsed_s
    for exchange in tick.exchanges:
        asked = str(exchange.asked.get("op", "?"))
        if asked not in ("status", "hello"):
            data.operator.append((time_s, asked, str(exchange.answered.get("reason", ""))))
