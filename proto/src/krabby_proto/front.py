"""A bound CURVE socket, its connections, and what a peer may take of it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket as tcp
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import zmq
from zmq.utils.monitor import parse_monitor_message

from krabby_proto.endpoint import Closing, Context
from krabby_proto.errors import EndpointError
from krabby_proto.hello import MAX_JSON_BYTES

__all__ = ["Bucket", "Front", "Limits", "Refusals"]

_log = logging.getLogger(__name__)

_BYTES_RECEIVED: Final = struct.Struct("=128xQ")
"""struct tcp_info of linux/tcp.h, up to tcpi_bytes_received."""
_RESET: Final = struct.pack("ii", 1, 0)
"""struct linger: what is not sent is dropped, and the peer gets a reset."""
_HANDSHAKE_S: Final = 2.0
"""libzmq closes a connection whose handshake takes longer."""
_SETTLED_S: Final = 1.0
"""After that time: how late it may do so."""
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
    """Of a door; the oldest that has shown no key makes room for a new one."""
    connections_of_key: int = 8
    """Of one key at a door; the oldest makes room."""
    bytes_per_s: int = 256 * 1024
    """Received on one connection in any second."""
    requests_per_s: Mapping[str, float] = field(
        default_factory=lambda: {"command": 250.0, "nav": 100.0, "safety": 50.0, "control": 50.0}
    )
    """Of one key at a door; twice as many at once. E-stops are counted apart from the rest."""


class Bucket:
    """Tokens that come at a rate, at most two seconds' worth."""

    def __init__(self, rate: float) -> None:
        self._rate, self._tokens, self._at_s = rate, 2 * rate, time.monotonic()

    def take(self) -> bool:
        """Whether there was one."""
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
        """Count one."""
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
            if self.socket.family not in (tcp.AF_INET, tcp.AF_INET6):
                raise OSError("closed again already, and its number is another socket's")
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
        """End it, with a reset.

        A peer whose window was full would otherwise wait a minute: Linux sends no window update
        once a socket was shut down, and its TIME_WAIT state repeats the window that it had.
        """
        with contextlib.suppress(OSError):
            self.socket.setsockopt(tcp.SOL_SOCKET, tcp.SO_LINGER, _RESET)
            self.socket.shutdown(tcp.SHUT_RDWR)


def _security(domain: str, secret: str) -> tuple[tuple[int, int | bytes], ...]:
    return (
        (zmq.CURVE_SERVER, 1),
        (zmq.CURVE_SECRETKEY, secret.encode()),
        (zmq.ZAP_DOMAIN, domain.encode()),
        (zmq.ZAP_ENFORCE_DOMAIN, 1),
    )


class Front(Closing):
    """A bound CURVE socket and its connections."""

    def __init__(
        self,
        context: Context,
        kind: int,
        endpoint: str,
        *,
        domain: str,
        secret: str,
        options: Sequence[tuple[int, int | bytes]],
        limits: Limits,
        refuse: Callable[[str, str], None],
        name_of: Callable[[str], str],
    ) -> None:
        """Bind.

        Args:
            context: of the authenticator.
            kind: of socket.
            endpoint: ``tcp://ADDRESS:PORT``.
            domain: of ZAP, by which the authenticator knows the socket.
            secret: key of the robot, Z85.
            options: further options of the socket.
            limits: of connections and bytes.
            refuse: told the reason and the peer of each refusal.
            name_of: a public key's name.

        Raises:
            EndpointError: the endpoint cannot be bound.
        """
        self._limits, self._refuse, self._name_of = limits, refuse, name_of
        self.connections: dict[int, _Connection] = {}
        self.socket = context.socket(kind)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 64),
            (zmq.RCVHWM, 256),
            (zmq.MAXMSGSIZE, MAX_JSON_BYTES),
            (zmq.IPV6, int("[" in endpoint)),
            (zmq.HANDSHAKE_IVL, round(1e3 * _HANDSHAKE_S)),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 1),
            (zmq.TCP_KEEPALIVE_INTVL, 1),
            (zmq.TCP_MAXRT, 1000),
            *_security(domain, secret),
            *options,
        ):
            self.socket.setsockopt(option, value)
        # before it is bound: the first connection is watched too
        address = f"inproc://front-{id(self)}"
        self.socket.monitor(address, _MONITORED)
        self.monitor = context.socket(zmq.PAIR)
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
        """Take in what became of connections."""
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
                self._refuse("descriptors", "the system")
            else:
                self._refuse("handshake", "a peer that did not complete it")

    def _accepted(self, fd: int) -> None:
        old = self.connections.pop(fd, None)
        if old is not None:
            old.socket.close()
        try:
            self.connections[fd] = _Connection(fd)
        except OSError:  # closed again already
            return
        if len(self.connections) > self._limits.connections:
            self._make_room()

    def _make_room(self) -> None:
        """Close the oldest of those that may be without a key; else the oldest of the busiest key.

        A connection that has outlived the handshake has a key, also when it sent nothing yet: an
        e-stop button is silent until it is pressed. The newest alone is not closed: it would be
        shut out by silent connections of one key.
        """
        every = list(self.connections.values())
        settled_s = time.monotonic() - _HANDSHAKE_S - _SETTLED_S
        unproven = [one for one in every if not one.user and one.since_s > settled_s]
        if len(unproven) > 1:
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
        if len(same) > self._limits.connections_of_key:
            self._drop(min(same, key=lambda one: one.since_s), "connections")

    def _drop(self, connection: _Connection, reason: str) -> None:
        """Kick it, and forget it: it counts no more."""
        self._refuse(reason, self._name_of(connection.user) or connection.peer)
        connection.kick()
        for fd, one in list(self.connections.items()):
            if one is connection:
                del self.connections[fd]
        connection.socket.close()

    def kick(self, fd: int, reason: str) -> None:
        """Close a connection."""
        connection = self.connections.get(fd)
        if connection is not None:
            self._drop(connection, reason)

    def watch_bytes(self, now_s: float) -> None:
        """Close connections that received too much within a second."""
        limit = self._limits.bytes_per_s
        for connection in list(self.connections.values()):
            try:
                if connection.received(now_s) > limit:
                    self._drop(connection, "bytes")
            except OSError:  # gone; its monitor reports it
                pass

    def close(self) -> None:
        """Close the socket and every connection."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()
        for connection in self.connections.values():
            connection.socket.close()
