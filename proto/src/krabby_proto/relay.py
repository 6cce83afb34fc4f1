"""A robot's streams and requests over TCP, for clients with a key.

The robot's processes bind Unix sockets only. A relay is a process beside them that may die: a peer
can abort a process that reads plain TCP or exhaust its memory (libzmq 4.3.5), and then the robot's
loops notice nothing. Each door is one stream: a CURVE socket in front, a Unix socket behind.

Who may connect is decided in the handshake, by key and door. An authenticator that is dead lets
nobody in (ZAP_ENFORCE_DOMAIN). Limits per connection and per key are in `Limits`; what breaks one
is dropped and counted, and its connection is closed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket as tcp
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, cast

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import parse_monitor_message

from krabby_proto.access import ANY_ROLE, KeyFolder, Listed
from krabby_proto.endpoint import MAX_FRAMES, Closing, Endpoint, send_frames
from krabby_proto.errors import EndpointError
from krabby_proto.header import HEADER_SIZE
from krabby_proto.hello import HELLO_TOPIC, MAX_JSON_BYTES, parse_request
from krabby_proto.streams import COMMAND, CONTROL, NAV, SAFETY, STREAMS, Stream

__all__ = ["NEXT_PORTS", "Limits", "Relay", "RelayEnd"]

_log = logging.getLogger(__name__)

NEXT_PORTS: Final = 100
"""While the robot's key is rotated, the next one is served on ports this much higher."""
_ROLES: Final[Mapping[str, frozenset[str]]] = {
    NAV.name: frozenset({"operate"}),
    COMMAND.name: frozenset({"command"}),
    CONTROL.name: frozenset({"see", "operate"}),
    SAFETY.name: ANY_ROLE,
}
"""Roles that may connect to a door; ``see`` for all others."""
_PLAIN_OPS: Final = {
    SAFETY.name: {"estop": ANY_ROLE, "status": ANY_ROLE},
    CONTROL.name: {"status": frozenset({"see", "operate"})},
}
"""Requests for which `operate` is not needed."""
_OPERATE: Final = frozenset({"operate"})
_UNPROVEN_S: Final = 3.0
"""libzmq closes a connection without a complete handshake after 2 s."""
_BYTES_RECEIVED: Final = struct.Struct("=128xQ")
"""struct tcp_info of linux/tcp.h, up to tcpi_bytes_received."""
_WATCH_S: Final = 0.02
_STAMP_S: Final = 0.5
_MOST_DRAINED: Final = 64
"""Messages taken from one socket in one turn."""
_MOST_SKIPPED: Final = 2000
_MONITORED: Final = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_ACCEPT_FAILED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one peer may use."""

    connections: int = 64
    """Of a door; the one that sent nothing for longest makes room for a new one."""
    connections_of_key: int = 8
    """Of one key at a door; the oldest makes room."""
    bytes_per_s: int = 256 * 1024
    """Received on one connection in any second."""
    requests_per_s: Mapping[str, float] = field(
        default_factory=lambda: {"command": 250.0, "nav": 100.0, "safety": 50.0, "control": 50.0}
    )
    """Of one key at a door; twice as many at once. E-stops are counted apart from the rest."""


class RelayEnd(Exception):  # noqa: N818
    """The relay cannot continue and has to be started again; the message says why."""


class _Bucket:
    """Tokens that come at a rate, at most two seconds' worth."""

    def __init__(self, rate: float) -> None:
        self._rate, self._tokens, self._at_s = rate, 2 * rate, time.monotonic()

    def take(self) -> bool:
        now_s = time.monotonic()
        self._tokens = min(2 * self._rate, self._tokens + self._rate * (now_s - self._at_s))
        self._at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Refusals:
    """Counts refusals by door and reason, and logs each kind once a second."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._told_s: dict[tuple[str, str, str], float] = {}

    def add(self, door: str, reason: str, who: str) -> None:
        self.counts[door, reason] += 1
        now_s = time.monotonic()
        if len(self._told_s) > 256:
            self._told_s.clear()
        if now_s - self._told_s.get((door, reason, who), -1.0) >= 1.0:
            self._told_s[door, reason, who] = now_s
            total = self.counts[door, reason]
            _log.warning("refused at %s: %s, by %s, total %d", door, reason, who, total)


class _Connection:
    """One accepted connection; holds a duplicate of its descriptor, so none is mistaken for it."""

    def __init__(self, fd: int) -> None:
        self.since_s = time.monotonic()
        self.user = ""
        """Public key; empty until it sent something."""
        self.socket = tcp.socket(fileno=os.dup(fd))
        try:
            self.peer = str(self.socket.getpeername()[0])
        except BaseException:
            self.socket.close()
            raise
        self._window_s, self._window_bytes = self.since_s, 0

    def received(self, now_s: float) -> int:
        """Bytes in the second that runs."""
        size = _BYTES_RECEIVED.size
        info = self.socket.getsockopt(tcp.IPPROTO_TCP, tcp.TCP_INFO, size)
        (total,) = _BYTES_RECEIVED.unpack(info)
        if now_s - self._window_s >= 1.0:
            self._window_s, self._window_bytes = now_s, total
        return total - self._window_bytes

    def kick(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(tcp.SHUT_RDWR)


def _security(domain: str, secret: str) -> tuple[tuple[int, int | bytes], ...]:
    return (
        (zmq.CURVE_SERVER, 1),
        (zmq.CURVE_SECRETKEY, secret.encode()),
        (zmq.ZAP_DOMAIN, domain.encode()),
        (zmq.ZAP_ENFORCE_DOMAIN, 1),
    )


class _Front(Closing):
    """A bound CURVE socket and its connections."""

    def __init__(self, door: _Door, kind: int, endpoint: str, secret: str) -> None:
        self.door = door
        self.connections: dict[int, _Connection] = {}
        self.socket = door.relay.context.socket(kind)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 64),
            (zmq.RCVHWM, 256),
            (zmq.MAXMSGSIZE, MAX_JSON_BYTES),
            (zmq.IPV6, int("[" in endpoint)),
            (zmq.HANDSHAKE_IVL, 2000),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 1),
            (zmq.TCP_KEEPALIVE_INTVL, 1),
            (zmq.TCP_MAXRT, 1000),
            *_security(door.name, secret),
            *door.front_options,
        ):
            self.socket.setsockopt(option, value)
        # before it is bound: the first connection is watched too
        address = f"inproc://front-{id(self)}"
        self.socket.monitor(address, _MONITORED)
        self.monitor = door.relay.context.socket(zmq.PAIR)
        self.monitor.setsockopt(zmq.RCVHWM, 0)
        self.monitor.connect(address)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(f"{endpoint} cannot be bound: {error.strerror}") from error
        last = cast("bytes", self.socket.getsockopt(zmq.LAST_ENDPOINT))
        self.endpoint = last.rstrip(b"\0").decode()

    def read_monitor(self) -> None:
        while True:
            try:
                event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            kind, fd = event["event"], event["value"]
            if kind == zmq.EVENT_ACCEPTED:
                self._accepted(fd)
            elif kind == zmq.EVENT_DISCONNECTED:
                connection = self.connections.pop(fd, None)
                if connection is not None:
                    connection.socket.close()
            elif kind == zmq.EVENT_ACCEPT_FAILED:
                self.door.refuse("descriptors", "the system")
            else:
                self.door.refuse("handshake", "a peer that did not complete it")

    def _accepted(self, fd: int) -> None:
        old = self.connections.pop(fd, None)
        if old is not None:
            old.socket.close()
        try:
            self.connections[fd] = _Connection(fd)
        except OSError:  # closed again already
            return
        if len(self.connections) > self.door.relay.limits.connections:
            self._make_room()

    def _make_room(self) -> None:
        """Close a connection that sent nothing, the oldest; else the oldest of the busiest key."""
        every = list(self.connections.values())
        unproven = [one for one in every if not one.user]
        if unproven:
            victim = min(unproven, key=lambda one: one.since_s)
        else:
            users = Counter(one.user for one in every)
            (busiest, _) = users.most_common(1)[0]
            victim = min((o for o in every if o.user == busiest), key=lambda o: o.since_s)
        self._drop(victim, "connections")

    def prove(self, fd: int, user: str) -> None:
        """Note whose connection it is."""
        if fd not in self.connections:
            self.read_monitor()
        connection = self.connections.get(fd)
        if connection is None or connection.user == user:
            return
        connection.user = user
        same = [one for one in self.connections.values() if one.user == user]
        if len(same) > self.door.relay.limits.connections_of_key:
            self._drop(min(same, key=lambda one: one.since_s), "connections")

    def _drop(self, connection: _Connection, reason: str) -> None:
        """Kick it, and forget it: it counts no more."""
        self.door.refuse(reason, self.door.relay.name_of(connection.user) or connection.peer)
        connection.kick()
        for fd, one in list(self.connections.items()):
            if one is connection:
                del self.connections[fd]
        connection.socket.close()

    def kick(self, fd: int, reason: str) -> None:
        connection = self.connections.get(fd)
        if connection is not None:
            self._drop(connection, reason)

    def watch_bytes(self, now_s: float) -> None:
        limit = self.door.relay.limits.bytes_per_s
        for connection in list(self.connections.values()):
            try:
                if connection.received(now_s) > limit:
                    self._drop(connection, "bytes")
            except OSError:  # gone; its monitor says so
                pass

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()
        for connection in self.connections.values():
            connection.socket.close()


class _Door(Closing):
    """One stream; subclasses forward its messages."""

    front_kind: int
    back_kind: int
    front_options: tuple[tuple[int, int | bytes], ...] = ()
    back_options: tuple[tuple[int, int | bytes], ...] = ()

    def __init__(self, relay: Relay, stream: Stream, fronts: Sequence[tuple[str, str]]) -> None:
        self.relay, self.stream, self.name = relay, stream, stream.name
        self.roles = _ROLES.get(stream.name, frozenset({"see"}))
        self.fronts: list[_Front] = []
        self.back = Endpoint(
            self.back_kind,
            relay.upstream[stream.name],
            name=stream.name,
            bind=False,
            hwm=64,
            max_bytes=max(4 * stream.max_elements, 1 << 20),
            context=relay.context,
            options=self.back_options,
        )
        for endpoint, secret in fronts:
            self.fronts.append(_Front(self, self.front_kind, endpoint, secret))

    def refuse(self, reason: str, who: str) -> None:
        self.relay.refusals.add(self.name, reason, who)

    def take(self, front: _Front) -> tuple[str, int, list[bytes]] | None:
        """User, descriptor and frames of a message that fits; None when nothing is there.

        Frames are empty when it does not fit; its connection is closed.
        """
        try:
            frame = front.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        try:
            user, fd = str(frame.get("User-Id")), int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:  # of XPUB: the end of a connection ends its subscriptions
            user, fd = "", -1
        front.prove(fd, user)
        frames = [frame.bytes]
        count = 1
        while frame.more:
            frame = front.socket.recv(zmq.NOBLOCK, copy=False)
            count += 1
            if count <= MAX_FRAMES:
                frames.append(frame.bytes)
            elif count == MAX_FRAMES + 1:
                front.kick(fd, "frames")
            elif count > _MOST_SKIPPED:
                raise RelayEnd(f"a message at {self.name} has over {_MOST_SKIPPED} frames")
        return user, fd, frames if count <= MAX_FRAMES else []

    def drain(self, index: int) -> None:
        """Hand on what came to one of the fronts."""
        front = self.fronts[index]
        for _ in range(_MOST_DRAINED):
            taken = self.take(front)
            if taken is None:
                return
            user, fd, frames = taken
            if frames:
                self.from_front(index, front, user, fd, frames)

    def from_front(
        self, index: int, front: _Front, user: str, fd: int, frames: list[bytes]
    ) -> None:
        raise NotImplementedError

    def from_back(self) -> None:
        raise NotImplementedError

    def within_rate(self, user: str, kind: str) -> bool:
        if self.relay.bucket(user, kind, self.relay.limits.requests_per_s[self.name]).take():
            return True
        self.refuse("rate", self.relay.name_of(user))
        return False

    def close(self) -> None:
        for front in self.fronts:
            front.close()
        self.back.close()


class _StreamDoor(_Door):
    """Robot to clients. XPUB shows subscriptions: one to a foreign topic ends its connection."""

    front_kind = zmq.XPUB
    front_options = ((zmq.XPUB_VERBOSE, 1),)  # each subscription says whose connection it is
    back_kind = zmq.SUB

    def __init__(self, relay: Relay, stream: Stream, fronts: Sequence[tuple[str, str]]) -> None:
        super().__init__(relay, stream, fronts)
        self._subscribed: set[tuple[int, bytes]] = set()
        """Topics by front; libzmq tells of the first subscription to one and of the last's end."""

    def from_front(
        self, index: int, front: _Front, user: str, fd: int, frames: list[bytes]
    ) -> None:
        wanted, topic = frames[0][:1], frames[0][1:]
        known = topic in (b"", self.stream.topic)
        if len(frames) != 1 or wanted not in (b"\0", b"\1") or not known:
            front.kick(fd, "topic")
            return
        before = bool(self._subscribed)
        if wanted == b"\1":
            self._subscribed.add((index, topic))
        else:
            self._subscribed.discard((index, topic))
        if bool(self._subscribed) != before:
            option = zmq.UNSUBSCRIBE if before else zmq.SUBSCRIBE
            self.back.socket.setsockopt(option, self.stream.topic)

    def from_back(self) -> None:
        for _ in range(_MOST_DRAINED):
            frames = self.back.receive_frames()
            if frames is None:
                return
            for front in self.fronts:
                with contextlib.suppress(zmq.Again):
                    send_frames(front.socket, frames)


