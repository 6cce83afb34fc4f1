"""Records of the stream `ticks`: all that a tick of the game loop took in, and what it decided.

From the first tick of a game loop on, its records alone are enough to compute every command again,
bit for bit: inputs stand in them in the order in which the controller took them since the tick
before. A record is a head of 32 bytes and sections, little-endian:

    u8 version 1, u8 mode, u8 safety state, u8 flags, u32 0, u64 tick, u64 now_ns, u64 command
    u16 kind, u16 0, u32 bytes, content        per section

`mode` counts in `LOOP_MODES`. `safety state` is the gate's as the loop knows it. Flags: 1 something
was sent, 2 this HAL's hello was checked, 4 the process is leaving. `now_ns` is the time by which
the tick decided, on the clock of the states. `command` is the sequence of what was sent, 0 for
none.

| kind | content |
| --- | --- |
| 1 reply | u64 tick of the command it is counted for [ns], 56 bytes of the reply |
| 2 seen | header of a state that the controller was shown before it decided |
| 3 state | header and payload of the state it decided on |
| 4 nav | u64 time by which it was judged [ns], header, payload |
| 5 request | u8 0 sit or 1 stand, 7 bytes 0, u64 permission for which it was made; taken now |
| 6 policy | JSON: a policy that walks from this tick on, `name`, `path`, `hashes` |
| 7 exchange | request to the game loop and its answer, as on `trace`; for the record only |
| 8 features | header and payload of the features it decided on, the first time |
| 9 features again | their header alone: they stood in an earlier record, or are too long for one |
| 10 host clock | u64 each: readings of CLOCK_MONOTONIC, in the order in which they were taken |
| 11 target | f64 each: joint targets [rad], before they are rounded to float32 |
| 12 observed | f32 each: the newest frame of every term of the observation, scaled, in its order |
| 13 command | f64 each: walking command after the limits, and what was asked for |
| 14 status | JSON, when it changed and once a second: `policy`, `walking`, `blind`, `sight`, ... |
| 15 snapshot | what the controller remembered after the inputs in front of it, once a second |
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from krabby_proto.codec import Message, decode
from krabby_proto.errors import FrameError, ShortFrame
from krabby_proto.exchanges import Exchange
from krabby_proto.header import HEADER_SIZE, Header, unpack_header
from krabby_proto.hello import JsonObject, parse_json
from krabby_proto.replies import REPLY_FORMAT, REPLY_SIZE, CommandReply
from krabby_proto.streams import FEATURES, NAV, STATE, TICKS, Stream

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "LOOP_MODES",
    "NavTaken",
    "ReplyTaken",
    "StateSeen",
    "Tick",
    "TickInput",
    "TickReader",
    "TickRecord",
    "TickRequest",
]

LOOP_MODES: Final = ("silent", "passive", "stand_up", "policy", "sit_down", "no_lease")
"""What a game loop sends, by number."""

_VERSION: Final = 1
_HEAD: Final = struct.Struct("<BBBBIQQQ")
_SECTION: Final = struct.Struct("<HHI")
_U64: Final = struct.Struct("<Q")
_REQUEST: Final = struct.Struct("<B7xQ")
_REPLY: Final = struct.Struct(REPLY_FORMAT)
_SENT, _HAL_CHECKED, _LEAVING = 1, 2, 4
_REPLY_KIND, _SEEN, _STATE, _NAV, _REQUEST_KIND, _POLICY, _EXCHANGE, _FEATURES = range(1, 9)
_FEATURES_AGAIN, _HOST_CLOCK, _TARGET, _OBSERVED, _COMMAND, _STATUS, _SNAPSHOT = range(9, 16)
_REQUESTS: Final[tuple[Literal["sit", "stand"], ...]] = ("sit", "stand")
_EMBEDDED: Final = 1024
"""Most floats of features that stand in a record; longer ones are images, and in the recording."""


class ReplyTaken(NamedTuple):
    """The controller took the HAL's reply to a command."""

    reply: CommandReply
    sent_ns: int
    """Tick of the command, as the loop has it [ns]."""


class StateSeen(NamedTuple):
    """The controller was shown a state, to notice a HAL that restarted and a respawned robot."""

    header: Header


class NavTaken(NamedTuple):
    """The controller was given a walking command, which it may have refused."""

    message: Message
    now_ns: int
    """By which it was judged [ns]."""


TickInput: TypeAlias = ReplyTaken | StateSeen | NavTaken


