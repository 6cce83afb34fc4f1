"""`krabby dump`: show rate, age, size and losses of the streams."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from krabby_proto import (
    FLAG_LOCKSTEP,
    HEADER_SIZE,
    STREAMS,
    LatestSubscriber,
    Message,
    Stream,
    unpack,
)

from krabby_cli.endpoints import add_endpoint_options, endpoints_of
from krabby_cli.errors import NoAnswer, UsageError
from krabby_cli.listen import Listener, add_streams_argument, audible
from krabby_cli.options import add_command, flag, option, print_json, print_line

__all__ = ["StreamMeter", "StreamReport", "add_parser", "describe_message", "format_reports"]

_EPILOG: Final = """\
examples:
  krabby dump                    all streams, a table every second
  krabby dump state --once       one table; exit status 1 when the stream is silent
  krabby dump --json             one JSON object a second
  krabby dump --watch state      the fields of the newest message by name

Ages count from capture, on the clock of the publishing host. There are none in lock-step, where
that clock is simulated.
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "dump", run, "show rates, ages and gaps of the streams", __doc__, _EPILOG
    )
    add_streams_argument(parser)
    flag(parser, "--json", "print one JSON object per period")
    flag(parser, "--once", "end after one period")
    option(parser, "--watch", "STREAM", None, "show the fields of this stream's newest message")
    option(parser, "--period", "S", 1.0, "time between two outputs")
    add_endpoint_options(parser)


def run(args: argparse.Namespace) -> int:
    if not 0.05 <= args.period <= 3600:
        raise UsageError(f"--period {args.period} is out of range; give 0.05 to 3600 s")
    if args.watch is not None and args.streams:
        raise UsageError("--watch shows one stream; leave the other names out")
    names = audible([args.watch] if args.watch is not None else args.streams)
    with Listener(endpoints_of(args), names) as listener:
        if args.watch is not None:
            return _watch(listener, args)
        return _dump(listener, args)


class _Screen:
    """Puts each text in the place of the one before, where stdout is a terminal."""

    def __init__(self) -> None:
        self._lines = 0

    def show(self, text: str) -> None:
        up = f"\x1b[{self._lines}A\x1b[J" if self._lines and sys.stdout.isatty() else ""
        sys.stdout.write(up)
        print_line(text)
        self._lines = text.count("\n") + 1

    def keep(self) -> None:
        """Leave what is shown; the next text goes below it."""
        self._lines = 0


@dataclass(frozen=True, kw_only=True)
class StreamReport:
    """One stream over one period."""

    stream: str
    messages: int
    rate_hz: float
    age_p50_ms: float | None
    """From capture to here; None when nothing came or its clock is not ours."""
    age_p99_ms: float | None
    bytes: int
    """Of the newest message, header and payload; 0 when nothing came."""
    gaps: int
    """Messages that never arrived."""
    invalid: int
    """Messages dropped for their bytes."""
    restarts: int
    """Times another publisher took over."""
    lockstep: bool
    last_error: str


class StreamMeter:
    """Counts one stream's messages over a period."""

    def __init__(self, subscriber: LatestSubscriber) -> None:
        self._subscriber = subscriber
        self._ages_ms: list[float] = []
        self._newest: Message | None = None
        self._counts = np.zeros(3, np.int64)

    def add(self, message: Message, now_ns: int) -> None:
        """Take a message in that arrived at `now_ns`."""
        self._newest = message
        self._ages_ms.append(message.age_s(now_ns) * 1e3)

    def report(self, elapsed_s: float) -> StreamReport:
        ages, newest, source = np.array(self._ages_ms), self._newest, self._subscriber
        lockstep = newest is not None and bool(newest.flags & FLAG_LOCKSTEP)
        # Another host's clock would show as ages that cannot be.
        usable = len(ages) > 0 and not lockstep and ages.min() >= 0 and ages.max() < 60_000
        counts = np.array((source.gaps, source.invalid, source.restarts))
        gaps, invalid, restarts = (counts - self._counts).tolist()
        self._counts = counts
        self._ages_ms, self._newest = [], None
        return StreamReport(
            stream=source.stream.name,
            messages=len(ages),
            rate_hz=round(len(ages) / elapsed_s, 2),
            age_p50_ms=round(float(np.quantile(ages, 0.5)), 3) if usable else None,
            age_p99_ms=round(float(np.quantile(ages, 0.99)), 3) if usable else None,
            bytes=HEADER_SIZE + newest.payload.nbytes if newest is not None else 0,
            gaps=gaps,
            invalid=invalid,
            restarts=restarts,
            lockstep=lockstep,
            last_error=str(source.last_error or "") if invalid else "",
        )


