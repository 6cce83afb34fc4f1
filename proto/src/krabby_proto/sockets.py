"""Streams, read latest-only. One socket belongs to one thread; requests: `requests`."""

from __future__ import annotations

import itertools
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import zmq

from krabby_proto.codec import Message, decode, encode
from krabby_proto.endpoint import (
    REVIVE_S,
    Context,
    Endpoint,
    new_instance_id,
    pending_events,
    send_frames,
    wait_readable,
)
from krabby_proto.errors import FrameError
from krabby_proto.header import FLAG_LOCKSTEP, FLAG_OPERATOR, FLAG_RESET, HEADER_SIZE
from krabby_proto.hello import MAX_JSON_BYTES
from krabby_proto.streams import COLOUR, Stream

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "LatestSubscriber",
    "Publisher",
    "RawMessage",
    "WatchedPublisher",
    "new_instance_id",
    "wait_any",
    "wait_readable",
]

_MAX_SUBSCRIPTION_BYTES: Final = 64
"""A handshake without keys and topics take less. libzmq keeps 45 bytes of memory for each byte of
each topic that a peer subscribes to, and does not bound their number."""
_STALL_NS: Final = 100_000_000
_SETTLE_S: Final = 0.04
_NO_LAG_NS: Final = 1 << 64
_MAX_SHARED_DRAIN: Final = 64
"""Of a stream with many writers, in one call. libzmq takes from its connections in turn: a flood
costs a bounded time, and another writer's message waits for one message of it at most."""
_MAX_SEQUENCE: Final = (1 << 63) - 1
"""A message with a larger number counts as the next one: followed, it would make all later messages
of its writer late."""
_DRAIN_S: Final = 0.003
_LEAST_DRAIN: Final = 64
"""A drain ends after this many messages and this long: a flood cannot hold the reader's loop. The
queue holds 16."""


_WRITER: Final = struct.Struct("<QQ")
_WRITER_AT: Final = 8
"""Place of instance and sequence in a header."""
_U64: Final = struct.Struct("<Q")
_PUBLISH_AT: Final = 32


def _stream_hwm(stream: Stream) -> int:
    """Queue length: images are large and slow, a few are enough; 1 starves a draining reader.

    Records are small, each counts, and their readers collect them in batches: a second of them.
    """
    if stream.element == "uint8" and stream is not COLOUR:
        return 128
    return 16 if stream.fields else 4


class Publisher(Endpoint):
    """Sends one stream; numbers its messages under its instance id."""

    def __init__(
        self,
        endpoint: str,
        stream: Stream,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        context: Context | None = None,
        bind: bool = True,
        instance_id: int | None = None,
        kind: int = zmq.PUB,
    ) -> None:
        super().__init__(
            kind,
            endpoint,
            name=stream.name,
            bind=bind,
            hwm=_stream_hwm(stream),
            max_bytes=_MAX_SUBSCRIPTION_BYTES if bind else MAX_JSON_BYTES,
            context=context,
        )
        self.stream = stream
        self.instance_id = instance_id or new_instance_id()
        self.sequence = 0
        """Sequence of the last message sent."""
        self._clock = clock

    def leave_out(self, count: int) -> None:
        """Number messages that are not sent: a reader counts them as missing."""
        self.sequence += count

    def publish(
        self,
        payload: ArrayLike | bytes,
        *,
        capture_ns: int,
        publish_ns: int | None = None,
        flags: int = 0,
    ) -> int:
        """Send one message and return its sequence; never blocks, slow readers lose messages.

        `payload` has any shape; `publish_ns` is the publisher's clock when None [ns].
        """
        self.revive()
        self.sequence += 1
        frames = encode(
            self.stream,
            payload,
            instance_id=self.instance_id,
            sequence=self.sequence,
            capture_ns=capture_ns,
            publish_ns=self._clock() if publish_ns is None else publish_ns,
            flags=flags,
        )
        send_frames(self.socket, frames)
        return self.sequence


