"""Listening to several streams at once, as `dump` and `record` do."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

from krabby_proto import STREAMS, LatestSubscriber, Message, wait_any

from krabby_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["AUDIBLE", "Listener", "audible"]

AUDIBLE: Final = ("state", "camera", "features", "truth")
"""Streams that anybody may subscribe to."""

_WHY_NOT: Final = {
    "nav": "only the game loop hears it, publishers connect to it",
    "command": "it is a request to the HAL; see `krabby status`",
    "safety": "it is a request to the HAL; see `krabby status`",
    "control": "it is a request to the game loop; see `krabby status`",
}


def audible(names: Sequence[str]) -> tuple[str, ...]:
    """The streams to listen to; all when none are named.

    Raises:
        UsageError: a stream that does not exist or that nobody can listen to.
    """
    for name in names:
        if name not in STREAMS:
            raise UsageError(f"no stream is called {name!r}; there is {', '.join(AUDIBLE)}")
        if name not in AUDIBLE:
            raise UsageError(
                f"{name} cannot be listened to: {_WHY_NOT[name]}. Give one of {', '.join(AUDIBLE)}"
            )
    return tuple(dict.fromkeys(names)) or AUDIBLE


class Listener:
    """Subscribes to streams and hands out every message as it comes."""

    def __init__(self, endpoints: Mapping[str, str], names: Sequence[str]) -> None:
        self._stack = ExitStack()
        self.subscribers: dict[str, LatestSubscriber] = {}
        for name in names:
            subscriber = LatestSubscriber(endpoints[name], STREAMS[name])
            self.subscribers[name] = self._stack.enter_context(subscriber)

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
                now_ns = time.monotonic_ns()
                for message in subscriber.drain():
                    handle(subscriber.stream.name, message, now_ns)
        return time.monotonic() - started

    def silence(self) -> str:
        """What to tell a person who hears nothing."""
        places = ", ".join(f"{name} at {s.endpoint}" for name, s in self.subscribers.items())
        return (
            f"nothing heard from {places}; start it (`krabby up`), or say where it is with "
            "--host, --base-port, --transport, --run or --endpoint"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
