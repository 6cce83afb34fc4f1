"""Every socket option of the project, and the two forms of talking built on them.

`Publisher` and `LatestSubscriber` carry streams, `Router` and `Requester` carry requests. One
socket belongs to one thread.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket as unix
import stat
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias, cast

import zmq

from krabby_proto.codec import Message, decode, encode
from krabby_proto.errors import EndpointError, EndpointInUse, FrameError
from krabby_proto.header import FLAG_OPERATOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike

    from krabby_proto.streams import Stream

__all__ = [
    "LatestSubscriber",
    "Publisher",
    "Request",
    "Requester",
    "Router",
    "new_instance_id",
    "wait_any",
    "wait_readable",
]

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"

MAX_JSON_BYTES: Final = 1 << 16
_MAX_REPLY_BYTES: Final = 1 << 20
_MAX_PARTS: Final = 12  # envelope and body of a request; what is beyond is read and dropped

# Stalls of a second happen (a paused debugger, a swapping host) and must not cost the connection:
# with a limit below that, a reader that wakes up gets its old backlog, then waits for a reconnect.
# Half-open links are the deadmen's business (50 to 150 ms); this only frees the sockets.
_HEARTBEAT_IVL_MS: Final = 500
_HEARTBEAT_TIMEOUT_MS: Final = 3000

_STALL_S: Final = 0.1
_SETTLE_WAIT_S: Final = 0.005
_SETTLE_TOTAL_S: Final = 0.025
_MAX_DRAIN: Final = 20_000


def new_instance_id() -> int:
    """A random 64-bit identity, never 0."""
    return secrets.randbits(64) or 1


def wait_readable(sockets: Sequence[Socket], timeout_s: float) -> bool:
    """Block until one of `sockets` has a message or the time is over; sub-millisecond timeouts.

    This is `zmq_poll`'s own algorithm with `select`'s resolution in place of whole milliseconds:
    ZMQ_FD is edge-triggered, so ZMQ_EVENTS is asked before every wait and after every wake-up.
    """
    return _wait(sockets, zmq.POLLIN, timeout_s)


def _wait(sockets: Sequence[Socket], events: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while True:
        for socket in sockets:
            if _events(socket) & events:
                return True
        remaining = deadline - time.monotonic()
        if remaining <= 0.0:
            return False
        select.select([_fd(socket) for socket in sockets], (), (), remaining)


def _events(socket: Socket) -> int:
    return cast("int", socket.getsockopt(zmq.EVENTS))


def _fd(socket: Socket) -> int:
    return cast("int", socket.getsockopt(zmq.FD))


class _Endpoint:
    """A socket on one endpoint, bound or connected."""

    def __init__(
        self,
        kind: int,
        endpoint: str,
        *,
        name: str,
        bind: bool,
        hwm: int,
        max_bytes: int,
        context: Context | None,
        options: Iterable[tuple[int, int | bytes]] = (),
    ) -> None:
        self.socket: Socket = (context or cast("Context", zmq.Context.instance())).socket(kind)
        try:
            for option, value in (*_common_options(hwm, max_bytes), *options):
                self.socket.setsockopt(option, value)
            if bind:
                _bind(self.socket, endpoint, name)
            else:
                _connect(self.socket, endpoint, name)
        except BaseException:
            self.socket.close()
            raise
        self.endpoint: str = endpoint
        """Where it is; a bound wildcard port is resolved to the port that was found."""
        if bind and not endpoint.startswith("inproc:"):
            last = cast("bytes", self.socket.getsockopt(zmq.LAST_ENDPOINT))
            self.endpoint = last.rstrip(b"\0").decode()

    def fileno(self) -> int:
        """Descriptor for an outer event loop; edge-triggered, so drain after every event."""
        return _fd(self.socket)

    def close(self) -> None:
        """Close at once; what was not sent yet is dropped."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _common_options(hwm: int, max_bytes: int) -> tuple[tuple[int, int], ...]:
    return (
        (zmq.LINGER, 0),
        (zmq.SNDHWM, hwm),
        (zmq.RCVHWM, hwm),
        (zmq.MAXMSGSIZE, max_bytes),
        (zmq.IPV6, 1),
        (zmq.RECONNECT_IVL, 20),
        (zmq.RECONNECT_IVL_MAX, 500),
        (zmq.HANDSHAKE_IVL, 2000),
        (zmq.HEARTBEAT_IVL, _HEARTBEAT_IVL_MS),
        (zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS),
        (zmq.HEARTBEAT_TTL, _HEARTBEAT_TIMEOUT_MS),
        (zmq.TCP_MAXRT, 1000),
    )


def _stream_hwm(stream: Stream) -> int:
    """Queue length: images are large and slow, a few are enough; 1 starves a draining reader."""
    return 16 if stream.fields else 4


