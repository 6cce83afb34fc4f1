"""Subscribing to several streams at once, for `krabby dump` and `krabby record`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from krabby_proto import STREAMS, LatestSubscriber, Message, wait_any

from krabby_cli.errors import WHERE, UsageError

__all__ = ["AUDIBLE", "RECORDED", "Listener", "add_streams_argument", "audible"]

AUDIBLE: Final = ("state", "camera", "features", "truth", "colour")
"""Streams that any process may subscribe to."""
RECORDED: Final = (*AUDIBLE, "trace", "ticks")
"""The same with those for recorders: commands, requests and walking commands stand in them."""

_WHY_NOT: Final = {
    "nav": "only the game loop hears it, publishers connect to it",
    **dict.fromkeys(("command", "safety"), "it is a request to the HAL; see `krabby status`"),
    **dict.fromkeys(("trace", "ticks"), "its records are for `krabby record`"),
    "control": "it is a request to the game loop; see `krabby status`",
}


def add_streams_argument(parser: Any, known: Sequence[str] = AUDIBLE) -> None:
    text = f"streams: {', '.join(known)} (default all)"
    parser.add_argument("streams", nargs="*", metavar="STREAM", help=text)


def audible(names: Sequence[str], known: Sequence[str] = AUDIBLE) -> tuple[str, ...]:
    """The streams to listen to; all when none are named.

    Raises:
        UsageError: a stream does not exist or has no subscribers.
    """
    for name in names:
        if name not in STREAMS:
            raise UsageError(f"no stream is called {name!r}; there is {', '.join(known)}")
        if name not in known:
            raise UsageError(
                f"{name} cannot be listened to: {_WHY_NOT[name]}. Give one of {', '.join(known)}"
            )
    return tuple(dict.fromkeys(names)) or tuple(known)


_MOST_HZ: Final = {"state": 400.0, "trace": 300.0}
"""Rates above those of the streams table: a HAL may publish its state more often, and answers
operators besides."""


class Listener(ExitStack):
    """Subscribes to streams and hands out every message as it comes; a context manager.

    Args:
        endpoints: stream name to endpoint.
        names: the streams.
        queue_s: how much of a stream may wait to be read [s]; 0 for what readers of the latest
            message need.
    """

    def __init__(
        self, endpoints: Mapping[str, str], names: Sequence[str], queue_s: float = 0.0
    ) -> None:
        super().__init__()
        self.subscribers = {
            name: self.enter_context(
                LatestSubscriber(
                    endpoints[name],
                    STREAMS[name],
                    queue=round(queue_s * _MOST_HZ.get(name, STREAMS[name].rate_hz)) or None,
                )
            )
            for name in names
        }

    def listen(
        self, seconds: float, handle: Callable[[str, Message, int], None], *, poll_s: float = 0.2
    ) -> float:
        """Pass every message to `handle` with its stream and arrival [ns], for some time.

        Args:
            seconds: how long.
            handle: called from here.
            poll_s: longest wait without a message, so that signals are noticed.

        Returns:
            How long it really took [s].
        """
        started = time.monotonic()
        subscribers = list(self.subscribers.values())
        while (left := started + seconds - time.monotonic()) > 0:
            for subscriber in wait_any(subscribers, min(left, poll_s)):
                messages = subscriber.drain()
                now_ns = time.monotonic_ns()  # after it: some came while it was read
                for message in messages:
                    handle(subscriber.stream.name, message, now_ns)
        return time.monotonic() - started

    def silence(self) -> str:
        """The message for a user when no stream has spoken."""
        places = ", ".join(f"{name} at {s.endpoint}" for name, s in self.subscribers.items())
        refusals = {s.refusal for s in self.subscribers.values() if s.refusal}
        if refusals:
            return f"nothing heard from {places}: {'; '.join(sorted(refusals))}"
        return f"nothing heard from {places}; {WHERE}"
