"""A ZeroMQ socket on one endpoint: the only place that sets options, binds and connects.

What a Unix socket does without, names of hosts, keys and a log, is imported where it is needed: an
e-stop from the shell waits for every import.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import stat
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeAlias, cast

import zmq

from krabby_proto.errors import EndpointError, EndpointInUse
from krabby_proto.folder import private_folder

if TYPE_CHECKING:
    from krabby_proto.names import HostName

__all__ = [
    "MAX_FRAMES",
    "Closing",
    "Context",
    "Endpoint",
    "Socket",
    "new_instance_id",
    "pending_events",
    "send_frames",
    "wait_for",
    "wait_readable",
]

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"

# Keep-alive by the kernel, not by libzmq: no socket has ZMQ_HEARTBEAT_IVL set. An unread socket
# with a full queue stops reading in the middle of its input; once its peer has hung up, it fails
# for good. Sending a ping or a pong then aborts the process (libzmq 4.3.5, stream_engine_base.cpp:
# out_event asserts !_io_error, which in_event sets on a stopped input). With keep-alive a stopped
# process keeps its connections, since its kernel answers, and a dead peer is noticed after some
# 2 s, together with TCP_MAXRT. Half-open links are covered by the deadmen (50 to 150 ms).
_KEEPALIVE_S: Final = 1

MAX_FRAMES: Final = 12
"""Most frames of a message that are kept; envelope and body of a request fit."""
_SKIP_FRAMES: Final = 128
"""Frames beyond it that one call drops, at 2 to 5 us each."""
_MOST_SKIPPED: Final = 2048
"""Frames beyond it after which the socket is made anew in place of dropping more of them."""
_MORE: Final = zmq.NOBLOCK | zmq.SNDMORE
_BIND_PATIENCE_S: Final = 0.2
REVIVE_S: Final = 1.0
_RETRY_SAID_S: Final = 0.1
"""How long after a lost connection libzmq has certainly told whether it tries again."""
_LOOK_UP_S: Final = 0.2
"""How long a new endpoint waits for its host's address; later ones are taken by `revive`."""
_MONITORED: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_REFUSALS: Final[Mapping[int, str]] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the robot does not know this key, or the key lacks the role "
    "for this endpoint; see krabby keys show on the robot",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the handshake fails: the robot has another key than the "
    "one in this process's key file, or one side uses keys and the other does not",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "the peer speaks another protocol: one side uses keys and "
    "the other does not, or it is not a robot",
}
_MONITOR_EVENT = struct.Struct("=Hi")
_monitor_numbers = itertools.count()
_TCP_PORT: Final = re.compile(r"(?:tcp|curve)://.+:(\*|\d+)")
_LAST_PORT: Final = 65535


def new_instance_id() -> int:
    """A random 64-bit identity, never 0."""
    return int.from_bytes(os.urandom(8), "little") or 1


def wait_readable(sockets: Sequence[Socket], timeout_s: float) -> bool:
    """Block until one of `sockets` has a message or the time is over; sub-millisecond timeouts.

    The algorithm of `zmq_poll` with the resolution of `select` in place of whole milliseconds:
    ZMQ_FD is edge-triggered, so ZMQ_EVENTS is read before every wait and after every wake-up.
    """
    return wait_for(sockets, zmq.POLLIN, timeout_s)