class _NavDoor(_Door):
    """Clients to robot, one way."""

    front_kind = zmq.SUB
    back_kind = zmq.PUB

    def __init__(self, relay: Relay, stream: Stream, fronts: Sequence[tuple[str, str]]) -> None:
        super().__init__(relay, stream, fronts)
        for front in self.fronts:
            front.socket.setsockopt(zmq.SUBSCRIBE, stream.topic)

    def from_front(
        self, index: int, front: _Front, user: str, fd: int, frames: list[bytes]
    ) -> None:
        if [len(frame) for frame in frames] != [3, HEADER_SIZE, 4 * self.stream.size]:
            front.kick(fd, "malformed")
        elif self.within_rate(user, self.name):
            with contextlib.suppress(zmq.Again):
                send_frames(self.back.socket, frames)

    def from_back(self) -> None:
        pass


class _RequestDoor(_Door):
    """Requests and their answers."""

    front_kind = zmq.ROUTER
    back_kind = zmq.DEALER
    back_options = ((zmq.IMMEDIATE, 1),)

    def from_front(
        self, index: int, front: _Front, user: str, fd: int, frames: list[bytes]
    ) -> None:
        try:
            end = frames.index(b"", 1, 3)  # behind the sender and, at most, a request id
        except ValueError:
            front.kick(fd, "malformed")
            return
        envelope, body = frames[: end + 1], frames[end + 1 :]
        reason = self._refusal(user, body)
        if reason:
            empty: list[str] = []
            answer = json.dumps({"ok": False, "state": "", "faults": empty, "reason": reason})
            with contextlib.suppress(zmq.ZMQError):
                send_frames(front.socket, [*envelope, self.stream.topic, answer.encode()])
            return
        # Nothing is queued for a process that does not run: the client asks again.
        with contextlib.suppress(zmq.Again):
            send_frames(self.back.socket, [bytes([index]), *envelope, *body])

    def _refusal(self, user: str, body: list[bytes]) -> str:
        """Why a request is not handed on; empty when it is."""
        name, op = self.relay.name_of(user), ""
        is_hello = bool(body) and body[0] == HELLO_TOPIC
        if self.name != COMMAND.name and not is_hello:
            request = parse_request(body, self.stream.topic)
            if request is None:
                self.refuse("malformed", name)
                return f"request is not {self.name} and a JSON object"
            op = str(request.get("op"))[:40]
            if not _PLAIN_OPS[self.name].get(op, _OPERATE) & self.relay.roles_of(user):
                self.refuse("role", name)
                return f"key {name} lacks the role operate, which {op} needs"
        if not self.within_rate(user, "estop" if op == "estop" else self.name):
            return f"key {name} sends over {self.relay.limits.requests_per_s[self.name]:g} per s"
        return ""

    def from_back(self) -> None:
        for _ in range(_MOST_DRAINED):
            frames = self.back.receive_frames()
            if frames is None:
                return
            if len(frames) > 2 and frames[0] in (b"\0", b"\1")[: len(self.fronts)]:
                with contextlib.suppress(zmq.ZMQError):  # the client is gone or does not read
                    send_frames(self.fronts[frames[0][0]].socket, frames[1:])


