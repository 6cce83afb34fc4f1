"""The game loop in lock-step: the HAL's clock is simulated and waits.

Every state is answered exactly once, with the features and walking commands that its flags
announce.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from krabby.control.controller import JointCommand
from krabby.control.policy_manager import PolicyRunner
from krabby.runtime.app import Runtime
from krabby_proto import (
    FLAG_FEATURES_DUE,
    FLAG_NAV_DUE,
    FLAG_OPERATOR,
    LatestSubscriber,
    Message,
    wait_any,
)

from krabby_gameloop.tick import TickIO

__all__ = ["run_lockstep"]

T = TypeVar("T")

_WAIT_S = 0.1
_INPUT_S = 1.0
"""How long to wait for announced features and walking commands before a warning, or before going on
without them when leaving [s, wall clock]."""
_REPLY_S = 1.5
"""A HAL that waits answers at once; longer only if it is gone [s, wall clock]."""
_GONE_S = 1.0
"""On leaving: a HAL that waits publishes its state again every 0.2 s; after this long without one
it has ended, and there is no robot to sit down [s, wall clock]."""


def run_lockstep(
    io: TickIO,
    runtime: Runtime,
    may_leave: Callable[[], bool],
    meet_again: Callable[[], None],
    take_runner: Callable[[], PolicyRunner | None],
) -> None:
    """Answer states until `may_leave`.

    Args:
        io: The parts of a tick.
        runtime: Of this process.
        may_leave: Whether the loop ends now.
        meet_again: Checks a HAL that restarted.
        take_runner: A policy to change to, if one was loaded.
    """
    answered: JointCommand | None = None
    heard = False
    features: Message | None = None  # changes when announced, so that runs repeat exactly
    state_s = time.monotonic()
    while not may_leave():
        runtime.beat()
        state = io.client.state.wait(_WAIT_S)
        if state is None:
            if runtime.stopping and time.monotonic() - state_s > _GONE_S:
                break
            continue
        state_s = time.monotonic()
        now_ns = state.capture_ns
        if answered is not None and answered.state.capture_ns == now_ns:
            # Published again, answered alike; not if the HAL has the answer, and went on since.
            heard = heard or io.send(answered, now_ns, _REPLY_S)
            continue
        io.controller.handle_state(state)
        meet_again()
        _take_announced_nav(io, runtime, now_ns, bool(state.flags & FLAG_NAV_DUE))
        if state.flags & FLAG_FEATURES_DUE and io.controller.policies.needs_features:
            since_ns = features.header.publish_ns + 1 if features is not None else 0
            features = _announced(io, runtime, io.features, since_ns) or features
        else:
            io.features.take()  # an unread queue fills up, and its publisher hangs up
        answered = io.decide(state, features, now_ns, take_runner())
        if answered is not None:
            heard = io.send(answered, now_ns, _REPLY_S)
        io.record()
        io.expose()


def _announced(
    io: TickIO, runtime: Runtime, subscriber: LatestSubscriber, since_ns: int
) -> Message | None:
    """The newest message, published at `since_ns` or later; None only when leaving.

    In lock-step the time of publication is the capture of the frame that is answered; the features
    may show an older one.
    """

    def newest() -> Message | None:
        message = subscriber.latest()
        fresh = message is not None and message.header.publish_ns >= since_ns
        return message if fresh else None

    return _await(io, runtime, subscriber, newest)


def _take_announced_nav(io: TickIO, runtime: Runtime, now_ns: int, due: bool) -> None:
    """Take the operators' commands, and the mission's when one was announced."""

    def taken() -> bool | None:
        messages = io.take_nav(lambda: now_ns)
        from_mission = any(
            not message.flags & FLAG_OPERATOR and message.capture_ns >= now_ns
            for message in messages
        )
        return not due or from_mission or None

    _await(io, runtime, io.nav, taken)


def _await(
    io: TickIO, runtime: Runtime, subscriber: LatestSubscriber, look: Callable[[], T | None]
) -> T | None:
    """Read until `look` has what was announced; None only when leaving.

    The HAL waits too, and publishes again: a loop that continues without does not repeat exactly.
    """
    began_s = time.monotonic()
    while (found := look()) is None:
        runtime.beat()
        wait_any((subscriber,), _WAIT_S)
        waited_s = time.monotonic() - began_s
        if waited_s < _INPUT_S:
            continue
        if runtime.stopping:
            return None
        io.warn.warning(
            "waiting for an announced message",
            stream=subscriber.stream.name,
            endpoint=subscriber.endpoint,
            waited_s=round(waited_s, 1),
        )
    return found