def wait_for(sockets: Sequence[Socket], events: int, timeout_s: float) -> bool:
    """Block until one of `sockets` has one of `events` or the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        for socket in sockets:
            if pending_events(socket) & events:
                return True
        remaining = deadline - time.monotonic()
        if remaining <= 0.0:
            return False
        fds = [cast("int", socket.getsockopt(zmq.FD)) for socket in sockets]
        select.select(fds, (), (), remaining)


def pending_events(socket: Socket) -> int:
    """Bits POLLIN and POLLOUT that hold now."""
    return cast("int", socket.getsockopt(zmq.EVENTS))


def send_frames(socket: Socket, frames: Sequence[bytes]) -> None:
    """Send one message without waiting; raises `zmq.Again` when it cannot be taken, whole."""
    for frame in frames[:-1]:
        socket.send(frame, _MORE)
    socket.send(frames[-1], zmq.NOBLOCK)


class Closing:
    """Base of what is closed at the end of a ``with`` block."""

    def close(self) -> None:
        """Give up what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Endpoint(Closing):
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
        _check_port(endpoint, name)
        options = [*options, *_access_options(endpoint, name, bind)]
        self.endpoint: str = endpoint
        """Where it is; a bound wildcard port is resolved to the port that was found."""
        self._refusal = ""
        self.refusals = 0
        """Handshakes that failed."""
        endpoint = endpoint.replace("curve://", "tcp://", 1)
        self._host = None if bind else _host_of(endpoint)
        self._target: str | None = endpoint
        """Where libzmq connects to: `endpoint` with an address; None while none is known."""
        self._monitor: Socket | None = None
        self._context = context = context or cast("Context", zmq.Context.instance())
        self._kind = kind
        self._name = name
        self._bound = bind
        self._options = (*_common_options(hwm, max_bytes), *options)
        self._unbound = False
        """Whether the socket is still to be bound: its port is not free yet."""
        self._kept: list[bytes] = []
        """First frames of the message that is being skipped; empty when none is."""
        self._skipped = 0
        self.oversized = 0
        """Messages with more frames than the contract has, dropped."""
        self.renewals = 0
        """Times the socket was made anew, and every peer connected again, because of one."""
        self.socket: Socket = self._new_socket()
        try:
            if bind:
                _bind(self.socket, endpoint, name)
            else:
                if not endpoint.startswith("inproc:"):
                    # before it connects: the handshake may be over before anything else is done
                    self._monitor = _monitor(context, self.socket)
                if self._host is not None:
                    self._target = next(iter(self._host.endpoints(_LOOK_UP_S)), None)
                if self._target is not None:
                    _connect(self.socket, self._target, name)
        except BaseException:
            self.close()
            raise
        self.revivals = 0
        """Times a connection that had failed for good was made anew."""
        self._connected = False
        self._dead = False
        self._found_dead = False
        """Whether the last look of `revive` found the connection dead."""
        self._revive_at = time.monotonic() + REVIVE_S
        if bind and not endpoint.startswith("inproc:"):
            last = cast("bytes", self.socket.getsockopt(zmq.LAST_ENDPOINT))
            self.endpoint = last.rstrip(b"\0").decode()

    def _new_socket(self) -> Socket:
        socket: Socket = self._context.socket(self._kind)
        try:
            for option, value in self._options:
                socket.setsockopt(option, value)
        except BaseException:
            socket.close()
            raise
        return socket

    def receive_frames(self) -> list[bytes] | None:
        """One message without waiting; None when there is none, or while one is being skipped.

        Frames beyond `MAX_FRAMES` are dropped. libzmq delivers a message of any number of frames as
        one, with nothing of another peer in between. So each call drops some of them, and the call
        that reaches the end returns the message. After `_MOST_SKIPPED` the socket is renewed.

        Frame objects, which know whether more follow, take a third of `recv_multipart`'s time.
        """
        if self._unbound and not self._bind_again():
            return None
        if self._kept:
            return self._skip()
        try:
            frame = self.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        frames = [frame.bytes]
        while frame.more:
            if len(frames) == MAX_FRAMES:
                self.oversized += 1
                self._kept, self._skipped = frames, 0
                return None
            frame = self.socket.recv(zmq.NOBLOCK, copy=False)
            frames.append(frame.bytes)
        return frames

    def skip_rest(self, first: bytes) -> None:
        """Drop the frames that follow in a message, some with each call of `receive_frames`."""
        self._kept, self._skipped = [first], 0

    @property
    def skipping(self) -> bool:
        """Whether `receive_frames` is in the middle of a message."""
        return bool(self._kept)

    def _skip(self) -> list[bytes] | None:
        """Drop some frames of a message; returns its kept frames at the end."""
        for _ in range(_SKIP_FRAMES):
            if not self.socket.recv(zmq.NOBLOCK, copy=False).more:
                frames, self._kept = self._kept, []
                return frames
        self._skipped += _SKIP_FRAMES
        # A peer within this process does not connect again: its message is read to the end.
        if self._skipped >= _MOST_SKIPPED and not self.endpoint.startswith("inproc:"):
            self._renew()
        return None

    def _renew(self) -> None:
        """Replace the socket by a new one; libzmq drops the old one's queue."""
        self._kept = []
        self.renewals += 1
        self.close()
        self.socket = self._new_socket()
        if self._bound:
            self._unbound = True
            self._bind_again()
            return
        self._monitor = _monitor(self._context, self.socket)
        self._connected = self._dead = False
        if self._target is not None:
            self.socket.connect(self._target)

    def _bind_again(self) -> bool:
        """Bind a renewed socket once libzmq has released the endpoint; False when not yet."""
        with contextlib.suppress(EndpointError):  # tried again at the next call
            self._unbound = not _try_bind(self.socket, self.endpoint, self._name)
        return not self._unbound

    @property
    def connected(self) -> bool:
        """Whether the handshake with a peer is done; for tcp and ipc sockets that connect."""
        self._read_monitor()
        return self._connected

    @property
    def refusal(self) -> str:
        """Why the last handshake failed; empty once one succeeds."""
        self._read_monitor()
        return self._refusal

    def revive(self) -> None:
        """Connect again when libzmq has given up; checks once a second, cheap at any rate.

        After a protocol error (another program listened there, a message was too large) a
        connecting socket never tries again. A host that does not answer may have a new address.

        libzmq tells first that a connection is lost and then that it tries again: a look between
        the two would take a connection for dead that is not, so two looks have to find it dead.
        """
        now = time.monotonic()
        if now < self._revive_at or self._monitor is None or self._kept:
            return
        self._read_monitor()
        doubted, self._found_dead = self._found_dead, self._dead
        first_doubt = self._dead and not doubted
        self._revive_at = now + (_RETRY_SAID_S if first_doubt else REVIVE_S)
        if self._host is not None and not self._connected:
            self._connect_to(self._other_address(self._host.endpoints()))
        if self._dead and doubted:
            self._found_dead = False
            self.revivals += 1
            self._connect_to(self._target)

    def _other_address(self, known: Sequence[str]) -> str | None:
        """The address to try after the one that does not answer; None for no other."""
        if not known:
            return None
        after = known.index(self._target) + 1 if self._target in known else 0
        other = known[after % len(known)]
        return None if other == self._target else other

    def _connect_to(self, target: str | None) -> None:
        if target is None:
            return
        if self._target is not None:
            with contextlib.suppress(zmq.ZMQError):  # it no longer knows the endpoint
                self.socket.disconnect(self._target)
        self._target = target
        self._dead = False
        self.socket.connect(target)

    def _read_monitor(self) -> None:
        while self._monitor is not None:
            try:
                event, _ = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            kind, _ = _MONITOR_EVENT.unpack(event)
            self._note_refusal(kind)
            self._connected = kind == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self._dead = kind == zmq.EVENT_DISCONNECTED  # until it says that it retries

    def _note_refusal(self, kind: int) -> None:
        if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._refusal = ""
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self.endpoint.startswith("ipc:"):
            pass  # there are no keys on a Unix socket: the peer died meanwhile
        elif kind in _REFUSALS:
            self.refusals += 1
            if self._refusal != _REFUSALS[kind]:
                self._refusal = _REFUSALS[kind]
                _warn("%s (%s): %s", self.endpoint, self._name, self._refusal)

    def close(self) -> None:
        """Close at once; what was not sent yet is dropped."""
        if self._monitor is not None and not self._monitor.closed:
            self.socket.disable_monitor()
            self._monitor.close(linger=0)
        self.socket.close()