_DOORS: Final[Mapping[str, type[_Door]]] = {
    NAV.name: _NavDoor,
    **dict.fromkeys((COMMAND.name, SAFETY.name, CONTROL.name), _RequestDoor),
}
"""`_StreamDoor` for all others."""


class _Porter:
    """Decides about a handshake at one door; called by the authenticator's thread."""

    def __init__(self, relay: Relay, door: str) -> None:
        self._relay, self._door = relay, door

    def callback(self, domain: str, key: bytes) -> bool:
        listed = self._relay.listed.get(key.decode())
        roles = _ROLES.get(self._door, frozenset({"see"}))
        if domain == self._door and listed is not None and listed.roles & roles:
            return True
        reason, who = ("role", listed.name) if listed else ("unknown_key", key.decode())
        self._relay.refusals.add(self._door, reason, who)
        return False


class Relay(Closing):
    """The doors of some streams; single-threaded, driven by `poll`.

    Args:
        keys: the robot's key folder, read once.
        upstream: stream name to endpoint of the robot's processes.
        place: where a stream is offered, ``tcp://ADDRESS:PORT``; the second argument is added to
            the port.
        streams: names of those to offer.
        limits: of one peer.

    Raises:
        EndpointError: an address cannot be bound, or the key folder is unusable.
    """

    def __init__(
        self,
        keys: KeyFolder,
        upstream: Mapping[str, str],
        place: Callable[[str, int], str],
        *,
        streams: Sequence[str],
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.upstream = upstream
        self.refusals = Refusals()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 256)
        self._keys, self._stamp, self._stamped_s = keys, keys.stamp(), time.monotonic()
        self.listed: dict[str, Listed] = {one.public: one for one in keys.authorised()}
        """Authorised clients by public key."""
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._watched_s = 0.0
        self.doors: list[_Door] = []
        self.authenticator = ThreadAuthenticator(self.context)
        self.authenticator.start()
        try:
            pairs = [keys.robot(), keys.next_robot()]
            for name in streams:
                fronts = [
                    (place(name, index * NEXT_PORTS), pair.secret)
                    for index, pair in enumerate(pairs)
                    if pair is not None
                ]
                self.authenticator.configure_curve_callback(name, _Porter(self, name))
                self.doors.append(_DOORS.get(name, _StreamDoor)(self, STREAMS[name], fronts))
        except BaseException:
            self.close()
            raise

    @property
    def endpoints(self) -> dict[str, str]:
        """Where each stream is offered, for ``curve://`` clients."""
        return {door.name: f"curve{door.fronts[0].endpoint[3:]}" for door in self.doors}

    @property
    def connections(self) -> dict[str, int]:
        """Open connections by door."""
        return {door.name: sum(len(f.connections) for f in door.fronts) for door in self.doors}

    def name_of(self, user: str) -> str:
        """Name of a public key; empty when it is not authorised."""
        listed = self.listed.get(user)
        return listed.name if listed else ""

    def roles_of(self, user: str) -> frozenset[str]:
        """Roles of a public key."""
        listed = self.listed.get(user)
        return listed.roles if listed else frozenset()

    def bucket(self, user: str, kind: str, rate: float) -> _Bucket:
        """The tokens of a key for one kind of message."""
        bucket = self._buckets.get((user, kind))
        if bucket is None:
            bucket = self._buckets[user, kind] = _Bucket(rate)
        return bucket

    def poll(self, timeout_s: float) -> None:
        """Wait for messages and hand them on.

        Raises:
            RelayEnd: a key was changed, the authenticator is dead, or a message has no end.
        """
        handlers: dict[object, Callable[[], None]] = {}
        for door in self.doors:
            handlers[door.back.socket] = door.from_back
            for index, front in enumerate(door.fronts):
                handlers[front.socket] = partial(door.drain, index)
        poller = zmq.Poller()
        for socket in handlers:
            poller.register(socket, zmq.POLLIN)
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            for socket, _ in poller.poll(max(1, round(1e3 * min(left_s, _WATCH_S)))):
                handlers[socket]()
            self._watch()

    def _watch(self) -> None:
        now_s = time.monotonic()
        if now_s - self._watched_s < _WATCH_S:
            return
        self._watched_s = now_s
        for door in self.doors:
            door.back.revive()
            for front in door.fronts:
                front.read_monitor()
                front.watch_bytes(now_s)
        if not self.authenticator.is_alive():
            raise RelayEnd("the authenticator is dead")
        if now_s - self._stamped_s > _STAMP_S:
            self._stamped_s = now_s
            if self._keys.stamp() != self._stamp:
                # Connections of a revoked key stay open until they are closed.
                raise RelayEnd("keys were changed")

    def close(self) -> None:
        """Close all sockets and every connection."""
        for door in self.doors:
            door.close()
        self.authenticator.stop()
        self.context.destroy(linger=0)