class TickRequest(NamedTuple):
    """An operator's request that a tick took."""

    op: Literal["sit", "stand"]
    permission: int
    """Number of the gate's permission for which it was made, counted by this controller."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One record, read."""

    instance_id: int
    """Of the game loop's socket: a restart is another one."""
    sequence: int
    publish_ns: int
    """Host's clock when it was published [ns]."""
    tick: int
    """Counts the ticks of this game loop from 0."""
    now_ns: int
    """By which it decided, on the clock of the states [ns]."""
    mode: str
    """One of `LOOP_MODES`, after the decision."""
    safety_state: int
    """The gate's, as the loop knew it after the decision."""
    sent: bool
    """Whether it decided to send something."""
    hal_checked: bool
    """Whether this HAL's hello had been checked when it decided."""
    leaving: bool
    """Whether the process was about to end, and the robot to sit down for good."""
    command_sequence: int
    """Of the command that was sent; 0 for none."""
    inputs: tuple[TickInput, ...] = ()
    """What the controller took in since the tick before, in order."""
    state: Message | None = None
    """The state it decided on; None before the first."""
    features: Message | None = None
    """The features it decided on; None for none."""
    features_header: Header | None = None
    """Their header; `features` is None with a header when the recording does not have them."""
    request: TickRequest | None = None
    """Taken in this tick."""
    policy: JsonObject | None = None
    """A policy that walks from this tick on: `name`, `path`, `hashes`; None for no change."""
    host_ns: tuple[int, ...] = ()
    """Readings of the host's clock since the tick before, in order [ns]."""
    target: NDArray[np.float64] | None = None
    """Joint targets [rad], shape (18,); None when it stayed silent."""
    observed: NDArray[np.float32] | None = None
    """Newest frame of every term of the policy's observation, scaled; None without a step."""
    nav_command: NDArray[np.float64] | None = None
    """Walking command after the limits: vx, vy [m/s], yaw rate [rad/s], shape (3,)."""
    nav_asked: NDArray[np.float64] | None = None
    """The same before any limit, shape (3,)."""
    status: JsonObject = field(default_factory=dict[str, Any])
    """As of this tick: `policy`, `walking`, `blind`, `sight`, `nav_source`."""
    exchanges: tuple[Exchange, ...] = ()
    """Operators' requests to the game loop that were answered since the tick before."""
    snapshot: bytes | None = None
    """What the controller remembered, once a second."""
    snapshot_at: int = 0
    """How many of `inputs` it had taken by then: a replay that begins here leaves those out."""

    @property
    def navs(self) -> tuple[Message, ...]:
        """The walking commands of all writers that were taken."""
        return tuple(each.message for each in self.inputs if isinstance(each, NavTaken))

    @classmethod
    def unpack(cls, message: Message) -> Tick:
        """Read a message of `ticks`; raises a `FrameError` when it is none of this version.

        `features` and `status` are what this record itself has; `TickReader` knows the others.
        """
        try:
            return cls._read(message)
        except (ValueError, struct.error) as error:
            raise FrameError(f"record of ticks is none of this version: {error}") from error

    @classmethod
    def _read(cls, message: Message) -> Tick:
        head, sections = _split(message.payload.tobytes())
        _, mode, safety_state, flags, _, tick, now_ns, command = head
        facts: dict[str, Any] = {}
        inputs: list[TickInput] = []
        exchanges: list[Exchange] = []
        for kind, content in sections:
            if kind in _INPUTS:
                inputs.append(_INPUTS[kind](content))
            elif kind == _SNAPSHOT:
                facts["snapshot"], facts["snapshot_at"] = content, len(inputs)
            elif kind == _EXCHANGE:
                exchanges.append(Exchange.unpack(content))
            elif kind == _COMMAND:
                facts["nav_command"], facts["nav_asked"] = np.split(_doubles(content), 2)
            elif kind == _FEATURES:
                found = facts["features"] = _message(content, FEATURES)
                facts["features_header"] = found.header
            elif kind in _FACTS:  # a later version may know more
                name, read = _FACTS[kind]
                facts[name] = read(content)
        return cls(
            instance_id=message.header.instance_id,
            sequence=message.sequence,
            publish_ns=message.header.publish_ns,
            tick=tick,
            now_ns=now_ns,
            mode=LOOP_MODES[mode] if mode < len(LOOP_MODES) else f"mode_{mode}",
            safety_state=safety_state,
            sent=bool(flags & _SENT),
            hal_checked=bool(flags & _HAL_CHECKED),
            leaving=bool(flags & _LEAVING),
            command_sequence=command,
            inputs=tuple(inputs),
            exchanges=tuple(exchanges),
            **facts,
        )