def _bind(socket: Socket, endpoint: str, name: str) -> None:
    in_use = EndpointInUse(
        f"{endpoint} ({name}) is already in use; stop the other process that binds it "
        f"or set endpoints.{name} to a free one"
    )
    if endpoint.startswith("ipc:///"):
        path = endpoint.removeprefix("ipc://")
        if _somebody_listens(path):
            raise in_use
        with contextlib.suppress(OSError):  # the bind below says what is wrong
            os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise in_use from error
        raise _unusable(endpoint, name, "bound", error) from error


def _connect(socket: Socket, endpoint: str, name: str) -> None:
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise _unusable(endpoint, name, "connected", error) from error


def _unusable(endpoint: str, name: str, verb: str, error: zmq.ZMQError) -> EndpointError:
    return EndpointError(
        f"{endpoint!r} ({name}) cannot be {verb}: {error.strerror}; set endpoints.{name} to "
        "tcp://HOST:PORT, ipc:///path or inproc://name"
    )


def _somebody_listens(path: str) -> bool:
    """Whether a live process serves this Unix socket: libzmq would take it over without a word."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as probe:
            probe.settimeout(0.2)
            probe.connect(path)
    except OSError:  # absent, or left behind by a process that died
        return False
    return True


class Publisher(_Endpoint):
    """Sends one stream; numbers its messages under an instance id of its own."""

    def __init__(
        self,
        endpoint: str,
        stream: Stream,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        context: Context | None = None,
        bind: bool = True,
        instance_id: int | None = None,
    ) -> None:
        super().__init__(
            zmq.PUB,
            endpoint,
            name=stream.name,
            bind=bind,
            hwm=_stream_hwm(stream),
            max_bytes=MAX_JSON_BYTES,  # it only receives subscriptions
            context=context,
        )
        self.stream = stream
        self.instance_id = instance_id or new_instance_id()
        self.sequence = 0
        """Sequence of the last message sent."""
        self._clock = clock

    def publish(
        self,
        payload: ArrayLike,
        *,
        capture_ns: int,
        publish_ns: int | None = None,
        flags: int = 0,
    ) -> int:
        """Send one message and return its sequence; never blocks, slow readers lose messages.

        Args:
            payload: any shape, sent in C order as float32.
            capture_ns: when the quantity was sampled [ns].
            publish_ns: now, by the publisher's clock when None [ns].
            flags: bits ``FLAG_*``.
        """
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
        self.socket.send_multipart(frames)
        return self.sequence


class LatestSubscriber(_Endpoint):
    """Receives one stream and gives out the newest message.

    A publisher's restart (a new instance id) is followed; what then still arrives from the old
    instance is dropped. On a stream with `many_writers` each instance is followed by itself.
    """

    def __init__(
        self,
        endpoint: str,
        stream: Stream,
        *,
        bind: bool = False,
        context: Context | None = None,
    ) -> None:
        super().__init__(
            zmq.SUB,
            endpoint,
            name=stream.name,
            bind=bind,
            hwm=_stream_hwm(stream),
            max_bytes=max(4 * stream.max_elements, 1024),
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
        self._stall_s = max(_STALL_S, 5.0 / stream.rate_hz if stream.rate_hz else 0.0)
        self._drained_s = time.monotonic()

    def latest(self) -> Message | None:
        """The newest message there is, the one already seen when nothing newer came; never waits.

        Returns:
            None only before the first message. Whether it is fresh is the caller's business:
            look at its age. After the caller itself was stalled for longer than 0.1 s the call
            may take up to 25 ms, to let the backlog come in.
        """
        self._drain()
        return self._newest

    def take(self) -> Message | None:
        """The newest message if one came since the last call of any reading method, else None."""
        return self._drain()

    def drain(self) -> list[Message]:
        """Every valid message that came since the last call, oldest first; for recorders."""
        messages: list[Message] = []
        self._receive_all(messages.append)
        self._drained_s = time.monotonic()
        if messages:
            self._newest = messages[-1]
        return messages

    def wait(self, timeout_s: float) -> Message | None:
        """Block until something newer comes; None when nothing did in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._drain()
            if message is not None:
                return message
            if not wait_readable((self.socket,), deadline - time.monotonic()):
                return None

    def _drain(self) -> Message | None:
        """Take all there is; the newest new message, kept as `_newest` too."""
        newest: Message | None = None

        def keep(message: Message) -> None:
            nonlocal newest
            if newest is None:
                newest = message
                return
            self.discarded += 1
            # A person outranks a mission also within one drain (only nav has that flag).
            if not newest.header.flags & ~message.header.flags & FLAG_OPERATOR:
                newest = message

        stalled = time.monotonic() - self._drained_s > self._stall_s
        self._receive_all(keep)
        if stalled:
            self._settle(keep)
        self._drained_s = time.monotonic()
        if newest is not None:
            self._newest = newest
        return newest

    def _settle(self, keep: Callable[[Message], None]) -> None:
        """Let a backlog come in: after a stall the I/O thread fills the queue while it is emptied.

        Ends with a message that had to be waited for, or with none at all.
        """
        end = time.monotonic() + _SETTLE_TOTAL_S
        while (start := time.monotonic()) < end:
            if not wait_readable((self.socket,), _SETTLE_WAIT_S):
                return
            waited = time.monotonic() - start
            self._receive_all(keep)
            if waited > 0.001:
                return

    def _receive_all(self, keep: Callable[[Message], None]) -> None:
        receive = self.socket.recv_multipart
        for _ in range(_MAX_DRAIN):
            try:
                frames = receive(zmq.NOBLOCK)
            except zmq.Again:
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
        if last is None:
            if instance in self._replaced:
                self.late += 1
                return False
            if self._sequences and not self.stream.many_writers:
                self._replaced.extend(self._sequences)
                self._sequences.clear()
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
    if not wait_readable([subscriber.socket for subscriber in subscribers], timeout_s):
        return []
    return [s for s in subscribers if _events(s.socket) & zmq.POLLIN]