class WatchedPublisher(Publisher):
    """A bound publisher that knows whether its stream is read, so that none is made in vain."""

    def __init__(
        self,
        endpoint: str,
        stream: Stream,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        context: Context | None = None,
    ) -> None:
        super().__init__(endpoint, stream, clock=clock, context=context, kind=zmq.XPUB)
        self._subscribed: set[bytes] = set()
        """Topics: libzmq tells of the first subscription to one, and of the end of the last."""
        self._known_renewals = 0

    def wait_for_reader(self, timeout_s: float) -> bool:
        """Block until a subscriber of the stream is there or the time is over; whether one is."""
        deadline = time.monotonic() + timeout_s
        while not self.is_read():
            left = deadline - time.monotonic()
            if left <= 0.0:
                return False
            wait_readable((self.socket,), left)
        return True

    def is_read(self) -> bool:
        """Whether the stream has a subscriber now; never waits."""
        for _ in range(_MAX_SHARED_DRAIN):
            frames = self.receive_frames()
            if frames is None:
                break
            kind, topic = frames[0][:1], frames[0][1:]
            if kind == b"\1" and self.stream.topic.startswith(topic):
                self._subscribed.add(topic)
            elif kind == b"\0":
                self._subscribed.discard(topic)
        if self.renewals != self._known_renewals:  # every peer subscribes again
            self._known_renewals = self.renewals
            self._subscribed.clear()
        return bool(self._subscribed)


class RawMessage(NamedTuple):
    """A message as it came, not yet decoded."""

    stream: Stream
    header: bytes
    payload: bytes

    @property
    def publish_ns(self) -> int:
        """As in `Header` [ns]."""
        publish_ns: int = _U64.unpack_from(self.header, _PUBLISH_AT)[0]
        return publish_ns

    @property
    def sequence(self) -> int:
        """As in `Header`."""
        sequence: int = _WRITER.unpack_from(self.header, _WRITER_AT)[1]
        return sequence

    def decode(self) -> Message:
        """The message; raises a `FrameError` when it is none."""
        return decode([self.stream.topic, self.header, self.payload], self.stream)