def _monitor(context: Context, socket: Socket) -> Socket:
    """A socket that receives the `_MONITORED` events of another.

    Its queue has no limit: it is not read while the socket is not used, and libzmq's thread, which
    carries the messages of all sockets, would wait for room in it. With libzmq's default limits
    that happens after 2000 failed attempts to connect, a quarter of an hour.
    """
    address = f"inproc://monitor-{next(_monitor_numbers)}"
    socket.monitor(address, _MONITORED)
    monitor = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.connect(address)
    return monitor


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
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, _KEEPALIVE_S),
        (zmq.TCP_KEEPALIVE_INTVL, _KEEPALIVE_S),
        (zmq.TCP_MAXRT, 1000),
    )


def _bind(socket: Socket, endpoint: str, name: str) -> None:
    """Bind; a released endpoint may take a moment, since sockets close in the background."""
    deadline = time.monotonic() + _BIND_PATIENCE_S
    while not _try_bind(socket, endpoint, name):
        if time.monotonic() > deadline:
            raise EndpointInUse(
                f"{endpoint} ({name}) is already in use; stop the other process that binds it "
                f"or set endpoints.{name} to a free one"
            )
        time.sleep(0.01)


def _try_bind(socket: Socket, endpoint: str, name: str) -> bool:
    """Bind; False when the endpoint is in use."""
    if endpoint.startswith("ipc://") and _is_served(endpoint.removeprefix("ipc://")):
        return False
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            return False
        raise _unusable(endpoint, name, "bound", error) from error
    return True


