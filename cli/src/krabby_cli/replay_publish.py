"""A recorded run on the real streams, with its original timing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from krabby_proto import FLAG_LOCKSTEP, STREAMS, Message, Publisher

from krabby_cli.errors import CliError, UsageError
from krabby_cli.options import print_line
from krabby_cli.signals import Signals
from krabby_cli.wiring import Wiring, check_free

if TYPE_CHECKING:
    from krabby_proto.recording import Recording

__all__ = ["publish"]

_SLICE_S: Final = 0.1
_PROGRESS_S: Final = 5.0
_JOIN_S: Final = 0.5
"""Before the first message, for subscribers that connect again."""
_NOT_OURS: Final = frozenset({"nav"})
"""Bound by its reader, the game loop; what it was sent stands in `ticks`."""


def publish(recording: Recording, endpoints: Mapping[str, str]) -> int:
    """Publish every recorded stream but `nav`; stamps are moved to now, together.

    There is no HAL behind them: a game loop that listens gets no answer and commands nothing.

    Raises:
        UsageError: A HAL, a camera service or a game loop runs there, or the place is on another
            host.
        CliError: The recording has none of these streams.
    """
    remote = [each for each in endpoints.values() if each.startswith("curve://")]
    if remote:
        raise UsageError(f"--publish binds {remote[0]}: give no --host, streams of this host only")
    try:
        check_free(Wiring(endpoints=endpoints, metrics_ports={}))
    except UsageError as error:
        raise UsageError(f"--publish beside a running robot or simulation: {error}") from error
    counts: Counter[str] = Counter()
    messages = iter(recording)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals().caught())
        publishers = {
            stream.id: stack.enter_context(Publisher(endpoints[name], stream))
            for name, stream in STREAMS.items()
            if stream.pattern == "pub" and name not in _NOT_OURS and name in endpoints
        }
        _send_all(messages, publishers, signals, counts)
    if not counts:
        raise CliError(f"{recording.path} has no stream that can be published")
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    print_line(f"{recording.path}: published {said}")
    if recording.damage:
        sys.stderr.write(f"krabby replay: {recording.path} is not complete: {recording.damage}\n")
        return 1
    return 0


def _send_all(
    messages: Iterator[Message],
    publishers: Mapping[int, Publisher],
    signals: Signals,
    counts: Counter[str],
) -> None:
    shift_ns: int | None = None
    began_s = shown_s = time.monotonic()
    for message in messages:
        publisher = publishers.get(message.header.stream_id)
        if publisher is None:
            continue
        header = message.header
        if shift_ns is None:
            shift_ns = time.monotonic_ns() + round(_JOIN_S * 1e9) - header.publish_ns
        due_ns = header.publish_ns + shift_ns
        while not signals.count and (left_s := (due_ns - time.monotonic_ns()) * 1e-9) > 0.0:
            time.sleep(min(left_s, _SLICE_S))
        if signals.count:
            return
        payload = message.payload
        publisher.publish(
            payload.tobytes() if payload.dtype.itemsize == 1 else payload,
            capture_ns=max(header.capture_ns + shift_ns, 0),
            publish_ns=due_ns,
            flags=header.flags & ~FLAG_LOCKSTEP,
        )
        counts[message.stream.name] += 1
        if time.monotonic() - shown_s > _PROGRESS_S:
            shown_s = time.monotonic()
            sys.stderr.write(f"krabby replay: {shown_s - began_s:.0f} s published\n")