class Request(NamedTuple):
    """A request as a ROUTER sees it."""

    envelope: list[bytes]
    """Sender, request id if the client correlates, and the empty delimiter; echoed as it came."""
    body: list[bytes]


class Router(_Endpoint):
    """The server side of REQ: any number of clients, none of them can block it."""

    def __init__(self, endpoint: str, *, name: str, context: Context | None = None) -> None:
        super().__init__(
            zmq.ROUTER,
            endpoint,
            name=name,
            bind=True,
            hwm=64,
            max_bytes=MAX_JSON_BYTES,
            context=context,
        )
        self.malformed = 0
        """Messages without a delimiter, which cannot be answered."""
        self.undelivered = 0
        """Answers dropped because the client does not read."""

    def receive(self) -> Request | None:
        """The next request, None when there is none; a malformed one has an empty envelope."""
        socket = self.socket
        try:
            parts = [socket.recv(zmq.NOBLOCK)]
        except zmq.Again:
            return None
        while socket.getsockopt(zmq.RCVMORE):
            part = socket.recv(zmq.NOBLOCK)
            if len(parts) < _MAX_PARTS:
                parts.append(part)
        try:
            delimiter = parts.index(b"", 1, 6)
        except ValueError:
            self.malformed += 1
            return Request([], parts)
        return Request(parts[: delimiter + 1], parts[delimiter + 1 :])

    def reply(self, request: Request, *frames: bytes) -> None:
        """Answer; dropped when the client is gone or does not read."""
        if not request.envelope:
            return
        try:
            self.socket.send_multipart((*request.envelope, *frames), zmq.NOBLOCK)
        except zmq.Again:
            self.undelivered += 1


class Requester(_Endpoint):
    """A REQ that gives up: relaxed, correlated, and silent towards a server that is not there."""

    def __init__(self, endpoint: str, *, name: str, context: Context | None = None) -> None:
        super().__init__(
            zmq.REQ,
            endpoint,
            name=name,
            bind=False,
            hwm=4,
            max_bytes=_MAX_REPLY_BYTES,
            context=context,
            options=[(zmq.REQ_RELAXED, 1), (zmq.REQ_CORRELATE, 1), (zmq.IMMEDIATE, 1)],
        )
        self.unsent = 0
        """Requests not even sent, because no server was connected."""
        self.timeouts = 0
        """Requests sent and not answered in time."""

    def request(self, frames: Sequence[bytes], deadline_s: float) -> list[bytes] | None:
        """Send and wait for the answer, at most `deadline_s`; None at once without a server."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            self.unsent += 1
            return None
        deadline = time.monotonic() + deadline_s
        while _wait((self.socket,), zmq.POLLIN, deadline - time.monotonic()):
            try:
                return self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:  # an answer to an earlier request, dropped by the socket
                continue
        self.timeouts += 1
        return None

    def wait_connected(self, timeout_s: float) -> bool:
        """Block until a server is there; False when none came in time."""
        return _wait((self.socket,), zmq.POLLOUT, timeout_s)

    def request_patiently(self, frames: Sequence[bytes], timeout_s: float) -> list[bytes] | None:
        """Like `request`, but waits for the server to appear; for start-up and operators."""
        deadline = time.monotonic() + timeout_s
        if not self.wait_connected(timeout_s):
            self.unsent += 1
            return None
        return self.request(frames, deadline - time.monotonic())