def _connect(socket: Socket, endpoint: str, name: str) -> None:
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise _unusable(endpoint, name, "connected", error) from error


def _unusable(endpoint: str, name: str, verb: str, error: zmq.ZMQError | str) -> EndpointError:
    reason = error if isinstance(error, str) else error.strerror
    return EndpointError(
        f"{endpoint!r} ({name}) cannot be {verb}: {reason}; set endpoints.{name} to "
        "ipc:///path, curve://HOST:PORT (to connect with a key) or tcp://127.0.0.1:PORT"
    )


def _check_port(endpoint: str, name: str) -> None:
    """Refuse a port above 65535, of which libzmq would take the low 16 bits."""
    found = _TCP_PORT.fullmatch(endpoint)
    if found and found[1] != "*" and int(found[1]) > _LAST_PORT:
        raise _unusable(endpoint, name, "used", f"ports end at {_LAST_PORT}")


def _access_options(endpoint: str, name: str, bind: bool) -> list[tuple[int, int | bytes]]:
    """Check that only those meant to can reach an endpoint; the options that see to it.

    Unix sockets lie in a folder of this user alone, and libzmq asks the kernel for the user of
    every peer. Plain TCP is confined to the loopback interface: any user of this host can use it.
    """
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc":
        if not rest.startswith("/"):
            raise _unusable(endpoint, name, "used", "the path is not absolute")
        private_folder(Path(rest).parent)
        return [(zmq.IPC_FILTER_UID, os.geteuid())] if bind else []
    if scheme == "curve":
        if bind:
            raise _unusable(endpoint, name, "bound", "run krabby relay, which serves keys over TCP")
        from krabby_proto.access import client_key

        return list(client_key().options)
    if scheme == "tcp":
        if not _is_loopback(rest.rpartition(":")[0] or rest):
            raise _unusable(
                endpoint,
                name,
                "bound" if bind else "connected",
                "plain TCP is for the loopback interface only",
            )
        if bind:
            _warn("%s (%s) is plain TCP: every user of this host can use it", endpoint, name)
    elif (
        rest and scheme != "inproc"
    ):  # libzmq has more, as tipc, which any host of a cluster can reach
        raise _unusable(endpoint, name, "used", "there is no access control for its transport")
    return []


def _host_of(endpoint: str) -> HostName | None:
    """The host to be looked up; None where there is none."""
    if not endpoint.startswith("tcp:"):
        return None
    from krabby_proto.names import HostName

    return HostName.of(endpoint)


def _warn(text: str, *facts: object) -> None:
    import logging

    logging.getLogger(__name__).warning(text, *facts)


def _is_loopback(host: str) -> bool:
    import ipaddress

    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _is_served(path: str) -> bool:
    """Whether a live process serves this Unix socket: libzmq would take it over silently."""
    import socket as unix

    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as probe:
            probe.settimeout(0.2)
            probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
        return False  # absent, or left behind by a process that died
    except OSError:  # there, but busy or not ours to talk to
        return True
    return True