class LatestSubscriber(Endpoint):
    """Receives one stream and gives out the newest message.

    A publisher's restart (a new instance id) is followed; what then still arrives from the old
    instance is dropped. On a stream with `many_writers` each instance is followed by itself.

    Args:
        endpoint: where to connect.
        stream: what is expected there.
        bind: bind instead, for publishers that connect.
        context: needed for ``inproc://`` only.
        queue: messages that may wait to be read; None for the few that a reader of the latest
            needs. One that is to miss none needs as many as come while it does something else.
    """

    def __init__(
        self,
        endpoint: str,
        stream: Stream,
        *,
        bind: bool = False,
        context: Context | None = None,
        queue: int | None = None,
    ) -> None:
        super().__init__(
            zmq.SUB,
            endpoint,
            name=stream.name,
            bind=bind,
            hwm=queue or _stream_hwm(stream),
            max_bytes=max(stream.max_bytes, 1024),
            context=context,
            options=[(zmq.SUBSCRIBE, stream.topic)],
        )
        self.stream = stream
        self.received = 0
        """Valid messages taken from the socket."""
        self.discarded = 0
        """Valid messages never given out, because a newer one was there."""
        self.gaps = 0
        """Messages missing between two sequences of one instance."""
        self.invalid = 0
        """Messages dropped for their bytes."""
        self.late = 0
        """Messages dropped for a repeated or falling sequence or from a replaced instance."""
        self.restarts = 0
        """Times another instance took over."""
        self.last_error: FrameError | None = None
        """Why the last invalid message was dropped."""
        self._newest: Message | None = None
        self._sequences: dict[int, int] = {}
        self._replaced: deque[int] = deque(maxlen=64)
        self._new: Message | None = None
        self._period_ns = round(1e9 / stream.rate_hz)
        self._stall_ns = max(_STALL_NS, 5 * self._period_ns)
        self._drained_ns = self._newest_ns = time.monotonic_ns()
        self._least_lag_ns = _NO_LAG_NS
        self._in_step = False

    def latest(self) -> Message | None:
        """The newest message, again if nothing newer came; None before the first.

        Never waits, with one exception: after a stall of the caller of over 0.1 s it takes up to
        40 ms to let the backlog come in. The caller judges the message's age.
        """
        self._drain()
        return self._newest

    def take(self) -> Message | None:
        """Like `latest`, but None when nothing came since the last call of any reading method."""
        return self._drain()

    def drain(self) -> list[Message]:
        """Every valid message that came since the last call, oldest first; for recorders."""
        messages: list[Message] = []
        self._receive_all(messages.append)
        self._note_lag(messages[-1] if messages else None, time.monotonic_ns())
        return messages

    def drain_raw(self) -> list[RawMessage]:
        """Like `drain`, for recorders, at a fifth of the price.

        Sizes and sequence alone are looked at: what is no message of this contract is left to who
        decodes it. Of a message with more or fewer than three frames, it and the one behind it are
        dropped.
        """
        taken: list[RawMessage] = []
        stream, recv, known = self.stream, self.socket.recv, self._sequences
        end = time.monotonic() + _DRAIN_S
        if self.skipping and self.receive_frames() is None:
            return taken
        try:
            while len(taken) < _LEAST_DRAIN or time.monotonic() < end:
                # The last frame alone is an object that knows whether more follow: half the time.
                recv(zmq.NOBLOCK)
                header = recv(zmq.NOBLOCK)
                frame = recv(zmq.NOBLOCK, copy=False)
                if frame.more or len(header) != HEADER_SIZE:
                    self.invalid += 1
                    if frame.more:
                        self.skip_rest(frame.bytes)
                        break
                    continue
                instance, sequence = _WRITER.unpack_from(header, _WRITER_AT)
                if sequence - 1 == known.get(instance, -2) and sequence <= _MAX_SEQUENCE:
                    known[instance] = sequence
                elif not self._is_news(instance, sequence):
                    continue
                taken.append(RawMessage(stream, header, frame.bytes))
        except zmq.Again:
            self.revive()
        self.received += len(taken)
        return taken

    def newest_by_writer(self) -> list[Message]:
        """The newest message of each writer since the last call; never waits.

        For streams with `many_writers`: no writer can displace another's message. Takes at most 64
        messages, in turn from all connections. A writer's operator and mission messages count as
        those of two writers.
        """
        newest: dict[tuple[int, int], Message] = {}

        def keep(message: Message) -> None:
            writer = (message.header.instance_id, message.flags & FLAG_OPERATOR)
            self.discarded += writer in newest
            newest[writer] = message

        self._receive_all(keep, _MAX_SHARED_DRAIN)
        return list(newest.values())

    def wait(self, timeout_s: float) -> Message | None:
        """Block until something newer comes; None when nothing did in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._drain(waiting=True)
            if message is not None:
                return message
            left = deadline - time.monotonic()
            if left <= 0.0:  # also while there is always something to read, none of it news
                return None
            wait_readable((self.socket,), min(left, REVIVE_S / 2))

    def _drain(self, *, waiting: bool = False) -> Message | None:
        """Take all there is; the newest new message. `waiting`: blocking is not a stall."""
        self._new = None
        self._receive_all(self._keep)
        # Only now, and once for all that is noted: the process may have been stopped while it read.
        now_ns = time.monotonic_ns()
        stalled = self._in_step and now_ns - self._drained_ns > self._stall_ns
        if stalled and not (waiting and self._new is None):
            self._settle()
            now_ns = time.monotonic_ns()
        self._note_lag(self._new, now_ns)
        return self._new

    def _keep(self, message: Message) -> None:
        """Hold the newest; an operator's nav outranks a mission's within one drain.

        A state with flag RESET passes the flag to the state that overtakes it: a 100 Hz reader of a
        200 Hz stream would miss every other reset.
        """
        newest = self._new
        if newest is not None:
            self.discarded += 1
            if newest.header.flags & ~message.header.flags & FLAG_OPERATOR:
                return
            reset = newest.header.flags & FLAG_RESET
            if reset and newest.header.instance_id == message.header.instance_id:
                header = message.header._replace(flags=message.header.flags | reset)
                message = message._replace(header=header)
        self._new = message

    def _settle(self) -> None:
        """Let a backlog come in: after a stall the I/O thread fills the queue while it is read.

        Caught up means a lag behind the publisher's stamps near the least ever seen: that needs no
        common clock.
        """
        end = time.monotonic() + _SETTLE_S
        while self._new is None or self._lag_ns(self._new, time.monotonic_ns()) > (
            1.5 * self._period_ns
        ):
            left = end - time.monotonic()
            if left <= 0.0 or not wait_readable((self.socket,), left):
                return
            self._receive_all(self._keep)

    def _note_lag(self, newest: Message | None, now_ns: int) -> None:
        """Remember when the last drain was and whether it left the reader in step."""
        self._drained_ns = now_ns
        if newest is None:
            # Out of step once the publisher is silent: no use waiting for it after a stall.
            self._in_step &= self._drained_ns - self._newest_ns < 2 * self._period_ns
            return
        self._newest = newest
        self._newest_ns = self._drained_ns
        self._least_lag_ns = min(self._least_lag_ns, self._drained_ns - newest.header.publish_ns)
        self._in_step = (
            not newest.header.flags & FLAG_LOCKSTEP  # then stamps do not follow the host's clock
            and self._lag_ns(newest, now_ns) < 2 * self._period_ns
        )

    def _lag_ns(self, message: Message, now_ns: int) -> int:
        """How much later than the quickest message ever this one is read [ns]."""
        return now_ns - message.header.publish_ns - self._least_lag_ns

    def _receive_all(self, keep: Callable[[Message], None], limit: int | None = None) -> None:
        end = time.monotonic() + _DRAIN_S
        for count in itertools.count():
            if count == limit or (count >= _LEAST_DRAIN and time.monotonic() > end):
                return
            frames = self.receive_frames()
            if frames is None:
                if self.skipping:
                    return
                # Only now: polling a SUB makes it take the first frame of a message, and libzmq
                # aborts when the connection with the rest is dropped before they are read (fq.cpp,
                # !_more).
                self.revive()
                return
            try:
                message = decode(frames, self.stream)
            except FrameError as error:
                self.invalid += 1
                self.last_error = error
                continue
            if self._is_news(message.header.instance_id, message.header.sequence):
                self.received += 1
                keep(message)

    def _is_news(self, instance: int, sequence: int) -> bool:
        """Follow one instance's sequence; False for what was overtaken."""
        last = self._sequences.get(instance)
        if sequence > _MAX_SEQUENCE:
            sequence = (last or 0) + 1
        if last is None:
            if instance in self._replaced:
                self.late += 1
                return False
            if self._sequences and not self.stream.many_writers:
                self._replaced.extend(self._sequences)
                self._sequences.clear()
                self._least_lag_ns = _NO_LAG_NS
                self.restarts += 1
            elif len(self._sequences) >= 16:  # many writers: forget the longest known
                self._sequences.pop(next(iter(self._sequences)))
        elif sequence <= last:
            self.late += 1
            return False
        else:
            self.gaps += sequence - last - 1
        self._sequences[instance] = sequence
        return True


def wait_any(subscribers: Sequence[LatestSubscriber], timeout_s: float) -> list[LatestSubscriber]:
    """Block until a subscriber has something to read; those that have, none when time is over."""
    wait_readable([subscriber.socket for subscriber in subscribers], timeout_s)
    readable = [s for s in subscribers if pending_events(s.socket) & zmq.POLLIN]
    for subscriber in subscribers:
        if subscriber not in readable:  # those are revived when they are read
            subscriber.revive()
    return readable
