"""A recorded run as arrays: what was measured, commanded and seen, on one clock.

`RunLog.read` takes the streams state, trace, camera and ticks from a recording;
`RunLog` can also be filled by hand. Times are seconds since the first state.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from krabby_proto import CAMERA, FLAG_HOLD, FLAG_RESET, STATE, TICKS, TRACE
from krabby_proto.states import CommandStatus, SafetyState

from krabby.diagnosis.pace import Pace
from krabby.robot.errors import RobotError
from krabby.safety.gate import GateCfg

if TYPE_CHECKING:
    from collections.abc import Iterable

    from krabby_proto import Header, Message
    from krabby_proto.recording import Recording
    from numpy.typing import NDArray

    from krabby.robot.description import RobotDescription

__all__ = ["Commands", "Frames", "LogError", "RunLog"]

_GAP_S: Final = 0.05
"""States further apart are not differentiated."""
_PERIOD_S: Final = 0.0075
"""States that follow faster are left out: of a HAL at 200 Hz every second one counts, late ones
included."""
_MOST_STATES: Final = 360_000
"""An hour at 100 Hz; 250 MB."""
_MOST_FRAMES: Final = 1800
"""A minute of pictures, 46 MB of the shipped camera; longer runs are thinned."""


class LogError(RobotError):
    """A recording in which there is nothing to diagnose."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Commands:
    """Joint targets as the HAL took them, in order of time; K of them."""

    handled_s: NDArray[np.float64]
    """When the HAL answered, shape (K,)."""
    target: NDArray[np.float64]
    """As sent [rad], shape (K, 18)."""
    applied: NDArray[np.bool_]
    """Whether the gate handed it to the drives."""
    hold: NDArray[np.bool_]
    """Whether the gate kept the target that it had, shape (K,)."""

    def let_through(self, log: RunLog, desc: RobotDescription) -> NDArray[np.float64]:
        """Targets after the gate's limits [rad], shape (K, 18); NaN where none was in force.

        The rate limit starts from the measured pose, as the gate's does.
        """
        cfg = GateCfg.from_description(desc)
        out = np.full_like(self.target, np.nan)
        current: NDArray[np.float64] | None = None
        last_s = 0.0
        nearest = np.searchsorted(log.time_s, self.handled_s).clip(0, len(log.time_s) - 1)
        for k, now_s in enumerate(self.handled_s):
            if not self.applied[k]:
                current = current if self.hold[k] else None
                continue
            if current is None:
                current, last_s = log.joint_pos[nearest[k]].copy(), now_s
            reach = cfg.max_rate * min(now_s - last_s, cfg.max_target_step_s)
            asked = current if self.hold[k] else self.target[k]
            wanted = np.clip(asked, cfg.target_lower, cfg.target_upper)
            current = np.clip(wanted, current - reach, current + reach)
            out[k], last_s = current, now_s
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """Depth pictures, F of them."""

    time_s: NDArray[np.float64]
    """Exposure, shape (F,)."""
    depth: NDArray[np.float32]
    """[m], shape (F, height, width); 0 where there is no reading."""
    published: int
    """Pictures that the camera gave, by sequence; more than F where a black box kept every third
    one, or when they were thinned."""
    span_s: float
    """From the first to the last of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunLog:
    """T states at 100 Hz, and what came beside them."""

    time_s: NDArray[np.float64]
    base_quat_w: NDArray[np.float64]
    """Base to world, xyzw, shape (T, 4)."""
    base_ang_vel_b: NDArray[np.float64]
    """[rad/s], shape (T, 3)."""
    base_lin_acc_b: NDArray[np.float64]
    """Specific force [m/s²], shape (T, 3)."""
    joint_pos: NDArray[np.float64]
    """[rad], shape (T, 18)."""
    joint_vel: NDArray[np.float64]
    """[rad/s], shape (T, 18)."""
    joint_effort: NDArray[np.float64]
    """[N·m], shape (T, 18)."""
    foot_contact: NDArray[np.bool_]
    """Shape (T, 6)."""
    joined: NDArray[np.bool_]
    """Whether the state follows the one before it without gap or respawn, shape (T,)."""
    following: NDArray[np.bool_]
    """Whether the gate let the robot follow commands, shape (T,); where no gate was recorded,
    whether the drives gave torque."""
    commands: Commands | None = None
    frames: Frames | None = None
    first_ns: int = 0
    """Capture time of the first state: zero of all times [ns]."""
    states: int = 0
    """States in the recording, before they were thinned."""
    missed: int = 0
    """States that are missing between them, by sequence."""
    gate: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Safety state at every state, shape (T,); empty when none was recorded."""
    pace: Pace = field(default_factory=Pace)
    """How the game loop kept its period."""
    damage: str = ""
    """What of the file could not be read."""
    streams: dict[str, int] = field(default_factory=dict)
    """Messages by stream."""

    @property
    def duration_s(self) -> float:
        """From the first to the last state [s]."""
        return float(self.time_s[-1])

    def replace(self, **changes: Any) -> RunLog:
        """A copy with other arrays."""
        return dataclasses.replace(self, **changes)

    def rate_of(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Change per second of an array over the states, backwards; NaN behind a gap."""
        out = np.full_like(values, np.nan)
        step = np.diff(self.time_s)
        out[1:] = np.diff(values, axis=0) / step.reshape(-1, *[1] * (values.ndim - 1))
        out[~self.joined] = np.nan
        return out

    @classmethod
    def read(cls, messages: Iterable[Message], *, damage: str = "") -> RunLog:
        """The log of a recording's messages, in any order.

        Raises:
            LogError: there are fewer than 20 states.
        """
        return _Collector().collect(messages).log(damage)

    @classmethod
    def of_recording(cls, recording: Recording) -> RunLog:
        """The log of an .mcap file.

        Raises:
            RecordingError: it cannot be read.
            LogError: there is nothing in it to diagnose.
        """
        collector = _Collector().collect(recording)
        return collector.log(recording.damage, str(recording.path))


class _Collector:
    """Sorts messages into columns."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._states: list[tuple[int, int, int, NDArray[np.float32]]] = []
        self._last_s = -1.0
        self._sequence: dict[int, tuple[int, int]] = {}
        self._frames: list[tuple[int, NDArray[np.float32]]] = []
        self._commands: list[tuple[int, NDArray[np.float32], bool, bool]] = []
        self._gate: list[tuple[int, int]] = []
        self._missed = self._published = 0
        self._pace = Pace()

    def collect(self, messages: Iterable[Message]) -> _Collector:
        for message in messages:
            name = message.stream.name
            self.counts[name] = self.counts.get(name, 0) + 1
            if message.stream is STATE:
                self._state(message)
            elif message.stream is CAMERA:
                self._frames.append((message.capture_ns, message.payload))
                self._published += 1 + self._missing(message.header)
                if len(self._frames) > 2 * _MOST_FRAMES:
                    self._frames = self._frames[::2]
            elif message.stream is TRACE:
                self._exchange(message.payload.tobytes())
            elif message.stream is TICKS:
                self._pace.take(message)
        return self

    def _state(self, message: Message) -> None:
        header = message.header
        self._missed += self._missing(header)
        if len(self._states) < _MOST_STATES * 2:
            flags = message.flags & FLAG_RESET
            self._states.append((message.capture_ns, flags, header.sequence, message.payload))

    def _missing(self, header: Header) -> int:
        """Messages of the same writer that are missing in front of this one, by sequence."""
        stream, instance, number = header.stream_id, header.instance_id, header.sequence
        before, last = self._sequence.get(stream, (instance, number - 1))
        self._sequence[stream] = (instance, number)
        return max(number - last - 1, 0) if before == instance else 0

    def _exchange(self, record: bytes) -> None:
        from krabby_proto.exchanges import Exchange

        exchange = Exchange.unpack(record)
        gate = exchange.gate
        if gate is not None:
            self._gate.append((exchange.handled_ns, gate.safety_state))
        command, reply = exchange.command, exchange.reply
        if command is not None and reply is not None:
            applied = reply.status == CommandStatus.APPLIED
            stamp_ns = reply.applied_ns if applied and reply.applied_ns else exchange.handled_ns
            hold = bool(command.flags & FLAG_HOLD) if applied else reply.follows
            self._commands.append((stamp_ns, command.payload, applied, hold))

    def log(self, damage: str, source: str = "the recording") -> RunLog:
        states = sorted(self._states, key=lambda each: each[0])
        kept: list[int] = []
        resets: list[bool] = []
        reset, last_ns = False, -(10**18)
        for i, (stamp_ns, flag, _, _) in enumerate(states):
            reset = reset or bool(flag)
            if stamp_ns - last_ns >= _PERIOD_S * 1e9:
                kept.append(i)
                resets.append(reset)
                reset, last_ns = False, stamp_ns
        if len(kept) < 20:
            raise LogError(
                f"{source} has {len(states)} states; a diagnosis needs 0.2 s of the stream state "
                "at least: record it with `krabby record FILE`"
            )
        stamps = np.array([states[i][0] for i in kept], np.int64)
        zero_ns = int(stamps[0])
        payloads = np.stack([states[i][3] for i in kept]).astype(np.float64)
        values = {name: payloads[:, at] for name, at in STATE.slices.items()}
        time_s = _seconds(stamps, zero_ns)
        joined = np.ones(len(kept), bool)
        joined[0] = False
        joined[1:] = (np.diff(time_s) < _GAP_S) & ~np.array(resets[1:])
        gate = self._gate_at(stamps)
        following = _follows(gate) if len(gate) else _works(values["joint_effort"])
        norms = np.linalg.norm(values["base_quat_w"], axis=1, keepdims=True)
        return RunLog(
            time_s=time_s,
            base_quat_w=values["base_quat_w"] / np.where(norms > 0.0, norms, 1.0),
            base_ang_vel_b=values["base_ang_vel_b"],
            base_lin_acc_b=values["base_lin_acc_b"],
            joint_pos=values["joint_pos"],
            joint_vel=values["joint_vel"],
            joint_effort=values["joint_effort"],
            foot_contact=values["foot_contact"] > 0.5,
            joined=joined,
            following=following,
            commands=self._command_log(zero_ns),
            frames=self._frame_log(zero_ns),
            first_ns=zero_ns,
            states=len(states),
            missed=self._missed,
            gate=gate,
            pace=self._pace,
            damage=damage,
            streams=self.counts,
        )

    def _gate_at(self, stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._gate:
            return np.zeros(0, np.int64)
        records = sorted(self._gate)
        times = np.array([stamp for stamp, _ in records], np.int64)
        states = np.array([state for _, state in records], np.int64)
        at = np.searchsorted(times, stamps, side="right") - 1
        return np.where(at >= 0, states[at.clip(0)], int(SafetyState.DISARMED))

    def _command_log(self, zero_ns: int) -> Commands | None:
        if not self._commands:
            return None
        ordered = sorted(self._commands, key=lambda each: each[0])
        stamps = np.array([stamp for stamp, *_ in ordered], np.int64)
        return Commands(
            handled_s=_seconds(stamps, zero_ns),
            target=np.stack([target for _, target, *_ in ordered]).astype(np.float64),
            applied=np.array([applied for *_, applied, _ in ordered]),
            hold=np.array([hold for *_, hold in ordered]),
        )

    def _frame_log(self, zero_ns: int) -> Frames | None:
        if not self._frames:
            return None
        every = 1 + len(self._frames) // _MOST_FRAMES
        frames = self._frames[::every]
        stamps = np.array([stamp for stamp, _ in frames], np.int64)
        sizes = {depth.size for _, depth in frames}
        if len(sizes) != 1:
            return None
        return Frames(
            time_s=_seconds(stamps, zero_ns),
            depth=np.stack([depth for _, depth in frames]),
            published=self._published,
            span_s=float(stamps[-1] - stamps[0]) * 1e-9,
        )


def _seconds(stamps: NDArray[np.int64], zero_ns: int) -> NDArray[np.float64]:
    return np.asarray((stamps - zero_ns) * 1e-9, np.float64)


def _follows(gate: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (gate == int(SafetyState.ACTIVE)) | (gate == int(SafetyState.HOLD))


def _works(effort: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether most drives give torque: a limp robot's only damp."""
    return np.median(np.abs(effort), axis=1) > 2.0