class TickRecord:
    """Collects what a tick takes in; `finish` gives the record and begins the next."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._features: tuple[int, int] | None = None

    def add_reply(self, reply: CommandReply, sent_ns: int) -> None:
        """The controller takes a reply, for the command of the tick at `sent_ns`."""
        self._add(_REPLY_KIND, _U64.pack(sent_ns), _REPLY.pack(*reply))

    def add_seen(self, state: Message) -> None:
        """The controller is shown a state."""
        self._add(_SEEN, state.header.pack())

    def add_nav(self, message: Message, now_ns: int) -> None:
        """The controller takes a walking command, judged by `now_ns`."""
        self._add(_NAV, _U64.pack(now_ns), message.header.pack(), message.payload.tobytes())

    def add_exchange(self, exchange: Exchange) -> None:
        """A request to the game loop was answered."""
        self._add(_EXCHANGE, exchange.pack())

    def add_policy(self, policy: Mapping[str, object]) -> None:
        """Another policy walks from now on: its `name`, `path` and `hashes`."""
        self._add(_POLICY, json.dumps(policy).encode())

    def add_status(self, status: Mapping[str, object]) -> None:
        """Which policy walks, on what."""
        self._add(_STATUS, json.dumps(status).encode())

    def add_snapshot(self, snapshot: bytes) -> None:
        """What the controller remembers after the inputs so far."""
        self._add(_SNAPSHOT, snapshot)

    def add_parts(self, parts: Iterable[bytes]) -> None:
        """What `cut` gave."""
        self._parts.extend(parts)

    def cut(self) -> list[bytes]:
        """Take out what was added since; what is added from now on stands by itself."""
        parts, self._parts = self._parts, []
        return parts

    def add_decided_on(self, state: Message | None, features: Message | None) -> None:
        """The controller decides on these."""
        if state is not None:
            self._add(_STATE, state.header.pack(), state.payload.tobytes())
        if features is None:
            return
        known = (features.header.instance_id, features.sequence)
        header = features.header.pack()
        if known == self._features or features.payload.size > _EMBEDDED:
            self._add(_FEATURES_AGAIN, header)
        else:
            self._add(_FEATURES, header, features.payload.tobytes())
            self._features = known

    def add_request(self, op: str, permission: int) -> None:
        """The tick took an operator's request."""
        self._add(_REQUEST_KIND, _REQUEST.pack(_REQUESTS.index(_op(op)), permission))

    def add_decision(self, target: ArrayLike, nav_command: ArrayLike, nav_asked: ArrayLike) -> None:
        """Joint targets [rad], shape (18,), and the walking command, shape (3,) each."""
        self._add(_TARGET, np.asarray(target, dtype="<f8").tobytes())
        nav = np.concatenate((np.asarray(nav_command), np.asarray(nav_asked)))
        self._add(_COMMAND, nav.astype("<f8").tobytes())

    def add_observed(self, observed: ArrayLike) -> None:
        """The newest frame of the policy's observation."""
        self._add(_OBSERVED, np.asarray(observed, dtype="<f4").tobytes())

    def finish(
        self,
        *,
        tick: int,
        now_ns: int,
        mode: str,
        safety_state: int,
        sent: bool,
        hal_checked: bool,
        leaving: bool,
        command_sequence: int,
        host_ns: Sequence[int],
    ) -> bytes | None:
        """The record, of the meaning in `Tick`; None when it is too long to be sent."""
        if host_ns:
            self._add(_HOST_CLOCK, struct.pack(f"<{len(host_ns)}Q", *host_ns))
        flags = _SENT * sent | _HAL_CHECKED * hal_checked | _LEAVING * leaving
        number = LOOP_MODES.index(mode)
        head = _HEAD.pack(_VERSION, number, safety_state, flags, 0, tick, now_ns, command_sequence)
        record = b"".join((head, *self._parts))
        self._parts = []
        if len(record) <= TICKS.max_elements:
            return record
        self._features = None
        return None

    def _add(self, kind: int, *content: bytes) -> None:
        size = sum(map(len, content))
        self._parts.append(_SECTION.pack(kind, 0, size))
        self._parts.extend(content)


