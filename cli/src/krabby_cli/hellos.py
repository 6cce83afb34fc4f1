"""What the processes of a robot say about themselves, asked beside a recording."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from krabby_proto import ControlClient, HalClient, ProtoError
from krabby_proto.recording import HELLO

__all__ = ["Hello", "Hellos"]

_TRY_S: Final = 0.5
_PAUSE_S: Final = 2.0
"""Between two rounds: a process that was started again has another hello."""
_JOIN_S: Final = 2.0


class Hello(NamedTuple):
    """Answer of one process."""

    name: str
    """`hal` or `gameloop`."""
    facts: dict[str, Any]

    @property
    def metadata(self) -> tuple[str, dict[str, str]]:
        """Name and fields of the record that a recording has of it."""
        return f"{HELLO}{self.name}", {"hello": json.dumps(self.facts)}


class Hellos(contextlib.AbstractContextManager["Hellos"]):
    """A thread that asks HAL and game loop; their answers wait in a queue.

    A process that restarts is asked again, so that its configuration is known too.
    """

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        self._endpoints = dict(endpoints)
        self._answers: queue.SimpleQueue[Hello] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hellos", daemon=True)
        self._thread.start()

    def take(self) -> list[Hello]:
        """New answers since the last call; never waits."""
        answers: list[Hello] = []
        with contextlib.suppress(queue.Empty):
            while True:
                answers.append(self._answers.get_nowait())
        return answers

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        hal_place = {name: self._endpoints[name] for name in ("safety",)}
        known: dict[str, object] = {}
        with HalClient(hal_place) as hal, ControlClient(self._endpoints["control"]) as loop:
            while not self._stop.is_set():
                for name, peer in (("hal", hal), ("gameloop", loop)):
                    try:
                        facts = peer.hello(_TRY_S)
                    except ProtoError:  # not there, or no right to ask
                        continue
                    if known.get(name) != facts.get("instance_id"):
                        known[name] = facts.get("instance_id")
                        self._answers.put(Hello(name, facts))
                self._stop.wait(_PAUSE_S if len(known) == 2 else 0.1)