def _dump(listener: Listener, args: argparse.Namespace) -> int:
    meters = {name: StreamMeter(sub) for name, sub in listener.subscribers.items()}
    # What is missed while the subscriptions take effect is not a loss of the streams.
    listener.listen(0.3, lambda name, message, now_ns: meters[name].add(message, now_ns))
    for meter in meters.values():
        meter.report(1.0)
    screen = _Screen()
    while True:
        elapsed = listener.listen(args.period, lambda n, m, now_ns: meters[n].add(m, now_ns))
        reports = [meter.report(elapsed) for meter in meters.values()]
        if args.json:
            streams = [asdict(report) for report in reports]
            print_json({"time_ns": time.monotonic_ns(), "streams": streams})
        else:
            screen.show(format_reports(reports))
        silent = [report.stream for report in reports if not report.messages]
        if args.once:
            if silent and (args.streams or len(silent) == len(reports)):
                raise NoAnswer(
                    f"{', '.join(silent)} silent for {elapsed:.1f} s; {listener.silence()}"
                )
            return 0


def format_reports(reports: list[StreamReport]) -> str:
    rows: list[tuple[str, ...]] = [
        ("stream", "rate Hz", "age p50", "p99 ms", "bytes", "gaps", "invalid", "")
    ]
    for r in reports:
        notes = ["lock-step"] if r.lockstep else []
        notes += ["silent"] if not r.messages else []
        notes += [f"{r.restarts} restarts"] if r.restarts else []
        notes += [r.last_error] if r.last_error else []
        ages = ("-" if age is None else f"{age:.2f}" for age in (r.age_p50_ms, r.age_p99_ms))
        counts = (str(n) for n in (r.bytes, r.gaps, r.invalid))
        rows.append((r.stream, f"{r.rate_hz:.1f}", *ages, *counts, ", ".join(notes)))
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in range(1, 7)), row[7]]
        ).rstrip()
        for row in rows
    )


def _watch(listener: Listener, args: argparse.Namespace) -> int:
    screen = _Screen()
    newest: list[Message] = []
    while True:
        newest.clear()
        listener.listen(args.period, lambda _, message, __: newest.append(message))
        if newest:
            facts = describe_message(STREAMS[args.watch], newest[-1])
            width = max(map(len, facts))
            if args.json:
                print_json(facts)
            else:
                rows = (f"{name.ljust(width)}  {_readable(v)}" for name, v in facts.items())
                screen.show("\n".join(rows))
        elif args.once:
            raise NoAnswer(listener.silence())
        else:
            sys.stderr.write(f"{args.watch} silent for {args.period:g} s\n")
            screen.keep()
        if args.once:
            return 0


def describe_message(stream: Stream, message: Message) -> dict[str, Any]:
    """Header and fields of one message by name; of an image or a latent its statistics."""
    header = message.header
    facts: dict[str, Any] = {
        "sequence": header.sequence,
        "instance_id": f"{header.instance_id:016x}",
        "flags": header.flags,
        "capture_ns": header.capture_ns,
        "publish_ns": header.publish_ns,
    }
    if stream.fields:
        fields = unpack(stream, message.payload)
        return facts | {name: _rounded(values) for name, values in fields.items()}
    payload = message.payload
    return facts | {
        "elements": payload.size,
        "min": round(float(payload.min()), 5),
        "mean": round(float(payload.mean()), 5),
        "max": round(float(payload.max()), 5),
        "zeros": int((payload == 0).sum()),
    }


def _rounded(values: np.ndarray) -> list[float] | float:
    plain = [round(float(value), 5) for value in values]
    return plain[0] if len(plain) == 1 else plain


def _readable(value: object) -> str:
    if isinstance(value, list):
        return " ".join(f"{number:8.3f}" for number in value)
    return str(value)
