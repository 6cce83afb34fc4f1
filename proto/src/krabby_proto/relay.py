"""A robot's streams and requests over TCP, for clients with a key.

The robot's processes bind Unix sockets only. A relay is a process beside them that may die: a peer
can abort a process that reads plain TCP or exhaust its memory (libzmq 4.3.5), and then the robot's
loops notice nothing. Each door is one stream: a CURVE socket in front, a Unix socket behind.

Who may connect is decided in the handshake, by key and door. An authenticator that is dead admits
no client (ZAP_ENFORCE_DOMAIN). Limits per connection and per key are in `Limits`; what breaks one
is dropped and counted, and its connection is closed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

import zmq
from zmq.auth.thread import ThreadAuthenticator

from krabby_proto.access import ANY_ROLE, KeyFolder, Listed
from krabby_proto.endpoint import MAX_FRAMES, Closing, Endpoint, send_frames
from krabby_proto.front import Bucket, Front, Limits, Refusals
from krabby_proto.header import HEADER_SIZE
from krabby_proto.hello import HELLO_TOPIC, parse_request
from krabby_proto.streams import COMMAND, CONTROL, NAV, SAFETY, STREAMS, Stream

__all__ = ["NEXT_PORTS", "Relay", "RelayEnd"]

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
_STAMPED: Final = frozenset({(SAFETY.name, "arm"), (SAFETY.name, "reset"), (CONTROL.name, "stand")})
"""Requests that lead to motion: a network may deliver them late, so they say when they were sent.
The process that carries them out judges the stamp."""
_OPERATE: Final = frozenset({"operate"})
_WATCH_S: Final = 0.02
_STAMP_S: Final = 0.5
_MOST_DRAINED: Final = 64
"""Messages taken from one socket in one turn."""
_MOST_SKIPPED: Final = 2000


class RelayEnd(Exception):  # noqa: N818
    """The relay cannot continue and has to be started again; the message says why."""


class _Door(Closing):
    """One stream; subclasses forward its messages."""

    front_kind: int
    back_kind: int
    front_options: tuple[tuple[int, int | bytes], ...] = ()
    back_options: tuple[tuple[int, int | bytes], ...] = ()

    def __init__(self, relay: Relay, stream: Stream, fronts: Sequence[tuple[str, str]]) -> None:
        self.relay, self.stream, self.name = relay, stream, stream.name
        self.fronts: list[Front] = []
        self.back = Endpoint(
            self.back_kind,
            relay.upstream[stream.name],
            name=stream.name,
            bind=False,
            hwm=64,
            max_bytes=max(stream.max_bytes, 1 << 20),
            context=relay.context,
            options=self.back_options,
        )
        for endpoint, secret in fronts:
            self.fronts.append(
                Front(
                    relay.context,
                    self.front_kind,
                    endpoint,
                    domain=self.name,
                    secret=secret,
                    options=self.front_options,
                    limits=relay.limits,
                    refuse=self.refuse,
                    name_of=relay.name_of,
                )
            )

    def refuse(self, reason: str, who: str) -> None:
        self.relay.refusals.add(self.name, reason, who)

    def take(self, front: Front) -> tuple[str, int, list[bytes]] | None:
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

    def from_front(self, index: int, front: Front, user: str, fd: int, frames: list[bytes]) -> None:
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

    def from_front(self, index: int, front: Front, user: str, fd: int, frames: list[bytes]) -> None:
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

    def from_front(self, index: int, front: Front, user: str, fd: int, frames: list[bytes]) -> None:
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

    def from_front(self, index: int, front: Front, user: str, fd: int, frames: list[bytes]) -> None:
        try:
            end = frames.index(b"", 1, 3)  # behind the sender and, at most, a request id
        except ValueError:
            front.kick(fd, "malformed")
            return
        envelope, body = frames[: end + 1], frames[end + 1 :]
        reason = self._refusal(user, body)
        if not reason:
            try:
                send_frames(self.back.socket, [bytes([index]), *envelope, *body])
            except zmq.Again:
                # Nothing is queued for a process that does not run: the client asks again. A
                # command and a hello are asked again anyway.
                if self.name == COMMAND.name or body[0] == HELLO_TOPIC:
                    return
                reason = f"the process behind {self.name} is not reached at the moment; ask again"
        if reason:
            empty: list[str] = []
            answer = json.dumps({"ok": False, "state": "", "faults": empty, "reason": reason})
            with contextlib.suppress(zmq.ZMQError):
                send_frames(front.socket, [*envelope, self.stream.topic, answer.encode()])

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
            sent_ns = request.get("sent_ns")
            if (self.name, op) in _STAMPED and not isinstance(sent_ns, (int, float)):
                self.refuse("stamp", name)
                return f"{op} through the relay needs sent_ns, CLOCK_MONOTONIC of the robot"
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
        self._buckets: dict[tuple[str, str], Bucket] = {}
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

    def bucket(self, user: str, kind: str, rate: float) -> Bucket:
        """The tokens of a key for one kind of message."""
        bucket = self._buckets.get((user, kind))
        if bucket is None:
            bucket = self._buckets[user, kind] = Bucket(rate)
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
        authenticator = cast("Any", self.authenticator)  # pyzmq leaves the pipe's type open
        if authenticator.pipe and not authenticator.is_alive():
            # Its `stop` would send to a thread that no longer reads, and wait without end.
            authenticator.pipe.close(linger=0)
            authenticator.pipe = None
        authenticator.stop()
        self.context.destroy(linger=0)
