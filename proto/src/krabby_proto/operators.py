"""Clients for an operator's requests: to the safety gate in the HAL, and to the game loop.

This is the whole of what an e-stop from the shell loads of the wire: no streams and no payloads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from krabby_proto.clocks import PeerClock
from krabby_proto.endpoint import Closing, Context
from krabby_proto.errors import AccessRefused, RequestTimeout
from krabby_proto.header import SCHEMA_VERSION
from krabby_proto.hello import HELLO_TOPIC, JsonObject, clock_of, parse_json
from krabby_proto.requests import Requester
from krabby_proto.streams import CONTROL, SAFETY

__all__ = ["ControlClient", "SafetyClient"]

_HELLO_TRY_S: Final = 0.5
_ESTOP_TRY_S: Final = 0.2
_VAGUE_S: Final = 0.1
"""Error of a peer's clock above which it is asked again before a request that is judged by it."""


class SafetyClient(Closing):
    """Asks the safety gate."""

    def __init__(self, endpoint: str, *, context: Context | None = None) -> None:
        self._requester = Requester(endpoint, name=SAFETY.name, context=context)
        self.clock = PeerClock(remote=is_remote([endpoint]))
        """CLOCK_MONOTONIC of the HAL's host, from its hello."""

    def request(self, op: str, by: str, timeout_s: float = 1.0) -> JsonObject:
        """Ask for one of `SAFETY_OPS`; the answer has ok, state, faults and reason.

        An e-stop that is not answered is sent again: a link that is lost takes it along.

        Raises:
            RequestTimeout: the HAL did not answer.
        """
        return ask_safety(self._requester, self.clock, op, by, timeout_s)

    def close(self) -> None:
        """Close the socket."""
        self._requester.close()


class ControlClient(Closing):
    """Asks the gameloop."""

    def __init__(self, endpoint: str, *, context: Context | None = None) -> None:
        self._requester = Requester(endpoint, name=CONTROL.name, context=context)
        self.clock = PeerClock(remote=is_remote([endpoint]))
        """CLOCK_MONOTONIC of the game loop's host, from its hello."""

    def hello(self, timeout_s: float = 2.0) -> JsonObject:
        """The game loop's hello; waits for it to appear, raises `RequestTimeout`."""
        return ask_hello(self._requester, self.clock, timeout_s)

    def request(self, op: str, timeout_s: float = 1.0, **arguments: object) -> JsonObject:
        """Send a request and return its answer; raises `RequestTimeout`."""
        if op == "stand" and self.clock.is_vague(time.monotonic_ns(), _VAGUE_S):
            self.hello(timeout_s)
        return _ask_json(
            self._requester,
            CONTROL.topic,
            lambda: {
                "op": op,
                "sent_ns": self.clock.earliest(time.monotonic_ns()),
                **arguments,
            },
            timeout_s,
        )

    def close(self) -> None:
        """Close the socket."""
        self._requester.close()


def is_remote(endpoints: Iterable[str]) -> bool:
    """Whether a peer may be on another host; the other transports stay on this one."""
    return any(endpoint.startswith("curve:") for endpoint in endpoints)


def ask_safety(
    requester: Requester, clock: PeerClock, op: str, by: str, timeout_s: float
) -> JsonObject:
    """What `SafetyClient.request` does, with a socket of the caller's."""
    if op in ("arm", "reset") and clock.is_vague(time.monotonic_ns(), _VAGUE_S):
        ask_hello(requester, clock, timeout_s)

    def request() -> Mapping[str, Any]:
        return {"op": op, "by": by, "sent_ns": clock.earliest(time.monotonic_ns())}

    if op == "estop":
        return _ask_again(requester, SAFETY.topic, request, timeout_s, _ESTOP_TRY_S)
    return _ask_json(requester, SAFETY.topic, request, timeout_s)


def ask_hello(requester: Requester, clock: PeerClock, timeout_s: float) -> JsonObject:
    """Ask repeatedly: a server that is just starting may lose the first request."""
    from krabby_proto.schema import schema_hash

    sent_ns = 0

    def request() -> Mapping[str, Any]:
        nonlocal sent_ns
        sent_ns = time.monotonic_ns()
        return {"schema_version": SCHEMA_VERSION, "schema_hash": schema_hash()}

    hello = _ask_again(requester, HELLO_TOPIC, request, timeout_s, _HELLO_TRY_S)
    peer_ns = clock_of(hello)
    if peer_ns is not None:
        clock.note(sent_ns, peer_ns, time.monotonic_ns())
    return hello


def _ask_again(
    requester: Requester,
    topic: bytes,
    request: Callable[[], Mapping[str, Any]],
    timeout_s: float,
    try_s: float,
) -> JsonObject:
    """Like `_ask_json`, sending it again after every `try_s`: for what may be done twice."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        try:
            return _ask_json(requester, topic, request, min(left, try_s))
        except RequestTimeout:
            if left > try_s:
                continue
            raise _no_answer(requester, topic, timeout_s) from None


def _ask_json(
    requester: Requester, topic: bytes, request: Callable[[], Mapping[str, Any]], timeout_s: float
) -> JsonObject:
    """Ask once. `request` makes the request when a server is there.

    So an operator's request is stamped (by CLOCK_MONOTONIC, in lock-step too) when the link is up:
    one that waited for the link is not stale.
    """
    answer = requester.request_patiently(lambda: [topic, json.dumps(request()).encode()], timeout_s)
    reply = parse_json(answer[1]) if answer and len(answer) == 2 and answer[0] == topic else None
    if reply is None:
        raise _no_answer(requester, topic, timeout_s)
    return reply


def _no_answer(requester: Requester, topic: bytes, timeout_s: float) -> RequestTimeout:
    if requester.refusal and not requester.connected:
        return AccessRefused(f"{requester.endpoint} refused {topic.decode()}: {requester.refusal}")
    return RequestTimeout(
        f"no answer from {requester.endpoint} to {topic.decode()} within {timeout_s:g} s; "
        "is the process that binds it running, and is the endpoint right?"
    )