class TickReader:
    """Reads records in order, and fills in what stood in earlier ones and in other streams."""

    def __init__(self) -> None:
        self._features: dict[tuple[int, int], Message] = {}
        self._status: JsonObject = {}
        self._instance = 0

    def note_features(self, message: Message) -> None:
        """Features as they were published: a record may only refer to them."""
        self._features[message.header.instance_id, message.sequence] = message
        while len(self._features) > _KEPT_FEATURES:
            del self._features[next(iter(self._features))]

    def read(self, message: Message) -> Tick:
        """Read the next record; raises a `FrameError` when it is none of this version."""
        tick = Tick.unpack(message)
        changes: dict[str, Any] = {}
        if tick.features is not None:
            self.note_features(tick.features)
        elif tick.features_header is not None:
            wanted = (tick.features_header.instance_id, tick.features_header.sequence)
            changes["features"] = self._features.get(wanted)
        if tick.instance_id != self._instance:
            self._instance, self._status = tick.instance_id, {}
        if tick.status:
            self._status = tick.status
        changes["status"] = self._status
        return _replaced(tick, changes)


_KEPT_FEATURES: Final = 64


def _replaced(tick: Tick, changes: Mapping[str, Any]) -> Tick:
    for name, value in changes.items():
        object.__setattr__(tick, name, value)  # just made: no other code has it
    return tick


def _op(op: str) -> Literal["sit", "stand"]:
    if op not in _REQUESTS:
        raise ValueError(f"request is {op!r}; use sit or stand")
    return op


def _split(record: bytes) -> tuple[tuple[int, ...], Iterator[tuple[int, bytes]]]:
    if len(record) < _HEAD.size:
        raise ShortFrame(f"record of ticks has {len(record)} bytes, at least {_HEAD.size}")
    head = _HEAD.unpack_from(record)
    if head[0] != _VERSION:
        raise FrameError(f"record of ticks has version {head[0]}, this process knows {_VERSION}")
    return head, _sections(record)


def _sections(record: bytes) -> Iterator[tuple[int, bytes]]:
    at = _HEAD.size
    while at < len(record):
        if at + _SECTION.size > len(record):
            raise ShortFrame("record of ticks ends within the head of a section")
        kind, _, size = _SECTION.unpack_from(record, at)
        at += _SECTION.size
        if at + size > len(record):
            raise ShortFrame(f"record of ticks ends within section {kind} of {size} bytes")
        yield kind, record[at : at + size]
        at += size


def _message(content: bytes, stream: Stream) -> Message:
    return decode([stream.topic, content[:HEADER_SIZE], content[HEADER_SIZE:]], stream)


def _taken_reply(content: bytes) -> ReplyTaken:
    return ReplyTaken(CommandReply.unpack(content[-REPLY_SIZE:]), *_numbers(content[:8]))


def _taken_nav(content: bytes) -> NavTaken:
    return NavTaken(_message(content[8:], NAV), *_numbers(content[:8]))


def _numbers(content: bytes) -> tuple[int, ...]:
    if len(content) % 8 or not content:
        raise ShortFrame(f"section of {len(content)} bytes holds no 64-bit numbers")
    return struct.unpack(f"<{len(content) // 8}Q", content)


def _doubles(content: bytes) -> NDArray[np.float64]:
    if len(content) % 16:
        raise ShortFrame(f"section of {len(content)} bytes holds no pair of vectors")
    return np.frombuffer(content, dtype="<f8")


def _request(content: bytes) -> TickRequest:
    if len(content) != _REQUEST.size or content[0] >= len(_REQUESTS):
        raise FrameError("section request is none of this version")
    number, permission = _REQUEST.unpack(content)
    return TickRequest(_REQUESTS[number], permission)


def _object(content: bytes) -> JsonObject:
    return parse_json(content) or {}


def _state(content: bytes) -> Message:
    return _message(content, STATE)


def _seen(content: bytes) -> StateSeen:
    return StateSeen(unpack_header(content))


def _floats(content: bytes) -> NDArray[np.float32]:
    return np.frombuffer(content, dtype="<f4")


_INPUTS: Final[Mapping[int, Callable[[bytes], TickInput]]] = {
    _REPLY_KIND: _taken_reply,
    _SEEN: _seen,
    _NAV: _taken_nav,
}
_FACTS: Final[Mapping[int, tuple[str, Callable[[bytes], Any]]]] = {
    _STATE: ("state", _state),
    _REQUEST_KIND: ("request", _request),
    _POLICY: ("policy", _object),
    _FEATURES_AGAIN: ("features_header", unpack_header),
    _HOST_CLOCK: ("host_ns", _numbers),
    _TARGET: ("target", _doubles),
    _OBSERVED: ("observed", _floats),
    _STATUS: ("status", _object),
}
