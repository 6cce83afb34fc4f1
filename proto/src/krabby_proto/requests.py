"""Requests with a deadline and their servers. One socket belongs to one thread; streams: `sockets`.

Apart from the streams, because a process that only asks, such as an e-stop, starts faster without.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import zmq

from krabby_proto.endpoint import (
    REVIVE_S,
    Context,
    Endpoint,
    send_frames,
    wait_for,
    wait_readable,
)
from krabby_proto.hello import MAX_JSON_BYTES

__all__ = ["Request", "Requester", "Router", "serve_within"]

_MAX_REPLY_BYTES: Final = 1 << 20


class Request(NamedTuple):
    """A request as a ROUTER sees it."""

    envelope: list[bytes]
    """Sender, request id if the client correlates, and the empty delimiter; echoed as it came."""
    body: list[bytes]


class Router(Endpoint):
    """The server side of REQ, for any number of clients; no client can block it."""

    def __init__(self, endpoint: str, *, name: str, context: Context | None = None) -> None:
        super().__init__(
            zmq.ROUTER,
            endpoint,
            name=name,
            bind=True,
            hwm=256,  # above the server's batch, all of which may be one client's
            max_bytes=MAX_JSON_BYTES,
            context=context,
        )
        self.malformed = 0
        """Messages without a delimiter, which cannot be answered."""

    def receive(self) -> Request | None:
        """The next request, None when there is none; a malformed one has an empty envelope."""
        parts = self.receive_frames()
        if parts is None:
            return None
        try:
            delimiter = parts.index(b"", 1, 6)
        except ValueError:
            self.malformed += 1
            return Request([], parts)
        return Request(parts[: delimiter + 1], parts[delimiter + 1 :])

    def take(self, most: int) -> list[Request]:
        """The requests that are waiting, at most so many."""
        return list(itertools.islice(iter(self.receive, None), most))

    def reply(self, request: Request, *frames: bytes) -> None:
        """Answer; libzmq drops it when the client is gone or does not read."""
        if request.envelope:
            send_frames(self.socket, (*request.envelope, *frames))


def serve_within(timeout_s: float, routers: Sequence[Router], serve: Callable[[], int]) -> int:
    """Serve what is there, else wait for requests and serve; how many, 0 when the time is over.

    Served also when nothing is there to be read: a router made anew binds itself in `receive`.
    """
    served = serve()
    if served or timeout_s <= 0.0:
        return served
    if not wait_readable([router.socket for router in routers], timeout_s):
        return 0
    return serve()


class Requester(Endpoint):
    """A REQ with a deadline: relaxed, correlated, sends only while a server is connected."""

    def __init__(self, endpoint: str, *, name: str, context: Context | None = None) -> None:
        super().__init__(
            zmq.REQ,
            endpoint,
            name=name,
            bind=False,
            hwm=4,
            max_bytes=_MAX_REPLY_BYTES,
            context=context,
            options=[
                (zmq.REQ_RELAXED, 1),
                (zmq.REQ_CORRELATE, 1),
                (zmq.IMMEDIATE, 1),
                # Late answers pile up until the next request drops them. When they fill the queue
                # libzmq loses its place in the frames (req_session_t moves on before the push
                # fails) and closes the connection for good: after 4 missed deadlines, with 4.
                (zmq.RCVHWM, 0),
            ],
        )
        self.timeouts = 0
        """Requests sent and not answered in time."""
        self._waits = False

    def late(self) -> list[bytes] | None:
        """The answer to the last request, when it came after the deadline; never waits."""
        answer = self.receive_frames() if self._waits else None
        self._waits = self._waits and answer is None
        return answer

    def request(self, frames: Sequence[bytes], deadline_s: float) -> list[bytes] | None:
        """Send and wait for the answer, at most `deadline_s`; None at once without a server."""
        self._waits = False  # also when it is not sent: the socket drops what it waited for
        try:
            send_frames(self.socket, frames)
        except zmq.Again:
            self.revive()
            return None
        self._waits = True
        deadline = time.monotonic() + deadline_s
        # Looked at once before waiting, although nothing can be there yet. Every hundredth frame
        # read, and whenever there is none, libzmq hears what became of its connections. With
        # IMMEDIATE one that was lost is gone then, and when that comes between two frames of an
        # answer, reading on aborts the process (fq.cpp, !_more). From here a hundred are left.
        answer = self.receive_frames()
        while answer is None:
            left = deadline - time.monotonic()
            if left <= 0.0 or not wait_for((self.socket,), zmq.POLLIN, left):
                self.timeouts += 1
                return None
            # None again when it was one to an earlier request, dropped by the socket
            answer = self.receive_frames()
        self._waits = False
        return answer

    def wait_connected(self, timeout_s: float) -> bool:
        """Block until a server is there; False when none came in time."""
        self.revive()
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > REVIVE_S / 2:
            if wait_for((self.socket,), zmq.POLLOUT, REVIVE_S / 2):
                return True
            self.revive()
        return wait_for((self.socket,), zmq.POLLOUT, left)

    def request_patiently(
        self, make_frames: Callable[[], Sequence[bytes]], timeout_s: float
    ) -> list[bytes] | None:
        """Like `request`, but waits for the server to appear; for start-up and operators.

        The frames are made once it is there, so that a stamp in them is of that moment.
        """
        deadline = time.monotonic() + timeout_s
        if not self.wait_connected(timeout_s):
            return None
        return self.request(make_frames(), deadline - time.monotonic())
